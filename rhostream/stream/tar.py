"""The strict tar walk: every sample of a shard with its offsets, or an error; never a silently shorter list.

Common readers (tarfile, webdataset and those built on them) take a cut tar, a corrupt header or a zeroed hole for the
end of the archive. Three rules catch all of these: every header's checksum matches, two zero blocks end the archive,
and only zeros follow. Headers are parsed by hand: `TarInfo.frombuf` costs five times as much. The plain header, the
plain name and the pax header that webdataset's own writer makes are read in one loop; whatever differs in one bit
takes the slow functions below it, which decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from zlib import adler32

from rhostream.errors import ShardError
from rhostream.storage import Reader, redact
from rhostream.stream.windows import Windows
from rhostream.tables.il import IMAGE_EXTENSIONS

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of one pax or long-name header: a 300 KB gzip can hold a 600 MB one
MAX_CLS = 64  # bytes of a .cls that are read
USED_EXTENSIONS = frozenset((*IMAGE_EXTENSIONS, "cls", "txt", "json", "npy"))
_ZERO = bytes(BLOCK)
_REGULAR = frozenset(b"0\x007")
_LINKS_AND_DEVICES = frozenset(b"123456")
_REMEMBERED = 4096  # extensions and checksums: a hostile shard could hold a new one in every header
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _Role(IntEnum):
    ignored = 0
    image = 1
    cls = 2
    json = 3
    other = 4


# What was worked out once, for any shard: extensions by their bytes, sums by the bytes of their field.
_ROLES = {"cls": _Role.cls, "json": _Role.json}
_KINDS: dict[bytes, tuple[str, _Role]] = {}
_CHECKSUMS: dict[bytes, int] = {}


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
    image: list[int] = field(default_factory=list)  # member that is the row's first image
    json: list[int] = field(default_factory=list)  # member that is the row's .json
    cls: list[bytes | None] = field(default_factory=list)  # what a .cls of at most MAX_CLS bytes holds
    extension: list[str] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.key)

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each used member of a row."""
        own = slice(self.first[row], self.first[row + 1] if row + 1 < len(self.first) else None)
        return list(zip(self.extension[own], self.offset[own], self.size[own], strict=True))

    def row(self, row: int) -> Batch:
        """One row as a batch of its own."""
        return Batch.of([(self, row)])

    @classmethod
    def of(cls, rows: Iterable[tuple[Batch, int]]) -> Batch:
        """A batch of rows from other batches, in that order."""
        new = cls()
        for batch, row in rows:
            first, moved = batch.first[row], len(new.size)
            members = batch.members(row)
            new.key.append(batch.key[row])
            new.first.append(moved)
            new.cls.append(batch.cls[row])
            for mine, theirs in ((new.image, batch.image[row]), (new.json, batch.json[row])):
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
            for rows in (self.key, self.image, self.json, self.cls):
                rows.pop()
            for members in (self.extension, self.offset, self.size):
                del members[start:]


class TarWalk:
    """Iterate once, by `batches` or sample by sample; the counters are final when the iteration has ended.

    `members_seen = members_used + members_ignored` (directories, links, devices, names without a key or an
    extension, extensions that are not used). A key that comes again, adjacent or not, is a sample of its own: the
    caller decides what a duplicate is.
    """

    def __init__(self, source: Windows, shard: str) -> None:
        self._source, self._shard = source, shard
        self.members_seen = self.members_ignored = self.samples_seen = 0
        self._torn = Batch()

    def __iter__(self) -> Iterator[TarSample]:
        try:
            for batch in self.batches(64):
                yield from _samples(batch)
        except Exception:
            self._torn.pop()
            yield from _samples(self._torn)
            raise

    def batches(self, rows: int) -> Iterator[Batch]:
        """The samples, `rows` at a time. Raises ShardError; the rows of a batch that was not full are lost then."""
        # One loop without a call of our own for a plain member: at 200,000 headers a second a call is a tenth of it.
        at_window, size_of_file = self._source.at, self._source.size
        window, start, end, position = b"", 0, 0, 0  # of the window: bytes, offset of its first and last whole block
        checksums, kinds = _CHECKSUMS, _KINDS
        long_name: bytes | None = None
        long_size: int | None = None
        current: bytes | None = None  # the key of the open row
        own = set[str]()  # its extensions
        self._torn = batch = Batch()
        add_extension, add_offset, add_size = batch.extension.append, batch.offset.append, batch.size.append
        while True:
            if position >= end:
                window, start = at_window(position)
                end = start + len(window) // BLOCK * BLOCK
                if position >= end:
                    raise self._incomplete(position, size_of_file, window[position - start :])
            at = position - start
            header = window[at : at + BLOCK]
            if adler32(header) & 0xFFFF != checksums.get(header[148:156]):
                if header == _ZERO:
                    break
                if not _checksum_matches(header):
                    raise _bad_header(self._shard, position, header)
                _remember_checksum(header)
            digits = header[124:135]
            try:
                plain = digits.isdigit() and header[135] in b"\0 "
                size = int(digits, 8) if plain else _number(header[124:136], self._shard, position)
            except ValueError:
                size = _number(header[124:136], self._shard, position)
            kind, data = header[156], position + BLOCK
            if data + size > size_of_file:
                raise self._incomplete(position, size_of_file)
            position = data + (size + 511 & -BLOCK)
            if kind not in _REGULAR:
                if kind in b"xgL":
                    body = window[at + BLOCK : at + BLOCK + size] if data + size <= end else self._extended(data, size)
                    # `NN mtime=...` and nothing else, whole: what webdataset's writer puts before every member.
                    if (kind == 120 and body[2:9] == b" mtime=" and body[:2] == b"%d" % size
                            and body.find(10) == size - 1):
                        continue
                    if size > MAX_EXTENDED:
                        raise _too_long(self._shard, data, size)
                    if kind == ord("L"):
                        long_name = body.rstrip(b"\0")
                        continue
                    records = _pax_records(body, self._shard, data)
                    if kind == ord("x"):
                        long_name = records.get(b"path", long_name)
                        long_size = int(records[b"size"]) if records.get(b"size", b"").isdigit() else long_size
                elif kind in _LINKS_AND_DEVICES:
                    long_name = long_size = None
                    self.members_seen += 1
                    self.members_ignored += 1
                elif kind != ord("K"):
                    raise ShardError(f"shard {redact(self._shard)}: member type {chr(kind)!r} at offset "
                                     f"{data - BLOCK:,} is not supported (sparse or vendor extension); write it again "
                                     "as a plain tar")
                continue
            name = long_name
            if not name:
                if header[345]:
                    name = _plain_name(header)
                else:
                    stop = header.find(0, 0, 100)
                    name = header[:stop] if stop >= 0 else header[:100]
            if long_size is not None and long_size != size:
                # A pax size overrides the header's, which holds 0 or a truncated number then.
                if data + long_size > size_of_file:
                    raise self._incomplete(data, size_of_file)
                size, position = long_size, data + (long_size + 511 & -BLOCK)
            long_name = long_size = None
            self.members_seen += 1
            # webdataset's naming rule: the key ends at the first dot of the basename, the rest is the extension.
            base = name.rfind(47) + 1
            dot = name.find(46, base)
            raw = name[dot + 1 :]
            if dot <= base or not raw or (name[0] == 95 and name[:2] == b"__" == name[-2:]):
                self.members_ignored += 1
                continue
            key = name[:dot]
            try:
                extension, role = kinds[raw]
            except KeyError:
                extension, role = _remember_kind(raw)
            if key != current or extension in own:
                if current is not None:
                    self.samples_seen += 1
                    if len(batch.key) == rows:
                        yield batch
                        self._torn = batch = Batch()
                        add_extension, add_offset = batch.extension.append, batch.offset.append
                        add_size = batch.size.append
                batch.key.append(key)
                batch.first.append(len(batch.size))
                batch.image.append(-1)
                batch.json.append(-1)
                batch.cls.append(None)
                current, own = key, {extension}
            else:
                own.add(extension)
            if role == 0:
                self.members_ignored += 1
                continue
            if role == 1:
                if batch.image[-1] < 0:
                    batch.image[-1] = len(batch.size)
            elif role == 2:
                if size <= MAX_CLS:
                    batch.cls[-1] = (window[data - start : data - start + size] if data + size <= end
                                     else self._source.pread(size, data))
            elif role == 3:
                batch.json[-1] = len(batch.size)
            add_extension(extension)
            add_offset(data)
            add_size(size)
        self._require_end(position)
        if current is not None:
            self.samples_seen += 1
            yield batch

    def _extended(self, offset: int, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise _too_long(self._shard, offset, size)
        return self._source.pread(size, offset)

    def _require_end(self, position: int) -> None:
        size = self._source.size
        if position + 2 * BLOCK > size:
            raise self._incomplete(position, size)
        while position < size:
            window, start = self._source.at(position)
            rest = window[position - start :]
            if not rest:
                raise ShardError(f"shard {redact(self._shard)} shrank while it was read")
            if rest.count(0) != len(rest):
                raise ShardError(f"shard {redact(self._shard)}: {self.members_seen} members, then zeros at offset "
                                 f"{position:,} and more data behind them: a hole, or tars joined end to end; write "
                                 "it again")
            position += len(rest)

    def _incomplete(self, position: int, size: int, first: bytes = b"") -> ShardError:
        if size == 0:
            return ShardError(f"shard {redact(self._shard)} is empty (0 bytes): not a tar")
        for magic, kind in _COMPRESSED.items():
            if position == 0 and first.startswith(magic):
                return ShardError(f"shard {redact(self._shard)} is {kind}-compressed; decompress it first")
        samples = self.samples_seen + (1 if self.members_seen > self.members_ignored else 0)
        return ShardError(f"shard {redact(self._shard)} incomplete: {samples} samples, end marker missing "
                          f"(stopped at byte {position:,} of {size:,}); copy it again")


def walk(reader: Reader, shard: str) -> TarWalk:
    """Walk an open shard; `shard` is the name that errors carry.

    Raises ShardError (while iterating) for anything that is not a complete, plain tar.
    """
    return TarWalk(reader if isinstance(reader, Windows) else Windows(reader), shard)


def _samples(batch: Batch) -> Iterator[TarSample]:
    for row, key in enumerate(batch.key):
        yield TarSample(key, batch.members(row))


def _remember_kind(raw: bytes) -> tuple[str, _Role]:
    """An extension as text, and what it is to us."""
    extension = raw.decode("utf-8", "replace").lower()
    role = _Role.ignored
    if extension in USED_EXTENSIONS:
        role = _Role.image if extension in IMAGE_EXTENSIONS else _ROLES.get(extension, _Role.other)
    if len(_KINDS) >= _REMEMBERED:
        _KINDS.clear()
    _KINDS[raw] = extension, role
    return extension, role


def _remember_checksum(header: bytes) -> None:
    """What adler32's low half must be over a whole header whose checksum field holds these bytes."""
    field = header[148:156]
    if len(_CHECKSUMS) >= _REMEMBERED:
        _CHECKSUMS.clear()
    # The half is 1 + the sum of all bytes; the stored sum counts the field itself as eight spaces.
    _CHECKSUMS[field] = (1 + int(field.strip(b" \0"), 8) - 256 + sum(field)) % 65521


def _checksum_matches(header: bytes) -> bool:
    stored = header[148:156].strip(b" \0")
    try:
        expected = int(stored, 8)
    except ValueError:
        return False
    # adler32's low half is 1 + the sum of the bytes mod 65521: ten times faster than sum(). The field itself counts
    # as eight spaces.
    plain = (adler32(header[156:], adler32(header[:148])) & 0xFFFF) - 1 + 256
    if plain % 65521 == expected % 65521:
        return True
    signed = sum(b - 256 if b > 127 else b for b in header[:148] + header[156:]) + 256
    return signed == expected


def _number(raw: bytes, shard: str, position: int) -> int:
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits.isdigit() or not digits:
        try:
            return int(digits or b"0", 8)
        except ValueError:
            pass
    raise ShardError(f"shard {redact(shard)}: header at offset {position:,} has the size field {raw!r}, "
                     "expected an octal number")


def _plain_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _too_long(shard: str, offset: int, size: int) -> ShardError:
    return ShardError(f"shard {redact(shard)}: extended header of {size:,} bytes at offset {offset:,}, "
                      f"at most {MAX_EXTENDED:,} are read")


def _pax_records(raw: bytes, shard: str, offset: int) -> dict[bytes, bytes]:
    """The `length key=value` records of a pax header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(raw) and raw[at] != 0:
        space = raw.find(b" ", at, at + 20)
        length = int(raw[at:space]) if space > at and raw[at:space].isdigit() else 0
        record = raw[space + 1 : at + length]
        if length < 5 or at + length > len(raw) or not record.endswith(b"\n") or b"=" not in record:
            raise ShardError(f"shard {redact(shard)}: broken pax header at offset {offset:,}")
        key, value = record[:-1].split(b"=", 1)
        if key.startswith(b"GNU.sparse"):
            raise ShardError(f"shard {redact(shard)}: sparse member at offset {offset:,}; write it as a plain file")
        records[key] = value
        at += length
    return records


def _bad_header(shard: str, position: int, header: bytes) -> ShardError:
    if position == 0:
        for magic, kind in _COMPRESSED.items():
            if header.startswith(magic):
                return ShardError(f"shard {redact(shard)} is {kind}-compressed; reads by offset need a plain tar: "
                                  "decompress it first")
        return ShardError(f"shard {redact(shard)} is not a tar: its first header has a wrong checksum")
    return ShardError(f"shard {redact(shard)}: corrupt header at offset {position:,} (wrong checksum)")
