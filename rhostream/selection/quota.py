"""Class quotas: how many of one class a batch may hold.

Selection starves classes that the IL model finds hard or that are rare (the paper's ethics statement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhostream.errors import UnknownNameError, UsageError

KINDS = ("balanced", "mild", "reducr")
ETA = 0.05
TIMES = 1.5  # of its share of the buffer, that `mild` leaves a class
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
    return order[:n] if most is None else order[places(label[order]) < most][:n]


def places(group: Ints) -> Ints:
    """(m,) the place of each among those of its own group, in the order in which they stand, from 0 on."""
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(group[by_group]) != 0])) if len(group) else by_group
    place = np.empty(len(group), np.int64)
    place[by_group] = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return place
