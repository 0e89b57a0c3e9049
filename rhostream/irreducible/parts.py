"""From scanned chunks to committed parts: collects a shard's rows and accounts, and writes the part.

Knows no model; `compute` gives it the losses, `index` gives it none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, MismatchError
from rhostream.irreducible.accounts import first_of_each
from rhostream.stream.budget import SHOWN
from rhostream.stream.scan import Chunk, End
from rhostream.tables import il
from rhostream.tables.il import OK, PartFacts, TableInfo
from rhostream.tables.vectors_writer import VectorsWriter


@dataclass
class Scored:
    """What a model says of the rows of a chunk; all (n,), NaN and -1 where a row was not scored."""

    il: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    in_holdout: npt.NDArray[np.bool_]
    il_tokens: npt.NDArray[np.float32] | None = None  # (n, T) of language, NaN where there is no token
    terms: dict[str, npt.NDArray[np.float32]] | None = None  # of pairs, (n,) each: the columns `il.PAIR_COLUMNS`
    output: npt.NDArray[np.float32] | None = None  # of pairs, (n, 2 D + 2): image vector, text vector, a, b


class PartBuilder:
    """The rows of one shard, until its End."""

    def __init__(self, info: TableInfo, table: str, name: str, url: str) -> None:
        self._info, self._table, self._name, self._url = info, table, name, url
        self._batches: list[pa.RecordBatch] = []
        self.statuses: Counter[str] = Counter()
        self.labels: Counter[int] = Counter()  # of usable rows
        self._first_bad: list[tuple[str, str]] = []
        self._il_rows = self._in_holdout = 0
        self._class_names = dict[int, str]()
        self._outputs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]] = []

    def add(self, chunk: Chunk, scored: Scored | None) -> int:
        """Take a chunk; rows whose loss is not finite become `nonfinite`. Returns how many rows are bad."""
        n, rows = len(chunk), chunk.rows
        self.labels.update(chunk.label[chunk.ok].tolist())
        columns: dict[str, Any] = {name: rows.column(name) for name in rows.schema.names}
        columns["ordinal"] = pa.array(chunk.ordinal)
        columns["il_tokens"] = pa.nulls(n, il.SCHEMA.field("il_tokens").type)
        if scored is None:
            columns |= {name: pa.nulls(n, il.SCHEMA.field(name).type) for name in ("il", "predicted", "fold")}
            columns["in_holdout"] = pa.array(np.zeros(n, bool))
        else:
            finite = np.isfinite(scored.il)
            if (bad := chunk.ok & ~finite).any():
                columns["status"], columns["error"] = _nonfinite(columns, bad)
            stored = il.stored_il(scored.il, self._info.il_dtype)
            columns["il"] = pa.array(stored, il.IL_TYPES[self._info.il_dtype], mask=~finite)
            columns["predicted"] = pa.array(scored.predicted.astype(np.int32), mask=~finite | (scored.predicted < 0))
            if scored.il_tokens is not None:
                columns["il_tokens"] = _token_lists(scored.il_tokens, finite)
            for name, values in (scored.terms or {}).items():
                columns[name] = pa.array(il.stored_il(values, il.PAIR_COLUMNS[name]), mask=~finite)
            if self._info.vectors is not None:  # of a chunk without a usable row there is no output
                self._outputs.append((np.zeros((n, 4), np.float32) if scored.output is None else scored.output, finite))
            columns["fold"] = pa.array(scored.fold.astype(np.int8), mask=~chunk.ok)
            columns["in_holdout"] = pa.array(scored.in_holdout)
            self._il_rows += int(finite.sum())
            self._in_holdout += int(scored.in_holdout.sum())
        schema = self._info.schema
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        self._batches.append(batch)
        self._class_names.update(chunk.class_names)
        if chunk.ok.all() and columns["status"] is rows.column("status"):
            counts = Counter({OK: n})
        else:
            counts = Counter(columns["status"].to_pylist())
        self.statuses += counts
        if counts[OK] < n and (len(self._first_bad) < SHOWN or counts.keys() - {OK, *(s for s, _ in self._first_bad)}):
            # A few of each status are enough to choose the ones to show from.
            shown, bad_rows = Counter[str](), list[tuple[str, str]]()
            for row, status in enumerate(columns["status"].to_pylist()):
                if status != OK and shown[status] < SHOWN:
                    shown[status] += 1
                    words = f"{columns['key'][row].as_py()!r} ({columns['error'][row].as_py()})"
                    bad_rows.append((status, words))
            self._first_bad = first_of_each(self._first_bad, bad_rows)
        return n - counts[OK]

    @property
    def first_bad(self) -> list[str]:
        """Some bad samples in words, of each status the first."""
        return [words for _, words in self._first_bad]

    @property
    def bad(self) -> int:
        """Rows so far that can't be used."""
        return self.statuses.total() - self.statuses[OK]

    def facts(self, end: End) -> PartFacts:
        """The footer of the part, once the shard has ended."""
        return PartFacts(
            fingerprint=self._info.fingerprint,
            kind=self._info.kind,
            shard=self._name,
            shard_size=end.identity.size,
            shard_tag=end.identity.tag,
            samples=end.samples_seen,
            statuses=dict(sorted(self.statuses.items())),
            members_seen=end.members_seen,
            members_used=end.members_used,
            members_ignored=end.members_ignored,
            bad_fields=end.bad_fields,
            shard_sha256=end.sha256,
            il_rows=self._il_rows,
            in_holdout=self._in_holdout,
            compression=end.compression,
            content=self._info.content,
            apart=end.apart,
            class_names={
                label: name for label, name in sorted(self._class_names.items()) if label not in self._info.class_names
            },
            version=self._info.version,
        )

    def commit(self, facts: PartFacts) -> bool:
        """Write the part; False when another job wrote the same one first. Raises MismatchError, TableError."""
        if self._info.vectors is not None:
            facts = replace(facts, vectors=self._commit_vectors(facts))
        data = il.encode_part(pa.Table.from_batches(self._batches, self._info.schema), facts)
        url = il.part_url(self._table, self._name)
        crash_point("compute-il: part encoded")
        try:
            storage.create(url, data)
            crash_point("compute-il: part committed")
            return True
        except AlreadyExistsError:
            there = il.read_part_facts(url)
            if there != facts:
                message = (
                    f"another job wrote a different part of shard {self._name} into "
                    f"{storage.redact(self._table)} at the same time; use another --out"
                )
                raise MismatchError(message) from None
            return False

    def _commit_vectors(self, facts: PartFacts) -> str:
        """Write the file of the shard's vectors; its seal."""
        writer = VectorsWriter(
            fingerprint=facts.fingerprint, shard=facts.shard, shard_size=facts.shard_size,
            dtype=str(self._info.vectors),
        )  # fmt: skip
        for output, finite in self._outputs:
            writer.add(output, finite)
        self._outputs.clear()
        seal = writer.commit(self._table)
        crash_point("compute-il: vectors written")
        return seal


def _token_lists(il_BT: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_]) -> pa.Array:
    """The losses of each row's tokens as a column, null where the row has no il."""
    counts = ~np.isnan(il_BT) & finite[:, None]
    # Up to the last token that counts; one before it that doesn't is null in its place.
    there = np.logical_or.accumulate(counts[:, ::-1], axis=1)[:, ::-1]
    values = pa.array(il.stored_il(il_BT[there], "float16"), mask=~counts[there])
    ends = np.cumsum([0, *there.sum(1)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(~finite))


def _nonfinite(columns: dict[str, Any], bad: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    status, error = columns["status"].to_pylist(), columns["error"].to_pylist()
    for row in np.flatnonzero(bad).tolist():
        status[row], error[row] = "nonfinite", "the IL model's loss is NaN or infinite"
    return pa.array(status, pa.string()), pa.array(error, pa.string())
