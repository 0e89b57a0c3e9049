"""Several segments of a run's log, steps or shadow log as one: the same rows in the same order, the same columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.errors import TableError
from rhostream.tables import parquet, selections, shadow, steps

_DICTIONARY = {"log": selections.DICTIONARY, "steps": steps.DICTIONARY, "shadow": shadow.DICTIONARY}


def read_part(
    run: str, part: Mapping[str, Any], columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a committed segment and the facts in its footer, proved by its sha256. Raises TableError.

    `columns`: these alone.
    """
    url = storage.join(run, str(part["path"]))
    data = storage.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise TableError(f"{storage.redact(url)} isn't the file that was committed (sha256 differs)")
    table, facts = parquet.parse(data, url, columns)
    return table.replace_schema_metadata(None), facts


def encode_together(kind: str, tables: Sequence[pa.Table], facts: Mapping[str, Any]) -> bytes:
    """The bytes of one segment with the rows of several of the same columns, in their order."""
    table = pa.concat_tables(tables)
    for at, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):  # of the values that are there, in their order
            plain = table.column(at).cast(column.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(at, column, plain.cast(column.type))
    known = (
        shadow.encodings_of(table.schema)
        if kind == "shadow"
        else (selections.ENCODINGS if kind == "log" else steps.ENCODINGS)
    )
    there = {name: encoding for name, encoding in known.items() if name in table.schema.names}
    dictionary = [name for name in _DICTIONARY[kind] if name in table.schema.names]
    return parquet.encode(table.combine_chunks(), facts, there, dictionary)


def same_rows(whole: str, parts: Sequence[str]) -> bool:
    """Whether a segment holds the rows of others, in their order. In memory: all of them twice.

    Raises TableError for one that is damaged.
    """
    ours = parquet.read(whole)[0]
    theirs = pa.concat_tables([parquet.read(url)[0].replace_schema_metadata(None) for url in parts])
    return bool(_plain(ours).equals(_plain(theirs)))


def _plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, which the same rows may have in another order."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.replace_schema_metadata(None).cast(pa.schema(fields)).combine_chunks()
