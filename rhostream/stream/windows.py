"""A shard through aligned windows: each byte is fetched once, hashed as it passes, and near again while it is needed.

Windows begin at multiples of their size, so a tar's 512-byte blocks never lie across two. The last few stay in memory:
the data of small members, read after the headers around them, costs no system call (or request) each.
"""

from __future__ import annotations

import hashlib

from rhostream.storage import RangeReader, Reader

WINDOW, RANGED = 256 << 10, 4 << 20  # bytes; a request to a store costs far more than a system call
KEPT, RANGED_KEPT = 32, 6  # windows


class Windows(Reader):
    """A reader over a reader, for one pass from the first byte to the last with looks back.

    With `whole`, no window is left out, however large the member that lies there: then `sha256` is that of all bytes.
    An object that is read by ranges is never read whole: bytes that nobody needs are not fetched.
    """

    def __init__(self, reader: Reader, *, whole: bool = False) -> None:
        self._reader, self.url, self.size, self._fd = reader, reader.url, reader.size, -1
        ranged = isinstance(reader, RangeReader)
        self._length, self._keep = (RANGED, RANGED_KEPT) if ranged else (WINDOW, KEPT)
        self._kept: dict[int, bytes] = {}  # by number, the oldest first
        self._digest = hashlib.sha256() if whole and not ranged else None
        self._hashed = 0  # bytes

    def at(self, offset: int) -> tuple[bytes, int]:
        """(the window that holds the byte at `offset`, where it begins); shorter at the end of the file."""
        number = offset // self._length
        window = self._kept.get(number)
        if window is None:
            if self._digest is not None and self._hashed < offset:
                self._hash_up_to(number)
            window = self._fetch(number)
        return window, number * self._length

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`; fewer only at the end of the file."""
        number, at = divmod(offset, self._length)
        window = self._kept.get(number)
        if window is not None and at + n <= len(window):
            return window[at : at + n]
        if n > self._length // 4:
            return self._reader.pread(n, offset)
        data, _ = self.at(offset)
        data = data[at : at + n]
        if len(data) < n and offset + len(data) < self.size:
            data += self.at(offset + len(data))[0][: n - len(data)]
        return data

    def sha256(self) -> str:
        """The hash of the whole object, once it has been walked; "" where not every byte was read."""
        if self._digest is None or self._hashed != self.size:
            return ""
        return self._digest.hexdigest()

    def _hash_up_to(self, number: int) -> None:
        while self._hashed < number * self._length:
            before = self._hashed
            self._fetch(before // self._length)
            if self._hashed == before:
                return  # the file shrank: whoever walks it finds out

    def _fetch(self, number: int) -> bytes:
        start = number * self._length
        window = self._reader.pread(self._length, start)
        if self._digest is not None and start == self._hashed:
            self._digest.update(window)
            self._hashed += len(window)
        if len(self._kept) >= self._keep:
            del self._kept[next(iter(self._kept))]
        self._kept[number] = window
        return window
