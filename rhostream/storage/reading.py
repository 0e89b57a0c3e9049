"""Whole and ranged reads: local files by `pread`, remote ones from the spool, or by ranges where they don't fit it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rhostream.errors import AccessError, ChangedError, NotFoundError, StorageError, UsageError
from rhostream.storage import spool
from rhostream.storage.clients import store_of
from rhostream.storage.faults import diagnose
from rhostream.storage.names import is_local, redact
from rhostream.storage.retry import asked, run, transfer
from rhostream.storage.settings import Retry, settings
from rhostream.storage.store import Found, Identity

_PIECE = 1 << 20


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """A disk's errors in our words."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFoundError(f"{redact(url)} does not exist") from exc
    except PermissionError as exc:
        raise AccessError(f"{redact(url)}: permission denied; check the credentials") from exc
    except IsADirectoryError as exc:
        raise UsageError(f"{redact(url)} is a folder, expected a file") from exc
    except OSError as exc:
        if exc.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # no disk has such a file
            raise NotFoundError(f"{redact(url)} does not exist: {os.strerror(exc.errno)}") from exc
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(f"{redact(url)} can't be opened: {spool.TOO_MANY}") from exc
        raise StorageError(f"{redact(url)} can't be read: {os.strerror(exc.errno or 0)}") from exc


def identity(url: str) -> Identity:
    """Size and version of an object. Raises NotFoundError, AccessError, StorageError."""
    if is_local(url):
        with translated(url):
            return _of_stat(os.stat(url))
    return look(url).identity


def _of_stat(there: os.stat_result) -> Identity:
    return Identity(there.st_size, str(there.st_mtime_ns))


def look(url: str, tries: int | None = None) -> Found:
    """What a store says of an object, without reading it."""
    store, path = store_of(url)
    return run(url, lambda patience: asked(store.info(path), patience), tries)


def modified(url: str) -> float | None:
    """When an object was written, in seconds since 1970; None where its store doesn't say. For people alone: nothing
    is decided by a clock. Raises NotFoundError, AccessError, StorageError.
    """
    if is_local(url):
        with translated(url):
            return os.stat(url).st_mtime
    return look(url).modified


def exists(url: str) -> bool:
    """Whether there is such an object."""
    try:
        identity(url)
    except NotFoundError:
        return False
    return True


def read_bytes(url: str, tries: int | None = None) -> bytes:
    """The whole object, its length and, where the store knows it, its checksum compared; with at most so many tries."""
    if is_local(url):
        with translated(url):
            return Path(url).read_bytes()
    store, path = store_of(url)
    pieces: list[bytes] = []

    async def attempt(patience: Retry) -> None:
        pieces.clear()
        await transfer(url, store, path, pieces.append, patience)

    run(url, attempt, tries)
    return b"".join(pieces)


def read_tail(url: str, n: int) -> bytes:
    """The last `n` bytes of an object, or all of it where it is shorter, in one request; nothing of the rest is read.

    Raises NotFoundError, AccessError, StorageError.
    """
    if is_local(url):
        with Reader(url, url) as file:
            return file.pread(n, max(file.size - n, 0))
    (store, path), pieces = store_of(url), list[bytes]()

    async def attempt(patience: Retry) -> None:
        pieces.clear()
        try:
            await transfer(url, store, path, pieces.append, patience, (-n, 0))
        except Exception as exc:
            if diagnose(exc).kind != "http 416":  # an empty object has no last byte
                raise

    run(url, attempt)
    return b"".join(pieces)[-n:]


class Reader:
    """A file held open for reads at offsets. `pread`, not a map: a mapped file that is cut kills the process."""

    version: Identity  # of what is read, as it was when it was opened

    def __init__(self, path: str, url: str) -> None:
        self.url, self._fd = url, -1
        with translated(url):
            there = os.stat(path)
            if not stat.S_ISREG(there.st_mode):  # a named pipe would keep us waiting for its other end
                raise UsageError(
                    f"{redact(url)} is {'a folder' if stat.S_ISDIR(there.st_mode) else 'no plain file'}, "
                    "expected a file"
                )
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.version = _of_stat(os.fstat(self._fd))
            self.size = self.version.size

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`; fewer only at the end of the file."""
        if not 0 <= n <= self.size - offset:
            n = max(min(n, self.size - offset), 0)  # what a table claims isn't allocated before it is found missing
        data = os.pread(self._fd, n, offset)
        while len(data) < n and (more := os.pread(self._fd, n - len(data), offset + len(data))):
            data += more
        return data

    def unchanged(self) -> bool:
        """Whether the open file still has the size it had when it was opened."""
        return os.fstat(self._fd).st_size == self.size

    def close(self) -> None:
        # In this order: after a signal behind os.close, __del__ would close a number that is another file's by then.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __del__ = close


class SpooledReader(Reader):
    """A whole remote object in the spool; as long as it is open it is not evicted."""

    def __init__(self, fd: int, url: str, version: Identity) -> None:
        self.url, self._fd, self.version, self.size = url, fd, version, version.size


class RangeReader(Reader):
    """An object too large for the spool, read by ranges of the version that was opened."""

    def __init__(self, url: str, found: Found, tries: int | None = None) -> None:
        self._tries = tries
        self.url, self.version, self.size, self._fd = url, found.identity, found.identity.size, -1
        self._known = found

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`. Raises ChangedError when the object is another one by now."""
        end = min(offset + n, self.size)
        if end <= offset:
            return b""
        (store, path), pieces = store_of(self.url), list[bytes]()

        async def attempt(patience: Retry) -> None:
            pieces.clear()
            await transfer(self.url, store, path, pieces.append, patience, (offset, end), self._known)

        run(self.url, attempt, self._tries)
        return b"".join(pieces)

    def unchanged(self) -> bool:
        """True: every read names the version, and one of another version is refused."""
        return True


def open_reader(url: str, spool_bytes: int | None = None) -> Reader:
    """Open a shard for reads at offsets.

    A remote object comes in one GET into the spool (a folder of bounded size that the processes of a machine share);
    one larger than a quarter of `spool_bytes`, or for which there is no room, is read by ranges instead.
    """
    try:
        return opened(url, spool_bytes)
    except ChangedError:
        return opened(url, spool_bytes)  # replaced between two requests: once more, as it is now


def open_once(url: str) -> Reader:
    """The same without patience: for a look that can be done without."""
    return opened(url, tries=1)


def opened(url: str, spool_bytes: int | None = None, tries: int | None = None) -> Reader:
    """The same, with at most so many tries."""
    if is_local(url):
        return Reader(url, url)
    budget, found = settings().spool_bytes if spool_bytes is None else spool_bytes, look(url, tries)
    version = found.identity
    if version.size * 4 <= budget:
        fd = spool.fetch(url, version, lambda fd: _bring(url, found, fd, tries), budget)
        if fd is not None:
            return SpooledReader(fd, url, version)
    return RangeReader(url, found, tries)


def _bring(url: str, found: Found, fd: int, tries: int | None) -> None:
    """The whole object into a file, once more from its beginning after every fault."""
    store, path = store_of(url)

    async def attempt(patience: Retry) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        await transfer(url, store, path, lambda piece: _write(fd, piece), patience, known=found)

    run(url, attempt, tries)


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def sha256_of(reader: Reader) -> str:
    """The hash of the whole object; "" for one that is read by ranges: that would be a second download."""
    if isinstance(reader, RangeReader):
        return ""
    digest, at = hashlib.sha256(), 0
    while data := reader.pread(4 << 20, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def digest_of(url: str, version: Identity | None = None) -> tuple[int, str]:
    """Size and sha256 of an object, of a store of that `version` if one is given; it goes by in pieces, so its size in
    memory is that of one. Raises ChangedError for another version."""
    if not is_local(url):
        return _digest_there(url, version)
    digest, size, piece = hashlib.sha256(), 0, bytearray(_PIECE)
    with translated(url), open(url, "rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
            size += n
    return size, digest.hexdigest()


def _digest_there(url: str, version: Identity | None) -> tuple[int, str]:
    (store, path), known = store_of(url), None if version is None else Found(version)

    async def attempt(patience: Retry) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0

        def take(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            digest.update(piece)

        await transfer(url, store, path, take, patience, known=known)
        return size, digest.hexdigest()

    return run(url, attempt)
