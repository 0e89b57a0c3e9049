"""Samples whose members don't lie next to each other in the tar, as `tar cf x.tar FOLDER` leaves them.

A tar is read once, in its order, so what comes later under a key that has ended is a row of its own (status `dup`),
and the row before it lacks a member. Whether such a row is the rest of a sample or a sample that repeats is told by its
members: the rest of one brings others than were there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from operator import sub

from rhostream.inert import escape
from rhostream.samples.statuses import NEIGHBOURS
from rhostream.storage import redact
from rhostream.stream.batch import Batch

MOST = 1 << 20  # keys that are remembered
REPEATED = "the key came before in this shard; the first one counts"
REST = (
    "the key came before in this shard: sort the tar by name, so that a sample's members adjoin; the first one counts"
)


class Apart:
    """The samples of one shard whose members lie apart. `alone`: a sample may well have one member and no more."""

    def __init__(self, alone: bool = False) -> None:
        self.samples = 0
        self._alone, self._first, self._last = alone, "", b""
        self._members: dict[bytes, frozenset[str]] = {}  # of keys whose first row has one member
        self._counted = set[bytes]()

    def reasons(self, batch: Batch, again: Set[int], main: Sequence[int]) -> Mapping[int, str]:
        """Why each of the rows `again`, whose keys came before, is no sample. `main`: the image (or text) of each row,
        -1 where it has none. To be called with every batch of a shard in their order.
        """
        self._remember(batch, again)
        found: dict[int, str] = {}
        for row in sorted(again):
            key, before = batch.key[row], batch.key[row - 1] if row else self._last
            rest = before != key and self._is_rest(batch, row, main[row])
            found[row] = REST if rest else REPEATED
            if rest and key not in self._counted and len(self._counted) < MOST:
                self._first = self._first or key.decode("utf-8", "backslashreplace")
                self._counted.add(key)
                self.samples += 1
        self._last = batch.key[-1] if batch.key else self._last
        return found

    def says(self, shard: str) -> str:
        """A sentence, "" where nothing lies apart."""
        if not self.samples:
            return ""
        return (
            f"members of {self.samples:,} samples lie apart in {redact(shard)} (first key "
            f"'{escape(self._first[-60:])}'): {NEIGHBOURS}"
        )

    def _is_rest(self, batch: Batch, row: int, main: int) -> bool:
        own, key = frozenset(extension for extension, _, _ in batch.members(row)), batch.key[row]
        if (there := self._members.get(key)) is None:
            return main < 0 and bool(own)
        if not own or own & there:
            return False
        self._members[key] = there | own
        return True

    def _remember(self, batch: Batch, again: Set[int]) -> None:
        ends = [*batch.first[1:], len(batch.size)]
        if self._alone or 1 not in map(sub, ends, batch.first) or len(self._members) >= MOST:
            return
        for row, (start, end) in enumerate(zip(batch.first, ends, strict=True)):
            if end - start == 1 and row not in again:
                self._members[batch.key[row]] = _ALONE.setdefault(
                    batch.extension[start], frozenset((batch.extension[start],))
                )


_ALONE: dict[str, frozenset[str]] = {}  # one object for each extension: a shard may have millions of such rows
