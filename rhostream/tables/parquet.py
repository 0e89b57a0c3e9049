"""How every durable table of ours is written and read: bytes first, page checksums on, facts in the footer.

A Parquet writer that is left by an exception publishes a short file that looks valid, so tables are built in memory
and committed as finished bytes. pyarrow finds flipped bits only when page checksums are written *and* verified.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rhostream import storage
from rhostream.errors import TableError

_FOOTER = b"rhostream"
_ADVICE = "`rhostream verify --repair` removes it, then the job that wrote it makes it again"
_DIGEST = b"rhostream_sha256"  # of the footer record, which no page checksum covers
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


def encode(table: pa.Table, facts: Mapping[str, Any], encodings: Mapping[str, str], dictionary: Sequence[str]) -> bytes:
    """The bytes of a Parquet file; the same table and facts give the same bytes."""
    record = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_FOOTER: record, _DIGEST: hashlib.sha256(record).hexdigest().encode()}),
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(dictionary),
        column_encoding=dict(encodings),
        write_page_checksum=True,
        write_statistics=True,
        store_schema=True,
    )
    return sink.getvalue()


def read_facts(url: str) -> dict[str, Any]:
    """The facts in the footer, without reading the rows. Raises TableError."""
    try:
        source = url if storage.is_local(url) else io.BytesIO(storage.read_bytes(url))
        return _facts(pq.read_metadata(source).metadata, url)
    except _DAMAGE as exc:
        raise _broken(url, exc) from exc


def read(url: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """The rows (checksums verified) and the facts. Raises TableError naming the file."""
    try:
        data = storage.read_bytes(url)
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        facts = _facts(file.schema_arrow.metadata, url)
        # One thread: parts are small, loader workers are many, and a pool that lives on can abort a short process.
        return file.read(columns=columns, use_threads=False), facts
    except _DAMAGE as exc:
        raise _broken(url, exc) from exc


def _facts(metadata: Mapping[bytes, bytes] | None, url: str) -> dict[str, Any]:
    record = (metadata or {}).get(_FOOTER)
    if record is None:
        raise TableError(f"{storage.redact(url)} was not written by rhostream (no footer record)")
    if (metadata or {}).get(_DIGEST) != hashlib.sha256(record).hexdigest().encode():
        raise TableError(f"{storage.redact(url)}: the footer record doesn't match its sha256; {_ADVICE}")
    facts: dict[str, Any] = json.loads(record)
    return facts


def _broken(url: str, exc: BaseException) -> TableError:
    text = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return TableError(f"{storage.redact(url)} is damaged ({text}); {_ADVICE}")

