"""How many rows fall into each bin of each chart, by reason, under the filters of all the *other* charts.

    mask of each filter, a block at a time > rows that they let through > one count of (bin, reason) a chart

A count is what `GROUP BY` of the ledger gives, exactly: bounds are float32 as the columns are, both ends are in, and a
row without a finite value is in no range. 10 million rows take about 0.3 s of one core; a chart whose rows and filters
are those of an earlier answer is not counted again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rhostream.audit.viewer.axes import Axes
from rhostream.audit.viewer.filters import RANGES, SETS, Filters, mask_of
from rhostream.audit.viewer.rows import VALUES, Array, Block, Snapshot

R = 16  # places for reasons in a code: bin * R + reason
MOST_LABELS = 1 << 16  # labels from there on count as the last
MOST_SAMPLES = 1 << 28  # of places that samples may have; beyond it nobody counts how many are different
REMEMBERED = 128  # answers of charts
# Each chart, and the filters that are drawn in it: those it doesn't obey.
CHARTS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*RANGES, *SETS)},
    "cell": ("il", "loss"),  # loss x il
    "over_steps": (),  # steps again, of what is selected alone
    "samples": (),  # how many different ones are selected
}


class Counter:
    """Counts, and remembers the newest answers. One thread at a time counts."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Any, Array] = OrderedDict()
        self._lock = threading.Lock()

    def counts(self, run: int, snapshot: Snapshot, axes: Axes, filters: Filters) -> dict[str, Array]:
        """Counts by chart for the rows of a run, (bins + 1, R) with bin 0 for rows without a value; int64.

        Of `cell` (bins of il + 1, (bins of loss + 1), R), of `label` bin 0 is for none and bin n + 1 for label n, of
        `reason` (R,), of `samples` (1,), -1 where there may be too many to count.
        """
        with self._lock:
            keys = {}
            for chart, own in CHARTS.items():
                obeyed = tuple((name, filters[name]) for name in sorted(filters) if name not in own)
                drawn = tuple(axes.get(name) for name in (own if chart != "over_steps" else ("step",)))
                keys[chart] = (run, snapshot.version, chart, drawn, obeyed)
            missing = {chart: key[-1] for chart, key in keys.items() if key not in self._answers}
            for chart, counts in _counted(snapshot, axes, missing).items():
                self._answers[keys[chart]] = counts
            for key in keys.values():
                self._answers.move_to_end(key)
            while len(self._answers) > max(REMEMBERED, len(keys)):
                self._answers.popitem(last=False)
            return {chart: self._answers[key] for chart, key in keys.items()}


Obeyed = tuple[tuple[str, Any], ...]


def _counted(snapshot: Snapshot, axes: Axes, charts: Mapping[str, Obeyed]) -> dict[str, Array]:
    lengths = {chart: _shape(chart, snapshot, axes) for chart in charts}
    counts = {chart: np.zeros(shape, np.int64) for chart, shape in lengths.items()}
    together: dict[Obeyed, list[str]] = {}
    for chart, obeyed in charts.items():
        together.setdefault(obeyed, []).append(chart)
    offsets = np.concatenate([[0], np.cumsum(snapshot.sizes)])
    seen = np.zeros(int(offsets[-1]) if "samples" in charts and offsets[-1] <= MOST_SAMPLES else 0, np.uint8)
    for block, rows in snapshot.blocks:
        masks = {one: mask_of(block, rows, *one) for obeyed in together for one in obeyed}
        for obeyed, names in together.items():
            chosen = _chosen([masks[one] for one in obeyed], rows)
            for chart in names:
                if chart != "samples":
                    codes = _codes(chart, block, rows, chosen, axes)
                    flat = counts[chart].reshape(-1)
                    flat += np.bincount(codes, minlength=len(flat))
                elif len(seen):
                    places = offsets[block.columns["shard"][:rows][chosen]]
                    seen[places + block.columns["ordinal"][:rows][chosen]] = 1
    if "samples" in charts:
        counts["samples"][0] = np.count_nonzero(seen) if offsets[-1] <= MOST_SAMPLES else -1
    return counts


def _chosen(masks: Sequence[Array], rows: int) -> Any:
    """What takes the rows that all masks let through out of a column: their places, or all of it."""
    if not masks:
        return slice(None)
    every = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
    places = np.flatnonzero(every)
    return slice(None) if len(places) == rows else places


def _shape(chart: str, snapshot: Snapshot, axes: Axes) -> tuple[int, ...]:
    if chart == "samples":
        return (1,)
    if chart == "reason":
        return (R,)
    if chart == "label":
        return (min(snapshot.labels, MOST_LABELS) + 1, R)
    if chart == "cell":
        return (axes["il"].bins + 1, axes["loss"].bins + 1, R)
    return (axes["step" if chart == "over_steps" else chart].bins + 1, R)


def _codes(chart: str, block: Block, rows: int, chosen: Any, axes: Axes) -> Array:
    """Where a chart counts each of the chosen rows: bin * R + reason."""
    codes: Array
    if chart in VALUES:
        codes = value_codes(block, rows, chart, axes)[chosen]
        return codes
    if chart == "cell":
        codes = (value_codes(block, rows, "il", axes)[chosen] >> 4).astype(np.int32)  # R is 1 << 4
        codes *= (axes["loss"].bins + 1) * R
        codes += value_codes(block, rows, "loss", axes)[chosen]
        return codes
    reason: Array = block.columns["reason"][:rows][chosen]
    if chart == "reason":
        return reason
    if chart == "label":
        codes = np.minimum(block.columns["label"][:rows][chosen], MOST_LABELS - 1)
    else:
        codes = block.columns["step"][:rows][chosen] >> (int(axes["step"].width).bit_length() - 1)
    codes += 1
    codes *= R
    codes += reason
    return codes


def value_codes(block: Block, rows: int, name: str, axes: Axes) -> Array:
    """(rows,) uint16 codes of il, loss or score; made once for each axis, and kept with the block."""
    axis = axes[name]
    made_of, done, codes = block.coded.get(name, (None, 0, np.zeros(0, np.uint16)))
    if made_of != axis:
        done = 0
    if done < rows:
        if len(codes) < rows:
            codes = np.concatenate([codes[:done], np.empty(len(block.columns[name]) - done, np.uint16)])
        bins = (block.columns[name][done:rows].astype(np.float64) - axis.low) / axis.width
        np.floor(bins, out=bins)
        np.clip(bins, 0, axis.bins - 1, out=bins)
        bins += 1
        np.copyto(bins, 0, where=np.isnan(bins))
        codes[done:rows] = bins
        codes[done:rows] *= R
        codes[done:rows] += block.columns["reason"][done:rows]
        block.coded[name] = (axis, rows, codes)
    coded: Array = codes[:rows]
    return coded
