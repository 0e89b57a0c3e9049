"""The walk over a flat file of token ids: each sample is a stretch of it, with the offsets that a member of a tar has.

    file > its layout (kind) > rows at fixed steps, named STEM:ORDINAL > the rest, which is counted and left out

Behind the walk nothing differs: a part holds offset and size of each row, and the stream reads by these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from rhostream.errors import ShardError
from rhostream.foreign import MAX_SAMPLES
from rhostream.samples.flat import BEGINNING, FLAT, BadLayout, Flat, is_flat
from rhostream.storage import redact
from rhostream.stream.batch import Batch
from rhostream.stream.windows import Windows


class FlatWalk:
    """Walks an open flat file once, as `TarWalk` does a tar: `batches`, and counters that are final at their end.

    What fills no sample at the end, `rest` ids, is one member that is seen and ignored. Raises ShardError (while
    iterating) for a file whose layout can't be.
    """

    pickles = links = several = 0
    missing_eof = False

    def __init__(self, reader: Windows, shard: str, flat: Flat, extension: str) -> None:
        self._source, self._shard, self._flat, self._extension = reader, shard, flat, extension
        self.members_seen = self.members_ignored = self.samples_seen = self.rest = 0

    def batches(self, rows: int) -> Iterator[Batch]:
        """The samples, `rows` at a time."""
        where, size = f"shard {redact(self._shard)}", self._source.size
        if not is_flat(self._shard):
            raise ShardError(
                f"{where}: samples are cut from flat files of ids here ({', '.join(FLAT)}), and this is none"
            )
        try:
            layout = self._flat.layout(self._source.pread(min(size, BEGINNING), 0), size)
        except BadLayout as bad:
            raise ShardError(f"{where} {bad}") from None
        if layout.samples > MAX_SAMPLES:
            raise ShardError(f"{where} holds {layout.samples:,} samples, at most {MAX_SAMPLES:,} are read: cut it")
        stem = PurePosixPath(self._shard).stem.encode("utf-8", "backslashreplace")
        step = self._flat.length * layout.width
        for first in range(0, layout.samples, rows):
            n = min(rows, layout.samples - first)
            self.samples_seen += n
            self.members_seen += n
            yield Batch(
                key=[b"%s:%d" % (stem, ordinal) for ordinal in range(first, first + n)],
                first=list(range(n)),
                main=list(range(n)),
                json=[-1] * n,
                cls=[None] * n,
                extension=[self._extension] * n,
                offset=list(range(layout.start + first * step, layout.start + (first + n) * step, step)),
                size=[step] * n,
            )
        if layout.rest:
            self.rest, self.members_ignored = layout.rest, 1
            self.members_seen += 1
        self._source.at(size - 1)  # so that every byte has passed, and is in the hash
