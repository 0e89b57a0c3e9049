"""The tables that a results page opens with, of one experiment's results file: who is ahead at the same total cost.

    <!-- made: opening pretrained; uniform; rho 10 % -->   accuracy at the same total cost; these arms, or all
    <!-- made: brief pretrained; uniform; rho 10 % -->     the same of one world, when all is spent
    <!-- made: verdict pretrained -->       the same in words
    <!-- made: break-even pretrained -->    from which IL model, target or number of runs on selection would pay

Everything here is read against one arm, "everything", which trains on all that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.reproduce.break_even import BreakEven, break_even
from jobs.reproduce.compare import EQUAL
from jobs.reproduce.measure import IL_ACCURACY, SAYS, Curve
from jobs.reproduce.statistics import Paired, paired

Row = Mapping[str, Any]
Table = tuple[str, list[str], list[list[str]]]
BASELINE = "everything"
SHARES = (1 / 3, 2 / 3, 1.0)  # of the total cost, where curves are read


def curves_of(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, Curve]]]:
    """World -> arm -> seed -> its curve, of the evaluations in a results file."""
    points: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["kind"] == "evaluation" and row["test_accuracy"] is not None and row["forward_units"] is not None:
            points.setdefault((row["world"], row["arm"], row["seed"]), []).append(row)
    found: dict[str, dict[str, dict[int, Curve]]] = {}
    for (world, arm, seed), mine in points.items():
        mine.sort(key=lambda row: row["step"])
        curve = Curve(
            steps=[row["step"] for row in mine], accuracy=[row["test_accuracy"] for row in mine],
            loss=[row["test_loss"] for row in mine], worst=[row["worst_class_accuracy"] for row in mine],
            units=[row["forward_units"] for row in mine], il_units=float(mine[-1]["il_units"] or 0.0),
            seconds=math.nan, shares={}, by_pass={})  # fmt: skip
        found.setdefault(world, {}).setdefault(arm, {})[seed] = curve
    return found


@dataclass(frozen=True)
class Reading:
    """An arm's mean accuracy when so much is spent, its IL model included, and the paired difference to the baseline.

    `state` is "" or why there is none: "ended", "not begun". `difference`: None for the baseline itself.
    """

    units: float
    state: str
    accuracy: float = math.nan
    difference: Paired | None = None

    @property
    def says(self) -> str:
        """ahead, behind, or undecided, by the interval; of one seed undecided."""
        if self.difference is None or not math.isfinite(self.difference.low):
            return "undecided"
        return "ahead" if self.difference.low > 0 else "behind" if self.difference.high < 0 else "undecided"


def readings(arms: Mapping[str, Mapping[int, Curve]]) -> dict[str, list[Reading]]:
    """Arm -> its readings at `SHARES` of the largest total of a run and its IL model that the baseline's lasts for.

    Between two evaluations a curve is taken to rise evenly.
    """
    base = arms.get(BASELINE, {})
    lasts = min((curve.units[-1] for curve in base.values()), default=math.inf)
    totals = [min(c.units[-1] + c.il_units for c in seeds.values()) for arm, seeds in arms.items() if arm != BASELINE]
    most = max((total for total in totals if total <= lasts), default=lasts)
    read = [float(round(most * share, -3)) if share < 1 else most for share in SHARES]
    return {arm: [_reading(seeds, {} if arm == BASELINE else base, units) for units in read]
            for arm, seeds in arms.items()}  # fmt: skip


def _reading(seeds: Mapping[int, Curve], base: Mapping[int, Curve], units: float) -> Reading:
    mine = {seed: accuracy_after(curve, units - curve.il_units) for seed, curve in seeds.items()}
    if any(map(math.isnan, mine.values())):
        over = all(curve.units[-1] + curve.il_units < units for curve in seeds.values())
        return Reading(units, "ended" if over else "not begun")
    both = [seed for seed in mine if seed in base]
    pair = paired([mine[s] for s in both], [accuracy_after(base[s], units) for s in both]) if both else None
    return Reading(units, "", _mean(list(mine.values())), pair)


def opening_tables(rows: Sequence[Row], only: Sequence[str] = ()) -> list[Table]:
    """(world, head, lines): what every arm has after a third, two thirds and all of a total cost, its IL included.

    The last two columns are of the arm at its own end, the IL not charged (means of five evaluations). `only`: these
    arms.
    """
    tables = []
    for world, arms in curves_of(rows).items():
        read = readings(arms)
        lines = []
        for arm, seeds in arms.items():
            if only and arm not in only:
                continue
            il = _mean([curve.il_units for curve in seeds.values()])
            end = f"{100 * _mean([curve.final for curve in seeds.values()]):.1f} %"
            free = _difference(_found(rows, world, arm, EQUAL[False], BASELINE))
            lines.append([arm, str(len(seeds)), _right(rows, world, arm) if il else "none", f"{il:,.0f}",
                          *map(_cell, read[arm]), end, free])  # fmt: skip
        head = ["arm", "seeds", "its IL model's accuracy", "IL's units"]
        head += [f"after {one.units:,.0f} units, IL included" for one in next(iter(read.values()))]
        tables.append((world, [*head, "at its end", f"against {BASELINE}, IL free"], lines))
    return tables


def brief_table(rows: Sequence[Row], only: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(head, lines) of the first world: these arms when all is spent, IL included; one that ended before: its end."""
    world, arms = next(iter(curves_of(rows).items()))
    read, lines = readings(arms), []
    for arm in (name for name in only if name in arms):
        last, seeds = read[arm][-1], arms[arm].values()
        end = f"{100 * _mean([c.final for c in seeds]):.1f} %, at {_mean([c.units[-1] for c in seeds]):,.0f}"
        il = _right(rows, world, arm) if any(curve.il_units for curve in seeds) else "none"
        lines.append([arm, il, end if last.state else _cell(last)])
    return ["arm", "IL model's", f"after {next(iter(read.values()))[-1].units:,.0f} units"], lines


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the opening table says, a paragraph a world: who is ahead of the baseline, behind it, or undecided."""
    parts = []
    for world, arms in curves_of(rows).items():
        read = readings(arms)
        counts = sorted({len(seeds) for seeds in arms.values()})
        seeds = f"{counts[0]} to {counts[-1]} seeds an arm so far" if len(counts) > 1 else f"{counts[0]} seeds an arm"
        words = [f"**{world}**, {seeds}."]
        il = next((right for arm in arms if (right := _right(rows, world, arm)) != "-"), None)
        if BASELINE in arms and il is not None:
            above = 100 * _mean([curve.final for curve in arms[BASELINE].values()]) - float(il.rstrip(" %"))
            words.append(f"The target, trained on everything, ends {above:.1f} points above its IL model ({il}).")
        for at, one in enumerate(read.get(BASELINE, [])):
            said = f"After {one.units:,.0f} units, IL models included, {BASELINE} has {100 * one.accuracy:.1f} %."
            for how in ("ahead", "behind", "undecided"):
                names = [f"{arm} ({_gap(mine[at])})" for arm, mine in read.items()
                         if mine[at].difference is not None and mine[at].says == how]  # fmt: skip
                said += f" {how.capitalize()}: {', '.join(names) or 'none'}."
            words.append(said)
        parts.append(" ".join(words))
    return parts


def _cell(one: Reading) -> str:
    if one.state:
        return one.state
    return f"{100 * one.accuracy:.1f} %" + (f"; {_gap(one)}" if one.difference is not None else "")


def _gap(one: Reading) -> str:
    assert one.difference is not None
    return _points(one.difference.mean, one.difference.low, one.difference.high)


def _right(rows: Iterable[Row], world: str, arm: str) -> str:
    known = _found(rows, world, arm, SAYS[IL_ACCURACY])
    return "-" if known is None else f"{100 * known['middle']:.1f} %"


def accuracy_after(curve: Curve, units: float) -> float:
    """A run's accuracy when it has spent so much, between two evaluations evenly; NaN before the first and after all.

    Half the distance between two evaluations is allowed for behind the last: a batch is smaller where a buffer is.
    """
    last = curve.units[-1]
    slack = 0.5 * (last - curve.units[-2]) if len(curve.units) > 1 else 0.0
    if not curve.units[0] <= units <= last + slack:
        return math.nan
    return float(np.interp(units, curve.units, curve.accuracy))


def break_even_tables(rows: Sequence[Row]) -> list[Table]:
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
