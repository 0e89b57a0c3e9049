"""All plain members of each sample of a tar, those that nobody here uses among them: for who copies samples whole."""

from __future__ import annotations

from collections.abc import Iterator

from rhostream.errors import ShardError
from rhostream.storage import Reader, redact
from rhostream.stream.headers import (
    MAX_EXTENDED,
    bad_header,
    checksum_matches,
    pax_records,
    pax_size,
    plain_name,
    size_of,
    too_long,
)

BLOCK = 512
Member = tuple[bytes, int, int]  # name as stored, offset and size of its bytes


def every_member(reader: Reader, shard: str) -> Iterator[list[Member]]:
    """The members of each sample, in the order of ordinals, as `TarWalk` numbers them: a key that comes again is a
    sample of its own. Links, devices and names without a key or an extension are of none.

    Raises ShardError for what is no plain tar. That the end is there was proved when the shard was indexed.
    """
    current, extensions, sample = b"", set[bytes](), list[Member]()
    for name, offset, size in _members(reader, shard):
        base = name.rfind(b"/") + 1
        dot = name.find(b".", base)
        if dot <= base or dot + 1 == len(name) or (name[:2] == b"__" == name[-2:]):
            continue
        key, extension = name[:dot], name[dot + 1 :].decode("utf-8", "replace").lower().encode()
        if sample and (key != current or extension in extensions):
            yield sample
            extensions, sample = set(), []
        current = key
        extensions.add(extension)
        sample.append((name, offset, size))
    if sample:
        yield sample


def _members(reader: Reader, shard: str) -> Iterator[Member]:
    """Every regular file, whatever its name."""
    position, long_name, long_size = 0, b"", None
    while len(header := reader.pread(BLOCK, position)) == BLOCK and header.count(0) != BLOCK:
        if not checksum_matches(header):
            raise bad_header(shard, position, header)
        size, kind, data = size_of(header[124:136], shard, position), header[156:157], position + BLOCK
        regular = kind in (b"0", b"7", b"\0")
        if regular and long_size is not None:
            size = long_size
        position = data + (size + BLOCK - 1 & -BLOCK)
        if data + size > reader.size:
            raise ShardError(f"shard {redact(shard)} ends within the member at offset {data - BLOCK:,}")
        if regular:
            yield long_name or plain_name(header), data, size
        elif kind in (b"x", b"g", b"L"):
            if size > MAX_EXTENDED:
                raise too_long(shard, data, size)
            body = reader.pread(size, data)
            if kind == b"L":
                long_name = body.rstrip(b"\0")
            elif (records := pax_records(body, shard, data)) and kind == b"x":
                long_name = records.get(b"path", long_name)
                long_size = pax_size(records, long_size, shard, data)
            continue
        elif kind == b"K":
            continue
        long_name, long_size = b"", None
