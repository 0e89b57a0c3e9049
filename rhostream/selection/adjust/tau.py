"""`tau`: uniform until importance sampling pays (Katharopoulos & Fleuret 2018, Algorithm 1); it changes no score."""

from __future__ import annotations

from typing import Any

import numpy as np

from rhostream.errors import MismatchError
from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.choice import probabilities
from rhostream.selection.uniform import Floats

SMOOTHING = 0.9


def tau_of(score: Floats) -> float:
    """How much importance sampling shortens the variance, as a factor on the batch (Katharopoulos & Fleuret, Eq. 26).

    (1 - |p - u|^2 / |p|^2)^(-1/2) with p the probabilities and u = 1/m: sqrt(m sum p^2), 1 for equal scores.
    """
    finite = score[np.isfinite(score)]
    return float(np.sqrt(len(finite) * (probabilities(finite) ** 2).sum())) if len(finite) else 1.0


class Tau(Adjust):
    """The smoothed tau of a run: 0 at its start, so that it begins uniform."""

    turn = Turn.tau
    state_name = "tau"

    def __init__(self) -> None:
        self.value = 0.0

    def pays(self, buffer_size: int, batch_size: int) -> bool:
        """Whether n_B forwards for the choice are fewer than the variance that they save is worth."""
        return self.value > (buffer_size + 3 * batch_size) / (3 * batch_size)

    def see(self, score: Floats) -> None:
        """Take in the gradient norms of one step."""
        self.value = SMOOTHING * self.value + (1 - SMOOTHING) * tau_of(score)

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        self.see(buffer.score_B)
        return score_B

    def state_dict(self) -> float:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        if not isinstance(state, float):
            raise MismatchError("the checkpoint holds no tau")
        self.value = state


def make(value: bool) -> Tau:
    """Of the option's value, true."""
    return Tau()
