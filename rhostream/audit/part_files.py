"""The parts of an IL table for DuckDB: each held against its table, before a row of it is an answer.

On a disk every footer is read when the table is opened. Of a store the catalogue's word is taken for what it covers,
and the footer is looked at when the part is first read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.audit.sources import dataset
from rhostream.errors import MismatchError, MissingPartError, NotFoundError, TableError
from rhostream.storage import Identity
from rhostream.tables import il, parquet
from rhostream.tables.names import unshortened


@dataclass(frozen=True)
class PartFiles:
    """The parts of a table, or of some of its shards, as they were found."""

    table: str
    info: il.TableInfo
    files: Sequence[tuple[str, str]] = ()  # URL, shard
    catalogue: il.Catalogue | None = None
    versions: Mapping[str, Identity] | None = None  # of a store, by the file below `parts/`

    def dataset(self, schema: pa.Schema) -> Any:
        """Their rows, with the shard as one more column."""
        return dataset(self.files, "shard", schema, self._opened)

    def _opened(self, url: str) -> storage.RangedFile:
        version = (self.versions or {}).get(il.file_below(self.table, url)) or storage.identity(url)
        if self.catalogue is None or not self.catalogue.covers(url):
            return storage.RangedFile(url, version)
        return _Unseen(self.info, url, version)

    def first_damage(self) -> TableError | None:
        """The error of the first part whose bytes can't be trusted, for a scan that failed without saying where."""
        for url, _ in self.files:
            try:
                _require_of(self.info, url, _footer(self.info, b"", url))
                parquet.read(url)
            except (TableError, MismatchError, MissingPartError) as exc:
                return exc if isinstance(exc, TableError) else TableError(str(exc))
        return None


class _Unseen(storage.RangedFile):
    """A part of which only the catalogue has spoken: its own footer is looked at before anything of it is read."""

    def __init__(self, info: il.TableInfo, url: str, version: Identity) -> None:
        super().__init__(url, version)
        self._info, self._url, self._seen = info, url, False

    def read(self, size: int | None = -1) -> bytes:
        """As of any file. Raises TableError, MismatchError for a part that doesn't belong there."""
        if not self._seen:
            _require_of(self._info, self._url, _footer(self._info, b"", self._url))
            self._seen = True
        return super().read(size)


def part_files(table: str, shards: Sequence[str]) -> PartFiles:
    """A (resolved) table's parts: those of `shards`, of every shard where none is given.

    Raises TableError for a damaged part, MissingPartError, MismatchError for a part of another table.
    """
    info, catalogue, versions = il.open_info(table), None, None
    urls = [il.part_url(table, shard) for shard in shards] or il.part_urls(table)
    if not storage.is_local(table) and len(urls) >= il.LEAST:
        catalogue = il.find_catalogue(table, info, len(urls))
        versions = catalogue.parts if catalogue else il.listed_parts(table)
    ask, files = partial(_footer, info, il.footer_beginning(info)), list[tuple[str, str]]()
    for url, facts in zip(urls, il.facts_of_parts(table, urls, catalogue, ask), strict=True):
        _require_of(info, url, facts)
        files.append((url, facts.shard))
    return PartFiles(table, info, files, catalogue, versions)


def _footer(info: il.TableInfo, beginning: bytes, url: str) -> il.PartFacts:
    try:
        facts, names = il.read_part_footer(url, beginning)
    except NotFoundError as exc:
        raise MissingPartError(f"{storage.redact(url)} is gone; run `rhostream compute-il` again") from exc
    # A column that isn't there would read as null, and no checksum covers the names.
    if names is not None and sorted(names) != sorted(info.schema.names):
        strange = ", ".join(sorted(set(names) ^ set(info.schema.names)))
        raise TableError(
            f"{storage.redact(url)} has other columns than its table ({strange}); `rhostream verify --repair` makes it "
            "again"
        )
    return facts


def _require_of(info: il.TableInfo, url: str, facts: il.PartFacts) -> None:
    if facts.fingerprint != info.fingerprint:
        raise MismatchError(
            f"{storage.redact(url)} has fingerprint {facts.fingerprint}, its table has {info.fingerprint}: `rhostream "
            "verify --repair` makes it again"
        )
    if not url.endswith((il.part_url("", facts.shard), "/parts/" + unshortened(facts.shard))):
        raise TableError(
            f"{storage.redact(url)} is the part of another shard ({facts.shard}); `rhostream verify` says which"
        )
