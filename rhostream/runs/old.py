"""Commits of before there were chains: one checkpoint.json beside the tensors that lists every segment of the run.

    <run>/checkpoints/step=S/attempt=K/checkpoint.json

They are read, resumed from and proved, and never written: the first link behind one is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace

from rhostream import storage
from rhostream.errors import TableError
from rhostream.foreign import read_object
from rhostream.runs.link import OLD, Link, Place, of_plain

VERSION = 1
FOLDER = re.compile(r"checkpoints/step=(\d+)/attempt=(\d+)/")
_COMMIT = re.compile(FOLDER.pattern + r"checkpoint\.json\Z")
_FIELDS = (
    "step",
    "pass_index",
    "buffer",
    "attempt",
    "complete",
    "log",
    "steps",
    "cost",
    "counts",
    "shadow",
    "selector",
    "files",
    "changes",
    "version",
)


def old_commits(run: str) -> list[str]:
    """URLs of every checkpoint.json, oldest first."""
    urls = storage.list_files(storage.join(run, "checkpoints"), "checkpoint.json")
    # A later attempt continues from what it found, so (attempt, step) is the order in which commits were made.
    return sorted((url for url in urls if _COMMIT.search(url.replace(os.sep, "/"))), key=order_of)


def order_of(url: str) -> tuple[int, int]:
    """(attempt, step) of a checkpoint.json."""
    match = _COMMIT.search(url.replace(os.sep, "/"))
    return (int(match[2]), int(match[1])) if match else (-1, -1)


def newest_old(run: str) -> Place | None:
    """Where the newest checkpoint.json lies, None where there is none."""
    urls = old_commits(run)
    if not urls:
        return None
    attempt, step = order_of(urls[-1])
    return Place(attempt=attempt, number=OLD, step=step, sha256="")


def read_old(url: str, sha256: str = "") -> Link:
    """One of `old_commits` as a whole link. Raises NotFoundError, TableError when it can't be understood."""
    data = storage.read_bytes(url)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise TableError(
            f"{storage.redact(url)} isn't the checkpoint that was gone on from (sha256 differs): it was "
            "damaged or replaced"
        )
    try:
        record = read_object(data)
        if int(record["version"]) > VERSION:
            raise TableError(f"{storage.redact(url)} was written by a newer rhostream; upgrade rhostream")
        link = of_plain({name: record[name] for name in _FIELDS if name in record})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc
    return replace(link, number=OLD, first=OLD, digest=digest)


def old_url(run: str, place: Place) -> str:
    """Where the checkpoint.json of a place lies."""
    return storage.join(run, f"checkpoints/step={place.step:010d}/attempt={place.attempt}/checkpoint.json")
