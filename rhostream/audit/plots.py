"""The report's figures, as data URIs; drawn without pyplot, so nothing global is touched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rhostream.audit.metrics import smooth
from rhostream.errors import MissingExtraError

COLOURS = ("#0b5cad", "#d9480f", "#5d6670", "#2b8a3e", "#862e9c", "#c92a2a")


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError.of("matplotlib", "report") from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def data_uri(figure: Any) -> str:
    """A figure as a PNG data URI."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    return png_uri(sink.getvalue())


def png_uri(png: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def accuracy_curves(groups: Mapping[str, Sequence[dict[str, list[float]]]], window: int) -> str:
    """Accuracy over steps and over forward units; each group is a list of runs with steps, units, accuracy."""
    figure, axes = _figure(11, 4, 2)
    for colour, (name, runs) in zip(COLOURS * 9, groups.items(), strict=False):
        for ax, x in ((axes[0], "steps"), (axes[1], "units")):
            for run in runs:
                ax.plot(run[x], run["accuracy"], color=colour, alpha=0.25, linewidth=0.8)
            length = min(len(run[x]) for run in runs)
            mean = np.mean([smooth(run["accuracy"], window)[:length] for run in runs], axis=0)
            ax.plot(runs[0][x][:length], mean, color=colour, linewidth=2.2, label=f"{name} ({len(runs)})")
    axes[0].set_xlabel("gradient steps")
    axes[1].set_xlabel("forward units (selection and training)")
    axes[0].set_ylabel("test accuracy")
    axes[0].legend(frameon=False)
    return data_uri(figure)


def scatter(points: Mapping[str, Any], over_time: Mapping[str, Any]) -> str:
    """Loss against il of kept and skipped samples, and a share over time."""
    figure, axes = _figure(11, 4, 2)
    il, loss, kept = (np.asarray(points[k], dtype=np.float64) for k in ("il", "loss", "kept"))
    for flag, colour, label, size in ((0.0, "#b9c0c7", "skipped", 5), (1.0, "#0b5cad", "kept", 8)):
        rows = kept == flag
        axes[0].scatter(il[rows], loss[rows], s=size, color=colour, label=label, alpha=0.7, linewidths=0)
    if len(il):
        limit = float(np.percentile(np.concatenate([il, loss]), 99.5))
        axes[0].plot([0, limit], [0, limit], color="#5d6670", linewidth=0.8, linestyle="--")
        axes[0].set_xlim(0, limit)
        axes[0].set_ylim(0, limit)
    axes[0].set_xlabel("irreducible loss, nats")
    axes[0].set_ylabel("loss of the current model, nats")
    axes[0].legend(frameon=False, loc="lower right")
    for colour, (name, values) in zip(COLOURS, over_time["series"].items(), strict=False):
        axes[1].plot(over_time["step"], values, color=colour, label=name, linewidth=2)
    axes[1].set_xlabel("gradient steps")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    return data_uri(figure)
