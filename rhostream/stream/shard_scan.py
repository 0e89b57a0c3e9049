"""One shard of a scan, from its first byte to its accounts: rows as the walk gives them, judged, then decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import ChangedError
from rhostream.samples.kind import OK
from rhostream.storage import RangeReader, Reader
from rhostream.stream import examine
from rhostream.stream.advice import Unlabelled
from rhostream.stream.apart import Apart
from rhostream.stream.batch import Batch
from rhostream.stream.chunks import Chunk, End, ScanSettings
from rhostream.stream.columns import Columns
from rhostream.stream.examine import BadSample
from rhostream.stream.inflate import Inflated, plain
from rhostream.stream.labels_named import LabelsNamed
from rhostream.stream.lowest import Lowest, numbers
from rhostream.stream.seen import Seen
from rhostream.stream.tar import TarWalk, walk
from rhostream.stream.windows import Windows
from rhostream.tables.il import KEEP_TYPES

NO_LABEL = -1  # null in the table


@dataclass(slots=True)
class _Rows:
    """A chunk in the making: the batch of the walk, and what its small members say, one entry a row in each list."""

    batch: Batch
    ordinal: npt.NDArray[np.int32]
    label: list[int | None]  # -1 unless valid; None only until it is examined
    mark: list[int] | None  # None: all 0
    number: npt.NDArray[np.float64] | None = None  # of the rows of a sample
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> (status, why)
    kept: dict[str, list[Any]] = field(default_factory=dict)
    class_names: tuple[tuple[int, str], ...] = ()  # (label, name) pairs that are new in the shard


class ShardScan:
    """One shard, from its first byte to its accounts."""

    def __init__(
        self, number: int, url: str, name: str, settings: ScanSettings, columns: Columns, lowest: Lowest | None = None
    ) -> None:
        self._lowest, self._labels, self._named = lowest, Counter[int](), LabelsNamed()
        self._number, self._url, self._name, self._settings, self._columns = number, url, name, settings, columns
        self._kind = settings.kind
        self._labelled = False  # whether any row that was examined has a label
        self._apart, self._unlabelled = Apart(alone=not settings.needs_labels), Unlabelled(settings.label)
        if not settings.needs_labels:
            columns.labels[None] = NO_LABEL if self._kind.target is not None else 0
        self._seen = Seen()
        self._bad_fields = dict.fromkeys(settings.keep, 0)
        self._watched = 0
        self._watch = f'"{settings.watch}"'.encode() if settings.watch else b""
        self._needs_json = bool(settings.keep) or settings.group_by is not None
        self._reader: Reader | None = None

    def chunks(self) -> Iterator[_Rows]:
        """Rows as they come, their labels read and their images not yet. Raises ShardError, StorageError."""
        self._reader = storage.open_reader(self._url)
        self._identity = self._reader.version
        ranged, size = isinstance(self._reader, RangeReader), self._reader.size
        if self._settings.allow_compressed:
            self._reader = plain(self._reader, self._name)
        inflated = self._reader if isinstance(self._reader, Inflated) else None
        self._compression = "gzip" if inflated else ""
        self._source = Windows(self._reader, whole=inflated is None)
        label = self._settings.label
        self._walk: TarWalk = walk(
            self._source,
            self._name,
            accept_missing_eof=self._settings.accept_missing_eof,
            label=label.member,
            label_bytes=label.max_bytes,
            members=tuple(self._kind.members.values()),
        )
        chunk = self._settings.chunk
        if self._lowest is not None:
            yield from self._drawn(chunk, self._lowest)
        else:
            start = 0
            for batch in self._walk.batches(chunk):
                crash_point("scan: rows read")
                yield self._examined(batch, np.arange(start, start + len(batch), dtype=np.int32), self._repeats(batch))
                start += len(batch)
        self._sha256 = inflated.sha256 if inflated else self._source.sha256()
        if not self._reader.unchanged() or size != self._identity.size or not (self._sha256 or ranged):
            raise self._changed()

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
            bad_fields={k: v for k, v in self._bad_fields.items() if v},
            watched=self._watched,
            labels=dict(self._labels),
            class_names=tuple(sorted(self._named.pairs)),
            compression=self._compression,
            notes=notes,
            apart=self._apart.samples,
            advice=self._advice(),
        )

    def _advice(self) -> dict[str, str]:
        shard = f"shard {self._name}"
        # What lies apart has no label for that reason.
        says = {"apart": self._apart.says(self._name)}
        if not self._apart.samples:
            says["unlabelled"] = "" if self._labelled or self._labels else self._unlabelled.says(shard)
        return {kind: text for kind, text in says.items() if text}

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _drawn(self, chunk: int, lowest: Lowest) -> Iterator[_Rows]:
        """The rows that may be of the sample; the labels of all others are counted too."""
        draw, start = numbers(self._settings.seed, self._name), 0
        for batch in self._walk.batches(chunk):
            n, again = len(batch), self._repeats(batch)
            number, may = draw.random(n), np.ones(n, bool)
            if (mark := self._settings.mark) is not None:
                for row, raw in enumerate(batch.key):
                    key = raw.decode("utf-8", "backslashreplace")
                    may[row] = mark(self._name, key, self._group(batch, row, key)) >= 0
            if self._settings.needs_labels:
                self._count_labels(batch, again)
            for rows in lowest.drawn(number, may):
                some = batch if len(rows) == n else Batch.of((batch, int(row)) for row in rows)
                repeats = {at: again[row] for at, row in enumerate(rows.tolist()) if row in again}
                examined = self._examined(some, (start + rows).astype(np.int32), repeats)
                examined.number = number[rows]
                yield examined
            start += n

    def _repeats(self, batch: Batch) -> Mapping[int, str]:
        """Rows whose key came before in this shard, and why they are no samples. To be asked of each batch once."""
        again = self._seen.repeated(batch.key)
        return self._apart.reasons(batch, again, batch.main)

    def _count_labels(self, batch: Batch, again: Mapping[int, str]) -> None:
        """Count the valid labels of a batch, but for repeated keys."""
        labels = list(map(self._columns.labels.get, batch.cls))
        for row, label in enumerate(labels):
            if label is None:
                try:
                    text = batch.cls[row]
                    known = (
                        self._settings.label.of_text(text)
                        if text is not None
                        else self._settings.label.of_fields(examine.parse_json(self._read_json(batch, row)))
                    )
                    labels[row] = examine.check_range(known, self._settings.classes)
                    if text is not None:
                        self._columns.remember(text, known)
                except BadSample:
                    continue
        self._labels.update(label for row, label in enumerate(labels) if label is not None and row not in again)
        self._named.of_first(labels, lambda row: self._read_json(batch, row))

    def _group(self, batch: Batch, row: int, key: str) -> str | None:
        if self._settings.group_by is None:
            return None
        try:
            fields = examine.parse_json(self._read_json(batch, row))
        except BadSample:
            return key
        return examine.group_of(fields, self._settings.group_by, key)

    def _read_json(self, batch: Batch, row: int) -> bytes:
        member = batch.json[row]
        return b"" if member < 0 else examine.read_json(batch.size[member], batch.offset[member], self._source)

    def _examined(self, batch: Batch, ordinal: npt.NDArray[np.int32], again: Mapping[int, str]) -> _Rows:
        """What the small members of a batch say. Labels are looked up: there are few texts that a .cls can hold."""
        n = len(batch)
        if order := self._kind.order:
            for row, main in enumerate(batch.main):
                if main >= 0:
                    batch.prefer(row, order)
        label = list(map(self._columns.labels.get, batch.cls))
        if self._kind.target is not None:  # whatever stands there is no target
            label = [NO_LABEL] * n
        rows = _Rows(batch, ordinal, label, None)
        fields: list[dict[str, Any]] = []
        if again or self._needs_json or self._watch:
            fields = [self._examine(rows, row, again.get(row)) for row in range(n)]
        elif None in label:
            for row, known in enumerate(label):
                if known is None:
                    self._examine(rows, row, None)
        if self._settings.needs_labels:
            if self._needs_json:
                new = self._named.of_fields(label, fields)
            else:
                new = self._named.of_first(label, lambda row: self._read_json(batch, row))
            rows.class_names = tuple(sorted(new))
        self._labelled = self._labelled or any(known is not None and known >= 0 for known in label)
        for name, kind in self._settings.keep.items():
            rows.kept[name], misfits = examine.fit_column([f.get(name) for f in fields], kind)
            self._bad_fields[name] += misfits
        if (mark := self._settings.mark) is not None:
            rows.mark = []
            for row, raw in enumerate(batch.key):
                key, group = raw.decode("utf-8", "backslashreplace"), None
                if self._settings.group_by is not None:
                    group = examine.group_of(fields[row], self._settings.group_by, key)
                rows.mark.append(mark(self._name, key, group))
        return rows

    def _examine(self, rows: _Rows, row: int, again: str | None) -> dict[str, Any]:
        """Put a row's label, or the status against it, into `rows`; returns the fields of its json where needed.

        `again`: why it is no sample, where its key came before.
        """
        batch, fields, source = rows.batch, dict[str, Any](), self._settings.label
        number = rows.label[row]
        try:
            if again is not None:
                raise BadSample("dup", again)
            text = batch.cls[row]
            if number is None and text is None and source.member:
                size_offset = next(((n, o) for e, o, n in batch.members(row) if e == source.member), None)
                if size_offset is not None:
                    raise examine.too_long_label(source.member, *size_offset, source.max_bytes)
            known: int | None = number
            if known is None and text is not None:
                known = source.of_text(text)
            fields = self._fields(batch, row, known is None)
            if number is None:
                label = source.of_fields(fields) if known is None else known
                label = rows.label[row] = examine.check_range(label, self._settings.classes)
                if text is not None:
                    self._columns.remember(text, label)
        except BadSample as bad:
            rows.label[row], why = -1, bad.why
            if bad.status == "label:missing":
                self._unlabelled.add(batch, row, fields)
                why = f"{why}; {batch.members_say(row)}"
            rows.bad[row] = bad.status, why
        return fields

    def _fields(self, batch: Batch, row: int, label_wanted: bool) -> dict[str, Any]:
        """The json's fields where anybody asks for one."""
        needed = label_wanted or self._needs_json
        if not needed and not self._watch:
            return {}
        try:
            raw = self._read_json(batch, row)
            if not needed and self._watch not in raw:
                return {}
            fields = examine.parse_json(raw)
        except BadSample:
            if needed:
                raise
            return {}
        if self._settings.watch is not None:
            self._watched += fields.get(self._settings.watch) is not None
        return fields

    def finish(self, rows: _Rows, slot: int, fields: Mapping[str, npt.NDArray[Any]]) -> Chunk:
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
                    bad[row] = verdict, self._why(batch, row, held)
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
                    bad[row] = verdict, self._why(batch, row, held)
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

    def _why(self, batch: Batch, row: int, held: tuple[int, ...]) -> str:
        """Which member of a row is bad, and what the kind says of it. `held`: where each member lies, -1 for none."""
        for (_, extensions), at in zip(self._kind.members.items(), held, strict=True):
            if at < 0:
                wanted = self._kind.order or extensions
                return f"no member is one of {', '.join(wanted)}; {batch.members_say(row)}"
        at = next((m for m in held if not 0 < batch.size[m] <= self._kind.max_bytes), held[0])
        where = f".{batch.extension[at]} of {batch.size[at]:,} bytes at offset {batch.offset[at]:,}"
        return f"{where}; {self._kind.why}" if self._kind.why else where
