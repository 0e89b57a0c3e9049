"""Wrong and ambiguous labels, drawn once and by the seed: which label each row gets, which images are blended.

`confused` pairs (a, b) say that people take class a for class b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from rhostream.errors import UsageError
from shards.sample import Ints, Pixels, SampleSet, generator

Noise = Literal["uniform", "structured", "ambiguous", "none"]
DEFAULT_RATE = {"uniform": 0.4, "structured": 0.5, "ambiguous": 1.0, "none": 0.0}
WEIGHT = (0.5, 0.7)
"""The range of the own image's weight in a mixture: the second label is plausible, the first more so."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mixtures:
    """Which images of a base (N rows) are blended: partner row (N,), -1 for none; own weight (N,); its label (N,)."""

    partner: Ints
    weight: npt.NDArray[np.float64]
    second: Ints

    def image(self, row: int, pixels: Callable[[int], Pixels]) -> Pixels:
        """The image of a row, blended where it has a partner: (H, W) or (H, W, 3), uint8."""
        own = pixels(row)
        if self.partner[row] < 0:
            return own
        other = _like(pixels(int(self.partner[row])), own)
        blended: Pixels = np.round(self.weight[row] * own + (1 - self.weight[row]) * other).astype(np.uint8)
        return blended


def draw_labels(
    truth: Ints, given: Ints, noise: str, pairs: Sequence[tuple[int, int]], classes: int, rate: float, seed: int
) -> tuple[Bools, Ints]:
    """(noise was drawn, label) of each row, for uniform, structured or no noise.

    `truth` (N,) may be -1, which structured noise leaves alone; `given` (N,) stays where nothing is drawn.
    """
    rng = generator(seed, "noise")
    drawn = rng.random(len(truth)) < rate
    if noise == "uniform":
        return drawn, np.where(drawn, rng.integers(0, classes, len(truth)), given)
    if noise == "structured":
        wrong = mistaken(pairs, classes)[truth]
        drawn &= (truth >= 0) & (wrong >= 0)
        return drawn, np.where(drawn, wrong, given)
    if noise == "none":
        return np.zeros(len(truth), np.bool_), given
    raise UsageError(f"unknown noise {noise!r}; expected uniform, structured, ambiguous or none")


def draw_mixtures(
    truth: Ints, originals: Ints, pairs: Sequence[tuple[int, int]], classes: int, rate: float, seed: int
) -> Mixtures:
    """Which of the base's rows `originals` become mixtures, and of what; `truth` (N,) covers the whole base.

    Each class of a pair is blended with the other one: (a, b) gives a its second label b, and b the second label a
    unless b has a pair of its own. Partners are drawn from `originals`, so nothing of a holdout is blended in.
    """
    rng = generator(seed, "ambiguous")
    second = mistaken(pairs, classes)
    for true, wrong in pairs:
        if second[wrong] < 0:
            second[wrong] = true
    partner = np.full(len(truth), -1, np.int64)
    # All numbers are drawn for the whole base, so that a row's don't hang on which others are there.
    chance, place = rng.random(len(truth)), rng.random(len(truth))
    weight = rng.uniform(*WEIGHT, len(truth))
    for label in np.flatnonzero(second >= 0):
        own = originals[(truth[originals] == label) & (chance[originals] < rate)]
        others = originals[truth[originals] == second[label]]
        if len(own) and not len(others):
            raise UsageError(
                f"class {label} is to be mixed with class {second[label]}, of which there are no samples; "
                "give other pairs with --confuse"
            )
        if len(own):
            partner[own] = others[(place[own] * len(others)).astype(np.int64)]
    return Mixtures(partner, weight, np.where(partner >= 0, second[np.maximum(truth, 0)], -1))


def mix_label(mixtures: Mixtures, source: Ints, given: Ints, seed: int) -> tuple[Bools, Ints]:
    """(is a mixture, label) of each row: its own label with the weight as probability, else the second one.

    `source` (N,) are rows of the base: a copy shows the same mixture and draws its own label.
    """
    drawn = mixtures.partner[source] >= 0
    second = generator(seed, "noise").random(len(source)) >= mixtures.weight[source]
    return drawn, np.where(drawn & second, mixtures.second[source], given)


def mixed_with(mixtures: Mixtures, row: int, base: SampleSet) -> dict[str, Any]:
    """The facts of a row about its mixture."""
    partner = int(mixtures.partner[row])
    if partner < 0:
        return {"ambiguous": False, "second_label": None, "mix_weight": None, "mixed_with": None}
    return {
        "ambiguous": True,
        "second_label": int(mixtures.second[row]),
        "mix_weight": round(float(mixtures.weight[row]), 6),
        "mixed_with": base.load(partner).key,
    }


def mistaken(pairs: Sequence[tuple[int, int]], classes: int) -> Ints:
    """For each class the one it is taken for, -1 for none."""
    if not pairs:
        raise UsageError("this noise needs the classes that are confused, such as --confuse 3:5,9:7")
    result = np.full(classes, -1, np.int64)
    for true, wrong in pairs:
        if not (0 <= true < classes and 0 <= wrong < classes) or true == wrong:
            raise UsageError(f"confused pair {true}:{wrong}, expected two different classes from 0 to {classes - 1}")
        if result[true] >= 0:
            raise UsageError(f"class {true} is confused twice; give each true class one pair")
        result[true] = wrong
    return result


def _like(image: Pixels, other: Pixels) -> Pixels:
    """`image` in the size and the colours of `other`."""
    if image.shape == other.shape:
        return image
    mode = "L" if other.ndim == 2 else "RGB"
    size = (other.shape[1], other.shape[0])
    return np.asarray(Image.fromarray(image).convert(mode).resize(size, Image.Resampling.BILINEAR))
