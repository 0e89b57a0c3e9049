"""What a picture is seen to be, said in words: six attributes that are drawn, applied to its pixels and written down.

    class x rotation (4) x inversion (2) x brightness (3) x corner of a mark (4) x frame (2): 192 captions a class

Nothing in a caption is invisible, and nothing drawn is left unsaid: of the captions of a set exactly one is true of a
picture (but for pictures that look alike turned, such as a square bag).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.sample import Ints, Pixels

ROTATIONS = ("upright", "lying on its left side", "upside down", "lying on its right side")  # quarter turns to the left
BRIGHTNESS = ("", "dark ", "bright ")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
RANGES = ((0, 255), (0, 115), (140, 255))  # grey values that black and white become, by brightness
MARK, INSET = 1 / 7, 3 / 28  # the mark's side and its distance from the edges, in sides of the picture


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of N pictures, (N,) each: class, quarter turns, whether inverted, brightness, corner, whether framed."""

    label: Ints
    rotation: Ints
    inverted: Ints
    brightness: Ints
    corner: Ints
    framed: Ints

    @classmethod
    def draw(cls, labels: Ints, rng: np.random.Generator) -> Attributes:
        """All but the class, each uniform and independent of the others."""
        draws = (rng.integers(0, values, len(labels)) for values in (4, 2, 3, 4, 2))
        return cls(labels, *draws)

    def apply(self, row: int, pixels: Pixels) -> Pixels:
        """A plain picture (H, W) or (H, W, 3) with the attributes of a row; same type, sides swapped where it lies."""
        image = np.rot90(pixels, int(self.rotation[row]))
        low, high = RANGES[self.brightness[row]]
        plain = 255 - image.astype(np.int64) if self.inverted[row] else image.astype(np.int64)
        changed: Pixels = (low + plain * (high - low) // 255).astype(np.uint8)
        height, width = changed.shape[:2]
        if self.framed[row]:
            dashes = np.indices((height, width)).sum(0) // 2 % 2 * 255  # seen on black, on white and on grey
            edge = np.ones((height, width), np.bool_)
            edge[1:-1, 1:-1] = False
            changed[edge] = dashes[edge].reshape(-1, *[1] * (changed.ndim - 2))
        side, inset = max(round(MARK * min(height, width)), 3), round(INSET * min(height, width))
        bottom, right = divmod(int(self.corner[row]), 2)
        top = height - inset - side if bottom else inset
        left = width - inset - side if right else inset
        changed[top : top + side, left : left + side] = 255
        changed[top + 1 : top + side - 1, left + 1 : left + side - 1] = 0
        return changed

    def caption(self, row: int, class_name: str) -> str:
        """`a dark negative of a sneaker, upside down, marked at the top left, framed`."""
        kind = "negative" if self.inverted[row] else "picture"
        words = [
            f"a {BRIGHTNESS[self.brightness[row]]}{kind} of {class_name}",
            ROTATIONS[self.rotation[row]],
            f"marked at the {CORNERS[self.corner[row]]}",
        ]
        return ", ".join([*words, "framed"] if self.framed[row] else words)

    def facts(self, row: int) -> dict[str, Any]:
        """The attributes of a row, by name."""
        return {
            "rotation": 90 * int(self.rotation[row]),
            "inverted": bool(self.inverted[row]),
            "brightness": BRIGHTNESS[self.brightness[row]].strip() or "plain",
            "corner": CORNERS[self.corner[row]],
            "framed": bool(self.framed[row]),
        }


def every_caption(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Each caption that a set with these classes can have, once, class by class."""
    grid = np.indices((len(class_names), 4, 2, 3, 4, 2)).reshape(6, -1)  # (6, 192 C)
    attributes = Attributes(*grid)
    return tuple(attributes.caption(row, class_names[label]) for row, label in enumerate(grid[0].tolist()))
