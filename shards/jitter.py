"""Near-duplicates: the small changes that a picture suffers when it is copied around the web.

A shift of up to 2 pixels in 28 (in proportion for larger images), a rotation of up to 8 degrees, contrast and
brightness within 15 % and 15 grey values. All numbers are drawn at once, an image is changed on demand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.sample import Pixels

SHIFT = 2 / 28  # of the side
ROTATION = math.radians(8)
CONTRAST = 0.15
BRIGHTNESS = 15.0
GREY = np.arange(256, dtype=np.float64)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Jitters:
    """One jitter a row: shift (N, 2) in sides, rotation (N,) in radians, contrast (N,), brightness (N,)."""

    shift: Floats
    rotation: Floats
    contrast: Floats
    brightness: Floats

    @classmethod
    def draw(cls, count: int, rng: np.random.Generator) -> Jitters:
        """Jitters for `count` rows, uniform within the limits of this file."""
        return cls(
            shift=rng.uniform(-SHIFT, SHIFT, (count, 2)),
            rotation=rng.uniform(-ROTATION, ROTATION, count),
            contrast=rng.uniform(1 - CONTRAST, 1 + CONTRAST, count),
            brightness=rng.uniform(-BRIGHTNESS, BRIGHTNESS, count),
        )

    def apply(self, row: int, pixels: Pixels) -> Pixels:
        """`pixels` (H, W) or (H, W, 3) with the jitter of a row; same shape, uint8.

        Black stays black: the studio background of a product picture doesn't brighten when the picture does.
        """
        height, width = pixels.shape[:2]
        # What moves in from outside is the edge drawn out, not a black frame that would give copies away.
        border = math.ceil(max(height, width) * (SHIFT + math.sin(ROTATION) / 2))
        padded = np.pad(pixels, [(border, border), (border, border), (0, 0)][: pixels.ndim], mode="edge")
        cos, sin = math.cos(self.rotation[row]), math.sin(self.rotation[row])
        x, y = width / 2 + border, height / 2 + border
        dx, dy = self.shift[row, 0] * width, self.shift[row, 1] * height
        # PIL's matrix leads from an output pixel to the input pixel that it shows.
        left = x - cos * (width / 2 + dx) - sin * (height / 2 + dy)
        top = y + sin * (width / 2 + dx) - cos * (height / 2 + dy)
        moved = Image.fromarray(padded).transform(
            (width, height),
            Image.Transform.AFFINE,
            (cos, sin, left, -sin, cos, top),
            Image.Resampling.BILINEAR,
        )
        levels = GREY * self.contrast[row] + np.minimum(GREY / 64, 1) * self.brightness[row]
        jittered: Pixels = np.clip(np.round(levels), 0, 255).astype(np.uint8)[np.asarray(moved)]
        return jittered
