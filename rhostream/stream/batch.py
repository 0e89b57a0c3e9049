"""Samples of a shard as parallel lists: where each one's members lie, and the bytes of its label.

An object a sample costs as much as reading its headers; one that wants objects asks for them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

MAX_CLS = 64  # bytes of a .cls that are read
MAX_IGNORED = 6  # names of members that are not used, of each row


@dataclass(slots=True)
class TarSample:
    """One sample: its key as stored, and (extension, offset, size in bytes) of each member that is used."""

    key: bytes
    members: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Some samples in the order of the shard, as parallel lists: no object a sample.

    The members that are used lie flat: those of row i are `first[i]` up to the next row's; -1 where a row has none of a
    kind.
    """

    key: list[bytes] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    main: list[int] = field(default_factory=list)  # member that is the row's first of the kind's first extensions
    json: list[int] = field(default_factory=list)  # member that is the row's .json
    cls: list[bytes | None] = field(default_factory=list)  # what a .cls of at most MAX_CLS bytes holds
    extension: list[str] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    ignored: dict[int, list[str]] = field(default_factory=dict)  # row -> some members that are not used, for errors

    def __len__(self) -> int:
        return len(self.key)

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each used member of a row."""
        own = slice(self.first[row], self.first[row + 1] if row + 1 < len(self.first) else None)
        return list(zip(self.extension[own], self.offset[own], self.size[own], strict=True))

    def rows_of(self, members: Sequence[Sequence[str]]) -> Iterator[tuple[int, ...]]:
        """Of each row the member that is the first of each of these extensions, -1 for none; the first is `main`."""
        if len(members) == 1:
            return zip(self.main, strict=True)
        ends = [*self.first[1:], len(self.size)]
        others = [
            [next((m for m in range(start, end) if self.extension[m] in extensions), -1)
             for start, end in zip(self.first, ends, strict=True)]
            for extensions in members[1:]
        ]  # fmt: skip
        return zip(self.main, *others, strict=True)

    def ignore(self, row: int, extension: str) -> None:
        """Remember a member of a row that is not used."""
        names = self.ignored.setdefault(row, [])
        if len(names) < MAX_IGNORED:
            names.append(extension[:40])

    def members_say(self, row: int) -> str:
        """The extensions of a row's members in words, those that are not used among them."""
        used, ignored = [extension for extension, _, _ in self.members(row)], self.ignored.get(row, [])
        shown = ", ".join((used + ignored)[:MAX_IGNORED]) + (", ..." if len(used + ignored) > MAX_IGNORED else "")
        dots = any("." in extension for extension in ignored)
        return f"members: {shown}" + ("; a key ends at its first dot" if dots else "")

    def prefer(self, row: int, extensions: tuple[str, ...]) -> None:
        """Make the row's main member the first of these extensions that it has, or none; it is listed before the others
        that it might have been."""
        start, end = self.first[row], self.first[row + 1] if row + 1 < len(self.first) else len(self.size)
        first, own = self.main[row], self.extension[start:end]
        self.main[row] = next((start + own.index(e) for e in extensions if e in own), -1)
        if (chosen := self.main[row]) > first:
            self.extension.insert(first, self.extension.pop(chosen))
            for numbers in (self.offset, self.size):
                numbers.insert(first, numbers.pop(chosen))
            self.main[row] = first
            if first <= self.json[row] < chosen:
                self.json[row] += 1

    def row(self, row: int) -> Batch:
        """One row as a batch of its own."""
        return Batch.of([(self, row)])

    @classmethod
    def of(cls, rows: Iterable[tuple[Batch, int]]) -> Batch:
        """A batch of rows from other batches, in that order."""
        new = cls()
        for batch, row in rows:
            first, moved = batch.first[row], len(new.size)
            if row in batch.ignored:
                new.ignored[len(new.key)] = batch.ignored[row]
            members = batch.members(row)
            new.key.append(batch.key[row])
            new.first.append(moved)
            new.cls.append(batch.cls[row])
            for mine, theirs in ((new.main, batch.main[row]), (new.json, batch.json[row])):
                mine.append(theirs - first + moved if theirs >= 0 else -1)
            for extension, offset, size in members:
                new.extension.append(extension)
                new.offset.append(offset)
                new.size.append(size)
        return new

    def pop(self) -> None:
        """Leave the last row out: the walk broke before it was known to be whole."""
        if self.key:
            start = self.first.pop()
            for rows in (self.key, self.main, self.json, self.cls):
                rows.pop()
            for members in (self.extension, self.offset, self.size):
                del members[start:]
            self.ignored.pop(len(self.key), None)


def samples_of(batch: Batch) -> Iterator[TarSample]:
    """The rows one by one."""
    for row, key in enumerate(batch.key):
        yield TarSample(key, batch.members(row))
