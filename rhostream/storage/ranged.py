"""One version of a remote object as a file that is read by ranges: what a library asks for is read, and no more."""

from __future__ import annotations

import io
import os

from rhostream.storage.reading import RangeReader
from rhostream.storage.store import Found, Identity


class RangedFile(io.RawIOBase):
    """Every read names the version: of another one it is a ChangedError, never a mixture of both."""

    def __init__(self, url: str, version: Identity) -> None:
        self._reader, self._at = RangeReader(url, Found(version)), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._reader.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, in one request; all that follow unless given."""
        data = self._reader.pread(self._reader.size if size is None or size < 0 else size, self._at)
        self._at += len(data)
        return data
