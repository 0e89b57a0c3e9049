"""Samples copied into new shards: every member with its name and its bytes, in the order of the old shards.

    <out>/shard-000000.tar ...            plain tars, of so many samples or bytes each
    <out>/sources/shard-000000.parquet    of each sample where it came from, and what the ledger says of it
    <out>/classes.json, <out>/SHA256SUMS  the names of the classes; written last: with it the export is complete

A shard's sources are written before it, and it appears whole or not at all: the same command goes on behind the last
one, and what is there is held against what it would have been. Two samples of one key can't stand in one shard: the
second gets a folder of its own before its key, which is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.audit.export.tars import Copier, NewTar
from rhostream.audit.sample_bytes import SampleBytes
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, UsageError
from rhostream.tables import parquet
from rhostream.tables.class_lists import LIST

SUMS = "SHA256SUMS"
SAMPLES, BYTES = 10_000, 1 << 30  # of a shard, at most
ROWS = 10_000  # of a batch
_OWN = ("key", "shard", "ordinal")


@dataclass
class Written:
    """What the folder holds."""

    shards: int = 0
    there: int = 0  # of these, those that were there already
    samples: int = 0
    renamed: int = 0
    bytes: int = 0
    sums: list[str] = field(default_factory=list)

    def add(self, name: str, facts: dict[str, Any], there: bool) -> None:
        """Count a shard."""
        self.shards, self.there = self.shards + 1, self.there + there
        self.samples, self.bytes = self.samples + facts["samples"], self.bytes + facts["bytes"]
        self.renamed += facts["renamed"]
        self.sums.append(f"{facts['sha256']}  {name}\n")


class ShardFolder:
    """A folder of new shards, begun or to be begun."""

    def __init__(self, url: str, samples: int, most_bytes: int) -> None:
        if samples < 1 or most_bytes < 1:
            raise UsageError(f"a shard of {samples:,} samples and {most_bytes:,} bytes: expected 1 or more of each")
        self._url, self._samples, self._most = url, samples, most_bytes
        self._limits = {"samples": samples, "bytes": most_bytes}
        self._copier: Copier | None = None  # of the old shard at hand: kept from one new shard to the next
        names = storage.list_files(url, "") if not storage.is_local(url) or storage.exists(url) else []
        if names and not storage.exists(self._sources(0)):
            raise UsageError(
                f"{storage.redact(url)} holds {len(names):,} files that are of no export, such as "
                f"{names[0].rsplit('/', 1)[-1]}: choose an empty place"
            )
        storage.probe_writable(url)

    def fill(self, batches: pa.RecordBatchReader, reading: SampleBytes) -> Written:
        """Copy the samples of the batches (one a row, by shard and ordinal) behind those that are there.

        Raises UsageError for a folder that holds other samples, and as `SampleBytes` for one that can't be read.
        """
        written, rows = Written(), _Rows(batches)
        while rows.place(0) is not None:
            name, known = f"{_name(written.shards)}.tar", self._known(written.shards)
            if known is not None:
                self._require_same(rows, known[0], name)
            there = storage.exists(storage.join(self._url, name))
            if there and known is None:
                raise self._another(f"{name}, which no list of sources belongs to")
            if known is not None and known[1]["most"] != self._limits:
                raise self._another("shards of other sizes")
            if there and known is not None:
                rows.take(len(known[0]))
                facts = known[1]
            else:
                facts = self._write(name, rows, reading, written.shards, known)
            written.add(name, facts, there)
        if storage.exists(self._sources(written.shards)):
            raise self._another(f"{_name(written.shards)}.tar, and this selection ends before it")
        return written

    def finish(self, written: Written, classes: dict[int, str]) -> None:
        """Name the classes and write the checksums: the export is complete. Raises UsageError where others stand."""
        if classes and min(classes) >= 0 and max(classes) < 10**6:
            names = [classes.get(label) for label in range(max(classes) + 1)]
            self._publish(LIST, json.dumps(names, indent=1).encode() + b"\n")
        self._publish(SUMS, "".join(written.sums).encode())

    def _publish(self, name: str, data: bytes) -> None:
        url = storage.join(self._url, name)
        try:
            storage.create(url, data)
        except AlreadyExistsError:
            if storage.read_bytes(url) != data:
                raise self._another(f"another {name}") from None

    def _write(
        self, name: str, rows: _Rows, reading: SampleBytes, number: int, known: tuple[pa.Table, dict[str, Any]] | None
    ) -> dict[str, Any]:
        """Make a shard of the next rows: as many as its sources name, where these were written before."""
        with storage.writing(storage.join(self._url, name)) as file:
            tar, most = NewTar(file), self._samples if known is None else len(known[0])
            while tar.samples < most and (place := rows.place(tar.samples)) is not None:
                if self._copier is None or self._copier.name != place[0]:
                    self._copier = Copier(reading, place[0])
                sample = self._copier.sample(place[1])
                if known is None and tar.samples and tar.size + sample.stored_bytes > self._most:
                    break
                tar.add(sample)
            tar.end()
            table = _sources_of(rows.take(tar.samples), tar.keys)
            facts = {
                "samples": tar.samples,
                "bytes": tar.size,
                "renamed": tar.renamed,
                "sha256": tar.digest.hexdigest(),
                "most": self._limits,
            }
            if known is None:
                storage.create(self._sources(number), parquet.encode(table, facts, {}, []))
                crash_point("export: sources of a shard written")
            elif known[1] != facts:
                raise self._another(f"a list of sources for {name}, of which the samples have other bytes today")
        crash_point("export: shard written")
        return facts

    def _known(self, number: int) -> tuple[pa.Table, dict[str, Any]] | None:
        url = self._sources(number)
        return parquet.read(url) if storage.exists(url) else None

    def _require_same(self, rows: _Rows, known: pa.Table, name: str) -> None:
        places = list(zip(known["from_shard"].to_pylist(), known["from_ordinal"].to_pylist(), strict=True))
        if rows.places(len(places)) != places:
            raise self._another(f"other samples in {name}")

    def _sources(self, number: int) -> str:
        return storage.join(self._url, "sources", f"{_name(number)}.parquet")

    def _another(self, what: str) -> UsageError:
        return UsageError(
            f"{storage.redact(self._url)} holds {what}: it is another export (of another selection, other sizes, or of "
            "a run that has gone on since), and nothing is overwritten: choose another place"
        )


class _Rows:
    """The rows of batches, in order, with a look ahead."""

    def __init__(self, batches: pa.RecordBatchReader) -> None:
        self._batches, self._held = iter(batches), list[pa.RecordBatch]()
        self._places = list[tuple[str, int]]()  # of the rows that are held

    def places(self, n: int) -> list[tuple[str, int]]:
        """Shard and ordinal of the next n rows, of fewer where there are fewer."""
        while len(self._places) < n and (batch := next(self._batches, None)) is not None:
            self._held.append(batch)
            self._places += zip(batch["shard"].to_pylist(), batch["ordinal"].to_pylist(), strict=True)
        return self._places[:n]

    def place(self, number: int) -> tuple[str, int] | None:
        """Of the next row but `number`; None where there is none."""
        if number >= len(self._places):
            self.places(number + 1)
        return self._places[number] if number < len(self._places) else None

    def take(self, n: int) -> pa.Table:
        """The next n rows, which are gone then."""
        table = pa.Table.from_batches(self._held)
        self._held, self._places = table.slice(n).to_batches(), self._places[n:]
        return table.slice(0, n)


def _sources_of(rows: pa.Table, keys: Sequence[bytes]) -> pa.Table:
    """What the ledger says of the samples of a shard, below their new key and ordinal."""
    columns = {
        "key": pa.array([key.decode("utf-8", "replace") for key in keys], pa.string()),
        "ordinal": pa.array(range(len(keys)), pa.int32()),
        "from_shard": rows["shard"],
        "from_ordinal": rows["ordinal"],
    }
    return pa.table({**columns, **{name: rows[name] for name in rows.schema.names if name not in (*_OWN, *columns)}})


def _name(number: int) -> str:
    return f"shard-{number:06d}"
