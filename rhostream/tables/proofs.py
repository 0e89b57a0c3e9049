"""Committed segments proved by their sha256, each byte once: of a store what was proved is remembered by its version.

A file of a disk is hashed at every open, as disks rot. An object of a store never changes under its ETag: it is read
once, in pieces, hashed, and remembered on this machine by URL, size and ETag; whoever reads of it afterwards names that
version with every request (`storage.RangedFile`), so that no byte is used that wasn't proved. Decision 059.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rhostream import storage
from rhostream.errors import NotFoundError, RhostreamError, TableError, UsageError
from rhostream.storage import Identity

REMOTE_THREADS = 16

Segment = Mapping[str, Any]
Proved = tuple[str, Identity | None]  # URL, and of a store the version that was proved


def verified(run: str, segments: Sequence[Segment]) -> list[Proved]:
    """Where the committed segments lie, each proved by sha256. Raises TableError naming the first bad one."""
    proved = list[Proved]()
    for outcome in _outcomes(run, segments, remember=True):
        if isinstance(outcome, RhostreamError):
            raise outcome
        proved.append(outcome)
    return proved


def damages(run: str, segments: Sequence[Segment]) -> Iterator[RhostreamError | None]:
    """What is wrong with each committed segment, in order; None for one whose bytes are those of the checkpoint.

    All are read again, whatever was proved before.
    """
    for outcome in _outcomes(run, segments, remember=False):
        yield outcome if isinstance(outcome, RhostreamError) else None


def _outcomes(run: str, segments: Sequence[Segment], *, remember: bool) -> Iterator[Proved | RhostreamError]:
    if not segments:
        return
    local = storage.is_local(run)
    memory, versions = _Memory(_file() if remember and not local else None), {} if local else _versions(run, segments)
    threads = (os.cpu_count() or 1) if local else REMOTE_THREADS
    with ThreadPoolExecutor(min(threads, len(segments))) as pool:  # hashing gives up the interpreter's lock
        yield from pool.map(lambda segment: _prove(run, segment, versions, memory), segments)


def _versions(run: str, segments: Sequence[Segment]) -> dict[str, Identity]:
    """{path below the run: version} of what lies in the folders of these segments: a request for a thousand of them."""
    top, versions = run.split("://", 1)[1].strip("/") + "/", dict[str, Identity]()
    for folder in sorted({str(segment["path"]).partition("/")[0] for segment in segments}):
        for url, version in storage.list_entries(storage.join(run, folder), ".parquet"):
            versions[url.split("://", 1)[1].lstrip("/").removeprefix(top)] = version
    return versions


def _prove(run: str, segment: Segment, versions: Mapping[str, Identity], memory: _Memory) -> Proved | RhostreamError:
    url, expected = storage.join(run, str(segment["path"])), (segment["bytes"], segment["sha256"])
    version = None
    try:
        if not storage.is_local(url):
            version = versions.get(str(segment["path"])) or storage.identity(url)
            if memory.knows(url, version, expected):
                return url, version
        size, digest = storage.digest_of(url, version)
    except NotFoundError:
        return TableError(
            f"{storage.redact(url)} is listed by the checkpoint but is gone; of a run that is being written, ask again"
        )
    except RhostreamError as exc:
        return exc
    if (size, digest) != expected:
        return TableError(
            f"{storage.redact(url)} isn't the file that the checkpoint lists ({size:,} bytes, expected "
            f"{segment['bytes']:,}, sha256 differs): it was damaged or replaced"
        )
    if version is not None:
        memory.add(url, version, digest)
    return url, version


def _file() -> Path | None:
    """Where proofs are remembered, a line a version: "<sha256 of what it is> <sha256 of its bytes>"; None where this
    user has no folder of their own for it."""
    try:
        return storage.spool_folder() / storage.PROOFS
    except (UsageError, OSError):
        return None


class _Memory:
    """What was proved on this machine. A line is written in one piece, so that processes may share the file."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            lines = file.read_text("ascii").split("\n") if file else []
        except (OSError, ValueError):
            lines = []
        self._known = {line[:64]: line[65:] for line in lines if len(line) == 129}

    def knows(self, url: str, version: Identity, expected: tuple[Any, Any]) -> bool:
        return bool(version.tag) and (version.size, self._known.get(_name(url, version))) == expected

    def add(self, url: str, version: Identity, sha256: str) -> None:
        if self._file is None or not version.tag:
            return
        try:
            with self._file.open("ab", buffering=0) as file:
                file.write(f"{_name(url, version)} {sha256}\n".encode())
        except OSError:
            self._file = None  # no room: everything is proved again


def _name(url: str, version: Identity) -> str:
    return hashlib.sha256(f"{url}\0{version.size}\0{version.tag}".encode("utf-8", "surrogatepass")).hexdigest()
