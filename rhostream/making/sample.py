"""What a source gives and the writer takes: a set of samples whose members are made one at a time.

Whoever makes a `SampleSet` decides everything then (which samples, in which order, with which labels) and encodes
nothing until the writer asks, so mistakes stop before any work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
FORMAT_OF = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample as it will lie in the tar: `key.<extension>`, `key.cls` (label), `key.json` (facts).

    A pair has a `caption`, `key.txt`, and no label (-1), so no `key.cls`."""

    key: str
    label: int
    extension: str
    content: bytes
    """An image file, or UTF-8 text where the extension is txt."""
    facts: dict[str, Any]
    caption: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """N samples in their final order; `load` and `pixels` take a row in [0, N) and are pure."""

    split: str
    """The shards are named `<split>-000000.tar` and so on."""
    labels: Ints
    """(N,) what the `.cls` members will say; -1 for pairs."""
    class_names: tuple[str, ...]
    """The name of each label; none for pairs."""
    load: Callable[[int], Sample]
    pixels: Callable[[int], Pixels] | None
    """The decoded image of a row, (H, W) grey or (H, W, 3) RGB; None for text."""
    truth: Ints | None = None
    """(N,) the true labels, -1 where nobody knows; None: `labels` are true."""
    confused: tuple[tuple[int, int], ...] = ()
    """Classes that people take for each other, (true, mistaken): the default of structured noise."""
    sizes: Ints | None = None
    """(N,) bytes of each sample's content, where they are known before it is read."""
    notes: tuple[str, ...] = ()
    """What the summary should say about the source, such as files that were left out."""

    def __len__(self) -> int:
        return len(self.labels)
