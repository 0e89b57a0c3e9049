"""The tables that a results page opens with, of one experiment's results file: who is ahead at the same total cost.

    <!-- made: opening pretrained -->       accuracy, its IL model's, what both cost, the baseline for as much
    <!-- made: break-even pretrained -->    from which IL model, target or number of runs on selection would pay

Everything here is read against one arm, "everything", which trains on all that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.reproduce.break_even import BreakEven, break_even
from jobs.reproduce.compare import EQUAL
from jobs.reproduce.measure import IL_ACCURACY, SAYS, Curve
from jobs.reproduce.statistics import paired

Row = Mapping[str, Any]
BASELINE = "everything"
SHARES = (1 / 3, 2 / 3, 1.0)  # of the total cost, where curves are read


def curves_of(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, Curve]]]:
    """World -> arm -> seed -> its curve, of the evaluations in a results file."""
    points: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["kind"] == "evaluation" and row["forward_units"] is not None:
            points.setdefault((row["world"], row["arm"], row["seed"]), []).append(row)
    found: dict[str, dict[str, dict[int, Curve]]] = {}
    for (world, arm, seed), mine in points.items():
        mine.sort(key=lambda row: row["step"])
        step, accuracy, loss, worst, units = (
            [row[name] for row in mine]
            for name in ("step", "test_accuracy", "test_loss", "worst_class_accuracy", "forward_units")
        )
        curve = Curve(step, accuracy, loss, worst, units, il_units=float(mine[-1]["il_units"] or 0.0),
                      seconds=math.nan, shares={}, by_pass={})  # fmt: skip
        found.setdefault(world, {}).setdefault(arm, {})[seed] = curve
    return found


def opening_tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(world, head, lines): what every arm has after a third, two thirds and all of a total cost, its IL included.

    All of it is the dearest run with its IL model that the baseline's lasts for. Between two evaluations a curve is
    taken to rise evenly; the difference is to the baseline at the same total, paired. The last column is of the arm at
    its own end, IL not charged (means of five evaluations).
    """
    tables = []
    for world, arms in curves_of(rows).items():
        base = arms.get(BASELINE, {})
        lasts = min((curve.units[-1] for curve in base.values()), default=math.inf)
        totals = [
            min(c.units[-1] + c.il_units for c in seeds.values()) for arm, seeds in arms.items() if arm != BASELINE
        ]
        most = max((total for total in totals if total <= lasts), default=lasts)
        read = [round(most * share, -3) if share < 1 else most for share in SHARES]
        lines = []
        for arm, seeds in arms.items():
            il = _mean([curve.il_units for curve in seeds.values()])
            known = _found(rows, world, arm, SAYS[IL_ACCURACY])
            line = [arm, "none" if not il else "-" if known is None else f"{100 * known['middle']:.1f} %", f"{il:,.0f}"]
            for units in read:
                line.append(_at_total(seeds, {} if arm == BASELINE else base, units))
            free = _found(rows, world, arm, EQUAL[False], BASELINE)
            end = f"{100 * _mean([curve.final for curve in seeds.values()]):.1f} %"
            lines.append([*line, end, _difference(free)])
        head = ["arm", "its IL model's accuracy", "IL's units"]
        head += [f"after {units:,.0f} units, IL included" for units in read]
        head += ["at its end", f"against {BASELINE}, IL free"]
        tables.append((world, head, lines))
    return tables


def _at_total(seeds: Mapping[int, Curve], base: Mapping[int, Curve], units: float) -> str:
    """An arm's accuracy when so much is spent, IL included, and the paired difference to the baseline's."""
    mine = {seed: accuracy_after(curve, units - curve.il_units) for seed, curve in seeds.items()}
    if any(map(math.isnan, mine.values())):
        return "ended" if all(c.units[-1] + c.il_units < units for c in seeds.values()) else "not begun"
    told = f"{100 * _mean(list(mine.values())):.1f} %"
    both = [seed for seed in mine if seed in base]
    pair = paired([mine[s] for s in both], [accuracy_after(base[s], units) for s in both])
    return f"{told}; {_points(pair.mean, pair.low, pair.high)}" if both and math.isfinite(pair.mean) else told


def accuracy_after(curve: Curve, units: float) -> float:
    """A run's accuracy when it has spent so much, between two evaluations evenly; NaN before the first and after all.

    Half the distance between two evaluations is allowed for behind the last: a batch is smaller where a buffer is.
    """
    last = curve.units[-1]
    slack = 0.5 * (last - curve.units[-2]) if len(curve.units) > 1 else 0.0
    if not curve.units[0] <= units <= last + slack:
        return math.nan
    return float(np.interp(units, curve.units, curve.accuracy))


def break_even_tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(world, head, lines): every arm with an IL model, and where it would begin to pay against the baseline."""
    tables = []
    for world, arms in curves_of(rows).items():
        lines = []
        for arm, seeds in arms.items():
            found = break_even(seeds, arms.get(BASELINE, {}))
            if arm != BASELINE and found is not None and found.il:
                lines.append([arm, f"{found.spent:,.0f}", f"{found.il:,.0f}", *_told(found, arms[BASELINE])])
        head = ["arm", "units it spent", "its IL model's", f"units of {BASELINE} to its accuracy"]
        head += ["an IL model may cost", "target larger by", "runs that share the IL"]
        tables.append((world, head, lines))
    return tables


def _told(found: BreakEven, baseline: Mapping[int, Curve]) -> list[str]:
    if math.isinf(found.needed):
        within = min(curve.units[-1] for curve in baseline.values())
        return [
            f"more than {within:,.0f}",
            f"at least {(within - found.spent) / found.spent:.0%} of the run",
            "1x",
            "1",
        ]
    if found.times_larger is None or found.runs is None:
        return [f"{found.needed:,.0f}", "nothing", "none is large enough", "no number"]
    return [f"{found.needed:,.0f}", f"{found.il_may_cost:.0%} of the run", f"{max(1.0, found.times_larger):.2g}x",
            str(found.runs)]  # fmt: skip


def _found(rows: Iterable[Row], world: str, arm: str, metric: str, baseline: str | None = None) -> Row | None:
    return next((row for row in rows if row["kind"] == "comparison" and row["world"] == world and row["arm"] == arm
                 and row["metric"] == metric and baseline in (None, row["baseline"]) and row["middle"] is not None),
                None)  # fmt: skip


def _difference(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return ""
    return _points(row["difference"], *(math.nan if row[side] is None else row[side] for side in ("low", "high")))


def _points(mean: float, low: float, high: float) -> str:
    told = f"{100 * mean:+.1f}"
    return f"{told} ({100 * low:+.1f} to {100 * high:+.1f})" if math.isfinite(low) else told


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
