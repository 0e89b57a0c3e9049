"""What every remote store can do; which client does it is told in `clients`.

An adapter makes one request and raises what its client raises; deadlines, retries and checks are ours and stand above.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rhostream.storage.on_disk import OnDisk

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


Data = bytes | OnDisk  # what a write takes
Entry = tuple[str, Identity]  # of a listing: a path and the version that lies there
Span = tuple[int, int]  # the bytes [start, end) of an object; (-n, 0): its last n, or all where it has fewer


def byte_range(span: Span) -> str:
    """The `Range` of a request."""
    return f"bytes={span[0]}" if span[0] < 0 else f"bytes={span[0]}-{span[1] - 1}"


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

    def get(self, path: str, span: Span | None, tag: str) -> AbstractAsyncContextManager[Body]:
        """A whole object or some bytes of it; with a `tag`, of that version or it is a 412.

        Of its last bytes `found` is the whole object's, where the store says it; who knows no such range gives all.
        """

    async def put(self, path: str, data: Data, once: str) -> None:
        """Write a whole object. With a word `once`: create-only, and the word goes with it where the store can."""

    async def find(self, path: str, after: str) -> tuple[list[Entry], str]:
        """One page of the objects below a folder, and where the next begins: "" for the first, and after the last."""

    async def delete(self, path: str) -> None: ...
