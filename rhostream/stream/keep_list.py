"""A keep-list: only the samples that it names are candidates; the others cost neither a read nor a decode.

It is a Parquet or CSV file (whatever a question in SQL gave) with the columns `shard` and `ordinal`, or `shard` and
`key`. In memory it is one bit a planned sample, shared by the workers: 12.5 MB for a hundred million.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

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
from rhostream.storage import redact
from rhostream.stream.join import Joined
from rhostream.tables import il

COST = b"rhostream_cost"  # in the metadata of a Parquet list: what making it cost
MAX_HEADER = 64 << 10  # bytes; a hundred thousand columns would take most of a gigabyte before they were refused
_CSV_TYPES = pa.csv.ConvertOptions(column_types={"shard": pa.string(), "key": pa.string(), "ordinal": pa.int64()})


@dataclass(frozen=True)
class KeepList:
    """Which samples of a table may be candidates; a prefilter of the stream."""

    bits: Tensor  # (ceil(samples / 8),) uint8 in shared memory, little-endian bit order
    starts: npt.NDArray[np.int64]  # (shards,) number of the first sample of each shard

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None:
        at = self.starts[joined.rows.shard] + joined.rows.ordinal
        on_it = (self.bits.numpy()[at >> 3] >> (at & 7).astype(np.uint8)) & 1
        joined.reason[(on_it == 0) & (joined.reason == CANDIDATE)] = Reason.unlisted


def read_keep_list(url: str, table: il.Table) -> KeepList:
    """Read the list at `url` against the shards of `table`.

    Raises UsageError when it is neither Parquet nor CSV, lacks the columns, or names no sample of these shards.
    """
    url = storage.resolve(url)
    starts = np.concatenate([[0], np.cumsum(table.counts)])
    keep = np.zeros(int(starts[-1]), bool)
    number = {name: at for at, name in enumerate(table.names)}
    rows = strange = 0
    for batch in _batches(url):
        rows += batch.num_rows
        strange += _mark(batch, table, number, starts, keep)
    if not keep.any():
        raise UsageError(f"keep-list {redact(url)}: none of its {rows:,} rows names a sample of these "
                         f"{len(table.names)} shards, whose names look like {table.names[0]!r}")
    if strange:
        warnings.warn(f"keep-list {redact(url)}: {strange:,} of its rows name no sample of these shards", stacklevel=2)
    bits = torch.from_numpy(np.packbits(keep, bitorder="little")).share_memory_()
    return KeepList(bits, starts[:-1])


def keep_list_account(url: str) -> dict[str, int]:
    """What making the list cost, as its maker wrote it into a Parquet file; {} where nothing is said.

    fit_samples (forward and backward), scored_samples, macs of one forward: as of an IL model.
    """
    data = storage.read_bytes(storage.resolve(url))
    if data[:4] != b"PAR1":
        return {}
    try:
        record = json.loads((pq.read_schema(io.BytesIO(data)).metadata or {}).get(COST, b"{}"))
        return {name: int(record[name]) for name in ("fit_samples", "scored_samples", "macs") if int(record[name]) >= 0}
    except (pa.ArrowException, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _mark(batch: pa.RecordBatch, table: il.Table, number: dict[str, int], starts: npt.NDArray[np.int64],
          keep: npt.NDArray[np.bool_]) -> int:
    """Mark what a batch names; returns how many of its rows name nothing."""
    names = batch.column("shard").cast(pa.string()).dictionary_encode()
    shards, index = names.dictionary.to_pylist(), names.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    strange = 0
    for at, name in enumerate(shards):
        mine = np.flatnonzero(index == at)
        shard = number.get(name)
        if shard is None:
            strange += len(mine)
            continue
        count = int(table.counts[shard])
        if "ordinal" in batch.schema.names:
            given = batch.column("ordinal").take(pa.array(mine)).cast(pa.int64()).fill_null(-1)
            ordinal = given.to_numpy(zero_copy_only=False)
            ordinal = ordinal[(ordinal >= 0) & (ordinal < count)]
            strange += len(mine) - len(ordinal)
        else:
            keys = batch.column("key").take(pa.array(mine)).cast(pa.string())
            part = il.read_part(il.part_url(table.url, name))
            ordinal = np.flatnonzero(pc.is_in(part.key, value_set=keys).to_numpy(zero_copy_only=False))
            known = pc.is_in(keys, value_set=part.key).to_numpy(zero_copy_only=False)
            strange += int((~known).sum())
        keep[starts[shard] + ordinal] = True
    return strange + int((index < 0).sum())


def _batches(url: str) -> Iterator[pa.RecordBatch]:
    """The columns shard and ordinal, or shard and key, batch by batch; the file is never whole in memory as Arrow."""
    data = storage.read_bytes(url)
    try:
        if data[:4] == b"PAR1":
            file = pq.ParquetFile(io.BytesIO(data))
            columns = _columns(file.schema_arrow.names, url)
            yield from file.iter_batches(columns=columns, batch_size=1 << 18)
        else:
            if len(data.partition(b"\n")[0]) > MAX_HEADER:
                raise UsageError(f"keep-list {redact(url)}: its first line has more than {MAX_HEADER:,} bytes; "
                                 "expected the names of its columns")
            reader = pa.csv.open_csv(io.BytesIO(data), convert_options=_CSV_TYPES)
            columns = _columns(reader.schema.names, url)
            yield from (batch.select(columns) for batch in reader)
    except pa.ArrowException as exc:
        raise UsageError(f"keep-list {redact(url)} is no Parquet or CSV file that can be read: "
                         f"{str(exc).splitlines()[0]}") from exc


def _columns(names: list[str], url: str) -> list[str]:
    for second in ("ordinal", "key"):
        if {"shard", second} <= set(names):
            return ["shard", second]
    raise UsageError(f"keep-list {redact(url)} has the columns {', '.join(names) or 'none'}; expected shard and "
                     "ordinal, or shard and key")
