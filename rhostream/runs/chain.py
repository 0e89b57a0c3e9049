"""The chain of commits: how one is made, which one is in force, and what the ones behind it add up to.

    segments > tensors > the link that names them, create-only          commit
    newest attempt > its newest link, else the one that it starts from  head: the state in force
    link > the links behind it, as far as a whole one                   with_segments: at most 256 reads

A run is what the state in force says, and nothing else. A commit costs the same however many there were: it holds new
segments only, and every 256th lists all, which compaction keeps few. Chains fork where an attempt starts from a commit
that isn't the newest; the branch of the newest attempt counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, RhostreamError, TableError
from rhostream.runs.attempts import newest_attempt, require_newest, start_of
from rhostream.runs.link import BLOCK, KINDS, NAME, OLD, Link, Place, mark_of, read_named, url_of
from rhostream.runs.old import newest_old, old_url, read_old

WHOLE_EVERY = BLOCK  # commits between two that list all segments; readers go back to whichever is whole
THREADS = 16  # of reads at a time


def folder_of(link: Link) -> str:
    """Where the files of a commit's state lie, below the run."""
    folder = f"checkpoints/step={link.step:010d}/attempt={link.attempt}"
    if (before := link.previous) and (before.attempt, before.step) == (link.attempt, link.step):
        folder += f"/commit={link.number}"  # buffers of which nothing was kept move a run on without a step
    return folder


def write_file(run: str, folder: str, name: str, data: bytes) -> str:
    """Create a file of a commit, in that folder of the run; returns its sha256."""
    storage.create(storage.join(run, folder, name), data)
    crash_point("checkpoint: one of its files written")
    return hashlib.sha256(data).hexdigest()


def save_files(run: str, link: Link, payload: Mapping[str, bytes]) -> Link:
    """Write the files of a state, name -> bytes, and give the link their hashes beside those that it has.

    Raises SupersededError.
    """
    require_newest(run, link.attempt)
    folder, files = folder_of(link), dict(link.files)
    for name, data in payload.items():
        files[f"{folder}/{name}"] = write_file(run, folder, name, data)
    crash_point("checkpoint: tensors written")
    return replace(link, files=files)


def commit(run: str, link: Link) -> Link:
    """Make a state count: write its link; segments and files must be there. Returns it with its digest.

    Raises AlreadyExistsError, StorageError.
    """
    data = link.encode()
    storage.create(url_of(run, link.attempt, link.number), data)
    crash_point("checkpoint: committed")
    return replace(link, digest=hashlib.sha256(data).hexdigest())


def confirm(run: str, link: Link) -> None:
    """Say that a state which was handed out with this link has been saved; twice is once."""
    try:
        storage.create(mark_of(run, link), link.digest.encode())
    except AlreadyExistsError:
        return


def head(run: str) -> Link | None:
    """The state in force, None before the first commit: of the newest attempt that has a link the newest, or what the
    newest attempt starts from. Raises TableError when it can't be understood.

    Requests grow with the logarithm of the number of commits. A link that isn't whole lists its new segments alone.
    """
    while (place := newest_place(run)) is not None:
        try:
            return in_force(run, place)
        except RhostreamError:
            # A trainer of an older version that runs on removes its checkpoint.json.
            if place.number != OLD or newest_place(run) == place:
                raise
    return None


def in_force(run: str, place: Place) -> Link:
    """The commit of `newest_place`, with whether it waits for somebody to confirm it. Raises TableError."""
    link = named(run, place)
    asked = link.handed_out and not place.sha256  # an attempt that starts from it has loaded it
    return replace(link, unconfirmed=asked and not storage.exists(mark_of(run, link)))


def newest_place(run: str) -> Place | None:
    """Where the state in force lies (without its digest where no note names it), None before the first commit."""
    old: Place | None = None
    for attempt in _attempts(run):
        says, start = start_of(run, attempt)
        number = newest_number(run, attempt, 0 if start is None else start.number + 1)
        if number is not None:
            return Place(attempt=attempt, number=number, step=0, sha256="")
        if says:
            return start
        old = old or newest_old(run)  # an attempt of before there were chains, or one that nobody wrote by
        if old is not None and old.attempt >= attempt:
            return old
    return newest_old(run)


def _attempts(run: str) -> list[int]:
    """Newest first; by their links where the claims are gone, which `verify` says."""
    newest = newest_attempt(run)
    if newest >= 0:
        return list(range(newest, -1, -1))
    found = (NAME.search(url) for url in storage.list_files(storage.join(run, "commits"), ".json"))
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def newest_number(run: str, attempt: int, first: int) -> int | None:
    """The number of an attempt's newest link, None when it has none; its first would be `first`.

    Blocks are tried by their first entry, 1, 2, 4, ... ahead and then by halves; one listing of the last block ends it.
    """
    if not storage.exists(url_of(run, attempt, first)):
        return None
    low, ahead = first // BLOCK, 1
    while storage.exists(url_of(run, attempt, (low + ahead) * BLOCK)):
        low, ahead = low + ahead, 2 * ahead
    high = low + ahead
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if storage.exists(url_of(run, attempt, middle * BLOCK)) else (low, middle)
    found = (
        NAME.search(url)
        for url in storage.list_files(storage.join(run, f"commits/attempt={attempt}/{low:08d}"), ".json")
    )
    return max(int(match[2]) for match in found if match)


def is_tip(run: str, link: Link | None) -> bool:
    """Whether no commit was made behind this one (None: at all), by its attempt or a later one."""
    for attempt in range(newest_attempt(run), -1 if link is None else link.attempt, -1):
        _, start = start_of(run, attempt)
        if newest_number(run, attempt, 0 if start is None else start.number + 1) is not None:
            return False
    if link is None:
        return newest_old(run) is None
    return link.number == OLD or not storage.exists(url_of(run, link.attempt, link.number + 1))


def named(run: str, place: Place) -> Link:
    """The commit of a place, its digest compared. Raises TableError, for one that is gone too."""
    if place.number != OLD:
        return read_named(run, place)
    url = old_url(run, place)
    if not storage.exists(url):
        raise TableError(f"{storage.redact(url)} is named by a later commit but is gone")
    return read_old(url, place.sha256)


def at(run: str, attempt: int, number: int, sha256: str) -> Link:
    """The link that a state of another trainer names. Raises TableError when it isn't there or is another one."""
    return read_named(run, Place(attempt=attempt, number=number, step=0, sha256=sha256))


def back_to_whole(run: str, link: Link) -> list[Link]:
    """A link and those behind it as far as the first whole one, newest first; each digest compared.

    Raises TableError for one that is gone, damaged or replaced.
    """
    links = [link]
    while not links[-1].whole:
        for one in behind(run, links[-1]):
            links.append(one)
            if one.whole:
                break
        else:
            raise TableError(
                f"{storage.redact(url_of(run, links[-1].attempt, links[-1].number))} is neither whole nor "
                "does it name a link before it"
            )
    return links


def behind(run: str, link: Link) -> Iterator[Link]:
    """The links before one, newest first, to the run's beginning; each digest compared. Raises TableError.

    Names within an attempt are known beforehand, so they are fetched ahead, many at a time.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        while link.previous is not None:
            place = link.previous
            if link.number == link.first:  # the one before is another attempt's, which alone knows where that began
                if place.number == OLD and not storage.exists(old_url(run, place)):
                    return  # it went with its tensors, and nothing of it is needed: the link behind it is whole
                link = named(run, place)
                yield link
                continue
            lowest = max(link.first, place.number // BLOCK * BLOCK)
            for highest in range(place.number, lowest - 1, -2 * THREADS):
                numbers = range(highest, max(highest - 2 * THREADS, lowest - 1), -1)
                for one in pool.map(partial(_read, run, place.attempt), numbers):
                    if isinstance(one, RhostreamError):
                        raise one
                    if one.digest != (link.previous.sha256 if link.previous else ""):
                        raise TableError(
                            f"{storage.redact(url_of(run, one.attempt, one.number))} isn't the link that "
                            "the one after it names (sha256 differs): it was damaged or replaced"
                        )
                    link = one
                    yield link


def behind_and(run: str, link: Link) -> Iterator[Link]:
    """A link, then those before it."""
    yield link
    yield from behind(run, link)


def _read(run: str, attempt: int, number: int) -> Link | RhostreamError:
    """An error is raised when its turn comes: nobody may ask for what lies behind a whole link."""
    try:
        return read_named(run, Place(attempt=attempt, number=number, step=0, sha256=""))
    except RhostreamError as exc:
        return exc


def with_segments(run: str, link: Link) -> Link:
    """The same commit with all segments of its branch, whole. Raises TableError."""
    if link.whole:
        return link
    links = back_to_whole(run, link)[::-1]
    lists: dict[str, Any] = {kind: [segment for one in links for segment in getattr(one, kind)] for kind in KINDS}
    return replace(link, whole=True, **lists)


def segments(run: str, link: Link, kind: str) -> list[dict[str, Any]]:
    """All segments of `kind` ("log", "steps" or "shadow") that a commit counts, in order. Raises TableError."""
    return list(getattr(with_segments(run, link), kind))
