"""The axes of the charts: bins of a round width that every run of a page shares, so that shapes can be compared.

bin of a value = floor((value - low) / width) as doubles, what lies outside in the first and the last bin
bin of a step  = step // width, the width a power of two
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhostream.audit.viewer.rows import VALUES, Array, Snapshot

BINS = 100  # of a value, at most
STEP_BINS = 128  # at most
_LOOKED_AT = 50_000  # rows that a range is guessed of
_EDGE = 0.001  # of these, what may lie beyond the range at either end
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """`bins` bins of `width` from `low` on."""

    low: float
    width: float
    bins: int

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"low": self.low, "width": self.width, "bins": self.bins}


Axes = dict[str, Axis]


def axes_of(snapshots: Sequence[Snapshot]) -> Axes:
    """An axis for il, loss, score and step that fits all these rows."""
    last = max((each.last_step for each in snapshots), default=0)
    width = 1
    while last // width >= STEP_BINS:
        width *= 2
    axes = {name: value_axis(_some(snapshots, name)) for name in VALUES}
    return {**axes, "step": Axis(0, width, max(last, 0) // width + 1)}


def value_axis(values: Array) -> Axis:
    """The axis of finite values (nats): from the lowest to the highest but for one in a thousand at either end.

    It begins at 0 where that costs less than a fifth of it.
    """
    if not len(values):
        return Axis(0.0, 0.1, 10)
    low, high = (float(edge) for edge in np.quantile(values.astype(np.float64), (_EDGE, 1 - _EDGE)))
    if 0 <= low < 0.2 * high:
        low = 0.0
    if not high > low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / (BINS - 2)
    size = 10.0 ** math.floor(math.log10(rough))
    width = next(step * size for step in _ROUND if step * size >= rough)
    first = math.floor(low / width)
    return Axis(first * width, width, min(math.floor(high / width) - first + 1, BINS))


def _some(snapshots: Sequence[Snapshot], name: str) -> Array:
    stride = max(sum(each.rows for each in snapshots) // _LOOKED_AT, 1)
    looks = [block.columns[name][:rows:stride] for each in snapshots for block, rows in each.blocks]
    values: Array = np.concatenate(looks) if looks else np.zeros(0, np.float32)
    return values[~np.isnan(values)]
