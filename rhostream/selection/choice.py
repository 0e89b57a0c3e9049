"""Which rows of a buffer are kept: pure decisions of the host over the buffer of all ranks, on every rank alike.

    scores > options that re-rank (`adjust/`) > the first n_b
    scores > n_b draws with replacement, each weighed by 1 / (n_B prob)          (importance sampling)

Every random number is a function of the seed and the step or the buffer, and of the row's place in the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.reasons import Reason
from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.uniform import Floats, Ints

# -- the largest -----------------------------------------------------------------------------------------------------


def leading(score_m: Tensor, n: int) -> Tensor:
    """Positions (n,) int64 of the n largest scores, or of all, ascending; those that are not finite come last.

    Ties go to the lower position. It asks the device for nothing, so a shortlist costs no wait; whoever comes after
    looks at finiteness again. `topk` and descending `argsort` put NaN first and break ties in any order.
    """
    ranked = torch.where(torch.isfinite(score_m), score_m, -torch.inf).argsort(descending=True, stable=True)
    return ranked[:n].sort().values


# -- a buffer whose scores are known ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What is decided of each row of a buffer, (B,) in canonical order."""

    times_B: Ints  # how often it was drawn: 1 for a kept row where nothing is sampled, 0 for one that isn't kept
    weight_B: Floats  # times / (n_B prob), the factor of a kept row's loss; 1 where nothing is sampled
    reason_B: npt.NDArray[np.uint8]  # of a row that an option left out, its reason; else `below`

    @property
    def kept(self) -> Ints:
        """The kept rows, ascending."""
        return np.flatnonzero(self.times_B)

    @property
    def draws(self) -> int:
        """What the sum of the weighted losses is divided by."""
        return int(self.times_B.sum())


def once_each(rows: Ints, size: int) -> Choice:
    """These rows of a buffer of that size, each of which counts once."""
    times_B = np.zeros(size, np.int64)
    times_B[rows] = 1
    return Choice(times_B, np.ones(size), np.full(size, Reason.below, np.uint8))


def largest(buffer: Buffer, adjusts: Sequence[Adjust] = ()) -> Choice:
    """The n best of what the options leave in, of equal ones the lower row or, where one asks for it, any."""
    size, score_B = len(buffer.score_B), buffer.score_B
    if any(adjust.random_ties for adjust in adjusts):
        buffer = replace(buffer, tie_B=buffer.rng("ties").random(size))
    for adjust in (a for a in adjusts if a.turn < Turn.duplicates):
        score_B = adjust(score_B, buffer)
    score_B = np.where(np.isfinite(score_B), score_B, np.nan)
    reason_B = np.full(size, Reason.below, np.uint8)
    for adjust in (filters := [a for a in adjusts if a.turn >= Turn.duplicates]):
        before_B = score_B
        score_B = adjust(before_B, replace(buffer, last=adjust is filters[-1]))
        reason_B[np.isnan(score_B) & ~np.isnan(before_B)] = adjust.reason
    return replace(once_each(buffer.order(score_B)[: buffer.n], size), reason_B=reason_B)


# -- importance sampling ---------------------------------------------------------------------------------------------


def by_importance(score_B: Floats, n: int, rng: np.random.Generator) -> Choice:
    """n draws with replacement, in proportion to the score; the weight of a draw is 1 / (m prob).

    Over the draws the mean of weight x loss is, in expectation, the mean loss of all m rows with a finite score.
    """
    rows = np.flatnonzero(np.isfinite(score_B))
    if not len(rows):
        return once_each(rows, len(score_B))
    probability = probabilities(score_B[rows])
    times = rng.multinomial(n, probability)
    drawn = np.flatnonzero(times)
    choice = once_each(rows[drawn], len(score_B))
    choice.times_B[rows[drawn]] = times[drawn]
    choice.weight_B[rows[drawn]] = times[drawn] / (len(rows) * probability[drawn])
    return choice


def sampled(buffer: Buffer) -> Choice:
    """Importance sampling; of n candidates and fewer each is taken once, which is their mean without any variance."""
    rows = np.flatnonzero(np.isfinite(buffer.score_B))
    if len(rows) <= buffer.n:
        return once_each(rows, len(buffer.score_B))
    return by_importance(buffer.score_B, buffer.n, buffer.rng("importance"))


def probabilities(score: Floats) -> Floats:
    """Scores of 0 and more as probabilities; all alike where every score is 0."""
    positive = np.maximum(score, 0.0)
    total = positive.sum()
    return positive / total if total > 0 else np.full(len(score), 1 / len(score))
