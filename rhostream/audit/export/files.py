"""One file of rows: Parquet or CSV, of any size, with the samples themselves as columns where that is asked for.

answer (batches) > + image {bytes, path}, text > row groups > the file, which appears when it is whole
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rhostream.audit.export.account import Unread
from rhostream.audit.render import csv_lines
from rhostream.audit.sample_bytes import SampleBytes
from rhostream.errors import RhostreamError, ShardError
from rhostream.tables.selections import LIST_COST

BATCH, ROWS_WITH_SAMPLES = 100_000, 2_000  # rows of a row group
BYTES = 64 << 20  # of samples in a row group, which is what is held in memory
TEXTS = frozenset(("txt",))
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as datasets of Hugging Face and embedding-atlas
PICTURES = frozenset(("jpg", "jpeg", "png", "webp"))


def write_parquet(
    batches: pa.RecordBatchReader, file: BinaryIO, record: Mapping[str, Any], cost: Mapping[str, int] | None = None
) -> int:
    """Write the batches; returns how many rows there were. `record` goes into the file's metadata, and the `cost` of
    making a keep-list."""
    rows = 0
    with _writer(file, batches.schema, record, cost=cost) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += len(batch)
    return rows


def write_csv(batches: pa.RecordBatchReader, file: BinaryIO) -> int:
    """The same as CSV, in which no text is a formula or more than one line."""
    rows = 0
    file.write(csv_lines(batches.schema.empty_table()).encode())
    for batch in batches:
        file.write(csv_lines(pa.Table.from_batches([batch]), heading=False).encode())
        rows += len(batch)
    return rows


def write_samples(
    batches: pa.RecordBatchReader, file: BinaryIO, record: Mapping[str, Any], reading: SampleBytes, unread: Unread
) -> int:
    """Parquet of one row a sample, by shard and ordinal, with its members as further columns; returns the rows.

    A picture is a struct of its bytes, as they lie in the shard, and a name; a text is a string. A sample that can't be
    read is a row with nulls, and counted in `unread`.
    """
    columns = member_columns(reading, batches.schema.names)
    types = {column: type_of(extensions) for column, extensions in columns.items()}
    whole = pa.schema([*batches.schema, *types.items()])
    rows = 0
    with _writer(file, whole, record, columns) as writer:
        for batch in batches:
            for start, held in _read(batch, columns, types, reading, unread):
                n = len(next(iter(held.values())))
                arrays = [pa.array(values, types[column]) for column, values in held.items()]
                part = batch.slice(start, n)
                writer.write_batch(pa.record_batch([*part.columns, *arrays], schema=whole))
                rows += n
    return rows


def member_columns(reading: SampleBytes, taken: list[str]) -> dict[str, tuple[str, ...]]:
    """The column of each member of a sample with its extensions; beside columns of these names."""
    return {name if name not in taken else f"{name}_of_sample": of for name, of in reading.members.items()}


def _read(
    batch: pa.RecordBatch, columns: Mapping[str, tuple[str, ...]], types: Mapping[str, pa.DataType],
    reading: SampleBytes, unread: Unread,
) -> Iterator[tuple[int, dict[str, list[Any]]]]:  # fmt: skip
    """(first row, values of some rows by column), not more than BYTES at a time."""
    held: dict[str, list[Any]] = {column: [] for column in columns}
    start = size = 0
    shards, ordinals = batch["shard"].to_pylist(), batch["ordinal"].to_pylist()
    for row, (shard, ordinal) in enumerate(zip(shards, ordinals, strict=True)):
        for column, value in sample_values(reading, unread, shard, ordinal, columns, types).items():
            held[column].append(value)
            size += len(value["bytes"] if isinstance(value, dict) else value or "")
        if size > BYTES:
            yield start, held
            held, start, size = {column: [] for column in columns}, row + 1, 0
    if start < len(batch):
        yield start, held


def sample_values(
    reading: SampleBytes, unread: Unread, shard: str, ordinal: int, columns: Mapping[str, tuple[str, ...]],
    types: Mapping[str, pa.DataType],
) -> dict[str, Any]:  # fmt: skip
    """The members of one sample by column, all None, and counted, where one can't be read."""
    try:
        opened = reading.shard(shard)
        key, found = opened.key(ordinal), dict[str, Any]()
        for column, extensions in columns.items():
            extension, data = opened.member(ordinal, extensions)
            if types[column] == MEDIA:
                found[column] = {"bytes": data, "path": f"{safe_name(key)}.{extension}"}
            else:
                found[column] = _text(data, shard, ordinal)
        return found
    except RhostreamError as exc:
        if reading.hopeless:
            raise
        unread.add(exc)
    return dict.fromkeys(columns)


def safe_name(key: str) -> str:
    """What of a stranger's key may be the name of a file: no folder, no hidden file, nothing that a shell obeys."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", key.rpartition("/")[2])[-80:] or "_"


def _text(data: bytes, shard: str, ordinal: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ShardError(f"shard {shard}, ordinal {ordinal:,}: its text is no UTF-8") from exc


def type_of(extensions: tuple[str, ...]) -> pa.DataType:
    """The type of a member's column: a string for a text, else its bytes and a name."""
    return pa.string() if TEXTS.issuperset(extensions) else MEDIA


def _writer(
    file: BinaryIO, schema: pa.Schema, record: Mapping[str, Any], members: Mapping[str, tuple[str, ...]] | None = None,
    cost: Mapping[str, int] | None = None,
) -> pq.ParquetWriter:  # fmt: skip
    members = members or {}
    metadata: dict[str | bytes, str] = {"rhostream": json.dumps(record, sort_keys=True)}
    if cost:
        metadata[LIST_COST] = json.dumps(cost)
    if features := _features(schema, members):
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    # Pictures are compressed already, and no two are alike.
    repeated = [name for name in schema.names if name not in members]
    return pq.ParquetWriter(
        file, schema.with_metadata(metadata), compression="zstd", use_dictionary=repeated, write_page_checksum=True
    )


def _features(schema: pa.Schema, members: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The columns as datasets of Hugging Face name them, so that a picture is opened as one; {} where one has no plain
    name there."""
    found: dict[str, Any] = {}
    for column in schema:
        if PICTURES.issuperset(members.get(column.name, ("",))):
            found[column.name] = {"_type": "Image"}
        elif pa.types.is_primitive(column.type) or pa.types.is_string(column.type):
            name = {"float": "float32", "double": "float64"}.get(str(column.type), str(column.type))
            found[column.name] = {"dtype": name, "_type": "Value"}
        else:
            return {}
    return found if members else {}
