"""A sample copied from one tar into another: each of its plain members, by name and bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rhostream.audit.sample_bytes import SampleBytes
from rhostream.errors import ShardError
from rhostream.stream.every_member import Member, every_member

_PIECE, _BLOCK = 8 << 20, 512


@dataclass(frozen=True)
class Copied:
    """A sample of an old shard, on its way."""

    copier: Copier
    ordinal: int
    members: list[Member]

    @property
    def key(self) -> bytes:
        """As stored: the name up to its first dot."""
        name = self.members[0][0]
        return name[: name.find(b".", name.rfind(b"/") + 1)]

    @property
    def stored_bytes(self) -> int:
        """What it takes in a tar, under its own key."""
        return sum(_header_bytes(name) + size + -size % _BLOCK for name, _, size in self.members)


class Copier:
    """One old shard, walked once from its beginning."""

    def __init__(self, reading: SampleBytes, name: str) -> None:
        self._opened, self._at = reading.shard(name), -1
        self._walk = every_member(self._opened.reader, name)
        self._members: list[Member] = []

    @property
    def name(self) -> str:
        """Of the shard."""
        return self._opened.name

    def sample(self, ordinal: int) -> Copied:
        """The sample of that ordinal, which is the last one that was asked for or comes behind it."""
        listed = {(offset, size) for _, offset, size in self._opened.members(ordinal)}
        while self._at < ordinal:
            members = next(self._walk, None)
            if members is None:
                break
            self._at, self._members = self._at + 1, members
        if self._at != ordinal or not listed <= {(offset, size) for _, offset, size in self._members}:
            raise ShardError(
                f"shard {self.name}, ordinal {ordinal:,}: its members aren't where the table says they lie"
            )
        return Copied(self, ordinal, self._members)

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of a member of the sample at hand."""
        for at in range(offset, offset + size, _PIECE):
            yield self._opened.bytes_at(self._at, at, min(_PIECE, offset + size - at))


class NewTar:
    """A tar that is being written: plain headers without owner and time, so that the same samples give the same
    bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.size = self.samples = self.renamed = 0
        self.keys = list[bytes]()
        self._taken = set[bytes]()

    def add(self, sample: Copied) -> None:
        """Copy a sample; one whose key is taken gets a folder of its own before it."""
        key, folder = sample.key, b""
        if key in self._taken:
            folder = f"{hashlib.sha256(sample.copier.name.encode()).hexdigest()[:8]}-{sample.ordinal}/".encode()
            self.renamed += 1
        self._taken.add(folder + key)
        self.keys.append(folder + key)
        for name, offset, size in sample.members:
            self._put(_header(folder + name, size))
            for piece in sample.copier.pieces(offset, size):
                self._put(piece)
            self._put(bytes(-size % _BLOCK))
        self.samples += 1

    def end(self) -> None:
        """Write the end marker."""
        self._put(bytes(2 * _BLOCK))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _header(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _header_bytes(name: bytes) -> int:
    """Of a header: one block, and where the name is too long for it one more and those that the name takes."""
    return _BLOCK if len(name) <= tarfile.LENGTH_NAME else 2 * _BLOCK + len(name) + 1 + -(len(name) + 1) % _BLOCK
