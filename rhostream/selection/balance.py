"""How many classes a batch holds in effect, and how many a batch drawn by chance from the same buffer would hold.

Effective classes are exp(entropy) of the shares of the labels, in nats: the perplexity of the label, the Hill number of
order 1 (Hill 1973; Jost 2006). C classes in equal shares give C; one class alone gives 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Balance:
    """Of one step, over all ranks: None where the target is no class, or nothing was kept."""

    kept: float | None = None  # effective classes of the kept batch
    uniform: float | None = None  # expected of as many rows drawn by chance from what the rule could choose from

    @classmethod
    def of(cls, label: Ints, kept: npt.NDArray[np.bool_], offered: npt.NDArray[np.bool_]) -> Balance:
        """Of rows with a class (m,): which were kept, and which the rule could choose from."""
        taken = label[kept]
        return cls(effective_classes(taken), uniform_classes(label[offered | kept], len(taken)))


def effective_classes(label: Ints) -> float | None:
    """exp(entropy) of the shares of the classes among labels (m,): from 1 to the classes there; None for no label."""
    if not len(label):
        return None
    share = np.unique(label, return_counts=True)[1] / len(label)
    return float(np.exp(-(share * np.log(share)).sum()))


def uniform_classes(label: Ints, n: int) -> float | None:
    """exp(expected entropy) of n of the labels (m,), drawn without replacement; None for n = 0 or less than n labels.

    A small batch has a lower entropy than its buffer by chance alone (a batch of 32 of ten equal classes 8.7), so this,
    and not the buffer's own number, is what a choice is held against.
    """
    if not 0 < n <= len(label):
        return None
    size, (sizes, times) = len(label), np.unique(np.unique(label, return_counts=True)[1], return_counts=True)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])

    def log_choose(a: Ints | int, b: Ints | int) -> npt.NDArray[np.float64]:
        return np.asarray(log_factorial[a] - log_factorial[b] - log_factorial[np.subtract(a, b)])

    entropy = 0.0
    for of_class, classes in zip(sizes.tolist(), times.tolist(), strict=True):
        k = np.arange(max(1, n - (size - of_class)), min(n, of_class) + 1)  # of the class; none adds nothing
        chance = np.exp(log_choose(of_class, k) + log_choose(size - of_class, n - k) - log_choose(size, n))
        entropy -= classes * float((chance * (k / n) * np.log(k / n)).sum())
    return math.exp(entropy)


def class_rows(label: Tensor) -> npt.NDArray[np.bool_]:
    """Which labels on the host are classes, (B,); none of a target that is no class."""
    if label.ndim != 1 or label.is_floating_point():
        return np.zeros(len(label), bool)
    return np.asarray(label.numpy() >= 0)
