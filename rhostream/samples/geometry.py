"""How a picture of any size becomes a square: `crop`, `squash` or `pad`; each in one resampling, bilinear, antialiased.

crop     the shorter side is resized to the square's, and what sticks out of the centre on both sides is cut off
squash   both sides are resized to the square's: all of the picture, its aspect lost
pad      the longer side is resized to the square's, the rest is a plain grey: all of the picture, its aspect kept
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rhostream.errors import UnknownNameError
from rhostream.foreign import RESIZES
from rhostream.samples.random_crop import Cut, RandomCrop

if TYPE_CHECKING:  # who reads a table, and no picture, does without Pillow
    from PIL import Image

CROP, SQUASH, PAD = RESIZES
# Of what pad leaves free: the middle of the range, about 0 for a model that subtracts 0.5, like the zeros that its
# convolutions pad with. One constant for all models, so that models of other means can share a decoded row.
BACKGROUND = 128
MOST_CUT = 0.1  # of the pixels, in the mean over the pictures looked at, that `crop` may cut off where nobody asks
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR
MAX_BYTES = 256 << 20  # of an image that is decoded
MOST_BETWEEN = 50_000_000  # pixels between the two passes of a resampling: more is made the other way round


def checked_resize(resize: str | None) -> str | None:
    """As given. Raises UnknownNameError."""
    if resize is not None and resize not in RESIZES:
        raise UnknownNameError.of("resize", resize, RESIZES)
    return resize


def cut_share(shorter: int, longer: int) -> float:
    """The share of a picture's pixels that `crop` cuts off: 0 of a square, a quarter of 3 x 4."""
    return 1 - shorter / longer


def choose_resize(sides: Iterable[tuple[int, int]]) -> tuple[str, float]:
    """(geometry, mean share of the pixels that crop would cut off) for pictures of these (shorter, longer) sides.

    `crop` where they are nearly square, which then loses next to nothing and keeps the aspect exactly; else `squash`.
    """
    shares = [cut_share(shorter, longer) for shorter, longer in sides]
    share = sum(shares) / len(shares) if shares else 0.0
    return (CROP if share <= MOST_CUT else SQUASH), share


def in_words(resize: str, share: float | None) -> str:
    """The geometry, and what share of the pixels of the pictures looked at crop cuts off, where that is known."""
    if not share or round(100 * share) == 0:
        return resize
    return f"{resize} ({'cuts' if resize == CROP else 'crop would cut'} off {100 * share:.0f} % of the pixels)"


def content_of(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) that `pad` gives a picture in a square of `size`; the shorter is at least 1."""
    longer = max(width, height)
    return max(1, round(width * size / longer)), max(1, round(height * size / longer))


def settled(resize: str | RandomCrop, width: int, height: int) -> str | Cut:
    """The geometry of a picture of these sides, upright: a random crop is drawn now."""
    return resize if isinstance(resize, str) else resize.of(width, height)


def least_sides(width: int, height: int, size: int, resize: str | Cut) -> tuple[int, int]:
    """(width, height) that a decoder which scales has to leave of a picture, so that none of the row is made up."""
    if isinstance(resize, Cut):
        return resize.least_sides(size)
    return content_of(width, height, size) if resize == PAD else (size, size)


def place(
    image: Image.Image, out: npt.NDArray[np.uint8], resize: str | Cut, content: tuple[int, int] | None = None
) -> None:
    """Resample a picture of the row's mode into the row (size, size, C).

    `content`: (width, height) that `pad` is to give it, where the image was scaled before and its own sides, rounded
    then, would say a pixel less or more.
    """
    size, (width, height) = out.shape[0], image.size
    if isinstance(resize, Cut):
        # Cut first: resize(box=) would mix in what lies beside the part.
        image = _resized(image.crop(resize.box(width, height)), size, size)
        out[:] = np.asarray(image).reshape(out.shape)[:, :: -1 if resize.mirrored else 1]
        return
    if resize == PAD:
        wide, high = content or content_of(width, height, size)
        left, top = (size - wide) // 2, (size - high) // 2
        if (wide, high) != (size, size):
            out[:] = BACKGROUND
        out = out[top : top + high, left : left + wide]
        image = _resized(image, wide, high)
    elif resize == SQUASH:
        image = _resized(image, size, size)
    elif (width, height) != (size, size):
        side = min(width, height)
        left_edge, upper = (width - side) / 2, (height - side) / 2
        box = (left_edge, upper, left_edge + side, upper + side)
        image = image.resize((size, size), _BILINEAR, box)
    out[:] = np.asarray(image).reshape(out.shape)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    if width * image.height > MOST_BETWEEN:
        # Pillow goes over the rows first: of 1 x 10,000,000 pixels it would make a picture as high and `width` wide.
        image = image.resize((image.width, height), _BILINEAR)
    return image.resize((width, height), _BILINEAR)
