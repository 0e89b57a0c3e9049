"""Shards whose members have every fault, and the status that each must get."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

JPEG = "jpg"


PNG = "png"


def image_bytes(seed: int = 0, kind: str = PNG, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG" if kind == JPEG else "PNG")
    return sink.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def bomb() -> bytes:
    """A PNG header that declares 10,000 x 9,000 pixels."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0")) + part(b"IEND", b"")


DEEP = b"[" * 100_000


GOOD = image_bytes()


# key -> (members, expected status), with 14 classes and the json needed
HOSTILE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "good": ([("png", GOOD), ("cls", b"3"), ("json", b'{"n": 1}')], "ok"),
    "label-in-json": ([("png", GOOD), ("json", b'{"label": 13}')], "ok"),
    "newline-label": ([("png", GOOD), ("cls", b"7\n")], "ok"),
    "zero-bytes": ([("jpg", b""), ("cls", b"1")], "decode:empty"),
    "cut": ([("jpg", image_bytes(kind=JPEG, size=64)[:900]), ("cls", b"1")], "decode:truncated"),
    "html": ([("jpg", b"<!doctype html><html></html>"), ("cls", b"1")], "decode:not_an_image"),
    "bomb": ([("png", bomb()), ("cls", b"1")], "image:too_large"),
    "no-image": ([("txt", b"hello"), ("cls", b"1")], "image:missing"),
    "pickle": ([("png", GOOD), ("cls", b"1"), ("pkl", b"\x80")], "ok"),
    "minus-100": ([("png", GOOD), ("cls", b"-100")], "label:range"),
    "minus-1": ([("png", GOOD), ("cls", b"-1")], "label:range"),
    "fourteen": ([("png", GOOD), ("cls", b"14")], "label:range"),
    "huge": ([("png", GOOD), ("cls", str(2**63).encode())], "label:range"),
    "no-label": ([("png", GOOD)], "label:missing"),
    "null-label": ([("png", GOOD), ("json", b'{"label": null}')], "label:missing"),
    "word": ([("png", GOOD), ("cls", b"abc")], "label:invalid"),
    "empty-label": ([("png", GOOD), ("cls", b"")], "label:invalid"),
    "float-label": ([("png", GOOD), ("json", b'{"label": 1.0}')], "label:invalid"),
    "true-label": ([("png", GOOD), ("json", b'{"label": true}')], "label:invalid"),
    "arabic-digits": ([("png", GOOD), ("cls", "٣".encode())], "label:invalid"),
    "deep-json": ([("png", GOOD), ("cls", b"1"), ("json", DEEP)], "json"),
    "cut-json": ([("png", GOOD), ("cls", b"1"), ("json", b'{"n": ')], "json"),
    "list-json": ([("png", GOOD), ("cls", b"1"), ("json", b"[1]")], "json"),
    "long-digits": ([("png", GOOD), ("cls", b"1"), ("json", b'{"n": ' + b"9" * 5000 + b"}")], "json"),
    "long-cls": ([("png", GOOD), ("cls", b"1" * 65)], "size"),
    "long-json": ([("png", GOOD), ("cls", b"1"), ("json", b" " * ((1 << 20) + 1))], "size"),
}


def hostile_shard(path: Path) -> tuple[Path, list[str]]:
    """A shard of every kind of bad sample, and the statuses expected of its rows."""
    members = [(f"{key}.{ext}", data) for key, (parts, _) in HOSTILE.items() for ext, data in parts]
    statuses = [status for _, status in HOSTILE.values()]
    members += [("twice.png", GOOD), ("twice.cls", b"1"), ("twice.png", GOOD), ("twice.cls", b"1")]  # adjacent
    members += [("good.png", GOOD), ("good.cls", b"3")]  # not adjacent
    return write_tar(path, members), [*statuses, "ok", "dup", "dup"]


JPG, SAID = image_bytes(kind=JPEG), b'{"caption": "a cat"}'
BIDI = "a \u202ecat\u202c \u2066and\u2069 <b>a dog</b>".encode()


# key -> (members, the status of a pair whose caption is the .txt, and of one whose caption is a field of the .json)
HOSTILE_PAIRS: dict[str, tuple[list[tuple[str, bytes]], str, str]] = {
    "good": ([("jpg", JPG), ("txt", b"a cat"), ("json", SAID)], "ok", "ok"),
    "text-first": ([("json", SAID), ("txt", b"a cat"), ("png", GOOD)], "ok", "ok"),
    "two-images": ([("jpg", JPG), ("png", GOOD), ("txt", b"a cat"), ("json", SAID)], "ok", "ok"),
    "bidi": ([("jpg", JPG), ("txt", BIDI), ("json", b'{"caption": "a \\u202ecat"}')], "ok", "ok"),
    "marked": ([("jpg", JPG), ("txt", b"\xef\xbb\xbfa cat"), ("json", b'{"caption": "\\ufeffa cat"}')], "ok", "ok"),
    "one-mebibyte": ([("jpg", JPG), ("txt", b"a" * (1 << 20)), ("json", SAID)], "ok", "ok"),
    "no-image": ([("txt", b"a cat"), ("json", SAID)], "image:missing", "image:missing"),
    "no-caption": ([("jpg", JPG)], "text:missing", "text:missing"),
    "neither": ([("cls", b"1")], "image:missing", "image:missing"),
    "numbered": ([("jpg", JPG), ("0.txt", b"a cat"), ("caption.txt", b"a cat")], "text:missing", "text:missing"),
    "failed": ([("json", b'{"caption": "a cat", "status": "failed_to_download"}')], "image:missing", "image:missing"),
    "no-bytes": ([("jpg", b""), ("txt", b"a cat"), ("json", SAID)], "decode:empty", "decode:empty"),
    "page": ([("jpg", b"<!doctype html>"), ("txt", b"a cat"), ("json", SAID)], *["decode:not_an_image"] * 2),
    "cut": ([("jpg", image_bytes(kind=JPEG, size=64)[:900]), ("txt", b"a"), ("json", SAID)], *["decode:truncated"] * 2),
    "bomb": ([("png", bomb()), ("txt", b"a cat"), ("json", SAID)], "image:too_large", "image:too_large"),
    "both": ([("jpg", b""), ("txt", b""), ("json", b"")], "decode:empty", "decode:empty"),
    "broken-and-latin": ([("jpg", b"GIF89a"), ("txt", b"caf\xe9"), ("json", b"{")], *["decode:not_an_image"] * 2),
    "page-unsaid": ([("jpg", b"GIF89a"), ("txt", b""), ("json", b"")], "text:empty", "text:empty"),
    "unsaid": ([("jpg", JPG), ("txt", b""), ("json", b"")], "text:empty", "text:empty"),
    "spaces": ([("jpg", JPG), ("txt", b" \n\t\xc2\xa0"), ("json", b'{"caption": " \\n"}')], "text:empty", "text:empty"),
    "mark-alone": ([("jpg", JPG), ("txt", b"\xef\xbb\xbf"), ("json", b'{"caption": ""}')], "text:empty", "text:empty"),
    "latin": ([("jpg", JPG), ("txt", b"caf\xe9"), ("json", b'{"caption": "\\ud83d"}')], *["text:encoding"] * 2),
    "utf-16": ([("jpg", JPG), ("txt", "a cat".encode("utf-16")), ("json", SAID)], "text:encoding", "ok"),
    "nul": ([("jpg", JPG), ("txt", b"a\0cat"), ("json", b'{"caption": "a\\u0000cat"}')], "text:nul", "text:nul"),
    "utf-16-bare": ([("jpg", JPG), ("txt", "a cat".encode("utf-16-le")), ("json", SAID)], "text:nul", "ok"),
    "long": ([("jpg", JPG), ("txt", b"a" * ((1 << 20) + 1)), ("json", SAID)], "text:too_large", "ok"),
    "long-json": ([("jpg", JPG), ("txt", b"a cat"), ("json", b" " * ((1 << 20) + 1))], "ok", "size"),
    "cut-json": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'{"caption": ')], "ok", "json"),
    "deep-json": ([("jpg", JPG), ("txt", b"a cat"), ("json", DEEP)], "ok", "json"),
    "list-json": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'["a cat"]')], "ok", "json"),
    "no-field": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'{"text": "a cat"}')], "ok", "text:missing"),
    "null": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'{"caption": null}')], "ok", "text:missing"),
    "several": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'{"caption": ["a cat", "a"]}')], "ok", "text:type"),
    "number": ([("jpg", JPG), ("txt", b"a cat"), ("json", b'{"caption": 7}')], "ok", "text:type"),
}  # fmt: skip


def hostile_pairs(path: Path, field: str = "") -> tuple[Path, dict[str, str]]:
    """A shard of every kind of bad pair, and the status expected of each key; `field`: of a caption in the .json."""
    members = [(f"{key}.{ext}", data) for key, (parts, _, _) in HOSTILE_PAIRS.items() for ext, data in parts]
    expected = {key: statuses[bool(field)] for key, (_, *statuses) in HOSTILE_PAIRS.items()}
    return write_tar(path, members), expected
