"""From the bytes of an image to a row of a uint8 NHWC array, by one geometry, or to a status that says why not.

The geometry is `crop`, `squash` or `pad` (`samples/geometry.py`), or a random crop (`samples/random_crop.py`). EXIF
orientation is applied first; palettes, greys, alpha, CMYK and 16 bits become plain RGB (or one grey channel). The same
function serves the offline wing and the trainer.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from rhostream.errors import MissingExtraError, UnknownNameError
from rhostream.samples.geometry import CROP, MAX_BYTES, content_of, least_sides, place, settled
from rhostream.samples.kind import OK
from rhostream.samples.random_crop import Cut, RandomCrop
from rhostream.samples.resampling import drafted, fits, place_pixels

FORMATS = ("JPEG", "PNG", "WEBP")
PNG = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a progressive JPEG: each passes over all pixels, and a few MB can hold a hundred thousand
# Pillow looks at each segment of a JPEG and chunk of a PNG in Python: millions of empty ones would take minutes.
MAX_SEGMENTS, MAX_CHUNKS = 10_000, 100_000
# In place of an end marker: eight bytes of ones, which is no code, and what libjpeg reads ahead of the last block.
_UNENDED = b"\xff\x00" * 8
# What Pillow's plugins are known to raise on hostile bytes, beside OSError.
_BROKEN = (SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, ArithmeticError,
           AttributeError, AssertionError, NotImplementedError, RuntimeError, MemoryError)  # fmt: skip
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and the values that swap width and height
_PLAIN_PNG = {1: b"\x08\x00", 3: b"\x08\x02"}  # bit depth and colour type, by channels
Row = npt.NDArray[np.uint8]


def decode_into(data: bytes, out: Row, resize: str | RandomCrop = CROP) -> str:
    """Decode with Pillow into `out` (H, W, C); returns "ok" or the status of a bad image."""
    if not data:
        return "decode:empty"
    if len(data) > MAX_BYTES:
        return "image:too_large"
    try:
        return _decode_pillow(data, out, resize)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "image:too_large"
    except UnidentifiedImageError:
        return "decode:truncated" if _is_cut(data) else "decode:not_an_image"
    except OSError as exc:
        return "decode:truncated" if "truncated" in str(exc).lower() or _is_cut(data) else "decode:broken"
    except _BROKEN:
        return "decode:truncated" if _is_cut(data) else "decode:broken"


def _is_cut(data: bytes) -> bool:
    """Whether bytes that begin as an image of ours lack its end."""
    if data[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in data
    if data[:8] == PNG:
        return b"IEND" not in data
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _decode_pillow(data: bytes, out: Row, resize: str | RandomCrop) -> str:
    if data[:8] == PNG and len(data) > 28:
        width, height = struct.unpack(">II", data[16:24])
        if width * height > MAX_PIXELS or (len(data) > 1 << 20 and _too_many_chunks(data)):
            return "image:too_large"
        if data[24:26] == _PLAIN_PNG.get(out.shape[2]) and _decode_plain_png(data, (height, width), out, resize):
            return OK
    if data[:2] == b"\xff\xd8" and _jpeg_header(data)[1]:
        return "image:too_large"
    image: Image.Image = Image.open(io.BytesIO(_unended(data)), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        return "image:too_large"
    size, channels = out.shape[0], out.shape[2]
    content = content_of(*image.size, size)
    geometry: str | Cut | None = None
    if image.format == "JPEG":
        on_its_side = not isinstance(resize, str) and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        geometry = settled(resize, *(image.size[::-1] if on_its_side else image.size))
        # libjpeg scales by halves while it decodes; twice the target keeps the antialiasing honest.
        wide, high = least_sides(*image.size, size, geometry)
        if on_its_side:
            wide, high = high, wide
        image.draft("RGB" if channels == 3 else "L", (2 * wide, 2 * high))
    image.load()
    if image.format != "PNG" or "exif" in image.info:
        drafted = image.size
        image = ImageOps.exif_transpose(image)
        content = content if image.size == drafted else content[::-1]
    place(_to_mode(image, channels), out, geometry or settled(resize, *image.size), content)
    return OK


@functools.cache
def libpng() -> Callable[..., npt.NDArray[Any]] | None:
    """libpng's decoder, where imagecodecs is installed: it saves two thirds of what Pillow takes for a small PNG."""
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None
    # It logs what chunks of the file say, hostile text, in every worker; what is wrong is told by statuses.
    logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)
    return png_decode


def _decode_plain_png(data: bytes, shape: tuple[int, int], out: Row, resize: str | RandomCrop) -> bool:
    """Decode a PNG of 8-bit grey or RGB by libpng: the same pixels, for the format is lossless, so not a decoder of
    another name. False where it can't be done, or not surely as Pillow does it: then Pillow says what is wrong.
    """
    png_decode = libpng()
    if png_decode is None or b"eXIf" in data or b"tRNS" in data:
        return False
    # Compressed text that inflates to more than Pillow takes has room in a kilobyte and more; libpng passes over it.
    if len(data) > 1000 and (b"zTXt" in data or b"iTXt" in data or b"iCCP" in data):
        return False
    size, channels = out.shape[0], out.shape[2]
    try:
        if shape == (size, size) and isinstance(resize, str):
            png_decode(data, out=out if channels == 3 else out[..., 0])
        else:
            image = Image.fromarray(png_decode(data))
            place(image, out, settled(resize, *image.size))
    except (RuntimeError, ValueError, TypeError, OSError, MemoryError):
        return False
    return True


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(np.clip(np.asarray(image) / 256, 0, 255).astype(np.uint8))
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _too_many_chunks(data: bytes) -> bool:
    """Whether a PNG has more than MAX_CHUNKS."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return False
        at += int.from_bytes(data[at : at + 4], "big") + 12
    return True


def _jpeg_header(data: bytes) -> tuple[bool, bool]:
    """Whether a JPEG may have to be turned (yes where its header is odd), and whether it has too many parts."""
    at, turned, progressive, segments = 2, False, False, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        segments += 1
        if segments > MAX_SEGMENTS:
            return True, True
        marker = data[at + 1]
        if marker == 0xDA:
            return turned, progressive and data.count(b"\xff\xda") > MAX_SCANS
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xE1:  # Exif, or XMP that says the same
            turned = turned or data[at + 4 : at + 9] == b"Exif\0" or b"Orientation" in data[at + 4 : end]
        progressive = progressive or marker in (0xC2, 0xC6, 0xCA, 0xCE)
        at = end
    return True, data.count(b"\xff\xda") > MAX_SCANS


def _unended(data: bytes) -> bytes:
    """A JPEG of one Huffman-coded scan without its end marker; any other bytes as they are.

    Behind an end marker libjpeg makes up what is missing, and Pillow passes over its warning: the lower half of a
    picture would be grey. Without one it asks for more, so data that stop early are told from whole ones. A JPEG of
    several scans (a progressive one) needs the marker to be decoded at all.
    """
    at, components = 2, 0
    for _ in range(MAX_SEGMENTS if data[:2] == b"\xff\xd8" else 0):
        if at + 10 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xDA:
            end = data.find(b"\xff\xd9", at) if components and data[at + 4] == components else -1
            return data if end < 0 else data[:end] + _UNENDED
        if marker in (0xC0, 0xC1):
            components = data[at + 9]
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return data


def _decode_simplejpeg(data: bytes, out: Row, resize: str | RandomCrop = CROP, *, turbo: bool = False) -> str:
    """Like `decode_into`, with libjpeg-turbo and a finer scaled decode for plain JPEGs.

    `turbo`: scaled by halves alone, as Pillow does, and resampled by torch: Pillow's pixels but for 1, seldom 2, in
    few places (see `resampling`). libjpeg-turbo has vectors for halves only, so that is the faster way too.
    """
    if data[:2] != b"\xff\xd8":
        return decode_into(data, out, resize)
    turned, too_many = _jpeg_header(data)
    if turned or too_many:
        return decode_into(data, out, resize)
    import simplejpeg

    size, channels = out.shape[0], out.shape[2]
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > MAX_PIXELS:
            return "image:too_large"
        if space not in ("YCbCr", "Gray", "RGB"):
            return decode_into(data, out, resize)
        geometry = settled(resize, width, height)
        wide, high = least_sides(width, height, size, geometry)
        if turbo:
            wide, high = drafted(width, height, (wide, high))
        pixels = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", min_height=high, min_width=wide, min_factor=1
        )
    except ValueError as exc:
        # Pillow has words for the rest, and reads some of it: odd bytes between two segments, a colour space.
        return "decode:truncated" if "premature end" in str(exc).lower() else decode_into(data, out, resize)
    if pixels.shape == out.shape and isinstance(geometry, str):
        out[:] = pixels
    elif turbo and fits(pixels, size, geometry):
        place_pixels(pixels, out, geometry, content_of(width, height, size))
    else:
        image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        place(image, out, geometry, content_of(width, height, size))
    return OK


Decoder = Callable[..., str]  # (bytes, row) -> status; those of images take `resize` too
DECODERS: dict[str, Decoder] = {
    "pillow": decode_into,
    "simplejpeg": _decode_simplejpeg,
    "turbo": functools.partial(_decode_simplejpeg, turbo=True),
}


def decoder(name: str) -> tuple[str, Decoder]:
    """The decoder of that name; "auto" takes simplejpeg when it is installed, else Pillow.

    Returns the name that goes into the fingerprint and the function. Raises MissingExtraError, UnknownNameError.
    """
    try:
        import simplejpeg  # noqa: F401

        available = True
    except ImportError:
        available = False
    if name == "auto":
        name = "simplejpeg" if available else "pillow"
    if name not in DECODERS:
        raise UnknownNameError.of("decoder", name, ["auto", *DECODERS])
    if name != "pillow" and not available:
        raise MissingExtraError.of("simplejpeg", "jpeg")
    return name, DECODERS[name]


def check_image(data: bytes) -> str:
    """The status of an image's bytes, decoded in full."""
    return decode_into(data, np.empty((8, 8, 3), np.uint8))


class Sides(NamedTuple):
    """What the header of an image says."""

    shorter: int  # pixels
    longer: int
    channels: int  # 1 or 3


def probe_size(data: bytes) -> Sides | None:
    """Sides and channels of an image, None when it can't be read."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        return Sides(min(image.size), max(image.size), 1 if image.mode in ("L", "1", "I;16", "LA") else 3)
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning, *_BROKEN):
        return None
