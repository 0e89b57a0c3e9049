"""A bounded cache on disk of the remote shards that are read, shared by all processes of a machine.

    <folder>/<sha256 of URL, size and tag>         a whole, checked object; whoever reads it holds a shared lock
    <folder>/<...>.part                            one that is coming; who brings it holds an exclusive lock

Locks are those of the kernel (`flock`), so they end with the process that held them: a `.part` that nobody has locked
is a dead one and is removed, a file that somebody reads is never evicted, and two workers that want the same shard
fetch it once. Where there is no room the caller reads by ranges instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rhostream.errors import StorageError, UsageError
from rhostream.storage.settings import settings
from rhostream.storage.store import Identity

LOG = logging.getLogger("rhostream")
PART = ".part"
PROOFS = "proved"  # of `tables/proofs.py`: a few bytes each, which spare a download each
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
TOO_MANY = (
    "too many open files: raise the limit (`ulimit -n 4096`), or take fewer --workers and, in a stream, fewer --lanes"
)
_POLL = 0.02  # seconds; while another process brings the same shard
_said: set[str] = set()


def folder() -> Path:
    """The spool's folder, private to this user. Raises UsageError for one that somebody else could fill."""
    path = Path(settings().spool or Path(tempfile.gettempdir()) / f"rhostream-spool-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = os.lstat(path) if settings().spool is None else os.stat(path)
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
        raise UsageError(f"the spool {path} isn't a folder of yours; name another with RHOSTREAM_SPOOL")
    return path


def fetch(url: str, version: Identity, bring: Callable[[int], None], spool_bytes: int) -> int | None:
    """A descriptor of the spooled object, open for reading and locked against eviction; close it when done.

    `bring(descriptor)` writes the whole, checked object. None where it can't be spooled: no room, no folder, or
    another process that has stopped halfway.
    """
    name = hashlib.sha256(f"{url}\0{version.size}\0{version.tag}".encode()).hexdigest()
    try:
        return _fetch(folder() / name, version.size, bring, spool_bytes)
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(f"the spool can't open a file: {TOO_MANY}") from exc
        if exc.errno not in _FULL:
            raise StorageError(
                f"the spool {exc.filename or ''}: {os.strerror(exc.errno or 0)}; name another folder "
                "with RHOSTREAM_SPOOL"
            ) from exc
        _say_once(
            f"can't spool ({os.strerror(exc.errno or 0)}): shards are read by ranges, which is slower; free some "
            "space, or name another folder with RHOSTREAM_SPOOL"
        )
        return None


def _fetch(path: Path, size: int, bring: Callable[[int], None], spool_bytes: int) -> int | None:
    part, patience = path.with_name(path.name + PART), settings().retry
    waits_until = time.monotonic() + patience.first_byte + 2 * patience.stall
    while True:
        ready = _open_ready(path, size)
        if ready is not None:
            return ready
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(fd, fcntl.LOCK_EX) or not _is(fd, part):
                moved = os.fstat(fd).st_mtime
                waits_until = max(
                    waits_until,
                    time.monotonic() + patience.first_byte + 2 * patience.stall - max(time.time() - moved, 0),
                )
                if time.monotonic() > waits_until:
                    return None
                time.sleep(_POLL)
                continue
            if not path.exists():
                if not _reserve(fd, part, size, spool_bytes):
                    os.unlink(part)
                    return None
                bring(fd)
                os.replace(part, path)
                # The descriptor is that of the whole file now; the lock lets others read and nobody evict.
                fcntl.flock(fd, fcntl.LOCK_SH)
                fd, done = -1, fd
                return done
            os.unlink(part)
        except BaseException:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    if _is(fd, part) and _locked(fd, fcntl.LOCK_EX):
                        os.unlink(part)
            raise
        finally:
            if fd >= 0:
                os.close(fd)


def _open_ready(path: Path, size: int) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)
    if _is(fd, path) and os.fstat(fd).st_size == size:
        with contextlib.suppress(OSError):
            os.utime(fd)
        return fd
    if _is(fd, path):
        path.unlink(missing_ok=True)  # somebody cut it
    os.close(fd)
    return None


def _is(fd: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reserve(fd: int, part: Path, size: int, spool_bytes: int) -> bool:
    """Make room and take it, one process at a time. False when what is in use leaves none."""
    turn = os.open(part.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        if not make_room(part.parent, spool_bytes - size, but=part.name):
            return False
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(fd, 0, max(size, 1))
        except OSError as exc:
            if exc.errno in _FULL:
                raise
        os.ftruncate(fd, size)
        return True
    finally:
        os.close(turn)


def make_room(place: Path, keep_bytes: int, but: str = "") -> bool:
    """Remove dead `.part` files, then what was longest unused, until at most `keep_bytes` are left; in use stays."""
    files, total = [], 0
    for entry in os.scandir(place):
        if entry.name in (but, PROOFS):
            continue
        with contextlib.suppress(FileNotFoundError):
            found = entry.stat()
            dead = entry.name.endswith(PART) and _remove_unused(Path(entry.path))
            total += 0 if dead else found.st_size
            if not entry.name.endswith(PART):
                files.append((found.st_mtime_ns, found.st_size, Path(entry.path)))
    for _, size, path in sorted(files):
        if total <= keep_bytes:
            break
        if _remove_unused(path):
            total -= size
    return total <= keep_bytes


def _remove_unused(path: Path) -> bool:
    """Whether the file is gone: nobody had it locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _locked(fd, fcntl.LOCK_EX) or not _is(fd, path):
            return False
        path.unlink()
        return True
    finally:
        os.close(fd)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        LOG.warning(text)
