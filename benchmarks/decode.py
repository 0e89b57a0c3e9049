"""What a JPEG costs by each decoder: CPU of one process, the same bytes in turns, to a square of 224.

Photographs of 256 x 256 and of 500 x 400 pixels, cut to the square (`crop`) and as a kept sample is decoded again
(`random`: RandomResizedCrop). "Of imagecodecs" is libjpeg-turbo by another binding at full size, and Pillow's
resampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import webdataset as wds
from imagecodecs import jpeg8_decode
from PIL import Image

from benchmarks import data
from benchmarks.measure import Figure, interleave, ratios
from rhostream.samples.decoders import DECODERS
from rhostream.samples.geometry import place, settled
from rhostream.samples.random_crop import RandomCrop

SIZE, IMAGES = 224, 100
SIDES = [(256, 256), (500, 400)]
TARGET = 2.0  # of Pillow's speed, for a decoder that is offered beside it


def run(pairs: int) -> list[Figure]:
    """CPU a picture of every decoder, and how many times as fast as Pillow it is."""
    figures = list[Figure]()
    for sides in SIDES:
        shards, origin = data.photographs(1, IMAGES, sides)
        encoded = [sample["jpg"] for sample in islice(wds.WebDataset(shards[:1], shardshuffle=False), IMAGES)]
        for geometry in ("crop", "random"):
            decoders: dict[str, Callable[..., object]] = {**DECODERS, "of imagecodecs": _imagecodecs}
            found = interleave([partial(cpu, encoded, decode, geometry) for decode in decoders.values()], pairs)
            taken = dict(zip(decoders, found, strict=True))
            line = partial(Figure, "decode", f"{sides[0]} x {sides[1]} to {SIZE}, {geometry}, {origin}")
            for name, values in taken.items():
                if name != "pillow":
                    target = TARGET if name == "turbo" and geometry == "crop" else None
                    figures.append(line(f"{name}, times as fast as pillow", ratios(taken["pillow"], values), target))
            figures += [line(name, tuple(1e6 * s for s in values), unit="us CPU") for name, values in taken.items()]
    return figures


def cpu(encoded: list[bytes], decode: Callable[..., object], geometry: str) -> float:
    """CPU seconds a picture, into one row that is used again."""
    out, start = np.empty((SIZE, SIZE, 3), np.uint8), time.process_time()
    for number, image in enumerate(encoded):
        decode(image, out, RandomCrop(np.random.default_rng(number), flip=True) if geometry == "random" else geometry)
    return (time.process_time() - start) / len(encoded)


def _imagecodecs(encoded: bytes, out: npt.NDArray[np.uint8], resize: str | RandomCrop) -> None:
    image = Image.fromarray(jpeg8_decode(encoded))
    place(image, out, settled(resize, *image.size))
