"""A gzip-compressed shard as a plain one: inflated, within a stated bound, into a file that has no name.

Offsets need plain bytes, so a compressed shard is read only where the user allows it, and only by the jobs that go
through a shard once (fit-il, compute-il, index). The inflated bytes lie in the spool's folder for as long as the shard
is open; the file is unlinked from the start, so nothing is left behind by a crash.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib

from rhostream.errors import NotWritableError, ShardError
from rhostream.storage import Reader, redact

GZIP = b"\x1f\x8b"
EXPANSION, FREE, MOST = 100, 256 << 20, 16 << 30  # times the shard's bytes; bytes that it may always have; bytes
_PIECE = 1 << 20


class Inflated(Reader):
    """The plain bytes of a compressed shard: `size` is theirs, `sha256` the shard's. Closing it closes the shard."""

    def __init__(self, compressed: Reader, shard: str) -> None:
        self.url, self._compressed, self._fd = compressed.url, compressed, -1
        self._shard, self._digest = redact(shard), hashlib.sha256()
        self._fd, folder = _nameless()
        try:
            self.size = self._inflate()
        except OSError as exc:
            raise NotWritableError(
                f"can't inflate shard {self._shard} into {folder}: {os.strerror(exc.errno or 0)}; "
                "free some space there, or set RHOSTREAM_SPOOL"
            ) from exc

    @property
    def sha256(self) -> str:
        """Of the compressed bytes: of the shard as it lies there."""
        return self._digest.hexdigest()

    def unchanged(self) -> bool:
        """Whether the compressed shard still has the size it had."""
        return self._compressed.unchanged()

    def close(self) -> None:
        """Close both."""
        super().close()
        self._compressed.close()

    __del__ = close

    def _inflate(self) -> int:
        source, at, made = self._compressed, 0, 0
        most = min(MOST, max(FREE, EXPANSION * source.size))
        engine, begun = zlib.decompressobj(wbits=31), False
        while piece := source.pread(_PIECE, at):
            at += len(piece)
            self._digest.update(piece)
            while piece:
                begun = True
                try:
                    plain = engine.decompress(piece, _PIECE)
                except zlib.error as exc:
                    raise ShardError(
                        f"shard {self._shard}: its gzip stream is damaged near byte {at:,} "
                        f"({made:,} bytes inflated); copy it again"
                    ) from exc
                if made + len(plain) > most:
                    raise ShardError(
                        f"shard {self._shard} has {source.size:,} bytes and inflates to more than "
                        f"{most:,}, the most that is read; decompress it yourself if you trust it"
                    )
                made += _write(self._fd, plain)
                piece = engine.unconsumed_tail
                if engine.eof:
                    # Another stream may follow (`cat a.gz b.gz`), or the zeros that tapes are padded with.
                    piece = engine.unused_data.lstrip(b"\0")
                    engine, begun = zlib.decompressobj(wbits=31), False
        if begun:
            raise ShardError(
                f"shard {self._shard} incomplete: its gzip stream ends in the middle ({source.size:,} "
                f"bytes, {made:,} inflated); copy it again"
            )
        return made


def plain(reader: Reader, shard: str) -> Reader:
    """The reader itself, or that of the plain bytes where it holds a gzip file.

    Raises ShardError for a damaged or cut stream and for one that inflates beyond the bound, NotWritableError.
    """
    return Inflated(reader, shard) if reader.pread(2, 0) == GZIP else reader


def _nameless() -> tuple[int, str]:
    folder = os.environ.get("RHOSTREAM_SPOOL") or tempfile.gettempdir()
    try:
        os.makedirs(folder, exist_ok=True)
        fd, path = tempfile.mkstemp(prefix="rhostream-inflated-", dir=folder)
        os.unlink(path)
    except OSError as exc:
        raise NotWritableError(
            f"can't make a file in {folder}: {os.strerror(exc.errno or 0)}; set RHOSTREAM_SPOOL to "
            "a folder with room for a shard"
        ) from exc
    return fd, folder


def _write(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)
