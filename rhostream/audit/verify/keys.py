"""Keys that come more than once, or differ only in case or in their Unicode form, found in bounded memory.

Each key is 12 bytes, a 64-bit hash and the number of its part (28 where folding changes the key). Beyond `memory`
they go to 64 files by their hash, below the folder for temporary files, and one of these is in memory at a time. Two
keys that share a hash would be counted as one: at 1e8 keys that happens once in some 4,000 tables. What is listed is
compared by the keys themselves.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MEMORY = 64 << 20  # bytes, for each of the two kinds of rows
BATCH = 1 << 16  # keys hashed at a time
_BITS = 6  # of a hash: the number of its file
_KEY = np.dtype([("hash", "<u8"), ("part", "<u4")])
_FOLDED = np.dtype([("hash", "<u8"), ("part", "<u4"), ("own", "<u8")])  # by the folded key; `own` of the key itself
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Repeated:
    """A hash that came more than once, and in which parts (the first few of `parts`)."""

    hash: int
    numbers: list[int]
    parts: int


@dataclass
class Found:
    """What came out: keys in several parts, keys twice in one part, keys that are alike but for case or form."""

    across: int = 0
    within: list[int] = field(default_factory=list)  # parts in which a key seems to be twice
    alike: int = 0
    first: list[Repeated] = field(default_factory=list)


class Keys:
    """Takes the keys of parts in their order; use as a context manager."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._con = duckdb.connect(":memory:", config={"python_enable_replacements": False, "threads": 1})
        self._waiting: list[tuple[int, pa.StringArray]] = []
        self._count = 0
        self._key, self._folded = _Store(_KEY, memory), _Store(_FOLDED, memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._con.close()
        self._key.close()
        self._folded.close()

    def add(self, part: int, keys: pa.StringArray) -> None:
        """The keys of part number `part`, those left out that are quarantined as duplicates already."""
        self._waiting.append((part, keys))
        self._count += len(keys)
        if self._count >= BATCH:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._count = self._waiting, [], 0
        keys = pa.chunked_array([k for _, k in waiting], pa.string())
        part = np.repeat([n for n, _ in waiting], [len(k) for _, k in waiting]).astype(np.uint32)
        own = self.hashes(keys)
        self._key.add(_rows(_KEY, hash=own, part=part))
        folded = fold(keys)
        changed = np.flatnonzero(pc.not_equal(folded, keys).to_numpy(zero_copy_only=False))
        if len(changed):
            again = self.hashes(folded.take(pa.array(changed)))
            self._folded.add(_rows(_FOLDED, hash=again, part=part[changed], own=own[changed]))

    def hashes(self, keys: pa.ChunkedArray | pa.StringArray) -> npt.NDArray[np.uint64]:
        """The hash of each key; good for the life of this object."""
        self._con.register("batch", pa.table({"key": keys}))
        found: npt.NDArray[np.uint64] = self._con.sql("SELECT hash(key) AS h FROM batch").fetchnumpy()["h"]
        self._con.unregister("batch")
        return found

    def found(self, first: int) -> Found:
        """All that repeats, with the `first` repeated keys in the order of their parts."""
        if self._waiting:
            self._flush()
        found, within, candidates = Found(), set[int](), list[tuple[int, Repeated]]()
        spilled = self._key.spilled or self._folded.spilled
        pieces = zip(self._key.pieces(spilled), self._folded.pieces(spilled), strict=True)
        for keys, folded in pieces:
            keys = keys[np.argsort(keys["hash"], kind="stable")]
            same = (keys["hash"][1:] == keys["hash"][:-1]) & (keys["part"][1:] == keys["part"][:-1])
            within.update(np.unique(keys["part"][1:][same]).tolist())
            starts, ends = _repeats(keys["hash"])
            several = keys["part"][starts] != keys["part"][ends - 1]  # stable: the parts of a key stand in order
            found.across += int(several.sum())
            starts, ends = starts[several], ends[several]
            early = np.argsort(keys["part"][starts], kind="stable")[:first]
            for i in early:  # copied: a view would keep all of this piece
                parts = np.unique(keys["part"][starts[i] : ends[i]])
                own = Repeated(int(keys["hash"][starts[i]]), parts[:5].tolist(), len(parts))
                candidates.append((int(parts[0]), own))
            found.alike += _alike(folded, keys["hash"])
        found.within = sorted(within)
        found.first = [own for _, own in sorted(candidates, key=lambda c: (c[0], c[1].hash))[:first]]
        return found


def fold(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys in lower case and composed form (NFC)."""
    lower = pc.utf8_lower(keys)
    return lower if pc.all(pc.string_is_ascii(lower)).as_py() in (True, None) else pc.utf8_normalize(lower, form="NFC")


def _rows(dtype: np.dtype[np.void], **columns: npt.NDArray[Any]) -> Rows:
    rows = np.empty(len(columns["hash"]), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows


def _repeats(values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where the runs of equal values longer than one begin and end, in a sorted array."""
    if not len(values):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    longer = np.diff(edges) > 1
    return edges[:-1][longer], edges[1:][longer]


def _alike(folded: Rows, known: npt.NDArray[np.uint64]) -> int:
    """How many folded keys stand for more than one key; `known` are the hashes of all keys, sorted."""
    if not len(folded):
        return 0
    pairs = np.unique(folded[["hash", "own"]])
    groups, spellings = np.unique(pairs["hash"], return_counts=True)
    at = np.minimum(np.searchsorted(known, groups), max(len(known) - 1, 0))
    # A key that folding leaves alone is one more spelling of its group.
    itself = known[at] == groups if len(known) else np.zeros(len(groups), bool)
    return int((spellings + itself > 1).sum())


class _Store:
    """Rows with a hash: in memory, and beyond a bound in files by the first bits of their hash."""

    def __init__(self, dtype: np.dtype[np.void], memory: int) -> None:
        self._dtype, self._memory = dtype, memory
        self._rows: list[Rows] = []
        self._bytes = 0
        self._folder: Path | None = None

    @property
    def spilled(self) -> bool:
        return self._folder is not None

    def add(self, rows: Rows) -> None:
        self._rows.append(rows)
        self._bytes += rows.nbytes
        if self._bytes > self._memory:
            self._spill()

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rhostream-keys-"))
        for rows in self._rows:
            number = rows["hash"] >> np.uint64(64 - _BITS)
            order = np.argsort(number, kind="stable")
            bounds = np.searchsorted(number[order], np.arange((1 << _BITS) + 1))
            for at, (start, stop) in enumerate(pairwise(bounds.tolist())):
                if stop > start:
                    with open(self._folder / f"{at}", "ab") as file:
                        file.write(rows[order[start:stop]].tobytes())
        self._rows, self._bytes = [], 0

    def pieces(self, by_hash: bool) -> Iterator[Rows]:
        """All rows: at once, or the 64 parts of the hashes one by one."""
        if not by_hash:
            yield np.concatenate(self._rows) if self._rows else np.empty(0, self._dtype)
            return
        self._spill()
        assert self._folder is not None
        for at in range(1 << _BITS):
            path = self._folder / f"{at}"
            yield np.fromfile(path, self._dtype) if path.exists() else np.empty(0, self._dtype)

    def close(self) -> None:
        self._rows = []
        if self._folder is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._folder)
