"""Writes that appear whole or not at all, under names that are taken once; and the proof of it before any work.

Disk: a temporary file, fsync, `link`. Store: one conditional PUT (or the conditional completion of a multipart upload).
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import warnings
from collections.abc import Callable

from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, NotFoundError, NotWritableError, StorageError
from rhostream.storage.names import is_local, join, place_of, redact
from rhostream.storage.reading import look, read_bytes
from rhostream.storage.retry import asked, run
from rhostream.storage.settings import Retry
from rhostream.storage.store import store_of

_said: set[str] = set()


def create(url: str, data: bytes) -> None:
    """Make `data` visible under a new name in one act, durable on return.

    Disk: a temporary file in the same folder, fsync, `link` (which fails when the name exists), unlink, fsync of the
    folder. Store: one conditional PUT of finished bytes. Raises AlreadyExistsError, NotWritableError, StorageError.
    """
    if is_local(url):
        return _commit_local(url, data, os.link)
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


def _is_ours(url: str, data: bytes, once: str, uncertain: bool) -> bool:
    """Whether what has the name is what we wrote: by the word that went with it, else by its bytes."""
    try:
        found = look(url)
        return found.once == once or (uncertain and not found.once and read_bytes(url) == data)
    except NotFoundError:
        return False


def replace(url: str, data: bytes) -> None:
    """Like `create`, but over whatever has the name: only for `verify --repair` and summaries that can be redone."""
    if is_local(url):
        return _commit_local(url, data, os.replace)
    store, path = store_of(url)
    run(url, lambda patience: asked(store.put(path, data, ""), patience, len(data)))


def _commit_local(path: str, data: bytes, publish: Callable[[str, str], None]) -> None:
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "xb") as file:
            crash_point("commit: temporary file opened")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        crash_point("commit: temporary file written")
        publish(temporary, path)
        crash_point("commit: published")
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{path} exists already") from exc
    except OSError as exc:
        hint = "; free some space" if exc.errno == errno.ENOSPC else ""
        raise NotWritableError(f"can't write {path}: {os.strerror(exc.errno or 0)}{hint}") from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


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
    place = place_of(url)
    if place not in _said:
        _said.add(place)
        warnings.warn(f"{place} ignores create-only writes: two jobs that write the same table or run at a time could "
                      "overwrite each other; run one at a time there", stacklevel=3)
    return False
