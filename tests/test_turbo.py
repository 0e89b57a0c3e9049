"""The decoder `turbo`: Pillow's pixels but for 1, seldom 2, and but for the outermost ones of a crop; its statuses."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from rhostream.samples.decoders import DECODERS, decoder
from rhostream.samples.random_crop import RandomCrop
from rhostream.samples.resampling import drafted
from tests.support.photographs import jpeg, photograph

pytest.importorskip("simplejpeg")
Pixels = np.ndarray[Any, Any]
IMAGES = [photograph(number)[0] for number in range(24)]


def both(data: bytes, size: int, resize: str, channels: int) -> tuple[Pixels, Pixels]:
    """The row by Pillow and by turbo, as whole numbers that can be subtracted."""
    found = list[Pixels]()
    for name in ("pillow", "turbo"):
        out = np.full((size, size, channels), 7, np.uint8)
        geometry = RandomCrop(np.random.default_rng(5), True) if resize == "random" else resize
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decoder(name)[1](data, out, geometry) == "ok"
        found.append(out.astype(int))
    return found[0], found[1]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad", "random"])
@pytest.mark.parametrize("channels", [1, 3])
def test_turbo_gives_pillows_pixels(resize: str, channels: int) -> None:
    for size in (15, 33, 64, 96):
        differ = list[float]()
        for image in IMAGES:
            one, other = both(jpeg(image), size, resize, channels)
            off = np.abs(one - other)
            if resize == "crop":  # the edges lack what lies beside the square
                assert off.mean() < 0.5, (image.size, size)
                off = off[3:-3, 3:-3]
            assert off.max() <= 2, (image.size, size)
            differ.append(float((off > 0).mean()))
        assert np.mean(differ) < 0.15, size


def test_a_picture_that_has_the_size_is_the_same_to_the_bit() -> None:
    image = IMAGES[0].resize((48, 48))
    one, other = both(jpeg(image), 48, "crop", 3)
    np.testing.assert_array_equal(one, other)


def test_a_crop_by_half_pixels_is_pillows_own() -> None:
    image = IMAGES[0].resize((61, 40))
    one, other = both(jpeg(image), 32, "crop", 3)
    np.testing.assert_array_equal(one, other)


def test_turbo_scales_by_halves_while_twice_of_what_is_needed_is_left() -> None:
    assert drafted(500, 400, (224, 224)) == (500, 400)
    assert drafted(896, 901, (224, 224)) == (448, 451)
    assert drafted(4000, 3000, (224, 224)) == (1000, 750)
    assert drafted(9000, 9000, (224, 224)) == (1125, 1125)


def test_bad_jpegs_have_the_statuses_of_simplejpeg() -> None:
    whole = jpeg(IMAGES[1])
    png = io.BytesIO()
    IMAGES[1].save(png, "PNG")
    for data in (b"", whole[: len(whole) // 2], whole[:40], b"\xff\xd8 no picture", b"text", png.getvalue()):
        status = [DECODERS[name](data, np.zeros((24, 24, 3), np.uint8)) for name in ("simplejpeg", "turbo")]
        assert status[0] == status[1], data[:20]


@pytest.mark.slow
def test_processors_without_vectors_give_the_same_pixels() -> None:
    program = """
import hashlib, numpy as np
from rhostream.samples.resampling import place_pixels
pixels, digest = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8), hashlib.sha256()
for resize in ("crop", "squash", "pad"):
    place_pixels(pixels, out := np.zeros((48, 48, 3), np.uint8), resize, (48, 36))
    digest.update(out.tobytes())
print(digest.hexdigest())
"""
    said = {
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True,
                       env={**os.environ, "ATEN_CPU_CAPABILITY": capability}).stdout
        for capability in ("default", "avx2")
    }  # fmt: skip
    assert len(said) == 1
