"""A test set out of a set: the same share of every class, drawn by seed, and no copy of a file on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhostream.errors import UsageError
from rhostream.making.sample import Ints
from rhostream.randomness import generator

BEGINNING = 4096  # bytes that tell most files of one size apart


@dataclass(frozen=True)
class Split:
    """Rows of either side, each in an order drawn by seed."""

    train: Ints
    test: Ints


def split(classes: Ints, copy_of: Ints, fraction: float, seed: int) -> Split:
    """Put about `fraction` of each class into the test set, at least one sample of a class of two or more files.

    `classes`: (N,); `copy_of`: (N,) the first row with the same bytes. Rows of one `copy_of` go to one side.
    """
    rng, test = generator("shards", seed), np.zeros(len(classes), bool)
    groups = defaultdict[int, list[int]](list)
    for row, first in enumerate(copy_of.tolist()):
        groups[first].append(row)
    for label in np.unique(classes).tolist():
        own = [first for first in groups if classes[first] == label]
        rows, taken = int((classes == label).sum()), 0
        wanted = max(1, round(fraction * rows)) if fraction > 0 and len(own) > 1 else 0
        drawn = [own[i] for i in rng.permutation(len(own)).tolist()]
        for first in drawn:
            if taken + len(groups[first]) <= wanted:
                test[groups[first]] = True
                taken += len(groups[first])
        if wanted and not taken:  # all of its files have more copies than that
            test[groups[min(drawn, key=lambda first: len(groups[first]))]] = True
    order = rng.permutation(len(classes))
    return Split(order[~test[order]], order[test[order]])


def copies(files: Sequence[Path], sizes: Sequence[int]) -> Ints:
    """(N,) of each file the first one with the same bytes: only files of one size are read.

    Raises UsageError for a file that can't be read.
    """
    found = np.arange(len(files))
    for rows in _apart(range(len(files)), lambda row: sizes[row]):
        for alike in _apart(rows, lambda row: _digest(files[row], BEGINNING)):
            for same in _apart(alike, lambda row: _digest(files[row], None)):
                found[same] = same[0]
    return found


def _apart(rows: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The groups of two or more rows of one key."""
    groups = defaultdict[Hashable, list[int]](list)
    for row in rows:
        groups[key(row)].append(row)
    return [group for group in groups.values() if len(group) > 1]


def _digest(file: Path, most: int | None) -> bytes:
    try:
        with file.open("rb") as data:
            if most is not None:
                return hashlib.blake2b(data.read(most)).digest()
            return hashlib.file_digest(data, "blake2b").digest()
    except OSError as exc:
        raise UsageError(f"can't read {file}: {exc.strerror}") from exc
