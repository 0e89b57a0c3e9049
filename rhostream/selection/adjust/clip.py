"""`clip`: scores below 0 count as 0, and of equal scores chance decides."""

from __future__ import annotations

import numpy as np

from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.uniform import Floats


class Clip(Adjust):
    turn = Turn.clip
    random_ties = True

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        return np.maximum(score_B, 0.0)  # NaN stays NaN


def make(value: bool) -> Clip:
    """Of the option's value, true."""
    return Clip()
