"""Shards for the benchmarks, made once and kept below the folder for temporary files: photo-like JPEGs, small PNGs."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

FOLDER = Path(tempfile.gettempdir()) / "rhostream-benchmarks"
CLASSES = 10


def photos(shards: int = 8, samples: int = 500, size: int = 256) -> list[str]:
    """Shards of `size` x `size` JPEGs of about 13 KB."""
    return _shards(f"photos-{size}-{shards}x{samples}", shards, samples, "jpg", lambda rng: _photo(rng, size))


def drawings(shards: int = 60, samples: int = 100, size: int = 28) -> list[str]:
    """Shards of grey `size` x `size` PNGs, half of each image empty, as Fashion-MNIST's are."""
    return _shards(f"drawings-{size}-{shards}x{samples}", shards, samples, "png", lambda rng: _drawing(rng, size))


def members(shards: int, samples: int, *, pax: bool, fields: bool) -> list[str]:
    """Shards of 400 to 900 random bytes called .jpg, with a .cls or a .json (`fields`) beside each."""
    folder = FOLDER / f"members-{'pax' if pax else 'plain'}-{'json' if fields else 'cls'}-{shards}x{samples}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        rng, unfinished = np.random.default_rng(number), path.with_suffix(".part")
        # Without an mtime webdataset's writer takes the time as a float, which only a pax header can hold.
        with wds.TarWriter(str(unfinished), mtime=None if pax else 0) as sink:
            for sample in range(samples):
                label = int(rng.integers(1000))
                beside = {"json": {"label": label, "n": sample, "clean": sample % 7 > 0}} if fields else {
                    "cls": str(label).encode()}  # fmt: skip
                sink.write({"__key__": f"{number:05d}{sample:06d}", "jpg": rng.bytes(int(rng.integers(400, 900))),
                            **beside})  # fmt: skip
        unfinished.rename(path)
    return [str(path) for path in paths]


def _shards(name: str, shards: int, samples: int, extension: str, make: Callable[[np.random.Generator], bytes],
            ) -> list[str]:  # fmt: skip
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        rng, unfinished = np.random.default_rng(number), path.with_suffix(".part")
        with wds.TarWriter(str(unfinished)) as sink:
            for sample in range(samples):
                label = str(int(rng.integers(CLASSES))).encode()
                sink.write({"__key__": f"{number:05d}{sample:06d}", extension: make(rng), "cls": label})
        unfinished.rename(path)
    return [str(path) for path in paths]


def _photo(rng: np.random.Generator, size: int) -> bytes:
    """Noise in three octaves: broad colours, shapes, and grain, with the spectrum falling as a photograph's does."""
    pixels = np.full((size, size, 3), 128.0)
    for side, strength in ((6, 70.0), (24, 30.0), (96, 10.0)):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels += (fine - 128) / 74 * strength
    pixels += rng.normal(0, 2.0, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=80)
    return out.getvalue()


def _drawing(rng: np.random.Generator, size: int) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((size, size))
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 12, (size, size))
    edge = size // 4
    pixels[:, :edge] = pixels[:, -edge:] = 0
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
