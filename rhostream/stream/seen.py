"""Which keys of a shard came before: exact, in a tenth of a set's memory while keys ascend, as writers make them."""

from __future__ import annotations

from itertools import islice
from operator import lt

import pyarrow as pa

_NONE: frozenset[int] = frozenset()


class Seen:
    """The keys of one shard so far.

    A set takes a hundred bytes a key, a gigabyte for ten million. Ascending keys can't repeat, so they are only kept,
    packed, in case that one of a later chunk doesn't ascend: then the set is made of them.
    """

    def __init__(self) -> None:
        self._ascending: list[pa.BinaryArray] = []
        self._last: bytes | None = None
        self._set: set[bytes] | None = None

    def repeated(self, keys: list[bytes]) -> frozenset[int]:
        """Positions in `keys` of those that came before, in this call or an earlier one; all are remembered."""
        if self._set is None:
            first = self._last is None or not keys or keys[0] > self._last
            if first and all(map(lt, keys, islice(keys, 1, None))):
                self._last = keys[-1] if keys else self._last
                self._ascending.append(pa.array(keys, pa.binary()))
                return _NONE
            self._set = {key for chunk in self._ascending for key in chunk.to_pylist()}
            self._ascending = []
        own = set(keys)
        if len(own) == len(keys) and self._set.isdisjoint(own):
            self._set |= own
            return _NONE
        again = set()
        for row, key in enumerate(keys):
            if key in self._set:
                again.add(row)
            self._set.add(key)
        return frozenset(again)
