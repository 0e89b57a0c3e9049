"""The report's figures, as data URIs of SVG; drawn without pyplot, so nothing global is touched.

An SVG in an <img> can neither run nor load anything, and its ids can't meet those of another figure. Names from data
are drawn as plain text, never as matplotlib's mathematics (a lone `$` would be an error).
"""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhostream.audit.facts import Curve
from rhostream.audit.metrics import smooth
from rhostream.errors import MissingExtraError
from rhostream.inert import one_line

# Told apart by people with any colour vision, and in grey by their lightness or dashes.
BLUE, ORANGE, GREEN, PURPLE, GREY, RED = "#0b5cad", "#c2570c", "#1f7a55", "#7b3aa0", "#7a828c", "#c0262d"
DASHES: dict[str, Any] = {
    "solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.2)), "dotdash": (0, (6, 1.6, 1.2, 1.6)),
    "long": (0, (10, 3)), "dotdotdash": (0, (6, 1.4, 1.2, 1.4, 1.2, 1.4)), "short": (0, (2.5, 2)),
}  # fmt: skip
MARKED = 12  # marks on a line, at most about: one on each of its points where it has no more
LARGE = 160  # pixels of a side from which on a picture is shown smoothed; below, pixel by pixel
WRAP = 62  # characters of a name in a line of the legend
_STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e7eb",
    "axes.edgecolor": "#9aa3ad", "axes.labelcolor": "#3d444c", "xtick.color": "#3d444c", "ytick.color": "#3d444c",
    "axes.axisbelow": True, "svg.hashsalt": "rhostream", "svg.fonttype": "path", "legend.frameon": False,
    "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A group of runs in the accuracy figures."""

    name: str
    curves: Sequence[Curve]
    look: Mapping[str, Any]  # colour, dash and marker, as matplotlib takes them: the same in every figure of a page
    once: float = 0.0  # forward units that were paid before the first run: where its curve begins on the axis of cost


def require() -> None:
    """Raise MissingExtraError unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError.of("matplotlib", "report") from exc


def uri(data: bytes, kind: str) -> str:
    """Bytes as a data URI of that media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def side_of(image: str | None) -> int:
    """Pixels of a side of a PNG in a data URI; of none, the least that is shown without enlarging its pixels."""
    if image is None:
        return LARGE
    return int.from_bytes(base64.b64decode(image.partition(",")[2][:32])[16:20], "big")


def _drawn(draw: Callable[[Any], None], width: float = 5.2, height: float = 3.2) -> str:
    """The figure with its legend below the axes, on no curve; it grows by the legend's lines."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class name may hold signs that the font lacks
        figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        _legend(figure, axes, width, height)
        # The layout once: left to itself, savefig lays out and draws twice, which takes most of a report's time.
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine(None)
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return uri(sink.getvalue(), "image/svg+xml")


def _legend(figure: Any, axes: Any, width: float, height: float) -> None:
    handles, names = axes.get_legend_handles_labels()
    names = ["\n".join(textwrap.wrap(name, WRAP)) or name for name in names]
    columns = 2 if len(names) > 1 and max(map(len, names)) <= WRAP // 2 - 4 else 1
    lines = sum(1 + name.count("\n") for name in names)
    figure.set_size_inches(width, height + 0.19 * -(-lines // columns))
    if names:
        figure.legend(handles, names, loc="outside lower center", ncol=columns, fontsize=9, handlelength=3.4,
                      markerscale=1.4)  # fmt: skip


def _compact(value: float, _: object = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def accuracy(
    lines: Sequence[Line], over: str, window: int, target: float | None, tested: Mapping[str, float] | None = None
) -> str:
    """Test accuracy over "steps" or "units": thin each run, bold the mean over seeds and `window` evaluations.

    Over units a line begins where what was paid once ends; the same without that is drawn lighter. `tested`: names and
    accuracies that are drawn as lines across, such as that of the IL model.
    """

    def draw(axes: Any) -> None:
        low, high = 1.0, 0.0
        for line in lines:
            look, offset = dict(line.look), line.once if over == "units" else 0.0
            for curve in line.curves:
                x = [at + offset for at in getattr(curve, over)]
                axes.plot(x, curve.accuracy, color=look["color"], alpha=0.22, linewidth=0.8)
            x, mean = mean_curve(line.curves, over, window)
            name = one_line(line.name, 4 * WRAP)
            name += f" (mean of {len(line.curves)})" if len(line.curves) > 1 else ""
            if offset:
                axes.plot(x, mean, **{**look, "marker": None}, linewidth=1.2, alpha=0.5)
                name += ", il on the bill"
            axes.plot([at + offset for at in x], mean, **look, linewidth=2.2, markersize=4.5, label=name,
                      markevery=max(1, -(-len(x) // MARKED)))  # fmt: skip
            if len(mean):
                low, high = min(low, float(np.quantile(mean, 0.06))), max(high, float(np.max(mean)))
        across = {"uniform's best": target} if target is not None else {}
        for dash, (name, value) in zip(((0, (1, 3)), (0, (3, 3, 1, 3))), [*across.items(), *(tested or {}).items()],
                                       strict=False):  # fmt: skip
            low, high = min(low, value), max(high, value)
            axes.axhline(value, color=RED if name in across else PURPLE, linewidth=1.1, linestyle=dash,
                         label=f"{name}: {100 * value:.1f} %")  # fmt: skip
        if high > low:
            axes.set_ylim(low - 0.1 * (high - low), high + 0.12 * (high - low))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_compact)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xlabel("gradient steps" if over == "steps" else "forward units spent, from the first on")

    return _drawn(draw)


def mean_curve(curves: Sequence[Curve], over: str, window: int) -> tuple[list[float], Any]:
    """The mean of the smoothed accuracies at the steps that all curves have; x is the mean of `over` there.

    Full windows only, as for bests and targets.
    """
    full = [set(c.steps[window - 1 :]) for c in curves]
    common = sorted(set.intersection(*full)) if full else []
    at = [[c.steps.index(step) for step in common] for c in curves]
    x = np.mean([np.asarray(getattr(c, over), np.float64)[rows] for c, rows in zip(curves, at, strict=True)], axis=0)
    y = np.mean([smooth(c.accuracy, window)[rows] for c, rows in zip(curves, at, strict=True)], axis=0)
    return list(map(float, x)), y


def scatter(points: Mapping[str, Sequence[Any]], unit: str = ", nats") -> str:
    """Loss of the current model against il of looks (nats); what is known to be labelled wrongly is a cross."""
    il, loss = (np.asarray(points[name], np.float64) for name in ("il", "loss"))
    kept, noisy = np.asarray(points["kept"], bool), np.array([bool(n) for n in points["noisy"]], bool)
    known = any(n is not None for n in points["noisy"])
    label = " (label right)" if known else ""

    def draw(axes: Any) -> None:
        # Cut where the last per mille would squeeze the rest.
        top = float(max(np.quantile(il, 0.995), np.quantile(loss, 0.995), 0.5)) * 1.03
        axes.fill_between([0, top], [0, top], [top, top], color="#eef5fb", linewidth=0)
        for chosen, colour, marker, size, name in (
            (~kept & ~noisy, "#b4bcc5", "o", 5, f"skipped{label}"),
            (~kept & noisy, "#e39a5b", "x", 12, "skipped, wrong label"),
            (kept & ~noisy, BLUE, "o", 9, f"kept{label}"),
            (kept & noisy, RED, "+", 30, "kept, wrong label"),
        ):
            if chosen.any():
                axes.scatter(il[chosen], loss[chosen], s=size, color=colour, marker=marker, label=name, alpha=0.75,
                             linewidths=0 if marker == "o" else 0.9, rasterized=True)  # fmt: skip
        axes.plot([0, top], [0, top], color=GREY, linewidth=0.9, linestyle="--")
        axes.set(xlim=(0, top), ylim=(0, top), xlabel=f"irreducible loss{unit}", ylabel=f"loss of the model{unit}")

    return _drawn(draw, height=3.9)


def shares(x: Sequence[float], series: Mapping[str, tuple[Sequence[Any], str, str]]) -> str:
    """Shares over gradient steps: name -> (values of 1 or None, colour, dash)."""

    def draw(axes: Any) -> None:
        for name, (values, colour, dash) in series.items():
            y = [np.nan if v is None else float(v) for v in values]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=2, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_compact)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xlabel("gradient steps")

    return _drawn(draw)


def effective_classes(x: Sequence[float], kept: Sequence[float | None], chance: Sequence[float | None]) -> str:
    """Effective classes of kept batches over gradient steps, and of batches drawn by chance."""

    def draw(axes: Any) -> None:
        for values, name, colour, dash in ((kept, "kept", BLUE, "-"), (chance, "by chance", GREY, "--")):
            y = [np.nan if v is None else float(v) for v in values]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=2, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_compact)
        axes.set_xlabel("gradient steps")
        axes.set_ylabel("effective classes of a batch")

    return _drawn(draw)
