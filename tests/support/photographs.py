"""Colour photographs made here: JPEGs of forty and more sizes, of two classes, whose object mostly lies at a border.

A picture is a coloured gradient with a texture and one object, warm (class 0) or cold (class 1), at one end of the
longer side: the centre square holds none of it. In every fourth picture the object is in the centre.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.shards import write_shard

RATIOS = (1.3, 1.5, 1.8, 2.2, 2.6)


def sides_of(number: int) -> tuple[int, int]:
    """(width, height) of a photograph: of each number below 48 another one, upright and across in turn."""
    shorter = 40 + 2 * (number % 48)
    longer = round(shorter * RATIOS[number % len(RATIOS)])
    return (longer, shorter) if number // 2 % 2 else (shorter, longer)


def photograph(number: int, seed: int = 0) -> tuple[Image.Image, int]:
    """A picture and its class."""
    rng, (width, height) = np.random.default_rng([seed, number]), sides_of(number)
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    first, second, third = rng.uniform(70, 180, (3, 3))
    picture = first + (second - first) * across + (third - first) * down
    picture = picture + 12 * np.sin(40 * across + 9 * down) + rng.normal(0, 8, (height, width, 3))
    label, shorter = number % 2, min(width, height)
    radius = shorter * rng.uniform(0.10, 0.14)
    # 0.16 of the shorter side from an end: a picture of 1.3 times its shorter side is cut by 0.15 of it at each end.
    at_end = shorter * 0.05 if min(width, height) * 1.4 > max(width, height) else shorter * 0.16
    end = at_end if rng.random() < 0.5 else max(width, height) - at_end
    along, beside = (max(width, height) / 2 if number % 8 >= 6 else end), shorter * rng.uniform(0.25, 0.75)
    x, y = (along, beside) if width > height else (beside, along)
    inside = (np.arange(width)[None] - x) ** 2 + (np.arange(height)[:, None] - y) ** 2 < radius**2
    picture[inside] = ((215, 90, 60), (60, 100, 215))[label] + rng.normal(0, 20, 3)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)), label


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Its bytes."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90, **options)
    return sink.getvalue()


def shards(folder: Path, count: int, seed: int = 0, each: int = 24) -> str:
    """The folder, with shards of that many photographs."""
    folder.mkdir(parents=True)
    for start in range(0, count, each):
        rows = []
        for number in range(start, min(start + each, count)):
            image, label = photograph(number, seed)
            rows.append({"__key__": f"{number:05d}", "jpg": jpeg(image), "cls": str(label)})
        write_shard(folder / f"{start // each:03d}.tar", rows)
    return str(folder)
