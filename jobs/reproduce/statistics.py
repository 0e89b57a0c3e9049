"""The statistics of paired seeds, pure: intervals of differences, censored medians, ranks, and what may be claimed.

Runs of one seed start from the same weights and see the same order and noise, so arms are compared seed by seed. A
target that was not reached is None: it sorts above every number and never becomes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_SEEDS = 5  # for a claim about less than one point
POINT = 0.01
NR = "NR"
Floats = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """Differences of paired seeds: every one of them, their mean and its interval (NaN for one seed)."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) of Student's t with `df` (1 and more) degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    if df < 1:
        raise ValueError(f"{df} degrees of freedom, expected 1 or more")
    theta = math.atan(abs(t) / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    total, term = 0.0, cosine if df % 2 else 1.0
    for power in range(1 if df % 2 else 0, df - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sine * total) if df % 2 else sine * total
    return 0.5 + math.copysign(inside / 2, t)


def t_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1, to about 1e-12 of itself."""
    if not 0 < p < 1:
        raise ValueError(f"p is {p}, expected between 0 and 1")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


def interval(values: Floats, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of the mean, by Student's t; low and high are NaN for fewer than two values."""
    array = np.asarray(values, np.float64)
    if not len(array):
        return math.nan, math.nan, math.nan
    mean = float(array.mean())
    if len(array) < 2:
        return mean, math.nan, math.nan
    half = t_quantile(0.5 + confidence / 2, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, mean - half, mean + half


def bounds(values: Floats, *, logarithmic: bool = False, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of the mean's interval; `logarithmic`, of positive ratios: of the geometric mean's."""
    array = np.log(values) if logarithmic else np.asarray(values, np.float64)
    _, low, high = interval(array, confidence)
    return (math.exp(low), math.exp(high)) if logarithmic else (low, high)


def paired(ours: Floats, theirs: Floats, confidence: float = 0.95) -> Paired:
    """Ours minus theirs, seed by seed. Raises ValueError unless both have the same seeds."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}: paired seeds have one of each")
    each = tuple(float(a) - float(b) for a, b in zip(ours, theirs, strict=True))
    return Paired(each, *interval(each, confidence))


def censored_median(values: Sequence[float | None], *, more_is_better: bool = False) -> float | None:
    """The median where None is worse than every number: None when the median itself was not reached, or of nothing.

    Worse is more, as for steps to a target, unless `more_is_better`, as for speed-ups. Of an even number it is the mean
    of the middle two, and None when either of them is.
    """
    never = -math.inf if more_is_better else math.inf
    ordered = sorted(never if value is None else float(value) for value in values)
    if not ordered:
        return None
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return None if never in middle else sum(middle) / len(middle)


def ratios(theirs: Sequence[float | None], ours: Sequence[float | None]) -> list[float | None]:
    """Theirs over ours, seed by seed; None where either was not reached."""
    return [None if a is None or b is None else a / b for a, b in zip(theirs, ours, strict=True)]


def ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 1, ties sharing the mean of theirs: (n,) -> (n,)."""
    array = np.asarray(values, np.float64)
    _, group, count = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[group], np.float64)


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation: Pearson's of the ranks. NaN when either is constant or shorter than two."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}")
    x, y = (r - r.mean() if len(r) else r for r in (ranks(a), ranks(b)))
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / norm if norm else math.nan


def claim(difference: Paired, unit: float = POINT) -> str:
    """What a paired difference of accuracies lets one say: "ahead", "behind", or why nothing may be said.

    Under one point (`unit`) nothing is claimed from fewer than `MIN_SEEDS` seeds, however narrow the interval.
    """
    seeds = len(difference.values)
    if seeds < 2 or not math.isfinite(difference.mean):
        return f"no claim: {seeds} seed{'' if seeds == 1 else 's'}"
    if abs(difference.mean) < unit and seeds < MIN_SEEDS:
        return f"no claim: under one point from {seeds} seeds, {MIN_SEEDS} are needed"
    if difference.low <= 0 <= difference.high:
        return "undecided: the interval holds 0"
    return "ahead" if difference.mean > 0 else "behind"


def shown(value: float | None, form: str = ".2f") -> str:
    """A number, or NR where there is none because a target was not reached."""
    return NR if value is None else format(value, form)
