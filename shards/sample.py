"""What a recipe gives and the writer takes: a set of samples whose members are made one at a time.

A recipe is a function that returns a `SampleSet`. It decides everything when it is called (which samples, in
which order, with which labels) and encodes nothing until the writer asks, so mistakes stop before any work.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rhostream.errors import UsageError

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
FORMAT_OF = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample as it will lie in the tar: `key.<extension>`, `key.cls` (label), `key.json` (facts)."""

    key: str
    label: int
    extension: str
    content: bytes
    """An image file, or UTF-8 text where the extension is txt."""
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """N samples in their final order; `load` and `pixels` take a row in [0, N) and are pure."""

    split: str
    """The shards are named `<split>-000000.tar` and so on."""
    labels: Ints
    """(N,) what the `.cls` members will say."""
    class_names: tuple[str, ...]
    load: Callable[[int], Sample]
    pixels: Callable[[int], Pixels] | None
    """The decoded image of a row, (H, W) grey or (H, W, 3) RGB; None for text."""
    truth: Ints | None = None
    """(N,) the true labels, -1 where nobody knows; None: `labels` are true."""
    confused: tuple[tuple[int, int], ...] = ()
    """Classes that people take for each other, (true, mistaken): the default of structured noise."""
    notes: tuple[str, ...] = ()
    """What the summary should say about the source, such as files that were left out."""

    def __len__(self) -> int:
        return len(self.labels)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The randomness of one purpose: drawing more for one never shifts another."""
    if seed < 0:
        raise UsageError(f"seed {seed}, expected 0 or more")
    return np.random.default_rng([seed, *purpose.encode()])


def seeded_rows(count: int, *, limit: int | None, skip: int, seed: int) -> Ints:
    """`limit` of `count` rows (None: all that are left) after the first `skip` of an order fixed by `seed`.

    Ascending. Subsets of one seed are nested, and (skip=n) is disjoint from (limit=n): a holdout is one more
    command.
    """
    wanted = max(count - skip, 0) if limit is None else limit
    if skip < 0 or wanted < 1 or skip + wanted > count:
        raise UsageError(
            f"limit {wanted:,} after skip {skip:,} asks for {skip + wanted:,} samples, expected 1 to the "
            f"{count:,} of the source; lower --limit or --skip"
        )
    return np.sort(generator(seed, "limit").permutation(count)[skip : skip + wanted])


def encode(pixels: Pixels, extension: str) -> bytes:
    """The bytes of an image file; PNG at the fastest level, since small images hardly shrink further."""
    out = io.BytesIO()
    options: dict[str, Any] = {"compress_level": 1} if extension == "png" else {"quality": 90}
    Image.fromarray(pixels).save(out, FORMAT_OF[extension], **options)
    return out.getvalue()
