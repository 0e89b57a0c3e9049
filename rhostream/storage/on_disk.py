"""Bytes that lie in a file of this machine, for a store that takes them piece by piece: never all of them in memory."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rhostream.storage.store import Data

PIECE = 8 << 20  # bytes


class OnDisk:
    """All that an open file holds, sliced as `bytes` are; the file stays open as long as this is used."""

    def __init__(self, fd: int) -> None:
        self._fd, self._size = fd, os.fstat(fd).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, step = span.indices(self._size)
        assert step == 1
        pieces, at = list[bytes](), start
        while at < stop and (piece := os.pread(self._fd, stop - at, at)):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def opened(self) -> io.BufferedReader:
        """To be read from its beginning."""
        return io.BufferedReader(_Raw(self._fd), PIECE)

    @staticmethod
    def digest(data: Data) -> tuple[int, str]:
        """Size and sha256, of plain bytes too."""
        whole = hashlib.sha256()
        for at in range(0, len(data), PIECE):
            whole.update(data[at : at + PIECE])
        return len(data), whole.hexdigest()


class _Raw(io.RawIOBase):
    def __init__(self, fd: int) -> None:
        self._fd, self._at = fd, 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:  # by which a client knows the size
        return self._fd

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = os.pread(self._fd, len(buffer), self._at)
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
