"""The header of a tar member, read by hand, one field a function: what the walk's own loop leaves to be decided.

`TarInfo.frombuf` costs five times as much. Nothing here guesses: a field that can't be read is an error that says
where.
"""

from __future__ import annotations

from enum import IntEnum
from zlib import adler32

from rhostream.errors import ShardError
from rhostream.samples.flat import is_flat
from rhostream.samples.registry import USED_EXTENSIONS
from rhostream.storage import redact

MAX_EXTENDED = 1 << 20  # bytes of one pax or long-name header: a 300 KB gzip can hold a 600 MB one
# What other readers unpickle, which runs whatever it says; here it is never opened, and said once.
PICKLES = frozenset(("pickle", "pkl", "pth", "pt", "pyd", "joblib", "dill"))
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REMEMBERED = 4096  # extensions and checksums: a hostile shard could hold a new one in every header


class Role(IntEnum):
    dotted = -2  # ignored, and of an extension that is used behind its last dot: photo.0001.png
    pickle = -1
    ignored = 0
    main = 1
    cls = 2
    json = 3
    other = 4


# What was worked out once, for any shard: extensions by their bytes, sums by the bytes of their field.
_ROLES = {"cls": Role.cls, "json": Role.json}
_KINDS: dict[tuple[str, tuple[str, ...], frozenset[str]], dict[bytes, tuple[str, Role]]] = {}
CHECKSUMS: dict[bytes, int] = {}


def kinds_of(label: str, main: tuple[str, ...], used: frozenset[str]) -> dict[bytes, tuple[str, Role]]:
    """What `remember_kind` noted for these settings."""
    if len(_KINDS) >= _REMEMBERED:
        _KINDS.clear()
    return _KINDS.setdefault((label, main, used), {})


def remember_kind(
    raw: bytes, kinds: dict[bytes, tuple[str, Role]], label: str, main: tuple[str, ...], used: frozenset[str]
) -> tuple[str, Role]:
    """An extension as text, and what it is to us; noted in `kinds`.

    Labels stand in members called `label`, a sample's main member has one of the extensions `main`, and of `used` ones
    it is noted where they lie.
    """
    extension = raw.decode("utf-8", "replace").lower()
    role = Role.pickle if extension.rpartition(".")[2] in PICKLES else Role.ignored
    if extension in used:
        role = Role.main if extension in main else _ROLES.get(extension, Role.other)
    elif extension.rpartition(".")[2] in used:
        role = Role.dotted
    if label != "cls" and (extension == label or role == Role.cls):
        role = Role.cls if extension == label else Role.other
    if len(kinds) >= _REMEMBERED:
        kinds.clear()
    kinds[raw] = extension, role
    return extension, role


def swallowed(extensions: set[str]) -> int:
    """How many samples the members of one key would be beyond the one that they are, if keys ended at the last dot.

    `{"0001.png", "0001.cls", "0002.png", "0002.cls"}` would be two, and one of them has no row. What lies beside a
    sample under names of its own (`seg.png`, `depth.png`) is none, unless it has a label of its own.
    """
    ends: dict[str | None, set[str]] = {}  # by what lies before the last dot; None: there is none
    for extension in extensions:
        stem, dot, end = extension.rpartition(".")
        if end in USED_EXTENSIONS:
            ends.setdefault(stem if dot else None, set()).add(end)
    plain = ends.pop(None, set[str]())
    labels = {"cls", "json"}
    bodies = [own for own in ends.values() if own - labels]
    samples = sum("cls" in own for own in bodies) if plain else len(bodies)
    return max(samples + bool(plain - labels) - 1, 0)


def dots_error(shard: str, samples: int, key: bytes, extension: str) -> ShardError:
    """What a shard is whose samples would share a row with others."""
    first = key.decode("utf-8", "backslashreplace")[-60:]
    return ShardError(
        f"shard {redact(shard)}: {samples:,} samples would have no row of their own, as their names have "
        f"dots: a key ends at its first dot, so {first + '.' + extension[:40]!r} belongs to the sample "
        f"{first!r}; write the shard with other names ({first.rpartition('/')[2]}_"
        f"{extension[:40].rpartition('.')[0].replace('.', '_')}.{extension.rpartition('.')[2]})"
    )


def remember_checksum(header: bytes) -> None:
    """What adler32's low half must be over a whole header whose checksum field holds these bytes."""
    field = header[148:156]
    if len(CHECKSUMS) >= _REMEMBERED:
        CHECKSUMS.clear()
    # The half is 1 + the sum of all bytes; the stored sum counts the field itself as eight spaces.
    CHECKSUMS[field] = (1 + int(field.strip(b" \0"), 8) - 256 + sum(field)) % 65521


def checksum_matches(header: bytes) -> bool:
    """Whether the stored sum is that of the bytes, unsigned as POSIX has it or signed as old tars do."""
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


def size_of(raw: bytes, shard: str, position: int) -> int:
    """The size field, octal or binary. Raises ShardError."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits.isdigit() or not digits:
        try:
            return int(digits or b"0", 8)
        except ValueError:
            pass
    raise ShardError(
        f"shard {redact(shard)}: header at offset {position:,} has the size field {raw!r}, expected an octal number"
    )


def plain_name(header: bytes) -> bytes:
    """The name, with ustar's prefix where there is one."""
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def too_long(shard: str, offset: int, size: int) -> ShardError:
    """What an extended header beyond the cap is."""
    return ShardError(
        f"shard {redact(shard)}: extended header of {size:,} bytes at offset {offset:,}, "
        f"at most {MAX_EXTENDED:,} are read"
    )


def pax_size(records: dict[bytes, bytes], before: int | None, shard: str, offset: int) -> int | None:
    """The size that a pax header states, else the one from `before`. Raises ShardError for one that is no number."""
    text = records.get(b"size")
    if text is None:
        return before
    if not text.isdigit() or len(text) > 20:
        raise ShardError(
            f"shard {redact(shard)}: pax header at offset {offset:,} states the size {text[:40]!r}, "
            "expected a number of bytes"
        )
    return int(text)


def pax_records(raw: bytes, shard: str, offset: int) -> dict[bytes, bytes]:
    """The `length key=value` records of a pax header. Raises ShardError."""
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


def bad_header(shard: str, position: int, header: bytes) -> ShardError:
    """What a header of a wrong checksum is."""
    if position == 0:
        if (compressed := compressed_error(shard, header)) is not None:
            return compressed
        flat = "; a flat file of ids is read with --tokenizer ids:N, --text-length T and a model of language"
        return ShardError(
            f"shard {redact(shard)} is not a tar: its first header has a wrong checksum{flat if is_flat(shard) else ''}"
        )
    return ShardError(f"shard {redact(shard)}: corrupt header at offset {position:,} (wrong checksum)")


def compressed_error(shard: str, first: bytes) -> ShardError | None:
    """What a shard is whose first bytes are those of a compressed file; None for any other."""
    kind = next((kind for magic, kind in COMPRESSED.items() if first.startswith(magic)), None)
    if kind is None:
        return None
    hint = (
        "decompress it (gunzip), or let fit-il, compute-il and index inflate it with --allow-compressed"
        if kind == "gzip"
        else "decompress it first"
    )
    return ShardError(f"shard {redact(shard)} is {kind}-compressed, and reads by offset need a plain tar: {hint}")


def link_of(name: bytes) -> tuple[bytes, str]:
    """The key that a link's name has, and its extension, for errors."""
    dot = name.find(46, name.rfind(47) + 1)
    return (name[:dot], name[dot + 1 :].decode("utf-8", "replace") + " (a link)") if dot > 0 else (b"", "")
