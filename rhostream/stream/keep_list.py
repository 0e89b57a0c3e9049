"""Lists of samples in a file; a keep-list: only the samples that it names are candidates, the others aren't read.

It is a Parquet, CSV or JSON file (whatever a question in SQL gave) with the columns `shard` and `ordinal`, or `shard`
and `key`. In memory it is one bit a planned sample, shared by the workers: 12.5 MB for a hundred million.

`rhostream sql --format csv` shows what a terminal or a spreadsheet would obey in a harmless form. Such a cell names the
sample whose key is shown so; where a shard has two keys that it can stand for, the list is refused. Parquet and JSON
are exact.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rhostream import storage
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import UsageError
from rhostream.inert import csv_text
from rhostream.storage import redact
from rhostream.stream.join import Joined
from rhostream.stream.plan import Rows
from rhostream.tables import il
from rhostream.tables.selections import LIST_COST

COST = LIST_COST
_NAMES = {"keep_list": "keep-list", "deny": "deny-list"}
MAX_HEADER = 64 << 10  # bytes; a hundred thousand columns would take most of a gigabyte before they were refused
_CSV_TYPES = {"shard": pa.string(), "key": pa.string(), "ordinal": pa.int64()}


@dataclass(frozen=True, repr=False)
class ListedSamples:
    """Which samples of a table a list names, in a bit each."""

    bits: Tensor  # (ceil(samples / 8),) uint8 in shared memory, little-endian bit order
    starts: npt.NDArray[np.int64]  # (shards,) number of the first sample of each shard

    def named(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """(n,) whether each of these planned rows is on the list."""
        at = self.starts[rows.shard] + rows.ordinal
        named: npt.NDArray[np.bool_] = (self.bits.numpy()[at >> 3] >> (at & 7).astype(np.uint8) & 1).astype(bool)
        return named


@dataclass(frozen=True)
class KeepList(ListedSamples):
    """Which samples of a table may be candidates; a prefilter of the stream."""

    @property
    def digest(self) -> str:
        """16 hex digits of what is on it."""
        return hashlib.sha256(self.bits.numpy().tobytes()).hexdigest()[:16]

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None:
        joined.reason[~self.named(joined.rows) & (joined.reason == CANDIDATE)] = Reason.unlisted


def read_keep_list(url: str | os.PathLike[str], table: il.Table) -> KeepList:
    """Read the list at `url` (path, or URL of a store) against the shards of `table`.

    Rows that name no sample are counted in a warning. Raises UsageError when it is neither Parquet nor CSV nor JSON,
    lacks the columns, names no sample of these shards, or has a cell of CSV that may be two keys.
    """
    reading = read_list(url, table, "keep_list")
    if not reading.named.any():
        raise UsageError(
            f"{reading.what}: none of its {reading.rows:,} rows names a sample of these "
            f"{len(table.names)} shards, whose names look like {table.names[0]!r}{reading.first}"
        )
    return KeepList(reading.bits, reading.starts[:-1])


def read_list(url: str | os.PathLike[str], table: il.Table, field: str) -> Reading:
    """Which samples of `table` the list at `url` names; `field` is the option that gave it: keep_list or deny.

    Rows that name no sample are counted in a warning. Raises UsageError for what is no list.
    """
    reading = Reading(f"{_NAMES[field]} {redact(url := list_url(url, field))}", url, table)
    try:
        for batch in reading.batches():
            reading.mark(batch)
    except pa.ArrowException as exc:
        raise UsageError(
            f"{reading.what} is no Parquet or CSV file, and no JSON, that can be read: {str(exc).splitlines()[0][:300]}"
        ) from exc
    if reading.strange and (field != "keep_list" or reading.named.any()):
        warnings.warn(
            f"{reading.what}: {reading.strange:,} of its rows name no sample of these shards{reading.first}",
            stacklevel=4,
        )
    return reading


def list_url(given: str | os.PathLike[str], field: str) -> str:
    """The resolved URL of a list's file. Raises UsageError for what is no path: a set of keys, a data frame."""
    if not isinstance(given, str | os.PathLike):
        raise UsageError(
            f"{field} is a {type(given).__name__}, expected the path of a Parquet, CSV or JSON file "
            "with the columns shard and ordinal, or shard and key: write it to one first (a data frame: "
            "to_parquet), so that the run can say which list it was"
        )
    return storage.resolve(given)


def keep_list_account(url: str) -> dict[str, int]:
    """What making the list cost, as its maker wrote it into a Parquet file; {} where nothing is said.

    fit_samples (forward and backward), scored_samples, macs of one forward: as of an IL model.
    """
    data = storage.read_bytes(list_url(url, "keep_list"))
    if data[:4] != b"PAR1":
        return {}
    try:
        record = json.loads((pq.read_schema(io.BytesIO(data)).metadata or {}).get(COST, b"{}"))
        return {name: int(record[name]) for name in ("fit_samples", "scored_samples", "macs") if int(record[name]) >= 0}
    except (pa.ArrowException, ValueError, KeyError, TypeError, RecursionError):
        return {}


@dataclass
class Reading:
    """A list on its way to bits."""

    what: str  # in words, for messages
    url: str
    table: il.Table
    rows: int = 0
    strange: int = 0  # rows that name nothing
    first: str = ""  # the first row that names nothing, in words
    shown: bool = False  # CSV: a cell may be what our CSV shows instead of the text itself
    starts: npt.NDArray[np.int64] = field(init=False)
    named: npt.NDArray[np.bool_] = field(init=False)  # (samples,)
    sha256: str = ""  # of the file

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.table.counts)])
        self.named = np.zeros(int(self.starts[-1]), bool)
        self._number = {name: at for at, name in enumerate(self.table.names)}
        self._shown_number = {csv_text(name): at for name, at in self._number.items() if csv_text(name) != name}

    @property
    def bits(self) -> Tensor:
        """As `ListedSamples` has them."""
        bits = torch.from_numpy(np.packbits(self.named, bitorder="little"))
        bits.share_memory_()
        return bits

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The columns shard and ordinal, or shard and key; Parquet and CSV are never whole in memory as Arrow."""
        data = storage.read_bytes(self.url)
        self.sha256 = hashlib.sha256(data).hexdigest()
        begins = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if data[:4] == b"PAR1":
            file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
            columns = self._columns(file.schema_arrow.names)
            yield from file.iter_batches(columns=columns, batch_size=1 << 18, use_threads=False)
        elif begins in (b"[", b"{"):
            yield self._json(data)
        else:
            if len(data.partition(b"\n")[0]) > MAX_HEADER:
                raise UsageError(
                    f"{self.what}: its first line has more than {MAX_HEADER:,} bytes; expected the names of its columns"
                )
            self.shown = True
            parse = pa.csv.ParseOptions(newlines_in_values=True)
            memory = (
                pa.BufferOutputStream()
            )  # Arrow's: its reading threads may outlive this one, and Python's bytes not
            memory.write(data)
            text = memory.getvalue()
            columns = self._columns(pa.csv.open_csv(pa.BufferReader(text), parse_options=parse).schema.names)
            # Only these: a column that is none of ours may change its type half-way.
            types = pa.csv.ConvertOptions(column_types=_CSV_TYPES, include_columns=columns)
            # Blocks of 16 MiB: with keys each costs the parts of the shards that it names.
            read = pa.csv.ReadOptions(block_size=1 << 24)
            yield from pa.csv.open_csv(pa.BufferReader(text), read, parse_options=parse, convert_options=types)

    def _json(self, data: bytes) -> pa.RecordBatch:
        """An array of objects, as `rhostream sql --format json` writes it, or one object a line."""
        try:
            text = data.decode("utf-8-sig")
            rows = (
                json.loads(text)
                if text.lstrip()[:1] == "["
                else [json.loads(line) for line in text.split("\n") if line.strip()]
            )
            for row in rows:
                if not isinstance(row, dict):
                    raise TypeError(f"{str(row)[:40]!r} is no object")
            columns = self._columns(list(dict.fromkeys(name for row in rows for name in row)))
            return pa.record_batch(
                {name: pa.array([row.get(name) for row in rows], _CSV_TYPES[name]) for name in columns}
            )
        except (ValueError, TypeError, RecursionError) as exc:
            raise UsageError(
                f"{self.what} is no JSON of objects that can be read: {str(exc).splitlines()[0][:200]}"
            ) from exc

    def _columns(self, names: list[str]) -> list[str]:
        for second in ("ordinal", "key"):
            if names.count("shard") == 1 == names.count(second):
                return ["shard", second]
        shown = csv_text(", ".join(names)[:300]) or "none"
        raise UsageError(
            f"{self.what} has the columns {shown}; expected shard and ordinal, or shard and key, each once"
        )

    def mark(self, batch: pa.RecordBatch) -> None:
        """Mark what a batch names."""
        names = batch.column("shard").cast(pa.string()).dictionary_encode()
        index = names.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self.rows += len(batch)
        strange, by_shard = index < 0, np.argsort(index, kind="stable")
        ends = np.searchsorted(index[by_shard], np.arange(len(names.dictionary) + 1))
        for at, name in enumerate(names.dictionary.to_pylist()):
            mine = by_shard[ends[at] : ends[at + 1]]
            if (shard := self._shard_of(name)) is None:
                strange[mine] = True
                continue
            given = batch.column(1).take(pa.array(mine))
            count = int(self.table.counts[shard])
            if batch.schema.names[1] == "ordinal":
                ordinal = given.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
                known = (ordinal >= 0) & (ordinal < count)
                ordinal = ordinal[known]
            else:
                part = self.table.read_part(shard)
                ordinal, known = self._named_by(given.cast(pa.string()), part.key)
            self.named[self.starts[shard] + ordinal] = True
            strange[mine[~known]] = True
        self._is_strange(batch, strange)

    def _shard_of(self, name: str) -> int | None:
        exact, shown = self._number.get(name), self._shown_number.get(name) if self.shown else None
        if exact is not None and shown is not None:
            raise self._two_meanings(name, "shard", name, self.table.names[shown])
        return shown if exact is None else exact

    def _named_by(
        self, keys: pa.StringArray, own: pa.StringArray
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ordinals of the samples whose key (of `own`, by ordinal) is named, and which of `keys` (n,) name one."""
        hit = pc.is_in(own, value_set=keys).to_numpy(zero_copy_only=False)
        known = pc.is_in(keys, value_set=own).to_numpy(zero_copy_only=False)
        if self.shown and pc.any(changed := pc.match_substring_regex(keys, r"^'|\\")).as_py():
            meant = dict[str, str]()  # a cell -> the key that is shown so
            asked, exact = set(keys.filter(changed).to_pylist()), set(keys.filter(pa.array(known)).to_pylist())
            hit = hit.copy()
            for ordinal, key in enumerate(own.to_pylist()):
                cell = csv_text(key)
                if cell != key and cell in asked:
                    other = cell if cell in exact else meant.setdefault(cell, key)
                    if other != key:
                        raise self._two_meanings(cell, "key", other, key)
                    hit[ordinal] = True
            known = known | np.array([cell in meant for cell in keys.to_pylist()], bool)
        return np.flatnonzero(hit), known

    def _two_meanings(self, cell: str, what: str, one: str, other: str) -> UsageError:
        return UsageError(
            f"{self.what}: {cell!r} may be the {what} {one!r} or {other!r}, which CSV "
            "shows alike; write the list with --format json, or name samples by ordinal"
        )

    def _is_strange(self, batch: pa.RecordBatch, strange: npt.NDArray[np.bool_]) -> None:
        """Count rows (of a mask over the batch) that name nothing, and remember the first one."""
        self.strange += int(strange.sum())
        if strange.any() and not self.first:
            row: dict[str, Any] = batch.slice(int(strange.argmax()), 1).to_pylist()[0]
            self.first = f", first {', '.join(f'{name} {csv_text(str(value))[:200]!r}' for name, value in row.items())}"
