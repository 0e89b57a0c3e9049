"""A folder that FiftyOne imports as a CSVDataset: pictures as files, and a table of what the ledger says of each.

    <out>/data/000000/00000000.jpg ...   the bytes as they lie in the shards, under names of ours
    <out>/labels.csv                     filepath, then the columns of the selection; texts as in any CSV of ours

Of FiftyOne's formats this is the one that is documented to the last field and bound to no version of its database.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.audit.export.account import Unread
from rhostream.audit.export.files import MEDIA, member_columns, sample_values, type_of
from rhostream.audit.render import csv_lines
from rhostream.audit.sample_bytes import SampleBytes
from rhostream.errors import StorageError, UsageError
from rhostream.inert import escape

PER_FOLDER = 1000  # files
_PARSERS = {"int": "int", "uint": "int", "float": "float", "double": "float", "halffloat": "float"}


def write_folder(batches: pa.RecordBatchReader, path: str, reading: SampleBytes, unread: Unread) -> tuple[int, int]:
    """Write one sample a row of the batches; returns how many, and the bytes. What can't be read isn't in it, and is
    counted in `unread`. Raises UsageError for samples without a picture."""
    columns = member_columns(reading, batches.schema.names)
    types = {column: type_of(extensions) for column, extensions in columns.items()}
    picture = next((column for column, kind in types.items() if kind == MEDIA), None)
    if picture is None:
        raise UsageError("these samples have no picture, and FiftyOne shows pictures: take them as Parquet or CSV")
    beside = [column for column in columns if column != picture]
    rows = seen = size = 0
    with storage.new_folder(path) as folder, open(os.path.join(folder, "labels.csv"), "xb") as table:
        size += table.write(
            csv_lines(_table([], batches.schema.empty_table(), {column: [] for column in beside})).encode()
        )
        for batch in batches:
            kept, names, texts = list[int](), list[str](), {column: list[Any]() for column in beside}
            for row in range(len(batch)):
                place = batch["shard"][row].as_py(), batch["ordinal"][row].as_py()
                sample = sample_values(reading, unread, *place, columns, types)
                seen += 1
                if (media := sample[picture]) is None:
                    continue
                name = f"{rows // PER_FOLDER:06d}/{rows:08d}.{media['path'].rpartition('.')[2]}"
                _write(os.path.join(folder, "data", name), media["bytes"])
                size, rows = size + len(media["bytes"]), rows + 1
                kept.append(row)
                names.append(name)
                for column in beside:
                    texts[column].append(sample[column])
            shown = _table(names, pa.Table.from_batches([batch.take(pa.array(kept, pa.int64()))]), texts)
            size += table.write(csv_lines(shown, heading=False).encode())
        if not rows and seen:
            raise StorageError(f"none of {seen:,} samples could be read, and nothing was written: {unread.first[0]}")
    return rows, size


def _table(names: list[str], rows: pa.Table, texts: Mapping[str, list[Any]]) -> pa.Table:
    columns = {name: rows[name] for name in rows.schema.names if name != "filepath"}
    more = {column: pa.array(values, pa.string()) for column, values in texts.items()}
    return pa.table({"filepath": pa.array(names, pa.string()), **columns, **more})


def command(path: str, columns: dict[str, str]) -> str:
    """A line of Python that imports the folder; `columns`: name and type of each, as Arrow calls it."""
    fields = {name: _PARSERS.get(kind.rstrip("0123456789"), "str") for name, kind in columns.items()}
    parsers = ", ".join(f"{name!r}: {parser}" for name, parser in fields.items())
    return escape(f"fiftyone.Dataset.from_dir({path!r}, fiftyone.types.CSVDataset, fields={{{parsers}}})")


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
