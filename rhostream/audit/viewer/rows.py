"""The rows of a run's log as columns in memory: blocks that only grow, of proved segments, 33 bytes a row.

Who reads takes `snapshot()`: blocks and how many rows of each count. Rows that come later lie behind these, and rows
that no longer count (of a branch that was superseded) go by making new blocks, so that a reader needs no lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.reasons import Reason
from rhostream.tables.merged import read_part

Array = npt.NDArray[Any]
BLOCK = 1 << 18  # rows
# What a segment gives. Keys stay on disk: a row is named by its shard and its ordinal.
DTYPES: Mapping[str, type] = {
    "il": np.float32, "loss": np.float32, "score": np.float32, "step": np.int32, "pass": np.int32, "label": np.int32,
    "reason": np.uint8, "shard": np.int32, "ordinal": np.int32,
}  # fmt: skip
VALUES = ("il", "loss", "score")  # nats; NaN where there is none, and where it is infinite
NONE = -1  # a label or a step that isn't there
REASONS = (*(reason.name for reason in Reason), "other")  # by number; `other`: of a later version
_REASON_OF = {name: number for number, name in enumerate(REASONS)}


@dataclass
class Block:
    """Up to `BLOCK` rows; `coded` is for who counts them (see `crossfilter`)."""

    columns: dict[str, Array]
    segments: list[tuple[str, int, int]] = field(default_factory=list)  # path, first row of it here, first behind it
    rows: int = 0
    coded: dict[str, tuple[Any, int, Array]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Block:
        """A block that has room for `BLOCK` rows."""
        return cls({name: np.empty(BLOCK, dtype) for name, dtype in DTYPES.items()})


@dataclass(frozen=True)
class Snapshot:
    """The rows of a run that count now: the first `rows` of each block."""

    blocks: Sequence[tuple[Block, int]]
    rows: int
    generation: int  # another one whenever rows went; rows that come lie behind those which are there
    last_step: int  # NONE where no row has a step
    labels: int  # the highest label + 1
    sizes: Array  # by shard: the highest ordinal + 1


class Shards:
    """Names of shards by number, shared by all runs of a page."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def numbers(self, names: Sequence[str]) -> Array:
        """Their numbers, int32."""
        for name in names:
            if name not in self._numbers:
                self._numbers[name] = len(self.names)
                self.names.append(name)
        return np.array([self._numbers[name] for name in names], np.int32)

    def number(self, name: str) -> int:
        """Its number, NONE where no loaded row is of it."""
        return self._numbers.get(name, NONE)


class RunRows:
    """The loaded rows of one run; one thread adds and drops, any may take snapshots."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._blocks: list[Block] = []
        self._loaded: set[str] = set()
        self._last_step, self._labels, self._sizes = NONE, 0, np.zeros(0, np.int64)
        self._generation = 0
        self._snapshot = Snapshot((), 0, 0, NONE, 0, self._sizes)

    def snapshot(self) -> Snapshot:
        """The rows as they are now."""
        return self._snapshot

    @property
    def loaded(self) -> frozenset[str]:
        """Paths of the segments that are in."""
        return frozenset(self._loaded)

    def add(self, path: str, columns: Mapping[str, Array]) -> None:
        """The rows of one more segment."""
        self._append(path, columns)
        self._publish()

    def rename(self, path: str, parts: Collection[str]) -> None:
        """A segment took the place of these, which hold the same rows."""
        self._loaded = {path} | (self._loaded - {*parts})
        for block in self._blocks:
            block.segments = [(path if old in parts else old, first, end) for old, first, end in block.segments]

    def drop(self, paths: Collection[str]) -> None:
        """The rows of these segments count no more."""
        if not self._loaded & {*paths}:
            return
        before, self._blocks, self._loaded = self._blocks, [], self._loaded - {*paths}
        self._generation += 1
        self._last_step, self._labels, self._sizes = NONE, 0, np.zeros(0, np.int64)
        for block in before:
            for path, first, end in block.segments:
                if path not in paths:
                    self._append(path, {name: column[first:end] for name, column in block.columns.items()})
        self._publish()

    def _append(self, path: str, columns: Mapping[str, Array]) -> None:
        self._loaded.add(path)
        rows, at = len(columns["step"]), 0
        while at < rows:
            if not self._blocks or self._blocks[-1].rows == BLOCK:
                self._blocks.append(Block.empty())
            block = self._blocks[-1]
            count = min(BLOCK - block.rows, rows - at)
            for name, column in block.columns.items():
                column[block.rows : block.rows + count] = columns[name][at : at + count]
            block.segments.append((path, block.rows, block.rows + count))
            block.rows, at = block.rows + count, at + count
        if rows:
            self._last_step = max(self._last_step, int(columns["step"].max()))
            self._labels = max(self._labels, int(columns["label"].max()) + 1)
            sizes = np.zeros(len(self._shards.names), np.int64)
            sizes[: len(self._sizes)] = self._sizes
            np.maximum.at(sizes, columns["shard"], columns["ordinal"].astype(np.int64) + 1)
            self._sizes = sizes

    def _publish(self) -> None:
        blocks = tuple((block, block.rows) for block in self._blocks)
        self._snapshot = Snapshot(
            blocks,
            sum(rows for _, rows in blocks),
            self._generation,
            self._last_step,
            self._labels,
            self._sizes,
        )


def read_segment(run: str, record: Mapping[str, Any], shards: Shards) -> dict[str, Array]:
    """The columns of a committed segment of the log, each byte proved. Raises TableError naming the file."""
    table = read_part(run, record, [*DTYPES])[0].combine_chunks()
    columns = {name: _values(table.column(name)) for name in VALUES}
    for name in ("step", "pass", "label", "ordinal"):
        column = table.column(name)
        plain = column.fill_null(NONE) if column.null_count else column
        columns[name] = plain.to_numpy().astype(DTYPES[name])
    names, at = _dictionary(table.column("reason"))
    columns["reason"] = np.array([_REASON_OF.get(name, len(REASONS) - 1) for name in names], np.uint8)[at]
    names, at = _dictionary(table.column("shard"))
    columns["shard"] = shards.numbers(names)[at]
    return columns


def _values(column: pa.ChunkedArray) -> Array:
    values: Array = column.to_numpy()
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, np.float32(np.nan))


def _dictionary(column: pa.ChunkedArray) -> tuple[list[str], Array]:
    whole = column.combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) and whole.num_chunks else whole
    if isinstance(whole, pa.ChunkedArray):  # no rows at all
        return [], np.zeros(0, np.intp)
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy(zero_copy_only=False)
