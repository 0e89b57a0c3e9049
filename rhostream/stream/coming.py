"""The shards that a stream enters next and their parts of the table, brought from their stores meanwhile."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial

from rhostream import storage
from rhostream.tables import il


class Coming:
    """Of one table: shards by their index in it, into the spool, and the bytes of their parts."""

    def __init__(self, table: il.Table) -> None:
        self._table = table
        self._shards = storage.ReadAhead(storage.spooled)
        self._parts = storage.ReadAhead(partial(storage.read_bytes, tries=1))

    def want(self, shards: Iterable[int], open_shards: Container[int], open_parts: Container[int]) -> None:
        """Bring these, the most urgent first, but what is open already."""
        shards = list(shards)
        self._parts.want([self._table.part_url(n) for n in shards if n not in open_parts])
        self._shards.want([self._table.shards[n] for n in shards if n not in open_shards])

    def shard(self, shard: int) -> storage.SpooledReader | None:
        """The shard, open, when it was brought; for whoever asks first."""
        return self._shards.take(self._table.shards[shard])

    def part(self, shard: int) -> bytes | None:
        """The bytes of its part, when they were brought; for whoever asks first."""
        return self._parts.take(self._table.part_url(shard))

    def close(self) -> None:
        """Forget what is wanted."""
        self._shards.close()
        self._parts.close()
