"""Where an arm's selection would begin to pay with its IL model on the bill, from curves that were measured.

An arm ends at an accuracy for U forward units, the baseline needs V for it; L are the IL model's. Selection pays where
U + L <= V. L shrinks with the target's multiply-adds, which the IL model's are counted in, and with the runs that share
its table; U and V don't. So V - U is what an IL model may cost at most, and where it is below 0 no scale helps: looking
alone costs more than it gains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jobs.reproduce.measure import WINDOW, Curve
from rhostream.audit.metrics import smooth


@dataclass(frozen=True)
class BreakEven:
    """Means over seeds, in forward units of the target; inf where the baseline never gets as far as the arm."""

    spent: float  # by the arm
    il: float  # by its IL model: fit, checks, scoring of D
    needed: float  # by the baseline, to the arm's last accuracy

    @property
    def il_may_cost(self) -> float:
        """The most that the IL model may cost for the arm to be ahead, as a share of the arm's units; below 0: none."""
        return (self.needed - self.spent) / self.spent

    @property
    def times_larger(self) -> float | None:
        """How many times the target's multiply-adds must be for the same IL model to pay on one run; None: never.

        Below 1 it pays with a smaller target already.
        """
        return self._shared()

    @property
    def runs(self) -> int | None:
        """How many runs must share the table; None: no number does."""
        shared = self._shared()
        return None if shared is None else max(1, math.ceil(shared - 1e-9))

    def _shared(self) -> float | None:
        return None if self.needed <= self.spent else self.il / (self.needed - self.spent)


def break_even(arm: Mapping[int, Curve], baseline: Mapping[int, Curve]) -> BreakEven | None:
    """Of the mean curves over the seeds that both have; None where they share none.

    Accuracies are means of `WINDOW` evaluations, and stand where these were in the mean, as the arms aren't evaluated
    equally often; between two the baseline is taken to rise evenly.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if not seeds:
        return None
    mine, theirs = [arm[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    goal = float(np.mean([curve.final for curve in mine]))
    n = min(len(curve.units) for curve in theirs)
    units = np.mean([smooth(curve.units, WINDOW)[:n] for curve in theirs], axis=0)
    accuracy = np.mean([smooth(curve.accuracy, WINDOW)[:n] for curve in theirs], axis=0)
    spent = float(np.mean([curve.units[-1] for curve in mine]))
    il = float(np.mean([a.il_units - b.il_units for a, b in zip(mine, theirs, strict=True)]))
    behind = spent - float(np.mean([smooth(curve.units, WINDOW)[-1] for curve in mine]))
    return BreakEven(spent=spent, il=il, needed=_reached(units, accuracy, goal) + behind)


def _reached(units: np.ndarray, accuracy: np.ndarray, goal: float) -> float:
    """Units at which a curve first reaches an accuracy, by linear interpolation; inf where it doesn't."""
    above = np.flatnonzero(accuracy >= goal)
    if not len(above):
        return math.inf
    at = int(above[0])
    if at == 0 or accuracy[at] == accuracy[at - 1]:
        return float(units[at])
    share = (goal - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
    return float(units[at - 1] + share * (units[at] - units[at - 1]))
