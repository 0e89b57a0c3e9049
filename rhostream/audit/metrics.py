"""Steps to a target and speed-ups, as the paper counts them; a target that isn't reached is None, never a number.

`steps` are gradient steps taken when each evaluation was made, ascending; `accuracy` the evaluations, same length. An
evaluation that is NaN counts for nothing: no window that holds it can be a best or reach a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = Sequence[float] | npt.NDArray[np.float64]


def smooth(values: Floats, window: int = 5) -> npt.NDArray[np.float64]:
    """The mean of the last `window` values at each position (of fewer, at the start): (n,) -> (n,).

    It never looks ahead, so the step at which it reaches something was really enough.
    """
    array = np.asarray(values, np.float64)
    means = [array[max(0, at + 1 - window) : at + 1].mean() for at in range(len(array))]
    return np.asarray(means, np.float64)


def common_window(counts: Iterable[int], window: int) -> int:
    """The window for curves of that many evaluations: `window` where each has as many, else 1, which smooths nothing.

    One for all that are compared, because a best of means is lower than a best of single evaluations. Curves without an
    evaluation don't count.
    """
    return window if all(count >= window for count in counts if count) else 1


def final(values: Floats, window: int = 5) -> float:
    """The mean of the last `window` values, as bests and targets are measured; NaN for none."""
    return float(smooth(values, window)[-1]) if len(values) else float("nan")


def best(values: Floats, window: int = 5) -> float:
    """The best of the smoothed values, full windows only (all, where there are fewer than `window`); NaN for none."""
    full = smooth(values, window)[min(window, len(values)) - 1 :] if len(values) else np.empty(0)
    finite = full[np.isfinite(full)]
    return float(finite.max()) if len(finite) else float("nan")


def steps_to_reach(steps: Sequence[int], accuracy: Floats, target: float, window: int = 5) -> int | None:
    """The first of `steps` (taken so far) at which the smoothed accuracy is at least `target`; None when it never is.

    Only full windows count: the mean of a few early evaluations is not the mean that the target was made of.
    """
    if not len(steps):
        return None
    full = min(window, len(steps)) - 1
    reached = np.flatnonzero(smooth(accuracy, window)[full:] >= target)
    return int(steps[full + int(reached[0])]) if len(reached) else None


def speedup(baseline: tuple[Sequence[int], Floats], run: tuple[Sequence[int], Floats], window: int = 5) -> float | None:
    """Steps in which the baseline first reaches its own best, over the run's to reach that; None if never.

    Each is (steps, accuracy). The number grows with the baseline's budget: say how many steps it had (paper, Fig. 2).
    """
    goal = best(baseline[1], window)
    own, theirs = steps_to_reach(*baseline, goal, window), steps_to_reach(*run, goal, window)
    return None if own is None or theirs is None else own / theirs
