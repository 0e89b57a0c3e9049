"""Pixels of a kept sample changed: its colour jittered, and RandAugment (Cubuk et al. 2019), at the model's size.

Both are torchvision's, of the same distributions and not of the same draws: `ColorJitter(0.4, 0.4, 0.4)`, and
`RandAugment(num_ops=2, magnitude=9)` of 31 magnitudes with its list of operations, nearest pixels and black for what
comes in at the border. Saturation changes no grey picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

JITTER = 0.4  # factors of brightness, contrast and saturation are even in 0.6 to 1.4
OPERATIONS, MAGNITUDE, MAGNITUDES = 2, 9, 31
Pixels = npt.NDArray[np.uint8]


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation changed by a factor each, in an order that is drawn."""
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(1 - JITTER, 1 + JITTER, len(changes)).tolist()
    for number in rng.permutation(len(changes)).tolist():
        image = changes[number](image).enhance(factors[number])
    return image


def _sheared_x(image: Image.Image, slope: float) -> Image.Image:
    return _moved(image, (1, slope, 0, 0, 1, 0))


def _sheared_y(image: Image.Image, slope: float) -> Image.Image:
    return _moved(image, (1, 0, 0, slope, 1, 0))


def _shifted_x(image: Image.Image, share: float) -> Image.Image:
    return _moved(image, (1, 0, -int(share * image.width), 0, 1, 0))


def _shifted_y(image: Image.Image, share: float) -> Image.Image:
    return _moved(image, (1, 0, 0, 0, 1, -int(share * image.height)))


def _moved(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Each pixel (x, y) from where (a x + b y + c, d x + e y + f) was."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)


def _enhanced(how: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, change: how(image).enhance(1 + change)


# By name: the function of (image, strength), the strength at the largest magnitude, and whether its sign is drawn.
SIGNED: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float]] = {
    "shear_x": (_sheared_x, 0.3),
    "shear_y": (_sheared_y, 0.3),
    "shift_x": (_shifted_x, 150 / 331),
    "shift_y": (_shifted_y, 150 / 331),
    "rotate": (lambda image, degrees: image.rotate(degrees, Image.Resampling.NEAREST), 30.0),
    "brightness": (_enhanced(ImageEnhance.Brightness), 0.9),
    "saturation": (_enhanced(ImageEnhance.Color), 0.9),
    "contrast": (_enhanced(ImageEnhance.Contrast), 0.9),
    "sharpness": (_enhanced(ImageEnhance.Sharpness), 0.9),
}
# By name: the function of (image, share), whose share of the largest magnitude is 0 to 1.
UNSIGNED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "posterize": lambda image, share: ImageOps.posterize(image, 8 - round(4 * share)),
    "solarize": lambda image, share: ImageOps.solarize(image, math.ceil(255 * (1 - share))),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}
NAMES = (*SIGNED, *UNSIGNED)


def operated(image: Image.Image, name: str, share: float, sign: int = 1) -> Image.Image:
    """One operation of RandAugment, at a `share` of its largest magnitude, 0 to 1."""
    if name in SIGNED:
        operation, largest = SIGNED[name]
        return operation(image, sign * share * largest)
    return UNSIGNED[name](image, share)


def randaugmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two operations, drawn with repetition, one after the other."""
    for number, sign in zip(rng.integers(len(NAMES), size=OPERATIONS), rng.integers(2, size=OPERATIONS), strict=True):
        image = operated(image, NAMES[number], MAGNITUDE / (MAGNITUDES - 1), 1 if sign else -1)
    return image


STEPS = {"flip": lambda image, rng: ImageOps.mirror(image) if rng.random() < 0.5 else image, "colour": jittered,
         "randaugment": randaugmented}  # fmt: skip


def distort(pixels: Pixels, parts: tuple[str, ...], rng: np.random.Generator) -> None:
    """Change a picture (H, W, C), of 1 or 3 channels, in its place, by the parts of STEPS in their order."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    for part in parts:
        image = STEPS[part](image, rng)
    pixels[:] = np.asarray(image).reshape(pixels.shape)
