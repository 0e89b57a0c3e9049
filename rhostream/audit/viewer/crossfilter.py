"""How many rows fall into each bin of each chart, by reason, under the filters of all the *other* charts.

    an earlier answer + what differs from it      a range was drawn further: rows between its old ends and its new ones
                      + the rows that came since  a run that goes on
    or every selected row, where that is less

A count is what `GROUP BY` of the ledger gives, exactly: bounds are float32 as the columns are, both ends are in, and a
row without a finite value is in no range. Counting 10 million rows takes about 0.3 s of one core, so rows are counted
where they change a chart, and only there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rhostream.audit.viewer.axes import Axes
from rhostream.audit.viewer.filters import RANGES, SETS, Filters, places_of, selected
from rhostream.audit.viewer.rows import BLOCK, VALUES, Array, Block, Snapshot

R = 16  # places for reasons in a code: bin * R + reason
MOST_LABELS = 1 << 16  # labels from there on count as the last
REMEMBERED = 128  # answers of charts
BASES = 2  # earlier answers that a new one may be made of, the newest first
# Each chart, and the filters that are drawn in it: those it doesn't obey.
CHARTS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*RANGES, *SETS)},
    "cell": ("il", "loss"),  # loss x il
    "over_steps": (),  # steps again, of what is selected alone
}
Places = tuple[Block, int, int, Any]  # rows first to end of a block, and which of them
Differing = list[tuple[int, Places]]
Obeyed = tuple[tuple[str, Any], ...]  # (name, value) of filters, by name


class _Answer(NamedTuple):
    """Counts of the first `rows` rows."""

    rows: int
    counts: Array


class _Chart(NamedTuple):
    """What an answer is of, but for the filters."""

    run: int
    generation: int
    name: str
    drawn: Any  # the axes; of steps the width alone, since bins are only added


class Counter:
    """Counts, and remembers the newest answers. One thread at a time counts."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[_Chart, Obeyed], _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def counts(self, run: int, snapshot: Snapshot, axes: Axes, filters: Filters) -> dict[str, Array]:
        """Counts by chart for the rows of a run, (bins + 1, R) with bin 0 for rows without a value; int64.

        Of `cell` (bins of il + 1, bins of loss + 1, R), of `label` bin 0 is for none and bin n + 1 for label n, of
        `reason` (R,).
        """
        with self._lock:
            together: dict[Obeyed, list[_Chart]] = {}
            for name, own in CHARTS.items():
                obeyed = tuple((filter_, filters[filter_]) for filter_ in sorted(filters) if filter_ not in own)
                together.setdefault(obeyed, []).append(_Chart(run, snapshot.generation, name, _drawn(name, axes)))
            found: dict[str, Array] = {}
            for obeyed, charts in together.items():
                counted, derived = _split([chart.name for chart in charts])
                mine = {chart.name: chart for chart in charts}
                counts = self._counted([mine[name] for name in counted], obeyed, snapshot, axes)
                found |= counts | {name: make(counts) for name, make in derived.items()}
            while len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
            return found

    def _counted(self, charts: Sequence[_Chart], obeyed: Obeyed, snapshot: Snapshot, axes: Axes) -> dict[str, Array]:
        counts = {chart.name: np.zeros(_shape(chart.name, snapshot, axes), np.int64) for chart in charts}
        base, done, differing = self._base(charts, obeyed, snapshot)
        if base is not None:
            for chart in charts:
                old = self._answers[chart, base].counts
                counts[chart.name][tuple(slice(n) for n in old.shape)] = old
        for sign, places in differing:
            _add(counts, sign, places, axes)
        for block, first, end in _blocks(snapshot, done, snapshot.rows):
            _add(counts, 1, (block, first, end, places_of(block, first, end, obeyed)), axes)
        for chart in charts:
            self._answers[chart, obeyed] = _Answer(snapshot.rows, counts[chart.name])
            self._answers.move_to_end((chart, obeyed))
        return counts

    def _base(self, charts: Sequence[_Chart], obeyed: Obeyed, snapshot: Snapshot) -> tuple[Any, int, Differing]:
        """The earlier answers to begin with: their filters, of how many rows they are, and what differs among these.

        None where there is none from which less differs than is selected.
        """
        bases = list[tuple[Obeyed, int]]()
        for chart, other in reversed(self._answers):
            if chart == charts[0] and all((each, other) in self._answers for each in charts):
                rows = {self._answers[each, other].rows for each in charts}
                if len(rows) == 1 and max(rows) <= snapshot.rows:
                    if other == obeyed:
                        return other, rows.pop(), []
                    if _is_one_range_apart(dict(other), dict(obeyed)):
                        bases.append((other, rows.pop()))
        best: tuple[Any, int, Differing] = (None, 0, [])
        least = _rows_of(snapshot, obeyed) if bases else 0
        for other, done in bases[:BASES]:
            differing = [*_differing(snapshot, done, dict(other), dict(obeyed))]
            cost = sum(len(places[3]) for _, places in differing) + snapshot.rows - done
            if cost < least:
                least, best = cost, (other, done, differing)
        return best


def _drawn(chart: str, axes: Axes) -> Any:
    if chart in ("step", "over_steps"):
        return axes["step"].width
    return tuple(axes[name] for name in CHARTS[chart] if name in VALUES)


def _split(names: Sequence[str]) -> tuple[list[str], dict[str, Callable[[Mapping[str, Array]], Array]]]:
    """Of charts under the same filters, those that must be counted, and how the others are sums of these."""
    derived: dict[str, Callable[[Mapping[str, Array]], Array]] = {}
    if "cell" in names:
        derived |= {"il": lambda counts: counts["cell"].sum(1), "loss": lambda counts: counts["cell"].sum(0)}
    if "step" in names:
        derived["over_steps"] = lambda counts: counts["step"]
    whole = next((name for name in ("step", "score", "over_steps", "label") if name in names), None)
    if whole is not None:
        derived["reason"] = lambda counts: counts[whole].sum(0)
    derived = {name: make for name, make in derived.items() if name in names}
    return [name for name in names if name not in derived], derived


def _is_one_range_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    apart = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return len(apart) == 1 and apart[0] in RANGES


def _differing(
    snapshot: Snapshot, rows: int, before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[int, Places]]:
    """Of the first rows those that only one of two selections holds, which are one range apart: 1 with those that came,
    -1 with those that went."""
    (name,) = (name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    others = tuple((other, value) for other, value in now.items() if other != name)
    for block, first, end in _blocks(snapshot, 0, rows):
        held = [selected(block, first, end, [(name, each[name])] if name in each else []) for each in (before, now)]
        came, went = held[1] & ~held[0], held[0] & ~held[1]
        for sign, mask in ((1, came), (-1, went)):
            if not mask.any():
                continue
            places = np.flatnonzero(mask & selected(block, first, end, others))
            if len(places):
                yield sign, (block, first, end, places)


def _blocks(snapshot: Snapshot, start: int, stop: int) -> Iterator[tuple[Block, int, int]]:
    """The blocks of rows `start` to `stop`, and which rows of each these are."""
    for number, (block, _) in enumerate(snapshot.blocks):
        first, end = max(start - number * BLOCK, 0), min(stop - number * BLOCK, BLOCK)
        if first < end:
            yield block, first, end


def _rows_of(snapshot: Snapshot, obeyed: Obeyed) -> int:
    """How many rows are selected."""
    if not obeyed:
        return snapshot.rows
    blocks = _blocks(snapshot, 0, snapshot.rows)
    return sum(int(np.count_nonzero(selected(block, first, end, obeyed))) for block, first, end in blocks)


def _add(counts: Mapping[str, Array], sign: int, places: Places, axes: Axes) -> None:
    for chart, each in counts.items():
        flat = each.reshape(-1)
        more = np.bincount(_codes(chart, *places, axes), minlength=len(flat))
        if sign > 0:
            flat += more
        else:
            flat -= more


def _shape(chart: str, snapshot: Snapshot, axes: Axes) -> tuple[int, ...]:
    if chart == "reason":
        return (R,)
    if chart == "label":
        return (min(snapshot.labels, MOST_LABELS) + 1, R)
    if chart == "cell":
        return (axes["il"].bins + 1, axes["loss"].bins + 1, R)
    return (axes["step" if chart == "over_steps" else chart].bins + 1, R)


def _codes(chart: str, block: Block, first: int, end: int, chosen: Any, axes: Axes) -> Array:
    """Where a chart counts each of the chosen rows: bin * R + reason."""
    codes: Array
    if chart in VALUES:
        codes = value_codes(block, end, chart, axes)[first:end][chosen]
        return codes
    if chart == "cell":
        codes = (value_codes(block, end, "il", axes)[first:end][chosen] >> 4).astype(np.int32)  # R is 1 << 4
        codes *= (axes["loss"].bins + 1) * R
        codes += value_codes(block, end, "loss", axes)[first:end][chosen]
        return codes
    reason: Array = block.columns["reason"][first:end][chosen]
    if chart == "reason":
        return reason
    if chart == "label":
        codes = np.minimum(block.columns["label"][first:end][chosen], MOST_LABELS - 1)
    else:
        codes = block.columns["step"][first:end][chosen] >> (int(axes["step"].width).bit_length() - 1)
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
