"""The bytes of samples as they lie in their shards, found by shard and ordinal through the parts of an IL table.

One shard is open at a time, so who asks in the order of shards reads each once, from its beginning on. What can't be
had is an error that names it, and nobody waits for the same shard twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from rhostream import storage
from rhostream.audit.views import Ledger
from rhostream.errors import (
    MissingPartError,
    NotFoundError,
    RhostreamError,
    ShardError,
    StorageError,
    TableError,
    UsageError,
)
from rhostream.samples.flat import is_flat
from rhostream.storage import Reader
from rhostream.stream.windows import Windows
from rhostream.tables import il, parquet

MOST = 1 << 30  # bytes of a member that is held in memory
LOST = 3  # shards that can't be had, none before them that could, after which a place is called lost


class OpenShard:
    """One shard with its part: where the members of its samples lie, and their bytes. `reader` is of the whole tar."""

    def __init__(self, name: str, reader: Reader, rows: pa.Table, facts: il.PartFacts) -> None:
        self.name, self.facts, self.reader = name, facts, Windows(reader)
        self._opened, self._keys = reader, rows["key"].to_pylist()
        held = rows["members"].combine_chunks()  # lists of (extension, offset, size), flat: an object a row is slow
        self._ends = held.offsets.to_numpy()
        names = ("ext", "offset", "size")
        self._flat = [tuple(held.values.field(name).to_pylist()) for name in names]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, ordinal: int) -> str:
        """Of the sample of that ordinal. Raises ShardError where the shard has none."""
        if not 0 <= ordinal < len(self):
            raise ShardError(f"shard {self.name} has {len(self):,} samples, and no ordinal {ordinal:,}")
        key: str = self._keys[ordinal]
        return key

    def members(self, ordinal: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member that the part knows of. Raises ShardError."""
        key = self.key(ordinal)
        if self.facts.compression:
            raise ShardError(
                f"shard {self.name} is {self.facts.compression}-compressed, and samples are read by offset: decompress "
                "it, and index that"
            )
        start, end = self._ends[ordinal], self._ends[ordinal + 1]
        if start == end:
            raise ShardError(f"shard {self.name}, ordinal {ordinal:,}: the part knows no member of {key[:80]!r}")
        return list(zip(*(column[start:end] for column in self._flat), strict=True))

    def member(self, ordinal: int, extensions: tuple[str, ...]) -> tuple[str, bytes]:
        """Extension and bytes of the sample's first member that has one of these. Raises ShardError, StorageError."""
        for extension, offset, size in self.members(ordinal):
            if extension in extensions:
                return extension, self.bytes_at(ordinal, offset, size)
        raise ShardError(f"shard {self.name}, ordinal {ordinal:,}: it has no member {' or '.join(extensions)}")

    def bytes_at(self, ordinal: int, offset: int, size: int) -> bytes:
        """The bytes of a member, all of them. Raises ShardError where the shard hasn't got them."""
        if offset < 0 or not 0 <= size <= min(MOST, self.reader.size - offset):
            raise ShardError(f"shard {self.name}, ordinal {ordinal:,}: no member of {size:,} bytes can be read there")
        try:
            data = self.reader.pread(size, offset)
        except OSError as exc:
            raise ShardError(f"shard {self.name}, ordinal {ordinal:,}: {exc.strerror or type(exc).__name__}") from exc
        if len(data) != size:
            raise ShardError(f"shard {self.name}, ordinal {ordinal:,}: it ends within a member of {size:,} bytes")
        return data

    def close(self) -> None:
        self._opened.close()


class SampleBytes:
    """The shards of a ledger's table, opened one after the other; a context manager.

    Raises UsageError for a ledger without one table, or whose table is gone.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self.table = ledger, ledger.table_url
        self.info = _info_of(self.table)
        self._open: OpenShard | None = None
        self._failed: dict[str, RhostreamError] = {}
        self._had = False
        self.hopeless = False  # whether it makes no sense to ask for another one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the shard that is open."""
        if self._open is not None:
            self._open.close()
        self._open = None

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The members of a sample by name, with their extensions, as the table has them."""
        return self.info.named_members

    def shard(self, name: str) -> OpenShard:
        """The shard of that name. Raises RhostreamError in words: `hopeless` where it ends the work."""
        if self._open is not None and self._open.name == name:
            return self._open
        if name in self._failed:
            raise self._failed[name]
        if is_flat(name):
            self.hopeless = True
            raise UsageError(f"{name} is a flat file of ids: its samples have no members that could be taken elsewhere")
        self.close()
        try:
            self._open = self._opened(name)
        except (RhostreamError, OSError) as exc:
            error = exc if isinstance(exc, RhostreamError) else ShardError(f"shard {name}: {exc.strerror}")
            self._failed[name] = error
            if not self._had and len(self._failed) >= LOST:
                self.hopeless = True
                raise StorageError(f"none of the first {LOST} shards can be read: {error}") from exc
            raise error from exc
        self._had = True
        return self._open

    def _opened(self, name: str) -> OpenShard:
        part = il.part_url(self.table, name)
        try:
            rows, record = parquet.read(part, ("key", "ordinal", "members"))
        except NotFoundError as exc:
            raise MissingPartError(f"shard {name} has no part in {storage.redact(self.table)} any more") from exc
        facts, rows = il.facts_of(record, part), rows.sort_by("ordinal").combine_chunks()
        il.require_part_of(name, facts)
        if not np.array_equal(rows["ordinal"], np.arange(facts.samples)):
            raise TableError(f"{storage.redact(part)}: ordinals are not 0..{facts.samples - 1}, each once")
        try:
            reader = storage.open_reader(self._url(name))
        except NotFoundError as exc:
            raise NotFoundError(f"{exc}; say where the shards lie today with --root NAME=URL") from exc
        if reader.size != facts.shard_size:
            reader.close()
            raise ShardError(
                f"shard {name} has {reader.size:,} bytes, it had {facts.shard_size:,} when it was indexed: its offsets "
                "are worthless"
            )
        return OpenShard(name, reader, rows, facts)

    def _url(self, name: str) -> str:
        for run in self._ledger.runs:
            if run.il_url == self.table:
                return run.shard_url(name, self._ledger.roots)
        return il.shard_url(name, self.info, self._ledger.roots)


def _info_of(table: str) -> il.TableInfo:
    try:
        return il.open_info(table)
    except UsageError as exc:
        raise UsageError(
            f"the runs' IL table isn't at {storage.redact(table)} any more, and it says where samples lie in their "
            "shards: put it back there (or export the table's own folder, where it is today)"
        ) from exc
