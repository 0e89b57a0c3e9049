"""The vectors of the table's reference, brought to the pairs of a buffer."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

import numpy as np
import numpy.typing as npt

from rhostream.candidates import CANDIDATE
from rhostream.errors import TableError, UsageError
from rhostream.storage import redact
from rhostream.stream.join import Joined
from rhostream.tables import il
from rhostream.tables.vectors import VectorsReader


def width_of(table: il.Table) -> int:
    """D of a table's vectors, by the first shard that has any. Raises UsageError for a table without, TableError."""
    for name in islice(table.names, 64):
        facts = il.read_part_facts(il.part_url(table.url, name))
        if not facts.vectors:
            break
        with VectorsReader(table.url, facts) as reader:
            if reader.info.width:
                return reader.info.width
    raise UsageError(
        f"{redact(table.url)} has no vectors, which this rule chooses pairs by: make a table with compute-il --vectors"
    )


class Vectors:
    """Files of vectors held open while buffers need their shards. `open_files` bounds them."""

    def __init__(self, table: il.Table, width: int, open_files: int) -> None:
        self._table, self._width, self._most = table, width, open_files
        self._readers: OrderedDict[int, VectorsReader] = OrderedDict()

    def fill(self, joined: Joined, out_BK: npt.NDArray[np.float32]) -> None:
        """Those of the candidates into (B, 2 D + 2), as a model of pairs gives them; NaN elsewhere.

        Raises TableError for vectors that are cut, damaged or of another making.
        """
        out_BK[:] = np.nan
        rows, shard = np.flatnonzero(joined.reason == CANDIDATE), joined.rows.shard
        for some in np.split(rows, np.flatnonzero(np.diff(shard[rows])) + 1) if len(rows) else ():
            reader = self._reader(int(shard[some[0]]))
            if reader.info.width:
                out_BK[some] = reader.read(joined.rows.ordinal[some])
        for left in self._readers.keys() - {*shard.tolist()}:
            self._readers.pop(left).close()

    def _reader(self, shard: int) -> VectorsReader:
        reader = self._readers.pop(shard, None)
        if reader is None:
            while len(self._readers) >= self._most:
                self._readers.popitem(last=False)[1].close()
            facts = il.read_part_facts(self._table.part_url(shard))
            reader = VectorsReader(self._table.url, facts)
            if reader.info.width not in (0, self._width):
                raise TableError(
                    f"{redact(reader.url)} has vectors of {reader.info.width} numbers, those of other shards of its "
                    f"table have {self._width}"
                )
        self._readers[shard] = reader
        return reader

    def close(self) -> None:
        """Close every file."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
