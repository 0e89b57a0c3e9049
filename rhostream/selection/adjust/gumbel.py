"""`gumbel`: Gumbel top-k, a draw without replacement from softmax(score / T).

Kool, van Hoof and Welling 2019: the n largest of score / T + Gumbel noise are such a draw.
"""

from __future__ import annotations

from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.uniform import Floats


class Gumbel(Adjust):
    turn = Turn.noise

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature  # in units of the score

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        return score_B + self.temperature * buffer.rng("gumbel").gumbel(size=len(score_B))


def make(value: float) -> Gumbel:
    """Of a temperature above 0."""
    return Gumbel(value)
