"""Pictures made here whose labels are right, wrong by a known share, meaningless, or of a known difficulty."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.samples.fields import Fields

SIDE = 16


def pictures(
    n: int, *, classes: int = 6, wrong: float = 0.0, contrast: float = 40.0, overlap: float = 0.0, seed: int = 0
) -> tuple[Fields, Tensor, npt.NDArray[np.bool_]]:
    """(pixels (n, 16, 16, 1) of uint8, labels (n,), which labels are wrong (n,)).

    A class is a pattern of `contrast` grey levels in noise of 30. `wrong`: so large a share of the labels is another
    class's. `overlap`: so large a share of the pictures mixes the patterns of two classes evenly, and its label is one
    of the two by chance.
    """
    patterns = np.random.default_rng(1).choice([-1.0, 1.0], (classes, 4, 4)).repeat(4, 1).repeat(4, 2)
    rng = np.random.default_rng([2, seed])
    truth = rng.integers(classes, size=n)
    other = (truth + rng.integers(1, classes, n)) % classes
    mixed = rng.random(n) < overlap
    pattern = np.where(mixed[:, None, None], (patterns[truth] + patterns[other]) / 2, patterns[truth])
    pixels = 128 + contrast * pattern + rng.normal(0, 30, (n, SIDE, SIDE))
    strange = rng.random(n) < wrong
    label = np.where(strange, (truth + rng.integers(1, classes, n)) % classes, truth)
    fields = {"pixels": torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)[..., None])}
    return Fields(fields), torch.from_numpy(label), strange
