"""Class quotas: how many of one class a batch may hold, and class weights that follow the excess losses.

Selection starves classes that the IL model finds hard or that are rare (the paper's ethics statement; REDUCR, Bankes et
al. 2024, which is where the multiplicative weights come from).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import MismatchError, UnknownNameError, UsageError

KINDS = ("balanced", "mild", "reducr")
ETA = 0.05
TIMES = 1.5  # of its share of the buffer, that `mild` leaves a class
BOUND = 100.0  # of a class's weight, up and down: what grows without end would leave one class alone
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassQuota:
    """`share`: no class has more than that share of a batch. `balanced`: equal shares as far as a buffer has them.

    `mild`: no class has more than `value` times the share that it has of the candidates, rounded up.
    `reducr`: the score of a class is weighed by how far its losses lie above its irreducible ones.
    """

    kind: str
    value: float = 0.0

    def caps(self, label: Ints, n: int) -> int | Ints | None:
        """The most that one class may have of `n` kept among candidates of these labels (m,), None for no bound.

        Where classes have different bounds, (m,): that of each candidate's class.
        """
        if self.kind == "share":
            return math.floor(self.value * n + 1e-9)
        if self.kind == "mild" and len(label):
            _, own, count = np.unique(label, return_inverse=True, return_counts=True)
            most = np.ceil(self.value * n * count / len(label) - 1e-9)
            return most.astype(np.int64)[own]
        if self.kind != "balanced" or not len(label):
            return None
        counts = np.sort(np.unique(label, return_counts=True)[1])
        # The smallest c with sum(min(count, c)) >= n: classes that have less give their places to the others.
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        enough = np.ceil((n - below) / np.arange(len(counts), 0, -1))
        fits = np.flatnonzero(enough <= counts)
        return int(enough[fits[0]]) if len(fits) else int(counts[-1])

    def check(self, batch_size: int, classes: int | None) -> None:
        """Raise UsageError for a share that no batch can be filled by, where that is known."""
        if self.kind != "share":
            return
        if self.value * batch_size < 1:
            raise UsageError(
                f"--class-quota {self.value:g} of {batch_size} samples is less than one of a class; give "
                f"at least {1 / batch_size:.3g}"
            )
        if classes and self.caps(np.zeros(0, np.int64), batch_size) * classes < batch_size:  # type: ignore[operator]
            raise UsageError(
                f"--class-quota {self.value:g} of {batch_size} samples can't fill a batch from {classes} "
                f"classes; give at least {math.ceil(batch_size / classes) / batch_size:.3g}, or balanced"
            )


def parse_quota(text: str | float | None) -> ClassQuota | None:
    """`0.25`, `balanced`, `mild` or `mild:TIMES`, `reducr` or `reducr:ETA`. Raises UsageError."""
    if text is None:
        return None
    kind, colon, number = str(text).partition(":")
    try:
        if kind in KINDS:
            if colon and kind == "balanced":
                raise ValueError
            value = float(number) if colon else {"reducr": ETA, "mild": TIMES}.get(kind, 0.0)
            if kind == "reducr" and not 0 < value < math.inf:
                raise UsageError(f"--class-quota {text}: ETA must be a number above 0")
            if kind == "mild" and not 1 <= value < math.inf:
                raise UsageError(f"--class-quota {text}: a class may have TIMES its share, expected at least 1")
            return ClassQuota(kind, value)
        share = float(str(text))
    except ValueError:
        raise UnknownNameError.of(
            "class quota", str(text), [*KINDS, "mild:TIMES", "reducr:ETA", "a share such as 0.25"]
        ) from None
    if not 0 < share <= 1:
        raise UsageError(f"--class-quota {text}: a share lies above 0 and is at most 1")
    return ClassQuota("share", share)


def limited(order: Ints, label: Ints, n: int, quota: ClassQuota | None) -> Ints:
    """The first n of `order` (positions, the best first) of which no class has more than its quota."""
    most = None if quota is None else quota.caps(label[order], n)
    if most is None:
        return order[:n]
    own = label[order]
    by_class = np.argsort(own, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(own[by_class]) != 0])) if len(own) else by_class
    rank = np.empty(len(own), np.int64)  # place among those of the same class
    rank[by_class] = np.arange(len(own)) - np.repeat(starts, np.diff(np.append(starts, len(own))))
    return order[rank < most][:n]


class ClassWeights:
    """A weight for each class, multiplied by exp(eta x excess) each step and brought back to a mean logarithm of 0.

    The excess of a class is the mean of max(loss - il, 0) over its candidates in the buffer, in nats; of the loss alone
    where the run has no il.
    """

    def __init__(self, eta: float) -> None:
        self.eta = eta
        self.log = np.zeros(0)  # (C,) of the classes seen so far, 0 for one that has not come yet

    def update(self, label: Ints, excess: npt.NDArray[np.float64]) -> None:
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

    def apply(self, score: npt.NDArray[np.float64], label: Ints) -> npt.NDArray[np.float64]:
        """Scores (m,) weighed by class; one below 0 is divided, so that a larger weight always ranks higher."""
        if not len(label):
            return score
        self._grow(int(label.max()) + 1)
        weight = np.exp(self.log[label])
        return np.where(score >= 0, score * weight, score / weight)

    def _grow(self, classes: int) -> None:
        self.log = np.pad(self.log, (0, max(classes - len(self.log), 0)))

    def state(self) -> list[float]:
        return [float(v) for v in self.log]

    def load(self, state: Any) -> None:
        if not isinstance(state, list) or not all(isinstance(v, float) and math.isfinite(v) for v in state):
            raise MismatchError("the class weights of the checkpoint are no list of numbers")
        self.log = np.array(state, np.float64)
