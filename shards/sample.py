"""What a recipe gives and the writer takes: a set of samples whose members are made one at a time.

A recipe is a function that returns a `SampleSet`. It decides everything when it is called (which samples, in
which order, with which labels) and encodes nothing until the writer asks, so mistakes stop before any work.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from rhostream.errors import UsageError
from rhostream.making.sample import FORMAT_OF, Ints, Pixels, Sample, SampleSet

__all__ = ["FORMAT_OF", "Ints", "Pixels", "Sample", "SampleSet", "encode", "generator", "seeded_rows"]


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
