"""Who has claimed a run: attempts/K.json, create-only, each with the commit that it starts `from`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, NotFoundError, RhostreamError, SupersededError, TableError, UsageError
from rhostream.foreign import read_object
from rhostream.runs.link import Link, Place, place_of
from rhostream.runs.process import is_at_work


def claim_attempt(run: str, note: Mapping[str, Any]) -> int:
    """Take the next attempt number by a create-only file; a trainer of a lower number must stop."""
    attempt = newest_attempt(run) + 1
    while True:
        try:
            storage.create(storage.join(run, "attempts", f"{attempt}.json"), json.dumps(dict(note)).encode())
            crash_point("checkpoint: attempt claimed")
            return attempt
        except AlreadyExistsError:
            attempt += 1


def newest_attempt(run: str) -> int:
    """The highest attempt number claimed, -1 when there is none."""
    names = [os.path.basename(f)[:-5] for f in storage.list_files(storage.join(run, "attempts"), ".json")]
    return max((int(n) for n in names if n.isdigit()), default=-1)


def require_newest(run: str, attempt: int) -> None:
    """Raise SupersededError when someone else has started this run again; one request, however many attempts."""
    if storage.exists(storage.join(run, "attempts", f"{attempt + 1}.json")):
        raise SupersededError(
            f"attempt {newest_attempt(run)} has taken over {storage.redact(run)}; this is attempt "
            f"{attempt}: stopping without a commit"
        )


def note_of(run: str, attempt: int) -> dict[str, Any]:
    """What an attempt noted when it was claimed. Raises TableError when that is gone or can't be understood."""
    url = storage.join(run, "attempts", f"{attempt}.json")
    try:
        return read_object(storage.read_bytes(url))
    except NotFoundError as exc:
        raise TableError(f"{storage.redact(url)} is gone: it says what attempt {attempt} changed") from exc
    except (ValueError, TypeError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def start_of(run: str, attempt: int) -> tuple[bool, Place | None]:
    """Whether an attempt's note says which commit it starts from, and which: None for the run's beginning.

    Notes of before there were chains don't say. Raises TableError when it can't be understood.
    """
    url = storage.join(run, "attempts", f"{attempt}.json")
    try:
        note = read_object(storage.read_bytes(url))
        if "from" not in note:
            return False, None
        return True, None if note["from"] is None else place_of(note["from"])
    except NotFoundError:
        return False, None
    except (ValueError, TypeError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def going_on(run: str, latest: Link | None) -> tuple[int, dict[str, Any], bool | None] | None:
    """The newest attempt, its note, and whether its loop is at work (None: that can't be seen from here).

    None where there is no attempt, or where it came to the run's end. `latest`: the state in force.
    """
    attempt = newest_attempt(run)
    if attempt < 0 or (latest is not None and latest.complete and latest.attempt == attempt):
        return None
    try:
        note = note_of(run, attempt)
    except RhostreamError:
        return attempt, {}, None  # `verify` says so
    return attempt, note, is_at_work(note)


def require_free(run: str, latest: Link | None) -> None:
    """Raise UsageError for a run that another process of this machine is at: taking it over would undo its steps.

    The process that asks is never in its own way.
    """
    if (newest := going_on(run, latest)) is None:
        return
    attempt, note, running = newest
    if not running or note["pid"] == os.getpid():
        return
    since = f" since {note['begun']}" if note.get("begun") else ""
    pid = note["pid"]
    raise UsageError(
        f"{storage.redact(run)} is going on: attempt {attempt} is process {pid} of this machine{since}. Wait for it, "
        f"or end it by `kill {pid}`, upon which it commits its step; --take-over (take_over=True) goes on from its "
        "newest commit all the same, and its steps since then are lost"
    )
