"""Images, labels, json and pickles that lie, each in a shard beside one good sample, with the status expected of it."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from tests.faults.hostile_tars import END, GOOD_PNG, Hostile, block, member, padded, pair

# ruff: noqa: E501


def seg(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG whose image data are these rows, compressed."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + before
        + chunk(b"IDAT", zlib.compress(rows, 1 if len(rows) > 1 << 24 else 9))
        + chunk(b"IEND", b"")
    )


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """What Pillow writes."""
    sink = io.BytesIO()
    (image or photo()).save(sink, kind, **options)
    return sink.getvalue()


def photo(size: int = 64) -> Image.Image:
    """A smooth RGB picture."""
    y, x = np.mgrid[0:size, 0:size]
    return Image.fromarray(np.stack([x * 255 // size, y * 255 // size, (x + y) * 127 // size], -1).astype(np.uint8))


def scan_bomb(scans: int = 20_000, width: int = 8000, height: int = 6000) -> bytes:
    """A progressive JPEG of 48 Mpx whose every further scan is 60 bytes and a pass over all pixels: over a minute."""
    tables = (
        seg(0xDB, b"\0" + bytes([1] * 64))
        + seg(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
        + seg(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
        + seg(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    )
    blocks = (width // 8) * (height // 8)
    bits = ("0" + "1" * 14) * (blocks // 32767 + 1)
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return (
        b"\xff\xd8"
        + tables
        + seg(0xDA, b"\1\1\0\0\0\0")
        + bytes(blocks // 8 + 1)
        + (seg(0xDA, b"\1\1\0\1\x3f\0") + body) * scans
        + b"\xff\xd9"
    )


def webp_header(width: int, height: int, *, animated: bool = False) -> bytes:
    """An extended WebP that declares a canvas and holds nothing of it."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes([2 if animated else 0, 0, 0, 0])
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    if animated:
        body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + (b"ANMF" + struct.pack("<I", 24) + bytes(24)) * 1000
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def images() -> Iterator[tuple[str, str, bytes, str]]:
    """(name, extension, bytes, status)."""
    jpeg = saved("JPEG", quality=90)
    zeros = 64 << 20
    yield "zero-byte", "jpg", b"", "decode:empty"
    yield "one-byte", "jpg", b"\xff", "decode:not_an_image"
    yield "html", "jpg", b"<!doctype html><html><script>alert(1)</script></html>", "decode:not_an_image"
    yield (
        "svg",
        "png",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "decode:not_an_image",
    )
    yield (
        "eps",
        "jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
        "decode:not_an_image",
    )
    yield (
        "psd",
        "jpg",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(12),
        "decode:not_an_image",
    )
    yield "pdf", "jpg", b"%PDF-1.4\n1 0 obj<</JS(app.alert)>>endobj", "decode:not_an_image"
    for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX"):
        yield kind.lower(), "jpg", saved(kind), "decode:not_an_image"
    # -- JPEG
    yield "jpeg-cut", "jpg", jpeg[: len(jpeg) // 2], "decode:truncated"
    yield "jpeg-cut-in-header", "jpg", jpeg[:100], "decode:truncated"
    at = jpeg.index(b"\xff\xc0")
    yield "jpeg-65535", "jpg", jpeg[: at + 5] + b"\xff\xff\xff\xff" + jpeg[at + 9 :], "image:too_large"
    yield "jpeg-zero-size", "jpg", jpeg[: at + 5] + b"\0\0\0\0" + jpeg[at + 9 :], "decode:"
    yield "jpeg-scan-bomb", "jpg", scan_bomb(), "image:too_large"
    yield "jpeg-app-segments", "jpg", jpeg[:2] + seg(0xE5, bytes(65000)) * 200 + jpeg[2:], "ok"
    yield (
        "jpeg-exif-garbage",
        "jpg",
        jpeg[:2] + seg(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 900) + jpeg[2:],
        "ok",
    )
    ifd = (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", 2000)
        + struct.pack("<HHII", 0x0112, 2, 0xFFFFFFFF, 8) * 2000
        + b"\x08\0\0\0"
    )
    yield "jpeg-exif-ifd-loop", "jpg", jpeg[:2] + seg(0xE1, ifd) + jpeg[2:], "ok"
    yield "jpeg-icc-lies", "jpg", jpeg[:2] + seg(0xE2, b"ICC_PROFILE\0\xff\xff" + bytes(500)) * 50 + jpeg[2:], "ok"
    yield "jpeg-marker-loop", "jpg", b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000, "image:too_large"
    yield "jpeg-then-zip", "jpg", jpeg + b"PK\3\4" + bytes(1000), "ok"
    # -- PNG
    yield (
        "png-90mpx-11kb",
        "png",
        png_of(9500, 9500, (b"\0" + bytes(1188)) * 9500, depth=1, colour=0),
        "image:too_large",
    )
    yield "png-2-gpx", "png", png_of(2**31 - 1, 2**31 - 1, b"\0"), "image:too_large"
    yield "png-zero", "png", png_of(0, 0, b""), "decode:"
    yield "png-wide-strip", "png", png_of(50_000_000, 1, b"\0" * 50_000_001, colour=0), "ok"
    yield "png-cut", "png", GOOD_PNG[:-40], "decode:truncated"
    yield "png-crc", "png", GOOD_PNG[:-20] + bytes([GOOD_PNG[-20] ^ 1]) + GOOD_PNG[-19:], "decode:"
    rows = (b"\0" + bytes(48)) * 16
    bomb = zlib.compress(bytes(zeros), 1)
    yield "png-ztxt-bomb", "png", png_of(16, 16, rows, before=chunk(b"zTXt", b"Comment\0\0" + bomb)), "decode:broken"
    yield (
        "png-itxt-bomb",
        "png",
        png_of(16, 16, rows, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)),
        "decode:broken",
    )
    yield "png-iccp-bomb", "png", png_of(16, 16, rows, before=chunk(b"iCCP", b"x\0\0" + bomb)), "decode:broken"
    yield "png-idat-bomb", "png", png_of(16, 16, rows + bytes(zeros)), ""
    yield "png-rgba-idat-bomb", "png", png_of(16, 16, (b"\0" + bytes(64)) * 16 + bytes(zeros), colour=6), ""
    yield "png-90k-chunks", "png", png_of(16, 16, rows, before=chunk(b"tEXt", b"a\0b") * 90_000), "ok"
    yield "png-2m-chunks", "png", png_of(16, 16, rows, before=chunk(b"tEXt", b"") * 2_000_000), "image:too_large"
    yield (
        "png-apng-2^32-frames",
        "png",
        png_of(16, 16, rows, before=chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0))),
        "",
    )
    yield "png-palette-missing", "png", png_of(16, 16, (b"\0" + bytes(16)) * 16, colour=3), ""
    yield "png-chunk-length-lies", "png", GOOD_PNG[:33] + struct.pack(">I", 2**31 - 1) + GOOD_PNG[37:], "ok"
    text = PngImagePlugin.PngInfo()
    text.add_text("<script>", "\x1b[2J" * 10)
    yield "png-text-terminal", "png", saved("PNG", pnginfo=text), "ok"
    # -- WebP
    yield "webp-49mpx-of-34-bytes", "webp", saved("WEBP", Image.new("RGB", (7000, 7000)), lossless=True, method=0), "ok"
    yield "webp-16384-canvas", "webp", webp_header(16384, 16384), "image:too_large"
    yield "webp-animation-bomb", "webp", webp_header(16384, 16384, animated=True), "image:too_large"
    yield "webp-2^24-canvas", "webp", webp_header(1 << 24, 1 << 24), "image:too_large"
    yield "webp-cut", "webp", saved("WEBP")[:60], "decode:truncated"
    yield "webp-animated", "webp", saved("WEBP", save_all=True, append_images=[photo(64)] * 3), "ok"


def evil(canary: str) -> bytes:
    """A pickle that makes the canary when it is loaded; by hand, since nothing here imports what could load it."""
    return b"cos\nsystem\n(S'touch " + canary.encode() + b"'\ntR."


def torch_zip(canary: str) -> bytes:
    """A file of torch's own format whose pickle is the evil one."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in (("data.pkl", evil(canary)), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), data)
    return sink.getvalue()


def npy_of_objects(canary: str) -> bytes:
    """A .npy of dtype object."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + evil(canary)


def labels() -> Iterator[tuple[str, list[tuple[str, bytes]], str]]:
    """(name, members beside the image, status); the fields `n` and `label` of the json are asked for."""
    for name, text, status in (
        ("minus-100", b"-100", "label:range"), ("minus-1", b"-1", "label:range"), ("fourteen", b"14", "label:range"),
        ("2^31", b"2147483648", "label:range"), ("2^63", b"9223372036854775808", "label:range"),
        ("forty-digits", b"9" * 40, "label:range"), ("sixty-digits", b"9" * 60, "label:invalid"), ("nan", b"nan", "label:invalid"),
        ("1e3", b"1e3", "label:invalid"), ("hex", b"0x1", "label:invalid"), ("underscore", b"1_0", "label:invalid"),
        ("arabic-digit", "٣".encode(), "label:invalid"), ("nul", b"1\0", "label:invalid"), ("empty", b"", "label:invalid"),
        ("terminal", b"\x1b[2J", "label:invalid"), ("long", b"1" * 65, "size"), ("utf16", "1".encode("utf-16"), "label:invalid"),
        ("plus", b"+1", "label:invalid"), ("script", b"<script>", "label:invalid"),
    ):  # fmt: skip
        yield f"cls-{name}", [("cls", text)], status
    for name, text, status in (
        ("deep-list", b"[" * 100_000, "json"), ("deep-object", b'{"a":' * 100_000, "json"),
        ("nan", b'{"label": NaN}', "label:invalid"), ("infinity", b'{"label": Infinity}', "label:invalid"),
        ("1e400", b'{"label": 1e400}', "label:invalid"), ("5000-digits", b'{"label": ' + b"9" * 5000 + b"}", "json"),
        ("4000-digits", b'{"label": ' + b"9" * 4000 + b"}", "label:range"), ("minus-100", b'{"label": -100}', "label:range"),
        ("duplicate-keys", b'{"label": 1, "label": 999}', "label:range"), ("bom", b'\xef\xbb\xbf{"label": 1}', "ok"),
        ("utf16", '{"label": 1}'.encode("utf-16"), "ok"), ("latin1", b'{"label": "\xe9"}', "json"), ("empty", b"", "label:missing"),
        ("null", b"null", "json"), ("list", b"[1]", "json"), ("cut", b'{"label": 1', "json"), ("text", b'{"label": "1"}', "label:invalid"),
        ("true", b'{"label": true}', "label:invalid"), ("nested-label", b'{"label": {"a": [1]}}', "label:invalid"),
        ("lone-surrogate", b'{"label": 1, "n": "\\ud800"}', "ok"), ("trailing", b'{"label": 1} x', "json"),
        ("proto", json.dumps({"label": 1, "__class__": "os.system", "__proto__": {"n": 1}}).encode(), "ok"),
        ("yaml-tag", b"!!python/object/apply:os.system ['id']", "json"), ("1mib", b'{"label": 1, "x": "' + b"x" * (1 << 20) + b'"}', "size"),
    ):  # fmt: skip
        yield f"json-{name}", [("json", text)], status
    yield "no-label", [("txt", b"5")], "label:missing"


def sample_shards(canary: str) -> Iterator[Hostile]:
    """Every sample as a shard of its own, after a good one; `rows` ending in ":" is any status that begins so."""
    good = pair("good", b"2")
    for name, extension, data, status in images():
        yield Hostile(
            f"image-{name}",
            good + member(f"bad.{extension}", data) + member("bad.cls", b"1") + END,
            rows=("ok", status),
        )
    for name, members, status in labels():
        body = b"".join(member(f"bad.{e}", d) for e, d in members)
        yield Hostile(name, good + member("bad.png", GOOD_PNG) + body + END, rows=("ok", status))
    yield Hostile(
        "json-500mb",
        good + member("bad.png", GOOD_PNG) + block("bad.json", size=500 << 20),
        rows=("ok", "size"),
        hole=500 << 20,
        after=END,
    )
    yield Hostile(
        "image-500mb",
        good + member("bad.cls", b"1") + block("bad.jpg", size=500 << 20),
        rows=("ok", "image:too_large"),
        hole=500 << 20,
        after=END,
    )
    pickles = [(f"good.{e}", evil(canary)) for e in ("pkl", "pickle", "pyd", "joblib", "a.pkl", "DILL")]
    pickles += [("good.pth", torch_zip(canary)), ("good.pt", torch_zip(canary)), ("good.npy", npy_of_objects(canary))]
    yield Hostile("pickles", good + b"".join(member(n, d) for n, d in pickles) + END, rows=("ok",))
    yield Hostile("pickle-as-image-and-label", b"".join(
        member(n, evil(canary)) for n in ("a.jpg", "a.json")) + block("a.cls", size=1) + padded(b"1") + END,
        rows=("json",))  # fmt: skip
