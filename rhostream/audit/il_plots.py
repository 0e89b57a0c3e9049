"""The figures of an IL table: how il is spread on wrong and right labels, and whether confidence can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rhostream.audit.plots import BLUE, GREY, RED, _drawn

_COLOURS = {"all": BLUE, "right labels": BLUE, "wrong labels": RED, "unknown": GREY}
_DASHES = {"wrong labels": "--", "unknown": ":"}


def histogram(found: Mapping[str, Any], unit: str = ", nats") -> str:
    """Shares of il over its bins (nats), one outline a group; the last bin holds what is beyond."""
    edges = np.asarray(found["edges"], np.float64)

    def draw(axes: Any) -> None:
        for name in sorted(found["counts"]):
            counts = np.asarray(found["counts"][name], np.float64)
            axes.stairs(counts / max(1.0, counts.sum()), edges, fill=True, alpha=0.3, color=_COLOURS[name])
            axes.stairs(
                counts / max(1.0, counts.sum()),
                edges,
                color=_COLOURS[name],
                linewidth=1.6,
                linestyle=_DASHES.get(name, "-"),
                label=f"{name} ({int(counts.sum()):,})",
            )
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"irreducible loss{unit}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")

    return _drawn(draw)


def reliability(bins: Mapping[str, Any]) -> str:
    """Accuracy over confidence; `bins`: {"confidence", "accuracy", "count"} of as many bins, and "ece"."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
        rows = [row for row in zip(*(bins[k] for k in ("confidence", "accuracy", "count")), strict=True) if row[2]]
        x, y, n = (np.asarray(values, np.float64) for values in zip(*rows, strict=True))
        axes.plot(x, y, color=BLUE, linewidth=2, label=f"IL model: ECE {100 * bins['ece']:.1f} %")
        axes.scatter(x, y, s=6 + 60 * n / n.max(), color=BLUE, linewidths=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the predicted class", ylabel="accuracy")

    return _drawn(draw, height=3.9)
