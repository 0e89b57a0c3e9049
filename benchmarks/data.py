"""Shards for the benchmarks, made once and kept below the folder for temporary files: photographs, small PNGs."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image, ImageOps

FOLDER = Path(tempfile.gettempdir()) / "rhostream-benchmarks"
CLASSES = 10
PACKAGE = "mate-backgrounds"  # Debian's; its abstract pictures are left out, the photographs of nature taken
REAL, SYNTHETIC = f"random crops of Debian's {PACKAGE}", "synthetic photographs"
APT_SECONDS = 300
WORDS = tuple(
    f"{a}{b}{c}"
    for a in ("", "re", "un", "photo")
    for b in ("st", "gl", "br", "m")
    for c in ("one", "ate", "een", "ow", "ight", "y")
)  # of captions


def photographs(shards: int = 24, samples: int = 500, size: tuple[int, int] = (256, 256)) -> tuple[list[str], str]:
    """Shards of JPEGs cropped at random from real photographs, and what they are; synthetic ones without Debian."""
    width, height = size
    try:
        sources = _sources()
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        # `photos` are square, so the larger side keeps the decode at least as heavy.
        return photos(shards, samples, max(size)), SYNTHETIC
    name = f"crops-{width}x{height}-{shards}x{samples}"
    return _shards(name, shards, samples, "jpg", lambda rng: _crop(rng, _opened(sources), size)), REAL


def photos(shards: int = 8, samples: int = 500, size: int = 256) -> list[str]:
    """Shards of synthetic `size` x `size` JPEGs of about 13 KB."""
    return _shards(f"photos-{size}-{shards}x{samples}", shards, samples, "jpg", lambda rng: _photo(rng, size))


def captioned(shards: int = 8, samples: int = 500, size: tuple[int, int] = (256, 256)) -> tuple[list[str], str]:
    """Shards of pairs as img2dataset writes them, of 5 to 20 words each, and what the pictures are."""
    width, height = size
    try:
        sources, origin = _sources(), REAL
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        sources, origin = (), SYNTHETIC

    def sample(rng: np.random.Generator, number: int) -> dict[str, Any]:
        words = [WORDS[n] for n in rng.integers(0, len(WORDS), int(rng.integers(5, 21))).tolist()]
        image = _crop(rng, _opened(sources), size) if sources else _photo(rng, max(size))
        caption = f"{' '.join(words).capitalize()}."
        return {"jpg": image, "json": {"caption": caption, "url": f"https://example.com/{number}"}, "txt": caption}

    kind = "crops" if sources else "photos"
    return _written(f"captioned-{kind}-{width}x{height}-{shards}x{samples}", shards, samples, sample, mtime=0), origin


def drawings(shards: int = 60, samples: int = 100, size: int = 28) -> list[str]:
    """Shards of grey `size` x `size` PNGs, half of each image empty, as Fashion-MNIST's are."""
    return _shards(f"drawings-{size}-{shards}x{samples}", shards, samples, "png", lambda rng: _drawing(rng, size))


def members(shards: int, samples: int, *, pax: bool, fields: bool) -> list[str]:
    """Shards of 400 to 900 random bytes called .jpg, with a .cls or a .json (`fields`) beside each."""
    name = f"members-{'pax' if pax else 'plain'}-{'json' if fields else 'cls'}-{shards}x{samples}"

    def sample(rng: np.random.Generator, number: int) -> dict[str, Any]:
        label = int(rng.integers(1000))
        beside = {"json": {"label": label, "n": number, "clean": number % 7 > 0}} if fields else {
            "cls": str(label).encode()}  # fmt: skip
        return {"jpg": rng.bytes(int(rng.integers(400, 900))), **beside}

    # Without an mtime webdataset's writer takes the time as a float, which only a pax header can hold.
    return _written(name, shards, samples, sample, mtime=None if pax else 0)


def _shards(name: str, shards: int, samples: int, extension: str, make: Callable[[np.random.Generator], bytes],
            ) -> list[str]:  # fmt: skip
    def sample(rng: np.random.Generator, _: int) -> dict[str, Any]:
        label = str(int(rng.integers(CLASSES))).encode()
        return {extension: make(rng), "cls": label}

    return _written(name, shards, samples, sample)


def _written(name: str, shards: int, samples: int, sample: Callable[[np.random.Generator, int], dict[str, Any]],
             mtime: float | None = None) -> list[str]:  # fmt: skip
    """Shards of `samples` samples each, where they aren't there yet; a shard is a function of its number."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        rng, unfinished = np.random.default_rng(number), path.with_suffix(".part")
        with wds.TarWriter(str(unfinished), mtime=mtime) as sink:
            for at in range(samples):
                sink.write({"__key__": f"{number:05d}{at:06d}", **sample(rng, at)})
        unfinished.rename(path)
    return [str(path) for path in paths]


def _sources() -> tuple[Path, ...]:
    """The package's photographs, downloaded and unpacked without root; nothing of the system changes."""
    folder = FOLDER / PACKAGE
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
            Path(temporary).chmod(0o755)  # apt drops to its own user when root calls it
            try:
                _run(["apt-get", "-qq", "download", PACKAGE], temporary)
            except subprocess.SubprocessError:
                # A fresh machine has no package lists, and only root may write the system's: so lists of our own.
                (Path(temporary) / "lists" / "partial").mkdir(parents=True)
                own = ["-o", f"Dir::State::Lists={temporary}/lists", "-o", f"Dir::Cache={temporary}/cache"]
                own += ["-o", "APT::Sandbox::User=root"]
                _run(["apt-get", "-qq", *own, "update"], temporary)
                _run(["apt-get", "-qq", *own, "download", PACKAGE], temporary)
            archive = sorted(Path(temporary).glob(f"{PACKAGE}_*.deb"))[0]
            _run(["dpkg-deb", "-x", str(archive), "unpacked"], temporary)
            (Path(temporary) / "unpacked").rename(folder)
    found = tuple(sorted(folder.glob("**/nature/*.jpg")))
    if not found:
        raise ValueError(f"no photographs in {folder}")
    return found


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=APT_SECONDS)


@cache
def _opened(sources: tuple[Path, ...]) -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in sources]


def _crop(rng: np.random.Generator, images: list[Image.Image], size: tuple[int, int]) -> bytes:
    """A window of 1 to 2 times the size, so that the crop holds about as much detail as a web image does."""
    image, scale = images[int(rng.integers(len(images)))], float(rng.uniform(1, 2))
    width, height = round(size[0] * scale), round(size[1] * scale)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    out = io.BytesIO()
    image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS).save(
        out, "JPEG", quality=85
    )
    return out.getvalue()


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
