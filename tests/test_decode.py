"""Images to pixels: whichever decoder is installed, a lossless image has the same ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rhostream.samples import decoders as decode

pytest.importorskip("imagecodecs")
RNG = np.random.default_rng(0)


def encode(image: Image.Image, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def by_pillow(data: bytes, out: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(decode, "libpng", lambda: None)
        return decode.decode_into(data, out)


def images() -> dict[str, bytes]:
    grey, colour = RNG.integers(0, 256, (20, 30), dtype=np.uint8), RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "grey": encode(Image.fromarray(grey)), "RGB": encode(Image.fromarray(colour)),
        "square": encode(Image.fromarray(colour[:16, :16])), "grey square": encode(Image.fromarray(grey[:16, :16])),
        "palette": encode(Image.fromarray(colour).quantize(16)), "1 bit": encode(Image.fromarray(grey > 99)),
        "16 bit": encode(Image.fromarray(grey.astype(np.uint16) * 257)),
        "LA": encode(Image.fromarray(grey).convert("LA")),
        "RGBA": encode(Image.fromarray(colour).convert("RGBA")),
        "transparent": encode(Image.fromarray(colour), transparency=(1, 2, 3)),
        "turned": encode(Image.fromarray(colour), exif=exif), "gamma": encode(Image.fromarray(colour), gamma=0.4),
    }  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", images())
def test_a_png_has_the_same_pixels_by_libpng_and_by_pillow(
    name: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, found = images()[name], [np.full((16, 16, channels), 7, np.uint8) for _ in range(2)]
    assert decode.decode_into(data, found[0]) == by_pillow(data, found[1], monkeypatch) == "ok"
    np.testing.assert_array_equal(*found)


def test_libpng_is_used_for_plain_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(Image, "open", fail)
    for name, channels in (("grey", 1), ("RGB", 3), ("square", 3), ("grey square", 1)):
        assert decode.decode_into(images()[name], np.empty((16, 16, channels), np.uint8)) == "ok"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_what_is_wrong_with_a_png_is_said_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images()["grey square"]
    header = whole[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0))
    bad = {
        "cut": whole[: len(whole) // 2],
        "header alone": whole[:40],
        "no data": header + chunk(b"IEND", b""),
        "garbage": header + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND", b""),
        "short": header + chunk(b"IDAT", zlib.compress(bytes(17 * 3))) + chunk(b"IEND", b""),
        "bomb": whole[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)) + whole[33:],
        "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
    }
    for name, data in bad.items():
        out = np.empty((16, 16, 1), np.uint8)
        assert decode.decode_into(data, out) == by_pillow(data, out.copy(), monkeypatch), name
    assert decode.decode_into(bad["bomb"], out) == "image:too_large"
