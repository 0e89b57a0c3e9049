"""Steps to a target and speed-ups, as the paper counts them; a target that isn't reached is None, never a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = Sequence[float] | npt.NDArray[np.float64]


def smooth(values: Floats, window: int = 5) -> npt.NDArray[np.float64]:
    """The mean of the last `window` values at each position (of fewer, at the start): (n,) -> (n,)."""
    total = np.cumsum(np.asarray(values, np.float64))
    width = np.minimum(np.arange(1, len(total) + 1), window)
    before = np.concatenate([np.zeros(window), total])[: len(total)]
    return np.asarray((total - before) / width, np.float64)


def best(values: Floats, window: int = 5) -> float:
    """The best of the smoothed values, full windows only (all, where there are fewer than `window`)."""
    return float(smooth(values, window)[min(window, len(values)) - 1 :].max())


def steps_to_reach(steps: Sequence[int], accuracy: Floats, target: float, window: int = 5) -> int | None:
    """The first of `steps` (taken so far) at which the smoothed accuracy is at least `target`; None when it never is.

    Only full windows count: the mean of a few early evaluations is not the mean that the target was made of.
    """
    full = min(window, len(steps)) - 1
    reached = np.flatnonzero(smooth(accuracy, window)[full:] >= target)
    return int(steps[full + int(reached[0])]) if len(reached) else None


def speedup(baseline: tuple[Sequence[int], Floats], run: tuple[Sequence[int], Floats], window: int = 5) -> float | None:
    """Steps in which the baseline first reaches its own best, over the run's to reach that; None if never."""
    goal = best(baseline[1], window)
    own, theirs = steps_to_reach(*baseline, goal, window), steps_to_reach(*run, goal, window)
    return None if own is None or theirs is None else own / theirs
