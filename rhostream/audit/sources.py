"""Committed files as Arrow datasets, which DuckDB scans without touching a file system itself.

Local files stay on disk and are streamed, with page checksums verified (DuckDB's own reader never does that). A path
that DuckDB may read it may also overwrite by COPY, and it takes `[1]` in a folder's name for a pattern: so it is never
given one. Of a store Arrow gets files that are read by ranges of the version that was proved or looked at: the columns
and the row groups that a question needs, never a log in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from rhostream import storage
from rhostream.audit.runs import RunFolder
from rhostream.storage import Identity
from rhostream.tables import proofs

THREADS = 16
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def dataset(
    files: Sequence[tuple[str, str | None]],
    column: str | None,
    schema: pa.Schema,
    opened: Callable[[str], storage.RangedFile] | None = None,
) -> Any:
    """The rows of (url, value) files, with `value` as one more string `column` if it has a name; empty for no files.

    A column that a file of an older version doesn't have is null there. `opened` gives the file of a store by its URL.
    """
    schema = pa.schema([field.with_type(_widened(field.type)) for field in schema])
    whole = pa.schema([*schema, (column, pa.string())]) if column else schema
    disk = LocalFileSystem()
    fragments = [
        _FORMAT.make_fragment(
            *_source(url, disk, opened),
            partition_expression=ds.field(column) == value if column else None,
        )
        for url, value in files
    ]
    return ds.FileSystemDataset(fragments, whole, _FORMAT, disk) if fragments else ds.dataset(whole.empty_table())


def _source(url: str, disk: LocalFileSystem, opened: Callable[[str], storage.RangedFile] | None) -> tuple[Any, Any]:
    """What Arrow opens: a path, or a file of ours where it can't by itself."""
    if _on_disk(url):
        return url, disk
    if storage.is_local(url):
        return pa.BufferReader(storage.read_bytes(url)), None
    assert opened is not None
    return pa.PythonFile(opened(url), "r"), None


def _on_disk(url: str) -> bool:
    """Whether Arrow can open the file by itself: a path that is no UTF-8 it can't."""
    return storage.is_local(url) and not _SURROGATE.search(url)


def _widened(kind: pa.DataType) -> pa.DataType:
    """The same with float32 for float16, which DuckDB doesn't take from Arrow."""
    if pa.types.is_list(kind):
        return pa.list_(_widened(kind.value_type)) if pa.types.is_float16(kind.value_type) else kind
    return pa.float32() if pa.types.is_float16(kind) else kind


def segments(run: RunFolder, what: str, schema: pa.Schema) -> Any:
    """The committed segments of `what` ("log", "steps" or "shadow") of a run, each proved by its sha256.

    Raises TableError naming the first segment that is damaged, replaced or gone.
    """
    listed = getattr(run.checkpoint, what) if run.checkpoint else []
    proved = dict(proofs.verified(run.url, listed))
    return dataset([(url, None) for url in proved], None, schema, lambda url: _version(url, proved[url]))


def _version(url: str, version: Identity | None) -> storage.RangedFile:
    return storage.RangedFile(url, version or storage.identity(url))
