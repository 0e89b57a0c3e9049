"""A list of classes that stands somewhere: in a file, beside shards, in an IL table or an IL model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from rhostream import foreign, storage
from rhostream.errors import TableError, UsageError
from rhostream.tables import il
from rhostream.tables.classes import ClassNames

LIST = "classes.json"  # beside the shards: an array of names, the place of each is its label
MAX_BYTES = 64 << 20


def read_class_list(place: str | os.PathLike[str]) -> dict[int, str]:
    """{label: name} as a file or a set says it.

    `place`: a .json (an array of names, or an object of labels and names), any other file (a name a line, UTF-8; an
    empty line is a label without a name), a folder that holds `classes.json`, `_table.json` or `model.json`, or the
    names themselves, from label 0 on and with commas between.
    Raises UsageError where nothing of that is there or it can't be understood, MismatchError for a table whose shards
    disagree.
    """
    if "," in (text := os.fspath(place)) and "/" not in text and not os.path.exists(text):
        return _read("--class-names", lambda: _names(text.split(",")))
    url = storage.resolve(place)
    files = {name: storage.join(url, name) for name in (LIST, "_table.json", "model.json")}
    listed = next((name for name, inside in files.items() if storage.exists(inside)), None)
    where = files.get(listed or "", url)
    if listed is None and (storage.is_local(url) and os.path.isdir(url)):
        raise UsageError(f"{storage.redact(url)} holds no list of classes ({', '.join(files)})")
    return _read(storage.redact(where), lambda: table_names(url) if listed == "_table.json" else _parsed(where))


def _read(where: str, read: Callable[[], dict[int, str]]) -> dict[int, str]:
    try:
        names = read()
    except (ValueError, RecursionError, TableError) as exc:
        raise UsageError(f"{where} is no list of classes: {str(exc)[:200]}") from exc
    if not names:
        raise UsageError(f"{where} names no class")
    return names


def _parsed(url: str) -> dict[int, str]:
    """The names in a file. Raises ValueError, and as `storage.read_bytes`."""
    if storage.identity(url).size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    data = storage.read_bytes(url)
    if url.endswith(".json"):
        return foreign.checked_class_list(json.loads(data))
    return _names(data.decode("utf-8-sig").split("\n"))


def _names(lines: list[str]) -> dict[int, str]:
    """{label: name}; a line without one is a label without a name. Raises ValueError."""
    return foreign.checked_class_list([line.strip() or None for line in lines])


def table_names(table: str) -> dict[int, str]:
    """{label: name} as a (resolved) table says it: its info, and the footers of all its parts.

    Raises MismatchError where they disagree, TableError for a damaged part.
    """
    known = ClassNames(dict(il.open_info(table).class_names))
    catalogue = il.find_catalogue(table, il.open_info(table))
    for facts in il.facts_of_parts(table, il.part_urls(table), catalogue, il.read_part_facts):
        known.add(facts.class_names.items(), facts.shard)
    return known.names
