"""What each figure of a page says, in words: the text that stands in for it where it can't be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rhostream.audit.plots import Line, mean_curve
from rhostream.inert import one_line


def of_accuracy(lines: Sequence[Line], over: str, window: int, across: Mapping[str, float | None]) -> str:
    """Where each line of an accuracy figure begins and ends, and the lines across it."""
    says = []
    for line in lines:
        x, mean = mean_curve(line.curves, over, window)
        if len(mean):
            offset = line.once if over == "units" else 0.0
            says.append(f"{one_line(line.name, 80)} from {_percent(mean[0])} at {x[0] + offset:,.0f} to "
                        f"{_percent(mean[-1])} at {x[-1] + offset:,.0f}")  # fmt: skip
    says += [f"{name} {_percent(value)}" for name, value in across.items() if value is not None]
    axis = "gradient steps" if over == "steps" else "forward units, what is paid once included"
    return f"Test accuracy over {axis}: {'; '.join(says)}."


def of_scatter(points: Mapping[str, Sequence[Any]]) -> str:
    """How far above the diagonal kept and skipped samples lie."""
    il, loss = (np.asarray(points[name], np.float64) for name in ("il", "loss"))
    kept = np.asarray(points["kept"], bool)
    says = [
        f"{name} {int(chosen.sum()):,}, loss minus irreducible loss {float(np.median((loss - il)[chosen])):.2f} in the "
        f"median at an irreducible loss of {float(np.median(il[chosen])):.2f}"
        for name, chosen in (("kept", kept), ("skipped", ~kept))
        if chosen.any()
    ]
    return f"Loss against irreducible loss of kept and skipped samples: {'; '.join(says)}."


def of_lines(what: str, x: Sequence[float], series: Mapping[str, Sequence[Any]], *, share: bool = True) -> str:
    """First and last value of each line over gradient steps."""
    says = []
    for name, values in series.items():
        known = [(at, float(v)) for at, v in zip(x, values, strict=True) if v is not None and math.isfinite(v)]
        if known:
            (first, begun), (last, ended) = known[0], known[-1]
            both = [_percent(v) if share else f"{v:.2f}" for v in (begun, ended)]
            says.append(f"{name} from {both[0]} at step {first:,.0f} to {both[1]} at step {last:,.0f}")
    return f"{what} over gradient steps: {'; '.join(says)}."


def of_histogram(found: Mapping[str, Any]) -> str:
    """Where the middle of each group's il lies."""
    edges = found["edges"]
    says = []
    for name in sorted(found["counts"]):
        counts = np.asarray(found["counts"][name], np.float64)
        middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
        says.append(f"{name} {int(counts.sum()):,}, half of them below {edges[min(middle + 1, len(edges) - 1)]:.2f}")
    return f"Histogram of the irreducible loss: {'; '.join(says)}."


def of_reliability(bins: Mapping[str, Any]) -> str:
    """How far confidence and accuracy lie apart, and on which side."""
    rows = [row for row in zip(*(bins[k] for k in ("confidence", "accuracy", "count")), strict=True) if row[2]]
    over = sum(n * (confidence - accuracy) for confidence, accuracy, n in rows)
    side = "more sure than right" if over > 0 else "less sure than right"
    return (f"Reliability diagram of the IL model: confidence and accuracy are {100 * bins['ece']:.1f} % apart, and it "
            f"is {side} in the mean.")  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
