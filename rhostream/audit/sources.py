"""Committed files as Arrow datasets, which DuckDB scans without touching a file system itself.

Local files stay on disk and are streamed, with page checksums verified (DuckDB's own reader never does that). A path
that DuckDB may read it may also overwrite by COPY, and it takes `[1]` in a folder's name for a pattern: so it is never
given one. Remote files are read whole through storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from rhostream import storage
from rhostream.audit.runs import RunFolder
from rhostream.errors import MismatchError, MissingPartError, NotFoundError, TableError
from rhostream.tables import il as il_table
from rhostream.tables import parquet, selections, steps
from rhostream.tables.names import unshortened

THREADS = 16
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def dataset(
    files: Sequence[tuple[str, str | None]], column: str | None, schema: pa.Schema, later: Sequence[str] = ()
) -> Any:
    """The rows of (url, value) files, with `value` as one more string `column` if it has a name; empty for no files.

    `later`: columns that files of an older version don't have, and which are null there.
    """
    schema = pa.schema([field.with_type(_widened(field.type)) for field in schema])
    whole = pa.schema([*schema, (column, pa.string())]) if column else schema
    local = [(url, value) for url, value in files if _on_disk(url)]
    disk = LocalFileSystem()
    fragments = [_FORMAT.make_fragment(url, disk, partition_expression=ds.field(column) == value if column else None)
                 for url, value in local]  # fmt: skip
    pieces = [ds.FileSystemDataset(fragments, whole, _FORMAT, disk)] if fragments else []
    remote = [_remote(url, value, column, whole, later) for url, value in files if not _on_disk(url)]
    if remote:
        pieces.append(ds.dataset(pa.concat_tables(remote).unify_dictionaries()))
    return pieces[0] if len(pieces) == 1 else ds.dataset(pieces or whole.empty_table())


def _on_disk(url: str) -> bool:
    """Whether Arrow can open the file by itself: a path that is no UTF-8 it can't."""
    return storage.is_local(url) and not _SURROGATE.search(url)


def _widened(kind: pa.DataType) -> pa.DataType:
    """The same with float32 for float16, which DuckDB doesn't take from Arrow."""
    if pa.types.is_list(kind):
        return pa.list_(_widened(kind.value_type)) if pa.types.is_float16(kind.value_type) else kind
    return pa.float32() if pa.types.is_float16(kind) else kind


def _remote(url: str, value: str | None, column: str | None, schema: pa.Schema, later: Sequence[str] = ()) -> pa.Table:
    table = parquet.read(url)[0]
    try:
        for name in later:
            if name not in table.schema.names:
                table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        if column:
            table = table.append_column(column, pa.array([value] * len(table), pa.string()))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError) as exc:
        raise TableError(f"{storage.redact(url)} has other columns than it should: {exc}") from exc


def segments(run: RunFolder, what: str, schema: pa.Schema) -> Any:
    """The committed segments of `what` ("log", "steps" or "shadow") of a run, each proved by its sha256.

    Raises TableError naming the first segment that is damaged, replaced or gone.
    """
    listed = getattr(run.checkpoint, what) if run.checkpoint else []
    later = {"steps": steps.LATER, "log": (selections.SOURCE.name,)}.get(what, ())
    return dataset([(url, None) for url in selections.verified_paths(run.url, listed)], None, schema, later)


def part_files(table: str, shards: Sequence[str]) -> list[tuple[str, str]]:
    """(url, shard) of a table's parts: those of `shards`, of every shard where none is given; footers are checked.

    Raises TableError for a damaged part, MissingPartError, MismatchError for a part of another table.
    """
    info = il_table.open_info(table)
    urls = ([il_table.part_url(table, shard) for shard in shards]
            or storage.list_files(storage.join(table, "parts"), ".parquet"))  # fmt: skip
    expected, parts = sorted(info.schema.names), list[tuple[str, str]]()
    with ThreadPoolExecutor(il_table.LOCAL_THREADS if storage.is_local(table) else THREADS) as pool:
        footers = pool.map(partial(_footer, il_table.footer_beginning(info)), urls)
    for url, (one, found) in zip(urls, footers, strict=True):
        # A column that isn't there would read as null, and no checksum covers the names.
        if found is not None and sorted(found) != expected:
            strange = ", ".join(sorted(set(found) ^ set(info.schema.names)))
            raise TableError(f"{storage.redact(url)} has other columns than its table ({strange}); `rhostream verify "
                             "--repair` makes it again")  # fmt: skip
        if one.fingerprint != info.fingerprint:
            raise MismatchError(f"{storage.redact(url)} has fingerprint {one.fingerprint}, its table has "
                                f"{info.fingerprint}: `rhostream verify --repair` makes it again")  # fmt: skip
        if not url.endswith((il_table.part_url("", one.shard), "/parts/" + unshortened(one.shard))):
            raise TableError(
                f"{storage.redact(url)} is the part of another shard ({one.shard}); `rhostream verify` says which"
            )
        parts.append((url, one.shard))
    return parts


def _footer(beginning: bytes, url: str) -> tuple[il_table.PartFacts, list[str] | None]:
    try:
        return il_table.read_part_footer(url, beginning)
    except NotFoundError as exc:
        raise MissingPartError(f"{storage.redact(url)} is gone; run `rhostream compute-il` again") from exc


def first_damage(files: Iterable[tuple[str, str]]) -> TableError | None:
    """The error of the first part whose bytes can't be trusted, for a scan that failed without saying where."""
    for url, _ in files:
        try:
            parquet.read(url)
        except TableError as exc:
            return exc
    return None
