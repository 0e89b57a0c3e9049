"""How far two scores of the same samples agree, as pure functions of arrays; not finite means not scored.

What counts is not the whole order but its top: a shortlist is good when it holds the samples that the full view would
have kept. Spearman's rho is given beside it, as the paper gives it (Table 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
FACTORS = (1, 2, 4)
ENOUGH = 0.95  # share of the kept that a shortlist should find


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One cheap way to score, against fresh float32 scores of the full view."""

    way: str
    spearman: float | None  # mean over buffers
    found: dict[int, float | None]  # factor -> share of the kept n_b in the factor x n_b best of this way
    shortlist: int | None  # smallest R that finds 95 %; None: none does
    decode_ratio: float  # cost over the full view's, measured
    forward_ratio: float
    cost_ratio: float  # both together
    cascade_ratio: float | None  # and with the full view of the shortlist behind it


def ranks(values: Scores) -> npt.NDArray[np.float64]:
    """Ranks from 1, ties share the mean of theirs: (n,) to (n,). All values must be finite."""
    order = np.argsort(values, kind="stable")
    _, group, counts = np.unique(values[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared = ends - (counts - 1) / 2
    found = np.empty(len(values))
    found[order] = shared[group]
    return found


def spearman(one: Scores, other: Scores) -> float:
    """Rank correlation over the samples that both scored; NaN where it isn't defined (a constant, fewer than two)."""
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 2:
        return math.nan
    a, b = ranks(one[both]), ranks(other[both])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def top_rows(score: Scores, n: int) -> npt.NDArray[np.int64]:
    """Rows of the n largest finite scores, ties to the lower row, as the selector keeps them."""
    ranked = np.argsort(np.where(np.isfinite(score), -score.astype(np.float64), np.inf), kind="stable")
    return ranked[: min(n, int(np.isfinite(score).sum()))]


def share_found(reference: Scores, cheap: Scores, kept: int, factor: float) -> float:
    """Of the `kept` best by the reference, the share among the factor x kept best of the cheap score."""
    wanted = top_rows(reference, kept)
    if not len(wanted):
        return math.nan
    return float(np.isin(wanted, top_rows(cheap, math.ceil(factor * kept))).mean())


def mean_share(pairs: Sequence[tuple[Scores, Scores]], kept: int, factor: float) -> float:
    """`share_found` over buffers of (reference, cheap)."""
    shares = [share_found(reference, cheap, kept, factor) for reference, cheap in pairs]
    defined = [share for share in shares if not math.isnan(share)]
    return float(np.mean(defined)) if defined else math.nan


def shortlist_factor(pairs: Sequence[tuple[Scores, Scores]], kept: int, enough: float = ENOUGH) -> int | None:
    """The smallest whole R whose shortlist of R x kept finds `enough` of the kept on average.

    None when no list shorter than the buffer does: the cheap score is no help then.
    """
    longest = max((len(reference) for reference, _ in pairs), default=0)
    for factor in range(1, -(-longest // kept)):
        if mean_share(pairs, kept, factor) >= enough:
            return factor
    return None
