"""The catalogue of a table: the footers of its parts in one file, so that a hundred thousand need not be asked.

    TABLE/catalogue/<parts>-<digest of their list>.parquet      a row a part: its file, its version, its footer's facts

Created once, as everything; of several the one that covers most counts. The parts stay the truth: a row counts only for
a part that a listing shows with the very size and ETag (or time) that the row has, every other part is asked itself,
and what an open was spared is checked when the part is first read (`Table.read_part`). Decision 058.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from rhostream import foreign, storage
from rhostream.errors import AlreadyExistsError, NotFoundError, TableError
from rhostream.storage import Identity
from rhostream.tables import parquet
from rhostream.tables.il.info import TableInfo
from rhostream.tables.il.names import part_url
from rhostream.tables.il.part import PartFacts, footer_beginning, read_part_footer

LOG = logging.getLogger("rhostream")
T = TypeVar("T")
FOLDER = "catalogue"
VERSION = 1
LEAST = 256  # parts; of fewer the footers are read as quickly
SPARSE = 64  # a list of fewer shards than a 64th of the parts is opened by their footers: a listing costs more
LOCAL_THREADS, REMOTE_THREADS, SLICE = 4, 16, 1024
_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "dict[str, int]": pa.map_(pa.string(), pa.int64()),
    "dict[int, str]": pa.map_(pa.int64(), pa.string()),
}
_FACTS = {field.name: _TYPES[str(field.type)] for field in fields(PartFacts)}
SCHEMA = pa.schema([("file", pa.string()), ("bytes", pa.int64()), ("tag", pa.string()), *_FACTS.items()])
_MAPS = [name for name, kind in _FACTS.items() if pa.types.is_map(kind)]
_DICTIONARY = ["fingerprint", "kind", "compression", "content", "vectors", "samples", "version"]


def listed_parts(table: str) -> dict[str, Identity]:
    """{file below `parts/`: its version} of every part there is, by one listing."""
    parts = storage.join(table, "parts")
    # A store lists an object as its client writes it, which may differ in slashes from how the table was named.
    top = parts if storage.is_local(table) else parts.split("://", 1)[1].strip("/")
    listed = storage.list_entries(parts, ".parquet")
    if storage.is_local(table):
        return {url[len(top) + 1 :]: version for url, version in listed}
    return {url.split("://", 1)[1].lstrip("/").removeprefix(top + "/"): version for url, version in listed}


def file_below(table: str, part: str) -> str:
    """Where a part lies below `parts/`."""
    return part[len(storage.join(table, "parts")) + 1 :]


@dataclass(frozen=True)
class Catalogue:
    """The rows of a catalogue that speak of parts as they are today."""

    table: str
    parts: Mapping[str, Identity]  # as they were listed
    rows: pa.Table
    numbers: Mapping[str, int]  # file -> row

    def covers(self, url: str) -> bool:
        """Whether the facts of the part at `url` are known."""
        return file_below(self.table, url) in self.numbers

    def facts(self, urls: Sequence[str]) -> list[PartFacts | None]:
        """The facts of parts, None of those that it doesn't cover and of rows that no part could have."""
        at = [self.numbers.get(file_below(self.table, url)) for url in urls]
        rows = iter(self.rows.take([number for number in at if number is not None]).to_pylist())
        return [None if number is None else _facts(next(rows)) for number in at]


def _facts(row: dict[str, Any]) -> PartFacts | None:
    values: dict[str, Any] = {name: dict(row[name] or ()) if name in _MAPS else row[name] for name in _FACTS}
    try:
        return foreign.checked_facts(PartFacts(**values))
    except ValueError:
        return None


def catalogues(table: str) -> list[str]:
    """The URLs of a (resolved) table's catalogues, the one of most parts last."""
    return storage.list_files(storage.join(table, FOLDER), ".parquet")


def find_catalogue(table: str, info: TableInfo, wanted: int | None = None) -> Catalogue | None:
    """The catalogue of a (resolved) table, held against one listing of its parts.

    None without one, or where `wanted` shards are so few that their footers are sooner read. One that can't be
    understood is told and left out: the parts say the same.
    """
    for url in reversed(catalogues(table)):
        if wanted is not None and wanted * SPARSE < _parts_of(url):
            return None
        try:
            return open_catalogue(table, info, url)
        except TableError as exc:
            LOG.warning("%s isn't used (%s): the parts are asked; %s", storage.redact(url), exc, _MEND)
        except NotFoundError:
            continue  # a repair removed it
    return None


_MEND = "`rhostream verify TABLE --repair` writes it again"


def _parts_of(url: str) -> int:
    count = url.rpartition("/")[2].partition("-")[0]
    return int(count) if count.isdecimal() else 0


def open_catalogue(table: str, info: TableInfo, url: str) -> Catalogue:
    """One catalogue, held against a listing. Raises NotFoundError, TableError for a damaged one."""
    rows, record = parquet.read(url)
    known = record.get("artifact") == FOLDER and record.get("version") == VERSION
    if not known or not rows.schema.remove_metadata().equals(SCHEMA):
        raise TableError(f"{storage.redact(url)} is no catalogue that this version understands")
    if record.get("fingerprint") != info.fingerprint:
        raise TableError(f"{storage.redact(url)} is of a table of another making")
    rows, parts = rows.combine_chunks(), listed_parts(table)
    same = pa.array(
        parts.get(file) == Identity(size, tag)
        for file, size, tag in zip(*(rows[name].to_pylist() for name in ("file", "bytes", "tag")), strict=True)
    )
    rows = rows.filter(pc.and_(same, pc.equal(rows["fingerprint"], info.fingerprint))).combine_chunks()
    return Catalogue(table, parts, rows, {file: number for number, file in enumerate(rows["file"].to_pylist())})


def facts_of_parts(
    table: str, urls: Sequence[str], catalogue: Catalogue | None, ask: Callable[[str], T]
) -> Iterator[PartFacts | T]:
    """The facts of each of these parts, in their order: from the catalogue where it covers the part, else what `ask`
    answers for its URL; a few hundred are at hand at a time."""
    with ThreadPoolExecutor(LOCAL_THREADS if storage.is_local(table) else REMOTE_THREADS) as pool:
        for start in range(0, len(urls), SLICE):
            some = urls[start : start + SLICE]
            known = catalogue.facts(some) if catalogue else [None] * len(some)
            asked = [url for url, facts in zip(some, known, strict=True) if facts is None]
            read = pool.map(ask, asked)
            yield from (next(read) if facts is None else facts for facts in known)


def _sound(table: str, info: TableInfo, beginning: bytes, url: str) -> PartFacts | None:
    """The facts of a part, None of one that a catalogue must not speak of."""
    try:
        facts, names = read_part_footer(url, beginning)
    except (TableError, NotFoundError):
        return None
    mine = facts.fingerprint == info.fingerprint and url == part_url(table, facts.shard)
    return facts if mine and set(names or info.schema.names) == set(info.schema.names) else None


def write_catalogue(table: str, info: TableInfo, names: Iterable[str] | None = None) -> str | None:
    """Write the catalogue of a (resolved) table as it stands; its URL, None where there is nothing to write.

    With `names` only where each of these shards has a part. What an older one knows isn't asked again. Parts that are
    damaged or strange are left out: whoever opens the table meets them as they are. Raises StorageError.
    """
    shards = None if names is None else list(names)
    if shards is not None and len(shards) < LEAST:
        return None
    parts = listed_parts(table)
    if len(parts) < LEAST or not all(_is_listed(table, name, parts) for name in shards or ()):
        return None
    files = sorted(parts)
    lines = "".join(f"{file}\t{parts[file].size}\t{parts[file].tag}\n" for file in files)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    url = storage.join(table, FOLDER, f"{len(parts):09d}-{digest}.parquet")
    if storage.exists(url):
        return None
    urls = [storage.join(table, "parts", file) for file in files]
    batches, rows = list[pa.RecordBatch](), list[dict[str, Any]]()
    ask = partial(_sound, table, info, footer_beginning(info))
    for file, facts in zip(files, facts_of_parts(table, urls, find_catalogue(table, info), ask), strict=True):
        if facts is not None:
            rows.append({"file": file, "bytes": parts[file].size, "tag": parts[file].tag, **_columns(facts)})
        if len(rows) == SLICE:
            batches.append(pa.RecordBatch.from_pylist(rows, SCHEMA))
            rows = []
    whole = pa.Table.from_batches([*batches, pa.RecordBatch.from_pylist(rows, SCHEMA)]).combine_chunks()
    record = {"artifact": FOLDER, "version": VERSION, "fingerprint": info.fingerprint, "parts": len(parts)}
    try:
        storage.create(url, parquet.encode(whole, record, {"file": "DELTA_BYTE_ARRAY"}, _DICTIONARY))
    except AlreadyExistsError:
        return None  # another job's, of the same list
    LOG.info("%s: its catalogue of %s parts is written", storage.redact(table), f"{len(parts):,}")
    return url


def _columns(facts: PartFacts) -> dict[str, Any]:
    return {
        name: list(cast(dict[Any, Any], value).items()) if name in _MAPS else value
        for name in _FACTS
        for value in [getattr(facts, name)]
    }


def _is_listed(table: str, name: str, parts: Mapping[str, Identity]) -> bool:
    return file_below(table, part_url(table, name)) in parts
