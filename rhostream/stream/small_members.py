"""What the small members of a shard's samples say (.cls, .json): labels, kept fields, groups, and what is amiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.samples.json_member import BadSample, parse_json
from rhostream.stream import examine
from rhostream.stream.advice import Unlabelled
from rhostream.stream.batch import Batch
from rhostream.stream.chunks import ScanSettings
from rhostream.stream.columns import Columns
from rhostream.stream.labels_named import LabelsNamed
from rhostream.stream.windows import Windows

NO_LABEL = -1  # null in the table


@dataclass(slots=True)
class Rows:
    """A chunk in the making: the batch of the walk, and what its small members say, one entry a row in each list."""

    batch: Batch
    ordinal: npt.NDArray[np.int32]
    label: list[int | None]  # -1 unless valid; None only until it is examined
    mark: list[int] | None  # None: all 0
    number: npt.NDArray[np.float64] | None = None  # of the rows of a sample
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> (status, why)
    kept: dict[str, list[Any]] = field(default_factory=dict)
    class_names: tuple[tuple[int, str], ...] = ()  # (label, name) pairs that are new in the shard


class SmallMembers:
    """Reads them batch by batch, and counts what a shard's accounts say of them."""

    def __init__(self, settings: ScanSettings, columns: Columns, source: Windows, shard: str) -> None:
        self._settings, self._columns, self._source, self._shard = settings, columns, source, shard
        self._kind = settings.kind
        self._needs_json = bool(settings.keep) or settings.group_by is not None
        self._watch = f'"{settings.watch}"'.encode() if settings.watch else b""
        self.labels, self.named, self.unlabelled = Counter[int](), LabelsNamed(), Unlabelled(settings.label)
        self.labelled = False  # whether any row that was examined has a label
        self.bad_fields, self.watched = dict.fromkeys(settings.keep, 0), 0
        if not settings.needs_labels:
            columns.labels[None] = NO_LABEL if self._kind.target is not None else 0

    def count_labels(self, batch: Batch, again: Mapping[int, str]) -> None:
        """Count the valid labels of a batch, but for repeated keys."""
        labels = list(map(self._columns.labels.get, batch.cls))
        for row, label in enumerate(labels):
            if label is None:
                try:
                    text = batch.cls[row]
                    known = (
                        self._settings.label.of_text(text)
                        if text is not None
                        else self._settings.label.of_fields(parse_json(self._read_json(batch, row)))
                    )
                    labels[row] = examine.check_range(known, self._settings.classes)
                    if text is not None:
                        self._columns.remember(text, known)
                except BadSample:
                    continue
        self.labels.update(label for row, label in enumerate(labels) if label is not None and row not in again)
        self.named.of_first(labels, lambda row: self._read_json(batch, row))

    def without_labels(self) -> str:
        """Why no sample has a label, where none has: what to do."""
        return "" if self.labelled or self.labels else self.unlabelled.says(f"shard {self._shard}")

    def group(self, batch: Batch, row: int, key: str) -> str | None:
        if self._settings.group_by is None:
            return None
        try:
            fields = parse_json(self._read_json(batch, row))
        except BadSample:
            return key
        return examine.group_of(fields, self._settings.group_by, key)

    def _read_json(self, batch: Batch, row: int) -> bytes:
        member = batch.json[row]
        return b"" if member < 0 else examine.read_json(batch.size[member], batch.offset[member], self._source)

    def examined(self, batch: Batch, ordinal: npt.NDArray[np.int32], again: Mapping[int, str]) -> Rows:
        """What the small members of a batch say. Labels are looked up: there are few texts that a .cls can hold."""
        n = len(batch)
        if order := self._kind.order:
            for row, main in enumerate(batch.main):
                if main >= 0:
                    batch.prefer(row, order)
        label = list(map(self._columns.labels.get, batch.cls))
        if self._kind.target is not None:  # whatever stands there is no target
            label = [NO_LABEL] * n
        rows = Rows(batch, ordinal, label, None)
        fields: list[dict[str, Any]] = []
        if again or self._needs_json or self._watch:
            fields = [self._examine(rows, row, again.get(row)) for row in range(n)]
        elif None in label:
            for row, known in enumerate(label):
                if known is None:
                    self._examine(rows, row, None)
        if self._settings.needs_labels:
            if self._needs_json:
                new = self.named.of_fields(label, fields)
            else:
                new = self.named.of_first(label, lambda row: self._read_json(batch, row))
            rows.class_names = tuple(sorted(new))
        self.labelled = self.labelled or any(known is not None and known >= 0 for known in label)
        for name, kind in self._settings.keep.items():
            rows.kept[name], misfits = examine.fit_column([f.get(name) for f in fields], kind)
            self.bad_fields[name] += misfits
        if (mark := self._settings.mark) is not None:
            rows.mark = []
            for row, raw in enumerate(batch.key):
                key, group = raw.decode("utf-8", "backslashreplace"), None
                if self._settings.group_by is not None:
                    group = examine.group_of(fields[row], self._settings.group_by, key)
                rows.mark.append(mark(self._shard, key, group))
        return rows

    def _examine(self, rows: Rows, row: int, again: str | None) -> dict[str, Any]:
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
                self.unlabelled.add(batch, row, fields)
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
            fields = parse_json(raw)
        except BadSample:
            if needed:
                raise
            return {}
        if self._settings.watch is not None:
            self.watched += fields.get(self._settings.watch) is not None
        return fields
