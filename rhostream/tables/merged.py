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


def merged(run: str, kind: str, parts: Sequence[Mapping[str, Any]]) -> tuple[bytes, int]:
    """The bytes of a segment that holds the rows of `parts`, each proved by its sha256, and how many rows.

    In memory: the rows of all parts. Raises TableError for a part that is damaged, gone or of other columns.
    """
    tables, facts = list[pa.Table](), list[dict[str, Any]]()
    for part in parts:
        url = storage.join(run, str(part["path"]))
        data = storage.read_bytes(url)
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise TableError(f"{storage.redact(url)} isn't the file that was committed (sha256 differs)")
        table, fact = parquet.parse(data, url)
        if tables and (table.schema.names != tables[0].schema.names or fact != facts[0]):
            raise TableError(f"{storage.redact(url)} has other columns than the segment before it")
        tables.append(table.replace_schema_metadata(None))
        facts.append(fact)
    table = pa.concat_tables(tables)
    for at, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):  # of the values that are there, in their order
            plain = table.column(at).cast(column.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(at, column, plain.cast(column.type))
    known = shadow.encodings_of(table.schema) if kind == "shadow" else (
        selections.ENCODINGS if kind == "log" else steps.ENCODINGS)
    there = {name: encoding for name, encoding in known.items() if name in table.schema.names}
    dictionary = [name for name in _DICTIONARY[kind] if name in table.schema.names]
    return parquet.encode(table.combine_chunks(), facts[0], there, dictionary), table.num_rows


def same_rows(whole: str, parts: Sequence[str]) -> bool:
    """Whether a segment holds the rows of others, in their order. Raises TableError for one that is damaged."""
    ours = parquet.read(whole)[0]
    theirs = pa.concat_tables([parquet.read(url)[0].replace_schema_metadata(None) for url in parts])
    return bool(_plain(ours).equals(_plain(theirs)))


def _plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, which the same rows may have in another order."""
    fields = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
              for field in table.schema]
    return table.replace_schema_metadata(None).cast(pa.schema(fields)).combine_chunks()
