"""Folders of small colour photographs, one folder a class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("boot", "coat", "sandal", "shirt")


COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (210, 200, 40))


def photograph(label: int, rng: np.random.Generator) -> bytes:
    """A JPEG of the class's colour, of any size between 20 and 60 pixels."""
    pixels = rng.integers(0, 60, (*rng.integers(20, 60, 2), 3)) + COLOURS[label]
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def photographs(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> Path:
    """A folder with a subfolder a class, of colour photographs of many sizes."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number:03d}.jpg").write_bytes(photograph(NAMES.index(name), rng))
    return folder
