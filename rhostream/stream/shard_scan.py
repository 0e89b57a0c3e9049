"""One shard of a scan, from its first byte to its accounts: rows as the walk gives them, judged, then decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import ChangedError
from rhostream.samples.kind import OK
from rhostream.storage import RangeReader, Reader
from rhostream.stream.apart import Apart
from rhostream.stream.batch import Batch
from rhostream.stream.chunks import Chunk, End, ScanSettings
from rhostream.stream.columns import Columns
from rhostream.stream.flat import FlatWalk
from rhostream.stream.inflate import Inflated, plain
from rhostream.stream.lowest import Lowest, numbers
from rhostream.stream.seen import Seen
from rhostream.stream.small_members import Rows, SmallMembers
from rhostream.stream.tar import TarWalk
from rhostream.stream.windows import Windows
from rhostream.tables.il import KEEP_TYPES


class ShardScan:
    """One shard, from its first byte to its accounts."""

    def __init__(
        self,
        number: int,
        url: str,
        name: str,
        settings: ScanSettings,
        columns: Columns,
        lowest: Lowest | None = None,
        reader: Reader | None = None,
    ) -> None:
        self._number, self._url, self._name, self._settings, self._columns = number, url, name, settings, columns
        self._kind, self._lowest = settings.kind, lowest
        self._apart, self._seen = Apart(alone=not settings.needs_labels), Seen()
        self._reader = reader  # where it is open already

    def chunks(self) -> Iterator[Rows]:
        """Rows as they come, their labels read and their images not yet. Raises ShardError, StorageError."""
        self._reader = self._reader or storage.open_reader(self._url)
        self._identity = self._reader.version
        ranged, size = isinstance(self._reader, RangeReader), self._reader.size
        if self._settings.allow_compressed:
            self._reader = plain(self._reader, self._name)
        inflated = self._reader if isinstance(self._reader, Inflated) else None
        self._compression = "gzip" if inflated else ""
        self._source = Windows(self._reader, whole=inflated is None)
        self._small = SmallMembers(self._settings, self._columns, self._source, self._name)
        self._walk = self._walked(self._source)
        chunk = self._settings.chunk
        if self._lowest is not None:
            yield from self._drawn(chunk, self._lowest)
        else:
            start = 0
            for batch in self._walk.batches(chunk):
                crash_point("scan: rows read")
                yield self._small.examined(
                    batch, np.arange(start, start + len(batch), dtype=np.int32), self._repeats(batch)
                )
                start += len(batch)
        self._sha256 = inflated.sha256 if inflated else self._source.sha256()
        if not self._reader.unchanged() or size != self._identity.size or not (self._sha256 or ranged):
            raise self._changed()

    def _walked(self, source: Windows) -> TarWalk | FlatWalk:
        if self._kind.flat is not None:
            return FlatWalk(source, self._name, self._kind.flat, self._kind.main[0])
        label = self._settings.label
        return TarWalk(
            source,
            self._name,
            accept_missing_eof=self._settings.accept_missing_eof,
            label=label.member,
            label_bytes=label.max_bytes,
            members=tuple(self._kind.members.values()),
        )

    def changed(self) -> ChangedError | None:
        """Whether the shard is another one than was opened: then what was wrong with its bytes means nothing."""
        try:
            return None if self._reader is None or self._reader.unchanged() else self._changed()
        except OSError:
            return None

    def _changed(self) -> ChangedError:
        return ChangedError(f"shard {storage.redact(self._name)} changed its size while it was read; run again")

    def end(self) -> End:
        """The accounts of a shard that was read to its end."""
        seen, ignored, notes = self._walk.members_seen, self._walk.members_ignored, dict[str, str]()
        where = f"shard {storage.redact(self._name)}"
        if self._walk.pickles:
            notes["pickles"] = (
                f"{where} has {self._walk.pickles:,} members that other readers unpickle (.pkl, .pth "
                "and their like): they are never opened here"
            )
        if self._walk.missing_eof:
            notes["missing_eof"] = (
                f"{where} has no end marker and was accepted as whole (--accept-missing-eof): a "
                "tar cut between two members looks the same"
            )
        if self._walk.links:
            notes["links"] = (
                f"{where}: {self._walk.links:,} of its {seen:,} members are links, which are never "
                "followed: write it with `tar --dereference --hard-dereference`"
            )
        if self._walk.rest:
            notes["rest"] = f"{where}: its last {self._walk.rest:,} ids fill no sample and are left out"
        several, order = self._walk.several, self._kind.order
        if several:
            taken = f"the first of {', '.join(order)} that is there" if order else self._kind.first_of_several
            notes["several"] = f"{where}: {several:,} of its samples have several {self._kind.plural}; taken is {taken}"
        return End(
            shard=self._number,
            several_images=several,
            identity=self._identity,
            sha256=self._sha256,
            samples_seen=self._walk.samples_seen,
            members_seen=seen,
            members_used=seen - ignored,
            members_ignored=ignored,
            bad_fields={k: v for k, v in self._small.bad_fields.items() if v},
            watched=self._small.watched,
            labels=dict(self._small.labels),
            class_names=tuple(sorted(self._small.named.pairs)),
            compression=self._compression,
            notes=notes,
            apart=self._apart.samples,
            advice=self._advice(),
        )

    def _advice(self) -> dict[str, str]:
        # What lies apart has no label for that reason.
        says = {"apart": self._apart.says(self._name)}
        if not self._apart.samples:
            says["unlabelled"] = self._small.without_labels()
        return {kind: text for kind, text in says.items() if text}

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _drawn(self, chunk: int, lowest: Lowest) -> Iterator[Rows]:
        """The rows that may be of the sample; the labels of all others are counted too."""
        draw, start = numbers(self._settings.seed, self._name), 0
        for batch in self._walk.batches(chunk):
            n, again = len(batch), self._repeats(batch)
            number, may = draw.random(n), np.ones(n, bool)
            if (mark := self._settings.mark) is not None:
                for row, raw in enumerate(batch.key):
                    key = raw.decode("utf-8", "backslashreplace")
                    may[row] = mark(self._name, key, self._small.group(batch, row, key)) >= 0
            if self._settings.needs_labels:
                self._small.count_labels(batch, again)
            for rows in lowest.drawn(number, may):
                some = batch if len(rows) == n else Batch.of((batch, int(row)) for row in rows)
                repeats = {at: again[row] for at, row in enumerate(rows.tolist()) if row in again}
                examined = self._small.examined(some, (start + rows).astype(np.int32), repeats)
                examined.number = number[rows]
                yield examined
            start += n

    def _repeats(self, batch: Batch) -> Mapping[int, str]:
        """Rows whose key came before in this shard, and why they are no samples. To be asked of each batch once."""
        again = self._seen.repeated(batch.key)
        return self._apart.reasons(batch, again, batch.main)

    def finish(self, rows: Rows, slot: int, fields: Mapping[str, npt.NDArray[Any]]) -> Chunk:
        """Decode the usable rows into the slot's `fields` (rows, ...) and hand the chunk over; examined only where
        there are none."""
        batch, bad, kind = rows.batch, rows.bad, self._kind
        decode, pread, sizes, offsets = kind.decode, self._source.pread, batch.size, batch.offset
        arrays = tuple(fields.items())
        names, most, simple = tuple(kind.members), kind.max_bytes, len(kind.members) == 1 and not kind.examines
        every: Iterable[tuple[int, tuple[int, ...]]] = enumerate(batch.rows_of(tuple(kind.members.values())))
        if simple and not fields:  # an index looks at what is odd alone
            every = ((row, (m,)) for row, m in enumerate(batch.main) if m < 0 or not 0 < sizes[m] <= most)
        for row, held in every:
            if row in bad:
                continue
            if not (simple and held[0] >= 0 and 0 < sizes[held[0]] <= most):
                verdict = kind.examine({name: sizes[at] for name, at in zip(names, held, strict=True) if at >= 0})
                if verdict != OK:
                    bad[row] = verdict, self._why(batch, row, held, kind.blamed(verdict))
                    continue
            if fields:
                members: dict[str, bytes] = {}
                out: dict[str, npt.NDArray[Any]] = {}
                for name, at in zip(names, held, strict=True):
                    members[name] = pread(sizes[at], offsets[at])
                for name, array in arrays:
                    out[name] = array[row, ...]
                verdict = decode(members, out)
                crash_point("scan: image decoded")
                if verdict != OK:
                    bad[row] = verdict, self._why(batch, row, held, kind.blamed(verdict))
        n = len(batch)
        ok = np.ones(n, bool)
        ok[list(bad)] = False
        label = np.array(rows.label, np.int64)
        columns = (
            {
                "key": self._columns.keys(batch.key),
                "members": self._columns.members(batch),
                "label": pa.array(label.astype(np.int32), mask=label < 0),
            }
            | self._columns.verdicts(n, bad)
            | {name: pa.array(column, KEEP_TYPES[self._settings.keep[name]]) for name, column in rows.kept.items()}
        )
        mark = np.zeros(n, np.int64) if rows.mark is None else np.array(rows.mark, np.int64)
        if self._lowest is not None and rows.number is not None:
            self._lowest.add(rows.number[ok])
        return Chunk(
            shard=self._number,
            ordinal=rows.ordinal,
            label=label,
            ok=ok,
            mark=mark,
            rows=pa.RecordBatch.from_pydict(columns),
            class_names=rows.class_names,
            number=rows.number,
            slot=slot,
        )

    def _why(self, batch: Batch, row: int, held: tuple[int, ...], blamed: str | None) -> str:
        """Which member of a row is bad, and what the kind says of it. `held`: where each member lies, -1 for none;
        `blamed`: the member that the status speaks of, where the kind knows."""
        number = next(
            (n for n, name in enumerate(self._kind.members) if name == blamed or (blamed is None and held[n] < 0)),
            next((n for n, m in enumerate(held) if not 0 < batch.size[m] <= self._kind.max_bytes), 0),
        )
        if (at := held[number]) < 0:
            wanted = [*self._kind.members.values()][number] if number else self._kind.order or self._kind.main
            return f"no member is one of {', '.join(wanted)}; {batch.members_say(row)}"
        where = f".{batch.extension[at]} of {batch.size[at]:,} bytes at offset {batch.offset[at]:,}"
        return f"{where}; {self._kind.why}" if self._kind.why else where
