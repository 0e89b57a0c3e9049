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
