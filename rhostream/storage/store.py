"""What every remote store can do, and which client does it: one adapter a scheme, opened once a process.

An adapter makes one request and raises what its client raises; deadlines, retries and checks are ours and stand above.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rhostream.errors import AccessError, MissingExtraError, RhostreamError, UsageError
from rhostream.storage.faults import diagnose
from rhostream.storage.names import scheme_of
from rhostream.storage.settings import options_of, settings

EXTRA_OF = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "https": ("aiohttp", "https")}
PIECE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one version of an object from the next: its size and its ETag (or mtime in ns on a disk)."""

    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a store says of an object: which version it is, and the checksums it knows of the whole."""

    identity: Identity
    md5: bytes | None = None
    crc32c: bytes | None = None
    once: str = ""  # the word of the create-only write that made it, where the store keeps such
    modified: float | None = None  # seconds since 1970, where the store says when it was written


def seconds_since_1970(when: object) -> float | None:
    """Of what a library gives as the time of an object; None for what is no time."""
    return when.timestamp() if isinstance(when, datetime) else None


class Body(Protocol):
    """The answer to one read: of what object, how many bytes it promises (None: unknown), and the bytes."""

    found: Found | None
    length: int | None

    async def read(self) -> bytes:
        """The next piece, b"" at the end."""


class Store(Protocol):
    """Paths are `bucket/key`."""

    async def info(self, path: str) -> Found: ...

    def get(self, path: str, span: tuple[int, int] | None, tag: str) -> AbstractAsyncContextManager[Body]:
        """A whole object or the bytes [start, end) of it; with a `tag`, of that version or it is a 412."""

    async def put(self, path: str, data: bytes, once: str) -> None:
        """Write a whole object. With a word `once`: create-only, and the word goes with it where the store can."""

    async def find(self, path: str, after: str) -> tuple[list[str], str]:
        """One page of the objects below a folder, and where the next begins: "" for the first, and after the last."""

    async def delete(self, path: str) -> None: ...


_open: dict[str, tuple[tuple[int, int], Store]] = {}
_lock = threading.Lock()


def store_of(url: str) -> tuple[Store, str]:
    """The store of a resolved remote URL and the path inside it. Raises MissingExtraError, UsageError, AccessError."""
    scheme, path = scheme_of(url), url.split("://", 1)[1]
    name, options = options_of(url)
    # A client doesn't survive a fork: its connections and its event loop are the parent's.
    valid = os.getpid(), settings().version
    with _lock:
        if name not in _open or _open[name][0] != valid:
            try:
                _open[name] = valid, _make(scheme, options)
            except RhostreamError:
                raise
            except ImportError as exc:
                raise MissingExtraError.of(*EXTRA_OF.get(scheme, (scheme, scheme))) from exc
            except Exception as exc:  # its text may hold an option's value, which may be a secret
                fault = diagnose(exc)
                kind = AccessError if fault.act == "denied" else UsageError
                raise kind(f"{scheme}:// can't be opened: {fault.says}") from None
        return _open[name][1], path


def _make(scheme: str, options: Mapping[str, Any]) -> Store:
    retry = settings().retry
    if scheme == "s3":
        from rhostream.storage.s3 import S3

        return S3(options, retry)
    if scheme == "gs":
        from rhostream.storage.gcs import GCS

        return GCS(options, retry)
    if scheme == "https":
        from rhostream.storage.web import Web

        return Web(options, retry)
    from rhostream.storage.memory import Memory

    return Memory()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
