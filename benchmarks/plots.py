"""The plots of docs/performance.md: one function a benchmark, from its figures to axes, the same picture each time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure
from rhostream.audit.metrics import smooth

if TYPE_CHECKING:  # its import takes as long as the rest of the page
    from matplotlib.figure import Figure as Canvas

OURS, OTHERS, LINE = "#1f5f8b", "#b9c3cc", "#444444"
METHODS = {"uniform": "#8a949c", "everything": "#c9a227", "rho": OURS, "cascade": "#c0392b"}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#999999", "text.color": "#222222", "axes.titlelocation": "left",
}  # fmt: skip
Spread = tuple[list[float], list[list[float]]]


def draw(name: str, figures: Sequence[Figure], path: Path) -> None:
    """Write the PNG of a benchmark to `path`; a benchmark without a plot, or without its figures, writes none."""
    if not can_draw(name, figures):
        return
    import matplotlib

    with matplotlib.rc_context(STYLE):
        canvas = PLOTS[name](figures)
        canvas.savefig(path, dpi=130, metadata={"Software": None})


def can_draw(name: str, figures: Sequence[Figure]) -> bool:
    """Whether there is a plot and something to put on it."""
    return name in PLOTS and bool(SHOWN[name](figures))


def loader(figures: Sequence[Figure]) -> Canvas:
    """Samples a second of every side, a panel for each decoder; lines span the smallest and the largest."""
    shown = _rates(figures)
    cases = list(dict.fromkeys(f.case for f in shown))
    canvas, panels = _panels(len(cases), width=4.6, height=2.9)
    for axes, case in zip(panels, cases, strict=True):
        bars = sorted((f for f in shown if f.case == case), key=lambda f: f.median)
        middle, spread = _spread(bars)
        axes.barh([f.what for f in bars], middle, xerr=spread, ecolor=LINE, error_kw={"elinewidth": 1},
                  color=[OURS if f.what == "rhostream" else OTHERS for f in bars])  # fmt: skip
        axes.set(title=", ".join(case.split(", ")[:2]), xlim=(0, None))
        axes.set_xlabel("samples/s (median, smallest to largest)")
        axes.tick_params(axis="y", length=0)
    return canvas


def step(figures: Sequence[Figure]) -> Canvas:
    """Time over the floor of each case, the floor as a line at 1 and each target as a mark."""
    bars = list(reversed(_over_floor(figures)))
    canvas, (axes,) = _panels(1, width=7, height=max(0.35 * len(bars) + 1, 1.8))
    middle, spread = _spread(bars)
    own = [f.what == "time over floor" for f in bars]
    labels = [f.case if ours else f"{f.case}, {f.what.removesuffix(' over floor')}"
              for f, ours in zip(bars, own, strict=True)]  # fmt: skip
    axes.barh(labels, middle, xerr=spread, color=[OURS if ours else OTHERS for ours in own], ecolor=LINE, height=0.55)
    wanted = [(at, bar.target) for at, bar in enumerate(bars) if bar.target is not None]
    for number, (at, target) in enumerate(wanted):
        axes.plot([target] * 2, [at - 0.38, at + 0.38], color="#c0392b", linewidth=1.5,
                  label=None if number else "target")  # fmt: skip
    axes.axvline(1, color=LINE, linewidth=0.8, linestyle=":")
    axes.set(xlabel="time over floor (1 = the floor)", xlim=(0, None))
    axes.tick_params(axis="y", length=0)
    if wanted:
        canvas.legend(loc="outside lower right", frameon=False)
    return canvas


def memory(figures: Sequence[Figure]) -> Canvas:
    """Anonymous memory of the process against the rows of its table, rows on a log scale."""
    canvas, (axes,) = _panels(1, width=6, height=3)
    highest = 0.0
    for (parts, shown), color in zip(_by_rows(figures).items(), (OURS, METHODS["everything"]), strict=False):
        middle, spread = _spread([f for _, f in shown])
        axes.errorbar([rows for rows, _ in shown], middle, yerr=spread, color=color, marker="o", capsize=2,
                      label=parts)  # fmt: skip
        highest = max(highest, *middle)
    axes.set(xscale="log", xlabel="rows in the table", ylabel="RssAnon (MiB)", ylim=(0, 1.25 * highest))
    axes.legend(frameon=False, loc="lower right")
    return canvas


def scaling(figures: Sequence[Figure]) -> Canvas:
    """Samples a second against n_B, workers and image size, a panel each."""
    settings = _settings(figures)
    canvas, panels = _panels(len(settings), width=3, height=2.8)
    for axes, (label, points) in zip(panels, settings.items(), strict=True):
        middle, spread = _spread([f for _, f in points])
        x = [str(at) for at, _ in points]  # evenly spaced: these are settings tried, not a scale
        axes.errorbar(x, middle, yerr=spread, color=OURS, marker="o", capsize=2)
        axes.set(xlabel=label, ylim=(0, 1.15 * max(max(f.values) for _, f in points)))
        axes.margins(x=0.12)
    panels[0].set_ylabel("samples/s")
    return canvas


def accuracy(figures: Sequence[Figure]) -> Canvas:
    """Accuracy against seconds, a panel a model and a line a method, of the first seed; means of five evaluations."""
    curves = _curves(figures)
    canvas, panels = _panels(len(curves), width=4.6, height=3.2)
    for axes, (model, methods) in zip(panels, curves.items(), strict=True):
        for method, (seconds, found) in methods.items():
            axes.plot(seconds, smooth(found), label=method, linewidth=1.4, color=METHODS.get(method))
        first = [smooth(found)[min(4, len(found) - 1)] for _, found in methods.values()]
        axes.set(title=model, xlabel="seconds, everything but the IL model included", ylim=(min(first) - 0.02, None))
    panels[0].set_ylabel("accuracy on the test images")
    panels[-1].legend(frameon=False)
    return canvas


def _panels(count: int, width: float, height: float) -> tuple[Canvas, list[Any]]:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import NullLocator

    canvas = Canvas(figsize=(width * count, height), layout="constrained")
    panels = list(canvas.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.yaxis.set_minor_locator(NullLocator())
    return canvas, panels


def _spread(figures: Sequence[Figure]) -> Spread:
    """Medians, and how far below and above them the smallest and the largest lie."""
    middle = [f.median for f in figures]
    below = [f.median - min(f.values) for f in figures]
    return middle, [below, [max(f.values) - f.median for f in figures]]


def _rates(figures: Sequence[Figure]) -> list[Figure]:
    return [f for f in figures if f.unit == "samples/s" and f.values]


def _over_floor(figures: Sequence[Figure]) -> list[Figure]:
    return [f for f in figures if f.unit == "x" and "over floor" in f.what and f.values]


def _by_rows(figures: Sequence[Figure]) -> dict[str, list[tuple[int, Figure]]]:
    """(rows, figure) of the process's memory, by the size of the parts."""
    found: dict[str, list[tuple[int, Figure]]] = {}
    for f in figures:
        match = re.fullmatch(r"([\d,]+) rows in (parts of [\d,]+)", f.case)
        if match and f.what == "process, RssAnon" and f.values:
            found.setdefault(match[2], []).append((int(match[1].replace(",", "")), f))
    return {parts: sorted(points, key=lambda point: point[0]) for parts, points in found.items()}


def _settings(figures: Sequence[Figure]) -> dict[str, list[tuple[int, Figure]]]:
    settings: dict[str, list[tuple[int, Figure]]] = {}
    for f in _rates(figures):
        if m := re.fullmatch(r"(?:(n_B) )?(\d+)(?: (workers|pixels))?", f.case):
            label = {"n_B": "buffer size n_B", "pixels": "image side (pixels)"}.get(m[1] or m[3], m[3])
            settings.setdefault(label, []).append((int(m[2]), f))
    return settings


def _curves(figures: Sequence[Figure]) -> dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]]:
    """Seconds and accuracies by model and method, of figures named `curve, seconds` and `curve, accuracy`."""
    by_name = {(f.case, f.what): f.values for f in figures}
    curves: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for (case, what), values in by_name.items():
        if what == "curve, accuracy" and (case, "curve, seconds") in by_name:
            model, _, method = case.partition(", ")
            curves.setdefault(model, {})[method] = by_name[case, "curve, seconds"], values
    return curves


PLOTS: dict[str, Callable[[Sequence[Figure]], Canvas]] = {
    "loader": loader,
    "step": step,
    "memory": memory,
    "scaling": scaling,
    "accuracy": accuracy,
}
SHOWN: dict[str, Callable[[Sequence[Figure]], Any]] = {
    "loader": _rates,
    "step": _over_floor,
    "memory": _by_rows,
    "scaling": _settings,
    "accuracy": _curves,
}
