"""How every durable table of ours is written and read: bytes first, page checksums on, facts in the footer.

A Parquet writer that is left by an exception publishes a short file that looks valid, so tables are built in memory
and committed as finished bytes. pyarrow finds flipped bits only when page checksums are written *and* verified, and
these cover the pages alone. So the footer also holds the sha256 of all before it, and its own: a seal, whose digits
are taken as zeros. Together they cover every byte, and a footer is proved without the rest of its file.
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
_ADVICE = "`rhostream verify --repair` makes it again"
_DIGEST = b"rhostream_sha256"  # of the footer record, which no page checksum covers
# In Thrift's compact form: field 1, a string of 9 (16) bytes, the name; field 2, a string of so many bytes, the value.
_RECORD_AT = b"\x18\x09" + _FOOTER + b"\x18"
_DIGEST_AT = b"\x18\x10" + _DIGEST + b"\x18\x40"
MAX_ROWS_PER_BYTE = 64  # a row takes 12 bytes as a rule; equal members and counted keys pack 7 rows into a byte
_BODY, _SEAL, _NO_DIGEST = b"rhostream_body", b"rhostream_seal", b"0" * 64
_BODY_AT, _SEAL_AT = (b"\x18\x0e" + name + b"\x18\x40" for name in (_BODY, _SEAL))
_SEALED = "sealed"  # in the record, so that a flipped bit in the seal's name doesn't make the file one without a seal
_TAIL, _MAX_FOOTER = 8 << 10, 64 << 20  # bytes; the footer of a part has 4.5 KB as a rule
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


def encode(table: pa.Table, facts: Mapping[str, Any], encodings: Mapping[str, str], dictionary: Sequence[str]) -> bytes:
    """The bytes of a Parquet file, sealed; the same table and facts give the same bytes."""
    record = json.dumps({**facts, _SEALED: 1}, sort_keys=True, separators=(",", ":")).encode()
    sink = io.BytesIO()
    digest = hashlib.sha256(record).hexdigest().encode()
    pq.write_table(
        table.replace_schema_metadata({_FOOTER: record, _DIGEST: digest, _BODY: _NO_DIGEST, _SEAL: _NO_DIGEST}),
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(dictionary),
        column_encoding=dict(encodings),
        write_page_checksum=True,
        write_statistics=True,
        store_schema=True,
    )
    data = sink.getvalue()
    start = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    footer = _with_digest(data[start:], _BODY_AT, hashlib.sha256(memoryview(data)[:start]).hexdigest())
    return data[:start] + _with_digest(footer, _SEAL_AT, hashlib.sha256(footer).hexdigest())


def _with_digest(footer: bytes, name: bytes, digest: str) -> bytes:
    at = footer.rindex(name) + len(name)
    return footer[:at] + digest.encode() + footer[at + 64 :]


def read_facts(url: str) -> dict[str, Any]:
    """The facts in the footer, without reading the rows. Raises NotFoundError, TableError."""
    try:
        footer = _footer(url)
        # Its own sha256 proves the record, so nothing else of the footer has to be parsed: eight times faster.
        proved = _proved_record(footer)
        return proved if proved is not None else _facts(_parse(footer).metadata, url, _footer_sealed(footer))
    except _DAMAGE as exc:
        raise _broken(url, exc) from exc


def read_footer(url: str, beginning: bytes = b"") -> tuple[dict[str, Any], list[str] | None]:
    """The facts and the names of the columns, without reading the rows. Raises NotFoundError, TableError.

    The names are None for a file whose columns are those of `beginning` (see `footer_beginning`): nothing is parsed.
    """
    try:
        footer = _footer(url)
        if beginning and footer.startswith(beginning) and (proved := _proved_record(footer)) is not None:
            return proved, None
        sealed, metadata = _footer_sealed(footer), _parse(footer)
        return _facts(metadata.metadata, url, sealed), list(metadata.schema.to_arrow_schema().names)
    except _DAMAGE as exc:
        raise _broken(url, exc) from exc


def footer_beginning(schema: pa.Schema, encodings: Mapping[str, str], dictionary: Sequence[str]) -> bytes:
    """How the footer of every file of these columns begins: version and schema stand before the number of rows."""
    footers = []
    for rows in (0, 1):
        table = pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)
        data = encode(table, {}, encodings, dictionary)
        footers.append(data[-int.from_bytes(data[-8:-4], "little") - 8 :])
    same = next(at for at, (a, b) in enumerate(zip(*footers, strict=False)) if a != b)
    return footers[0][:same]


def _footer(url: str) -> bytes:
    """A file's metadata, in Thrift, with its length and the magic behind it: one small read of its end, and a second
    one where the footer is longer; never the rest of the file.
    """
    tail = storage.read_tail(url, _TAIL)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) == _TAIL and _TAIL < length <= _MAX_FOOTER and tail.endswith(b"PAR1"):
        tail = storage.read_tail(url, length)
    return tail[-length:]


def _parse(footer: bytes) -> Any:
    """The metadata, as if of a file that holds nothing else. Raises what pyarrow finds wrong with it."""
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


def _proved_record(footer: bytes) -> dict[str, Any] | None:
    """The footer record, found by its name and proved by its digest; None when there is none of that form."""
    _, found, rest = footer.partition(_RECORD_AT)
    _, digested, digest = footer.partition(_DIGEST_AT)
    if not (found and digested and footer.endswith(b"PAR1")):
        return None
    length = shift = at = 0
    while at < min(len(rest), 5):  # a varint: seven bits a byte, the lowest first
        length |= (rest[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if rest[at - 1] < 0x80:
            break
    record = rest[at : at + length]
    if digest[:64] != hashlib.sha256(record).hexdigest().encode():
        return None
    facts: dict[str, Any] = json.loads(record)
    if facts.pop(_SEALED, None) and not _footer_sealed(footer):
        raise ValueError("its footer has lost its seal")
    return facts


def is_sealed(data: bytes) -> bool:
    """Whether the bytes of a file carry a seal; those written before there were seals don't. Raises ValueError.

    A seal that is there and isn't that of the bytes is an error: some bit of them isn't what was written.
    """
    start = max(len(data) - int.from_bytes(data[-8:-4], "little") - 8, 0)
    footer = data[start:]
    if not _footer_sealed(footer):
        return False
    _, found, rest = footer.rpartition(_BODY_AT)
    if not found or rest[:64] != hashlib.sha256(memoryview(data)[:start]).hexdigest().encode():
        raise ValueError("its pages don't match the digest in its footer")
    return True


def _footer_sealed(footer: bytes) -> bool:
    """Whether a footer carries a seal. Raises ValueError when it is not that of the footer's bytes."""
    at = footer.rfind(_SEAL_AT)
    if at < 0:
        return False
    at += len(_SEAL_AT)
    if footer[at : at + 64] != hashlib.sha256(footer[:at] + _NO_DIGEST + footer[at + 64 :]).hexdigest().encode():
        raise ValueError("its footer doesn't match its seal")
    return True


def read(url: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """The rows (every byte of the file proved) and the facts. Raises NotFoundError, TableError naming the file."""
    return parse(storage.read_bytes(url), url, columns)


def parse(data: bytes, url: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """`read` for bytes that are at hand; `url` is for the message. Raises TableError."""
    try:
        sealed = is_sealed(data)
        # In this thread: one of Arrow's that lets go of Python's bytes while the interpreter ends aborts the process.
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, pre_buffer=False)
        facts = _facts(file.schema_arrow.metadata, url, sealed)
        # One thread: parts are small, and loader workers are many.
        _require_plausible(file, len(data), columns, url)
        return file.read(columns=columns, use_threads=False), facts
    except _DAMAGE as exc:
        raise _broken(url, exc) from exc


def _require_plausible(file: pq.ParquetFile, size: int, columns: Sequence[str] | None, url: str) -> None:
    """Refuse what can't be ours: more rows than so many bytes hold (a few KB can claim 2^31), or a column missing."""
    rows = file.metadata.num_rows
    if rows > MAX_ROWS_PER_BYTE * size:
        raise TableError(f"{storage.redact(url)} claims {rows:,} rows in {size:,} bytes: it is damaged or forged")
    if missing := set(columns or ()) - set(file.schema_arrow.names):
        raise TableError(f"{storage.redact(url)} has no column {', '.join(sorted(missing))}; {_ADVICE}")


def _facts(metadata: Mapping[bytes, bytes] | None, url: str, sealed: bool) -> dict[str, Any]:
    record = (metadata or {}).get(_FOOTER)
    if record is None:
        raise TableError(f"{storage.redact(url)} was not written by rhostream (no footer record)")
    if (metadata or {}).get(_DIGEST) != hashlib.sha256(record).hexdigest().encode():
        raise TableError(f"{storage.redact(url)}: the footer record doesn't match its sha256; {_ADVICE}")
    facts: dict[str, Any] = json.loads(record)
    if facts.pop(_SEALED, None) and not sealed:
        raise TableError(f"{storage.redact(url)} has lost its seal; {_ADVICE}")
    return facts


def _broken(url: str, exc: BaseException) -> TableError:
    text = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return TableError(f"{storage.redact(url)} is damaged ({text}); {_ADVICE}")
