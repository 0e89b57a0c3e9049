"""Kept samples decoded again: at full size where the stream decoded a cheap view, or augmented.

Decoding releases the interpreter's lock, so a few threads in the trainer's process do it; shards are opened as the
workers open them, with the same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from rhostream.samples.fields import Fields
from rhostream.samples.kind import OK, Kind, Row
from rhostream.selection.hardware import cores
from rhostream.stream.join import Join, Joined, JoinSettings
from rhostream.stream.slots import slots
from rhostream.tables import il

THREADS = 4
Draws = Callable[[str, int], np.random.Generator]  # (shard, ordinal) -> by what a sample is augmented


class FullSize:
    """Reads rows of joined buffers as `kind` decodes them."""

    def __init__(self, table: il.Table, kind: Kind, lanes: int) -> None:
        settings = JoinSettings(needs_il=False, keep_holdout=True, members=tuple(kind.members.values()))
        self._join, self._kind, self._names = Join(table, settings, open_shards=2 * lanes + 2), kind, table.names
        self._joined: Joined | None = None  # the buffer whose rows were read last, and their bytes
        self._members: dict[int, dict[str, bytes]] = {}
        self._pool = ThreadPoolExecutor(min(THREADS, cores()), "full-size")

    def __call__(
        self, joined: Joined, rows: npt.NDArray[np.int64], draws: Draws | None = None
    ) -> tuple[Fields, npt.NDArray[np.bool_]]:
        """The fields of n rows, and (n,) whether each row could be decoded. Raises as the stream does."""
        fields = {name: array[0] for name, array in slots(1, len(rows), self._kind.fields(), shared=False).items()}
        arrays = {name: array.numpy() for name, array in fields.items()}
        if joined is not self._joined:
            self._joined, self._members = joined, {}
        # Shards are opened and read here, one by one: readers aren't made for several threads.
        members = [self._members_of(joined, row) for row in rows.tolist()]
        out = [{name: array[at, ...] for name, array in arrays.items()} for at in range(len(rows))]
        rngs = [None if draws is None else draws(*self._identity(joined, row)) for row in rows.tolist()]
        ok = np.array([status == OK for status in self._pool.map(self._decode, members, out, rngs)], bool)
        return Fields(fields), ok

    def _decode(self, members: dict[str, bytes], out: dict[str, Row], rng: np.random.Generator | None) -> str:
        return self._kind.decode(members, out, None, rng)

    def _identity(self, joined: Joined, row: int) -> tuple[str, int]:
        return self._names[int(joined.rows.shard[row])], int(joined.rows.ordinal[row])

    def _members_of(self, joined: Joined, row: int) -> dict[str, bytes]:
        """The bytes of a row, read once: what a shortlist scored at full size may be kept, and augmented then."""
        if row not in self._members:
            reader = self._join.reader(int(joined.rows.shard[row]))
            self._members[row] = {
                name: reader.pread(int(joined.size[m, row]), int(joined.offset[m, row]))
                for m, name in enumerate(self._kind.members)
            }
        return self._members[row]

    def close(self) -> None:
        """Close the shards and end the threads."""
        self._pool.shutdown(wait=False)
        self._join.close()
