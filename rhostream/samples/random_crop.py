"""A random part of a picture, at full size, resized to the square: what a kept sample is decoded as to learn from it.

The part is that of torchvision's RandomResizedCrop: its area a share of the picture's, even in 0.08 to 1, its aspect
even in log from 3/4 to 4/3; ten attempts to find one inside of the picture, then the largest centred one of that
aspect. It is drawn from the picture as a person sees it, turned upright, and resized in one bilinear, antialiased
resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SCALE, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True)
class Cut:
    """A part of a picture of width x height pixels, mirrored or not."""

    width: int  # of the whole picture
    height: int
    left: int
    top: int
    wide: int  # of the part
    high: int
    mirrored: bool = False

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the part, in whole pixels, where the picture was scaled to these sides."""
        left, right = _scaled(self.left, self.wide, width, self.width)
        top, bottom = _scaled(self.top, self.high, height, self.height)
        return left, top, right, bottom

    def least_sides(self, size: int) -> tuple[int, int]:
        """(width, height) that a decoder which scales has to leave of the whole, so that no part is made up."""
        factor = max(size / self.wide, size / self.high)
        return math.ceil(self.width * factor), math.ceil(self.height * factor)


@dataclass(frozen=True)
class RandomCrop:
    """The part that `rng` draws, of a picture whose sides are known once its header is read."""

    rng: np.random.Generator
    flip: bool = False  # every second one is mirrored

    def of(self, width: int, height: int) -> Cut:
        """A part of a picture of these sides; draws, so it is to be called once."""
        left, top, wide, high = _part(width, height, self.rng)
        return Cut(width, height, left, top, wide, high, self.flip and bool(self.rng.random() < 0.5))


def _scaled(start: int, length: int, now: int, before: int) -> tuple[int, int]:
    """Where a stretch of pixels begins and ends once `before` of them were scaled to `now`; one is left at least."""
    first = min(round(start * now / before), now - 1)
    return first, max(first + 1, round((start + length) * now / before))


def _part(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height)."""
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1)), wide, high
    wide = min(width, max(1, round(height * RATIO[1])))
    high = min(height, max(1, round(width / RATIO[0])))
    return (width - wide) // 2, (height - high) // 2, wide, high
