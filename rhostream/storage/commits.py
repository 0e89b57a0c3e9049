"""Writes that appear whole or not at all, under names that are taken once; and the proof of it before any work.

Disk: a temporary file, fsync, `link`; where a file system has no hard links, a rename that refuses a taken name, and
where it has none of those either, a look and a rename (decision 024). Store: one conditional PUT (or the conditional
completion of a multipart upload). What is too large for memory is written piece by piece (`writing`): to the temporary
file, or to one of this machine that is sent to the store when it is whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, BinaryIO

from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, NotFoundError, NotWritableError, StorageError
from rhostream.storage import spool
from rhostream.storage.clients import store_of
from rhostream.storage.names import is_local, join, place_of, redact
from rhostream.storage.on_disk import OnDisk
from rhostream.storage.reading import digest_of, look
from rhostream.storage.retry import asked, run
from rhostream.storage.settings import Retry
from rhostream.storage.store import Data

_said: set[str] = set()
_LACKING = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what a file system can't do
_HINTS = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some space, or have your quota raised",
    errno.EROFS: "; write to another disk",
    errno.ENAMETOOLONG: "; shorten the folder's path, or the shards' names with --root NAME=URL",
    errno.EPERM: "; the file system lets no finished file be named: write to another disk or a store",
}
_AT_CWD, _NO_REPLACE, _EXCLUSIVE = -100, 1, 4  # AT_FDCWD, RENAME_NOREPLACE of Linux, RENAME_EXCL of macOS


def create(url: str, data: bytes) -> None:
    """Make `data` visible under a new name in one act, durable on return.

    Disk: a temporary file in the same folder, fsync, `link` (or what does its work: it fails when the name exists),
    unlink, fsync of the folder. Store: one conditional PUT of finished bytes. Raises AlreadyExistsError,
    NotWritableError, StorageError.
    """
    if is_local(url):
        return _commit_local(url, data, _publish_once)
    _put_once(url, data)


@contextlib.contextmanager
def writing(url: str) -> Iterator[BinaryIO]:
    """A file to write and seek in, of any size; what it holds when the block ends is made visible as by `create`.

    Nothing is, and nothing stays, where the block raises. An OSError of the block is taken for one of this file. Raises
    AlreadyExistsError, NotWritableError, StorageError.
    """
    if is_local(url):
        with _new_file(url, _publish_once) as file:
            yield file
        return
    place = spool.folder()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            yield file
            file.flush()
            _put_once(url, OnDisk(file.fileno()))
    except OSError as exc:
        raise _not_writable(f"a temporary file in {place} for {redact(url)}", exc) from exc


def _put_once(url: str, data: Data) -> None:
    begun, once = 0, uuid.uuid4().hex

    async def attempt(patience: Retry) -> None:
        nonlocal begun
        begun += 1
        await asked(store.put(path, data, once), patience, len(data))

    store, path = store_of(url)
    try:
        run(url, attempt)
    except AlreadyExistsError:
        # The answer to an earlier attempt may have been lost, even to one that the client made by itself.
        if not _is_ours(url, data, once, begun > 1):
            raise


def _is_ours(url: str, data: Data, once: str, uncertain: bool) -> bool:
    """Whether what has the name is what we wrote: by the word that went with it, else by its bytes."""
    try:
        found = look(url)
        return found.once == once or (uncertain and not found.once and digest_of(url) == OnDisk.digest(data))
    except NotFoundError:
        return False


def replace(url: str, data: bytes) -> None:
    """Like `create`, but over whatever has the name: only for `verify --repair` and summaries that can be redone."""
    if is_local(url):
        return _commit_local(url, data, os.replace)
    store, path = store_of(url)
    run(url, lambda patience: asked(store.put(path, data, ""), patience, len(data)))


def _commit_local(path: str, data: bytes, publish: Callable[[str, str], None]) -> None:
    with _new_file(path, publish) as file:
        file.write(data)


@contextlib.contextmanager
def _new_file(path: str, publish: Callable[[str, str], None]) -> Iterator[BinaryIO]:
    """A temporary file in the same folder, which gets its name when the block ends."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        _make_folder(folder)
        with open(temporary, "x+b") as file:
            crash_point("commit: temporary file opened")
            yield file
            file.flush()
            os.fsync(file.fileno())
        crash_point("commit: temporary file written")
        publish(temporary, path)
        crash_point("commit: published")
        _sync_folder(folder)
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{path} exists already") from exc
    except OSError as exc:
        raise _not_writable(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """A hidden folder of this machine to fill, which gets the name `path` in one act when the block ends.

    Nothing stays where the block raises; its OSErrors are taken for those of what it writes there. Raises
    AlreadyExistsError, NotWritableError.
    """
    hidden = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(hidden)
        yield hidden
        os.sync()  # a folder of a million files: each by itself would take hours
        if not _rename_once(hidden, path):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            os.rename(hidden, path)
        _sync_folder(os.path.dirname(path))
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{path} exists already") from exc
    except OSError as exc:
        raise _not_writable(path, exc) from exc
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _not_writable(what: str, exc: OSError) -> NotWritableError:
    hint = _HINTS.get(exc.errno or 0, "")
    return NotWritableError(f"can't write {what}: {os.strerror(exc.errno or 0)}{hint}")


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:  # as an answer of a commit it would mean that it is done
        raise NotWritableError(
            f"can't write below {folder}: it is a file, or a part of its path is, expected a folder"
        ) from exc


def _publish_once(temporary: str, path: str) -> None:
    """Give a finished file its name unless that is taken (FileExistsError), by the best that the file system has."""
    try:
        return os.link(temporary, path)
    except OSError as exc:
        if exc.errno not in _LACKING:
            raise
    if _rename_once(temporary, path):
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    _warn_of("the file system of " + os.path.dirname(path), "has no hard links and no rename that refuses a taken name")
    os.rename(temporary, path)


def _rename_once(temporary: str, path: str) -> bool:
    """Rename unless the name is taken (FileExistsError), in one act; False where that can't be had."""
    call = _system_rename()
    if call is None:
        return False
    if call(os.fsencode(temporary), os.fsencode(path)) == 0:
        return True
    failed = ctypes.get_errno()
    if failed in _LACKING:
        return False
    raise OSError(failed, os.strerror(failed), path)


@cache
def _system_rename() -> Callable[[bytes, bytes], int] | None:
    """renameat2 of Linux, renamex_np of macOS, which Python doesn't offer."""
    try:
        library: Any = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return lambda old, new: int(library.renamex_np(old, new, _EXCLUSIVE))
        rename = library.renameat2
    except (OSError, AttributeError):
        return None
    return lambda old, new: int(rename(_AT_CWD, old, _AT_CWD, new, _NO_REPLACE))


def _sync_folder(folder: str) -> None:
    """Make the new name last; a file system that can't (SMB, some of FUSE) has nothing better to offer."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as exc:
        if exc.errno not in _LACKING:
            raise
    finally:
        os.close(number)


def delete(url: str) -> None:
    """Remove one object; none of that name is all right."""
    if is_local(url):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(url)
        return
    store, path = store_of(url)
    with contextlib.suppress(NotFoundError):
        run(url, lambda patience: asked(store.delete(path), patience))


def probe_writable(url: str) -> bool:
    """Prove before any work that results can be committed below `url`; whether a second commit of a name is refused.

    A store that ignores the condition of a create-only PUT is warned of once: two jobs could then overwrite each other,
    which is harmless where both write the same bytes. Raises NotWritableError with the reason.
    """
    probe = join(url, f".probe-{uuid.uuid4().hex}")
    written = False
    try:
        create(probe, b"rhostream")
        written = True
        # Other bytes, or a lost answer would look as if the condition had been kept.
        create(probe, b"rhostream, again")
    except AlreadyExistsError:
        return True
    except (StorageError, OSError) as exc:
        reason = str(exc).removeprefix(redact(probe)).lstrip(": ")
        raise NotWritableError(f"can't write below {redact(url)}: {reason}") from exc
    finally:
        if written:
            with contextlib.suppress(StorageError):  # may write, may not delete: results need no more
                delete(probe)
    _warn_of(place_of(url), "ignores create-only writes")
    return False


def _warn_of(place: str, lack: str) -> None:
    if place not in _said:
        _said.add(place)
        warnings.warn(
            f"{place} {lack}: two jobs that write the same table or run at a time could overwrite each "
            "other; run one at a time there",
            stacklevel=3,
        )
