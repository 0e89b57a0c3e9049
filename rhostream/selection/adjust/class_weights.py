"""`class_quota="reducr"`: class weights that follow the excess losses (after REDUCR, Bankes et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rhostream.errors import MismatchError
from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.uniform import Floats, Ints

BOUND = 100.0  # of a class's weight, up and down: what grows without end would leave one class alone


class ClassWeights(Adjust):
    """A weight for each class, multiplied by exp(eta x excess) each step and brought back to a mean logarithm of 0.

    The excess of a class is the mean of max(loss - il, 0) over its candidates in the buffer, in nats; of the loss alone
    where the run has no il.
    """

    turn = Turn.class_weights
    state_name = "class_weights"

    def __init__(self, eta: float) -> None:
        self.eta = eta
        self.log = np.zeros(0)  # (C,) of the classes seen so far, 0 for one that has not come yet

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        rows = np.flatnonzero(buffer.reached_B)  # classes that no row of a buffer had aren't known yet
        weighed_B, label = score_B.copy(), buffer.label_B[rows]
        weighed_B[rows] = self.apply(score_B[rows], label)
        self.update(label, buffer.excess_B[rows].astype(np.float64))
        return weighed_B

    def update(self, label: Ints, excess: Floats) -> None:
        """Learn from one buffer; what isn't finite is left out."""
        fine = np.isfinite(excess)
        label, excess = label[fine], np.maximum(excess[fine], 0.0)
        if not len(label):
            return
        self._grow(int(label.max()) + 1)
        count = np.bincount(label, minlength=len(self.log))
        mean = np.bincount(label, excess, len(self.log)) / np.maximum(count, 1)
        self.log[count > 0] += self.eta * mean[count > 0]
        bound = math.log(BOUND)
        self.log = np.clip(self.log - self.log.mean(), -bound, bound)

    def apply(self, score: Floats, label: Ints) -> Floats:
        """Scores (m,) weighed by class; one below 0 is divided, so that a larger weight always ranks higher."""
        if not len(label):
            return score
        self._grow(int(label.max()) + 1)
        weight = np.exp(self.log[label])
        return np.where(score >= 0, score * weight, score / weight)

    def _grow(self, classes: int) -> None:
        self.log = np.pad(self.log, (0, max(classes - len(self.log), 0)))

    def state_dict(self) -> list[float]:
        return [float(v) for v in self.log]

    def load_state_dict(self, state: Any) -> None:
        if not isinstance(state, list) or not all(isinstance(v, float) and math.isfinite(v) for v in state):
            raise MismatchError("the class weights of the checkpoint are no list of numbers")
        self.log = np.array(state, np.float64)
