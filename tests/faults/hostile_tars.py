"""Tars that lie: sizes, names, headers, ends. Each is bytes made by hand, with what must come of it."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

END = bytes(1024)
Members = Sequence[tuple[str | bytes, bytes]]


@dataclass(frozen=True)
class Hostile:
    """A hostile shard: its bytes, zeros that follow them without lying on the disk, and what is expected of it.

    `bad`: words of the error that must name the shard; else `rows`: the statuses after `compute-il`, in order.
    """

    name: str
    data: bytes
    bad: str = ""
    rows: tuple[str, ...] = ()
    hole: int = 0  # bytes of zeros behind the data
    after: bytes = b""  # behind the hole


def good_png() -> bytes:
    """16 x 16 grey-ish RGB, plain."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(
        b"\0" + bytes((x * 15, y * 15, (x ^ y) * 15)[c] for x in range(16) for c in range(3)) for y in range(16)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
        + part(b"IDAT", zlib.compress(rows))
        + part(b"IEND", b"")
    )


GOOD_PNG = good_png()


def block(
    name: str | bytes,
    *,
    size: bytes | int = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    checksum: bytes | None = None,
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """One header, its checksum right unless one is given."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    digits = b"%011o\0" % size if isinstance(size, int) else size
    header = bytearray(
        raw[:100].ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + digits.ljust(12, b"\0")
        + b"00000000000\0"
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + magic.ljust(8, b"\0")
    )
    header += bytes(345 - len(header)) + prefix.ljust(155, b"\0") + bytes(12)
    header[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(header)
    return bytes(header)


def member(name: str | bytes, data: bytes) -> bytes:
    """A header and its data, padded."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    long = b""
    if len(raw) > 100:
        long = block("././@LongLink", size=len(raw) + 1, kind=b"L") + padded(raw + b"\0")
    return long + block(raw, size=len(data)) + padded(data)


def padded(data: bytes) -> bytes:
    """Zeros up to the next block."""
    return data + bytes(-len(data) % 512)


def tar_of(members: Members) -> bytes:
    """A whole tar."""
    return b"".join(member(n, d) for n, d in members) + END


def pair(key: str | bytes = "a", label: bytes = b"1") -> bytes:
    """A good sample."""
    raw = key.encode() if isinstance(key, str) else key
    return member(raw + b".png", GOOD_PNG) + member(raw + b".cls", label)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    """A pax header."""
    return block("pax", size=len(records), kind=kind) + padded(records)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def tars() -> Iterator[Hostile]:
    """Every tar."""
    g = pair("good", b"2")
    ok = ("ok",)
    yield Hostile("empty-file", b"", bad="empty (0 bytes)")
    yield Hostile("end-marker-only", END, rows=())
    yield Hostile("zeros", bytes(10240), rows=())
    yield Hostile("html", b"<html>" * 200, bad="not a tar")
    yield Hostile("one-byte", b"\x1f", bad="incomplete")
    yield Hostile("cut-in-header", g + block("b.png")[:300], bad="incomplete: 1 samples")
    yield Hostile("cut-in-data", g + block("b.png", size=5000) + b"x" * 600, bad="incomplete: 1 samples")
    yield Hostile("cut-at-boundary", g, bad="incomplete: 1 samples")
    yield Hostile(
        "header-checksum-garbage", g + block("b.png", checksum=b"\xff\xfe\xfd\xfc\0\0\0\0") + END, bad="corrupt header"
    )
    yield Hostile("header-random", g + zlib.compress(bytes(9999)).ljust(512, b"\x7f") + END, bad="corrupt header")
    yield Hostile("concatenated", g + END + pair("b") + END, bad="joined end to end")
    yield Hostile("garbage-after-end", g + END + b"\0" * 512 + b"PK\3\4" * 128, bad="more data behind")
    yield Hostile("hole", g + bytes(2048) + pair("b") + END, bad="hole")
    for name, data in (
        ("gzip", gzip.compress(tar_of([("a.cls", b"1")]), mtime=0)),
        ("bzip2", bz2.compress(g + END)),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 9),
        ("xz", b"\xfd7zXZ\0" + bytes(2048)),
    ):
        yield Hostile(name, data, bad=f"{name}-compressed")
    # -- sizes
    yield Hostile("size-negative-base256", g + block("b.png", size=b"\xff" * 12) + END, bad="size field")
    yield Hostile("size-minus-text", g + block("b.png", size=b"-0000000010\0") + END, bad="size field")
    yield Hostile("size-not-octal", g + block("b.png", size=b"99999999999\0") + END, bad="size field")
    yield Hostile(
        "size-base256-8tb", g + block("b.png", size=b"\x80" + (8 << 40).to_bytes(11, "big")) + END, bad="incomplete"
    )
    yield Hostile("size-base256-max", g + block("b.png", size=b"\x80" + b"\xff" * 11) + END, bad="incomplete")
    yield Hostile("size-octal-max", g + block("b.png", size=b"77777777777\0") + END, bad="incomplete")
    yield Hostile("size-swallows-the-end", g + block("b.png", size=1024) + END, bad="incomplete")
    yield Hostile(
        "pax-size-8tb", g + pax(record(b"size", b"8796093022208")) + member("b.png", b"") + END, bad="incomplete"
    )
    yield Hostile(
        "pax-size-5000-digits",
        g + pax(record(b"size", b"9" * 5000)) + member("b.png", b"") + END,
        bad="states the size",
    )
    yield Hostile(
        "pax-size-negative", g + pax(record(b"size", b"-1")) + member("b.png", b"") + END, bad="states the size"
    )
    yield Hostile(
        "pax-size-overlaps-next",
        g
        + pax(record(b"size", b"1536"))
        + block("b.cls", size=0)
        + padded(b"1")
        + block("hidden.cls", size=1)
        + padded(b"3")
        + END,
        rows=("ok", "size"),
    )
    # -- extended headers
    yield Hostile("pax-2mib", g + pax(record(b"comment", b"x" * (2 << 20))) + END, bad="extended header of")
    yield Hostile(
        "pax-8tb", g + block("pax", size=b"\x80" + (8 << 40).to_bytes(11, "big"), kind=b"x") + END, bad="incomplete"
    )
    yield Hostile(
        "pax-600mb-hole",
        g + block("pax", size=600 << 20, kind=b"x"),
        bad="extended header of",
        hole=600 << 20,
        after=END,
    )
    yield Hostile(
        "longname-600mb-hole",
        g + block("././@LongLink", size=600 << 20, kind=b"L"),
        bad="extended header of",
        hole=600 << 20,
        after=END,
    )
    yield Hostile("pax-lying-length", g + pax(b"999999 path=x\n") + END, bad="broken pax header")
    yield Hostile("pax-length-zero", g + pax(b"0 path=x\n") + END, bad="broken pax header")
    yield Hostile("pax-huge-length", g + pax(b"9" * 19 + b" path=x\n") + END, bad="broken pax header")
    yield Hostile("pax-no-equals", g + pax(b"9 pathxx\n") + END, bad="broken pax header")
    yield Hostile("pax-100k-records", g + pax(b"6 a=b\n" * 100_000) + END, rows=ok)
    yield Hostile("pax-global-path", pax(record(b"path", b"../../x.png"), b"g") + g + END, rows=ok)
    yield Hostile("pax-at-the-end", g + pax(record(b"path", b"x.png")) + END, rows=ok)
    yield Hostile("gnu-sparse", g + block("b.png", kind=b"S", size=512) + bytes(512) + END, bad="not supported")
    yield Hostile(
        "pax-sparse",
        g + pax(record(b"GNU.sparse.size", b"419430400")) + member("b.png", b"x") + END,
        bad="sparse member",
    )
    yield Hostile("vendor-type", g + block("b.png", kind=b"V") + END, bad="not supported")
    yield Hostile("type-high-byte", g + block("b.png", kind=b"\xff") + END, bad="not supported")
    yield Hostile("longname-twice", g + member("n/" * 60 + "x.txt", b"") + END, rows=("ok", "label:missing"))
    # -- names
    yield Hostile("path-traversal", pair("../../../../etc/passwd") + pair("a/../../b") + END, rows=("ok", "ok"))
    yield Hostile("absolute-path", pair("/etc/cron.d/x") + END, rows=ok)
    yield Hostile("windows-path", pair("C:\\..\\x") + END, rows=("label:missing",))
    yield Hostile("name-not-utf8", pair(b"caf\xe9\xff\xfe") + END, rows=ok)
    yield Hostile("name-surrogate", pair(b"\xed\xa0\x80") + END, rows=ok)
    yield Hostile("name-10kb", pair(b"k" * 10_240) + END, rows=ok)
    yield Hostile("name-1mb", pair(b"k" * (1_000_000)) + END, rows=ok)
    nul = (
        pax(record(b"path", b"a\0b.png"))
        + member("x", GOOD_PNG)
        + pax(record(b"path", b"a\0b.cls"))
        + member("x", b"1")
    )
    yield Hostile("name-with-nul", nul + END, rows=ok)
    yield Hostile("name-terminal", pair(b"\x1b]0;pwned\x07\x1b[2J\r\n[/red]") + END, rows=ok)
    yield Hostile(
        "name-html-sql-formula",
        pair("<script>alert(1)</script>'; DROP TABLE il;--") + pair("=cmd|' /C calc'!A0") + END,
        rows=("ok", "ok"),
    )
    yield Hostile("name-empty", block("", size=1) + padded(b"x") + g + END, rows=ok)
    yield Hostile(
        "name-dots",
        b"".join(member(n, b"x") for n in (".", "..", "./", "...png", ".png", "a.", "/")) + g + END,
        rows=ok,
    )
    yield Hostile(
        "prefix-traversal",
        block("b.png", size=len(GOOD_PNG), prefix=b"../../..")
        + padded(GOOD_PNG)
        + block("b.cls", size=1, prefix=b"../../..")
        + padded(b"1")
        + END,
        rows=ok,
    )
    # -- members that are no files
    links = b"".join(
        block(f"l{n}.png", kind=kind, link=b"/etc/passwd")
        for n, kind in enumerate((b"1", b"2", b"3", b"4", b"5", b"6"))
    )
    yield Hostile("links-devices-fifo", links + g + END, rows=ok)
    yield Hostile(
        "symlink-with-size", block("l.png", kind=b"2", size=512, link=b"/dev/zero") + bytes(512) + g + END, rows=ok
    )
    yield Hostile("link-to-itself", block("l.png", kind=b"2", link=b"l.png") + g + END, rows=ok)
    # -- samples
    yield Hostile("duplicates-adjacent", pair("a") + pair("a", b"2") + END, rows=("ok", "dup"))
    yield Hostile("duplicates-apart", pair("a") + pair("b") + pair("a") + END, rows=("ok", "ok", "dup"))
    yield Hostile(
        "same-member-twice",
        member("a.png", GOOD_PNG) + member("a.png", b"") + member("a.cls", b"1") + END,
        rows=("label:missing", "dup"),
    )
    yield Hostile(
        "members-not-adjacent",
        member("a.png", GOOD_PNG) + member("b.png", GOOD_PNG) + member("a.cls", b"1") + END,
        rows=("label:missing", "label:missing", "dup"),
    )
    yield Hostile(
        "fifty-extensions",
        b"".join(member(f"a.{n}x", b"1") for n in range(5000)) + g + END,
        rows=("label:missing", "ok"),
    )
    yield Hostile(
        "many-empty-members",
        b"".join(member(f"{n}.txt", b"") for n in range(9)) + g + END,
        rows=(*["label:missing"] * 9, "ok"),
    )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("ü" * 200 + ".png")
        info.size, info.mtime = len(GOOD_PNG), 1.5
        tar.addfile(info, io.BytesIO(GOOD_PNG))
    yield Hostile("pax-real", out.getvalue(), rows=("label:missing",))
