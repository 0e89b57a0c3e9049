"""The figures of the experiments, in the report's style, as PNG: all seeds thin, their mean bold; NR is drawn as NR."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.reproduce.compare import Comparison, Curves
from jobs.reproduce.measure import IL_ACCURACY, SAYS, WINDOW
from jobs.reproduce.settings import Arm, Experiment, Scale
from jobs.reproduce.statistics import interval
from rhostream.audit import plots
from rhostream.audit.metrics import smooth

STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e7eb", "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3d444c", "xtick.color": "#3d444c", "ytick.color": "#3d444c", "axes.axisbelow": True,
    "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
# One colour an arm through all figures, told apart in grey by their dashes.
COLOURS = {"uniform": plots.GREY, "rho": plots.BLUE, "everything": "#c9a227", "loss": plots.RED,
           "grad_norm": plots.ORANGE, "grad_norm_is": plots.GREEN, "irreducible": plots.PURPLE,
           "auto": "#1f1f1f"}  # fmt: skip
SPARE = (plots.GREEN, plots.ORANGE, plots.PURPLE, plots.RED, "#c9a227", "#3aa0a0", "#8a5a3c", "#d070a8")
DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))


def draw(experiment: Experiment, scale: Scale, curves: Curves, found: Sequence[Comparison], path: str) -> str | None:
    """Write the experiment's figure; returns its path, None when nothing was measured. Raises MissingExtraError."""
    if not any(curves.values()):
        return None
    return paint(lambda: FIGURES[experiment.figure](experiment, scale, curves, found), path)


def paint(make: Callable[[], Any], path: str) -> str | None:
    """Write what `make` draws as PNG, replacing an older one; None when it draws nothing. Raises MissingExtraError."""
    plots.require()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        canvas = make()
        if canvas is None:
            return None
        FigureCanvasAgg(canvas)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = f"{path}.{os.getpid()}.tmp"
        canvas.savefig(part, format="png", dpi=130, metadata={"Software": None})
        os.replace(part, path)
    return path


def panels(count: int, width: float = 4.6, height: float = 3.4, columns: int = 3) -> tuple[Any, list[Any]]:
    """(figure, its `count` axes) in rows of at most `columns`."""
    from matplotlib.figure import Figure

    wide = min(count, columns)
    high = -(-count // wide)
    canvas = Figure(figsize=(width * wide, height * high), layout="constrained")
    grid = np.atleast_1d(canvas.subplots(high, wide)).ravel().tolist()
    for empty in grid[count:]:
        empty.remove()
    return canvas, grid[:count]


def look(arms: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """(colour, dash) of each arm by name: its own where it has one, else the next spare."""
    spare = [c for c in SPARE if c not in {COLOURS[a] for a in arms if a in COLOURS}] or list(SPARE)
    found, taken = {}, 0
    for at, arm in enumerate(arms):
        colour = COLOURS.get(arm)
        if colour is None:
            colour, taken = spare[taken % len(spare)], taken + 1
        found[arm] = (colour, "-" if arm in ("rho", "uniform") else DASHES[at % len(DASHES)])
    return found


def percent(axis: Any) -> None:
    """Ticks of shares as per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def numbers(axes: Any) -> None:
    """Few numbers along the bottom, with commas: six digits each run into one another."""
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _measured(scale: Scale, curves: Curves, world: str) -> list[Arm]:
    return [arm for arm in scale.arms if arm.world.name == world and curves.get(arm.label)]


def _worlds(scale: Scale, curves: Curves) -> list[str]:
    return [world.name for world in scale.worlds if _measured(scale, curves, world.name)]


def curves(experiment: Experiment, scale: Scale, found: Curves, _: Sequence[Comparison], over: str = "steps") -> Any:
    """Test accuracy over gradient steps, a panel a world; the legend says where each arm ends."""
    worlds = _worlds(scale, found)
    canvas, grid = panels(len(worlds))
    looks = look(list(dict.fromkeys(arm.name for arm in scale.arms)))
    for axes, world in zip(grid, worlds, strict=True):
        low, high = 1.0, 0.0
        for arm in _measured(scale, found, world):
            colour, dash = looks[arm.name]
            runs = [c for c in found[arm.label].values() if c.steps]
            if not runs:
                continue
            full = min(WINDOW, min(len(c.steps) for c in runs)) - 1
            n = min(len(c.steps) for c in runs)
            means = [smooth(c.accuracy, WINDOW)[full:n] for c in runs]
            x = np.mean([getattr(c, over)[full:n] for c in runs], axis=0)
            for each in means:
                axes.plot(x, each, color=colour, alpha=0.3, linewidth=0.7)
            mean = np.mean(means, axis=0)
            axes.plot(x, mean, color=colour, linestyle=dash, linewidth=2, label=f"{arm.name}, {100 * mean[-1]:.1f} %")
            low, high = min(low, float(np.nanquantile(mean, 0.1))), max(high, float(np.nanmax(mean)))
        if high > low:
            axes.set_ylim(max(low, high - 0.35) - 0.01, high + 0.02)
        axes.set(title=world, xlabel="gradient steps" if over == "steps" else "forward units spent", xlim=(0, None))
        numbers(axes)
        percent(axes.yaxis)
        # Below the panel, and with where each ends: the axis is cut to where most of the arms are.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2, fontsize=7)
    grid[0].set_ylabel(f"test accuracy (means of {WINDOW} evaluations)")
    return canvas


def cost_curves(experiment: Experiment, scale: Scale, found: Curves, more: Sequence[Comparison]) -> Any:
    """Test accuracy over forward units, a panel a world."""
    return curves(experiment, scale, found, more, over="units")


def cost_bands(experiment: Experiment, scale: Scale, found: Curves, _: Sequence[Comparison]) -> Any:
    """Test accuracy over forward units, a panel a world; an arm that needs an IL model begins where that is paid.

    The mean over seeds and, from three on, its 95 % interval as a band, of single evaluations; a dotted line is the IL
    model itself.
    """
    worlds = _worlds(scale, found)
    canvas, grid = panels(len(worlds), width=6.4, height=4.2, columns=2)
    looks = look(list(dict.fromkeys(arm.name for arm in scale.arms)))
    for axes, world in zip(grid, worlds, strict=True):
        arms = _measured(scale, found, world)
        for arm in [one for one in arms if not experiment.drawn or one.name in experiment.drawn]:
            runs = [c for c in found[arm.label].values() if c.steps]
            n = min((len(c.steps) for c in runs), default=0)
            if not n:
                continue
            colour, dash = looks[arm.name]
            x = np.mean([np.add(c.units[:n], np.nan_to_num(c.il_units)) for c in runs], axis=0)
            mean, low, high = np.array([interval([c.accuracy[at] for c in runs]) for at in range(n)]).T
            if len(runs) > 2:  # of two seeds it is as wide as the panel
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, mean, color=colour, linestyle=dash, linewidth=2, marker="o", markersize=2.5, label=arm.name)
        known = [c.shares[IL_ACCURACY] for arm in arms for c in found[arm.label].values()
                 if math.isfinite(c.shares.get(IL_ACCURACY, math.nan))]  # fmt: skip
        if known:
            axes.axhline(known[0], color="#555555", linestyle=":", linewidth=1)
            axes.text(0.99, known[0], f"the IL model: {100 * known[0]:.1f} %", transform=axes.get_yaxis_transform(),
                      ha="right", va="bottom", fontsize=8, color="#555555")  # fmt: skip
        top = max((value for line in axes.get_lines() for value in line.get_ydata() if len(line.get_ydata()) > 2),
                  default=1.0)  # fmt: skip
        axes.set_ylim(max(0.0, top - 0.4), top + 0.03)
        axes.set(title=world, xlabel="forward units spent, the IL model included", xlim=(0, None))
        numbers(axes)
        percent(axes.yaxis)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=4, fontsize=8)
    grid[0].set_ylabel("test accuracy")
    return canvas


def shares(experiment: Experiment, scale: Scale, found: Curves, _: Sequence[Comparison]) -> Any:
    """Shares of what each arm kept, every seed a dot, a panel for each share and world that knows it (Fig. 3)."""
    wanted = []
    for world in _worlds(scale, found):
        for name in experiment.shares:
            each = {arm.name: [c.shares[name] for c in found[arm.label].values() if np.isfinite(c.shares[name])]
                    for arm in _measured(scale, found, world)}  # fmt: skip
            each = {arm: values for arm, values in each.items() if values}
            if len(each) > 1 and any(map(any, each.values())):  # without noise there is nothing to see
                wanted.append((world, name, each))
    if not wanted:
        return None
    canvas, grid = panels(len(wanted))
    looks = look(list(dict.fromkeys(arm.name for arm in scale.arms)))
    for axes, (world, name, each) in zip(grid, wanted, strict=True):
        at = np.arange(len(each))
        means = [np.mean(values) for values in each.values()]
        axes.barh(at, means, color=[looks[arm][0] for arm in each], height=0.6, alpha=0.75)
        for row, values in enumerate(each.values()):
            axes.scatter(values, [row] * len(values), s=9, color="#222222", zorder=3)
        axes.set_yticks(at, list(each))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(title=world, xlabel=SAYS[name], xlim=(0, None))
        if name != "il of clean":
            percent(axes.xaxis)
    return canvas


def dots(experiment: Experiment, scale: Scale, found: Curves, compared: Sequence[Comparison]) -> Any:
    """Speed-ups to the baseline's best, a row an arm and a dot a seed, on a log axis; NR at the left edge (Fig. 2)."""
    rows = [one for one in compared if one.metric.startswith("times fewer")]
    if not rows:
        return None
    canvas, (axes,) = panels(1, width=7.5, height=0.26 * len(rows) + 1.2)
    many = len({one.world for one in rows}) > 1
    reached = [up for one in rows for up in one.values if up is not None]
    edge = min([*reached, 1.0]) / 1.6
    for row, one in enumerate(rows):
        ups = [up for up in one.values if up is not None]
        missed = len(one.values) - len(ups)
        axes.scatter(ups, [row] * len(ups), s=22, color=plots.BLUE, alpha=0.7, zorder=3)
        if one.middle is not None:
            axes.plot([one.middle] * 2, [row - 0.35, row + 0.35], color=plots.BLUE, linewidth=2)
        if missed:
            axes.text(edge, row, f"NR {missed}x" if missed > 1 else "NR", color=plots.RED, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{one.world}: {one.arm}" if many else one.arm for one in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(1, color=plots.GREY, linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="times fewer steps to the baseline's best (a line: the median; NR: never reached it)",
             xlim=(edge / 1.15, max([*reached, 1.0]) * 1.3))  # fmt: skip
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if edge / 1.15 < t < max([*reached, 1.0]) * 1.3]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    return canvas


def by_pass(experiment: Experiment, scale: Scale, found: Curves, _: Sequence[Comparison]) -> Any:
    """Shares of what was kept, pass by pass, a panel for each share and world (Fig. 7)."""
    wanted = [(world, name) for world in _worlds(scale, found) for name in experiment.shares
              if any(np.nan_to_num(c.by_pass[name]).any() for arm in _measured(scale, found, world)
                     for c in found[arm.label].values())]  # fmt: skip
    if not wanted:
        return None
    canvas, grid = panels(len(wanted))
    looks = look(list(dict.fromkeys(arm.name for arm in scale.arms)))
    for axes, (world, name) in zip(grid, wanted, strict=True):
        for arm in _measured(scale, found, world):
            runs = [c.by_pass[name] for c in found[arm.label].values()]
            n = min(map(len, runs))
            mean = np.mean([run[:n] for run in runs], axis=0)
            colour, dash = looks[arm.name]
            if n == 1:  # it does not change
                axes.axhline(mean[0], color=colour, linestyle=dash, linewidth=2, label=arm.name)
            elif np.isfinite(mean).any():
                for run in runs:
                    axes.plot(range(1, len(run) + 1), run, color=colour, alpha=0.3, linewidth=0.7)
                axes.plot(range(1, n + 1), mean, color=colour, linestyle=dash, linewidth=2, label=arm.name)
        axes.set(title=world, xlabel="pass", ylabel=SAYS[name])
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name != "il of clean":
            if name != IL_ACCURACY:
                axes.set_ylim(bottom=0)
            percent(axes.yaxis)
        axes.legend(fontsize=8)
    return canvas


FIGURES: Mapping[str, Any] = {"curves": curves, "cost curves": cost_curves, "cost bands": cost_bands,
                              "shares": shares, "dots": dots,
                              "by pass": by_pass}  # fmt: skip
