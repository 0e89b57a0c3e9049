"""Equal cost, as tables: accuracy against forward units, the IL on the bill or not, and whether one regrets it.

Made of the rows of a results file alone. A point of a curve is its mean over the stretch of a fifth of the budget that
ends there, the same for every arm however often that was evaluated; with the IL on the bill a curve begins after its IL
model was paid. Differences are paired, seed by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.reproduce.compare import EQUAL
from jobs.reproduce.equal_cost import BASELINES, EXPERIMENT, GUARDED, TUNED
from jobs.reproduce.measure import IL_ACCURACY, SAYS, WINDOW, Curve
from jobs.reproduce.opening import curves_of
from jobs.reproduce.published import Row, comparison_of, require_shared
from jobs.reproduce.statistics import interval

STRETCH = 0.2  # of a budget, over which a point of a curve is a mean
REGRET = -0.02  # a run with selection may end so far below a baseline
SEEDS = 3
POINTS_OF = (1 / 3, 2 / 3, 1.0)  # of rho's budget, where the curves are read
RATIO = "rho, 10 %"  # whose budget the world's is
BILLS = {False: "IL free", True: "IL charged"}
YES, MEAN, NO = "yes", "in the mean", "no"
LONGER = ("uniform, longer", "everything")  # how arms that train on all that they read are called elsewhere


def after(curve: Curve, units: float, stretch: float, charged: bool) -> float:
    """The mean accuracy over the last `stretch` units of those that pay, the IL model's among them where it is charged.

    NaN before the first evaluation and where the run ends before. Between two evaluations a curve is taken to rise
    evenly.
    """
    own = units - (curve.il_units if charged else 0.0)
    if own + 1e-6 < curve.units[0] or curve.units[-1] + curve.units[0] <= own:
        return math.nan
    points = np.linspace(max(own - stretch, curve.units[0]), own, WINDOW)
    return float(np.interp(points, curve.units, curve.accuracy).mean())


def budget_of(arms: Mapping[str, Mapping[int, Curve]]) -> float:
    """Where rho's budget ends, in units without its IL model; where it wasn't run, the least end of the others."""
    of = arms.get(RATIO) or arms[min(arms, key=lambda arm: min(run.units[-1] for run in arms[arm].values()))]
    return float(min(run.units[-1] for run in of.values()))


def cost_tables(rows: Sequence[Row]) -> list[str]:
    """A table a world: every arm after a third, two thirds and all of rho's budget, IL free and charged.

    Raises MismatchError where an arm doesn't share D and the test set with the world's first.
    """
    known, parts = curves_of(rows), []
    right = _il_accuracy(rows)
    for world, arms in known.items():
        first = next(iter(arms))
        for arm in arms:
            require_shared(rows, (world, arm), (world, first))
        budget = budget_of(arms)
        told = [budget * share for share in POINTS_OF]
        head = ["arm", "IL model on the test set", "units of the IL"]
        head += [f"{units:,.0f} units, {bill}" for units in told for bill in BILLS.values()]
        lines = []
        for arm, seeds in arms.items():
            il = max(run.il_units for run in seeds.values())
            line = [arm, right.get((world, arm), "not known" if il else "none"), f"{il:,.0f}" if il else "0"]
            for units in told:
                line += [_mean([after(run, units, STRETCH * budget, charged) for run in seeds.values()],
                               began=not charged or units > il) for charged in BILLS]  # fmt: skip
            lines.append(line)
        parts += [f"### {world}, {_seeds(arms)}", _table(head, lines), _best(arms, budget)]
    return parts


def _best(arms: Mapping[str, Mapping[int, Curve]], budget: float) -> str:
    """The share kept that ended highest, chosen after the fact: an upper bound of what choosing it can give."""
    ratios = {arm: seeds for arm, seeds in arms.items() if arm.startswith("rho, ")}
    if not ratios:
        return ""
    told = []
    for charged, bill in BILLS.items():
        means = {arm: _of([after(run, budget, STRETCH * budget, charged) for run in seeds.values()])
                 for arm, seeds in ratios.items()}  # fmt: skip
        known = {arm: mean for arm, mean in means.items() if not math.isnan(mean)}
        best = max(known, key=lambda arm: known[arm], default="")
        told.append(f"{bill}: {best}, {100 * known[best]:.1f} %" if best else f"{bill}: none spends so much")
    return f"rho at its best share (chosen on these very runs): {'; '.join(told)}."


@dataclass(frozen=True)
class Regret:
    """An arm at its own end against one baseline that has spent as much, seed by seed."""

    world: str
    arm: str
    baseline: str  # of BASELINES
    charged: bool
    values: tuple[float, ...]  # differences of the seeds
    difference: float
    low: float  # NaN for one seed
    high: float

    @property
    def holds(self) -> str:
        """Whether it ends at most 2 points below: "yes" by the interval, "in the mean" by the mean alone, or "no"."""
        if self.difference < REGRET:
            return NO
        if len(self.values) < SEEDS:
            return f"{len(self.values)} of {SEEDS} seeds"
        return YES if self.low >= REGRET else MEAN


def regrets(rows: Sequence[Row]) -> list[Regret]:
    """Every comparison at equal units of an arm that chooses by rho; of the experiment `equal_cost` of `GUARDED` alone.

    Raises MismatchError where the two don't share D and the test set.
    """
    found = []
    rules = {(row["world"], row["arm"]): json.loads(row["settings"])["train"]["rule"] for row in rows
             if row["kind"] == "setting" and row["settings"]}  # fmt: skip
    for row in rows:
        place = (row["world"], row["arm"])
        baseline = _baseline(row["baseline"]) if row["kind"] == "comparison" else None
        charged = next((charged for charged, metric in EQUAL.items() if row["metric"] == metric), None)
        if baseline is None or charged is None or rules.get(place) != "rho":
            continue
        if row["experiment"] == EXPERIMENT.name and row["arm"] not in GUARDED:
            continue
        pair = comparison_of(row).difference
        if pair is None:
            continue
        require_shared(rows, place, (row["world"], row["baseline"]))
        found.append(Regret(*place, baseline, charged, pair.values, pair.mean, pair.low, pair.high))
    return found


def _baseline(name: str | None) -> str | None:
    if name is not None and name.startswith(LONGER):
        return BASELINES[1]
    return name if name in BASELINES else None


Settings = dict[tuple[str, str, str], list[Regret]]  # (experiment, world, arm) -> its comparisons


def _settings(by_experiment: Mapping[str, Sequence[Row]]) -> Settings:
    """Each arm's comparisons; a run that several experiments share stands once, with the first."""
    found, seen = Settings(), set[tuple[object, ...]]()
    for name, rows in by_experiment.items():
        mine: Settings = {}
        for one in regrets(rows):
            mine.setdefault((name, one.world, one.arm), []).append(one)
        for place, told in mine.items():
            if (what := (place[1], *(one.values for one in told))) not in seen:
                seen.add(what)
                found[place] = told
    return found


def _counts(found: Settings, bold: str = "") -> str:
    words = [verdict_of(mine) for mine in found.values()]
    told = [f"{bold}{sum(one.startswith(word) for one in words)} {says}{bold}" for word, says in (
        (YES, "hold by the interval"), (MEAN, "in the mean"), (f"**{NO}**", "fail"))]  # fmt: skip
    return f"Of {len(found)} settings {', '.join(told)}"


def regret_in_short(by_experiment: Mapping[str, Sequence[Row]]) -> str:
    """The no-regret table in a paragraph: how many settings hold, and what the guarded arms do in which worlds."""
    found = _settings(by_experiment)
    told = [_counts(found, "**") + "."]
    for arm in GUARDED:
        words: dict[str, list[str]] = {}
        for (experiment, world, name), mine in found.items():
            if experiment == EXPERIMENT.name and name == arm:
                tuned = " (tuned on it)" if arm == "auto" and world in TUNED else ""
                said = verdict_of(mine).replace("**", "")  # against which baseline it fails stands in the table
                words.setdefault(NO if said.startswith(f"{NO}:") else said, []).append(world + tuned)
        if words:
            each = [f"{said}: {', '.join(of)}" for said, of in words.items()]
            told.append(f"- {arm}, with a cheap IL model: {'; '.join(each)}.")
    return "\n".join([told[0], "", *told[1:]]) if told[1:] else told[0]


def regret_table(by_experiment: Mapping[str, Sequence[Row]]) -> str:
    """The no-regret table: a line a world and arm, against both baselines and with both bills; the worst decides."""
    found, lines = _settings(by_experiment), []
    known = {name: (_il_models(rows), _il_accuracy(rows), curves_of(rows)) for name, rows in by_experiment.items()}
    for (name, world, arm), mine in found.items():
        made, right, runs = known[name]
        cells = []
        for baseline in BASELINES:
            for charged in BILLS:
                of = [one for one in mine if one.baseline == baseline and one.charged == charged]
                cells.append(_points(of[0]) if of else "-")
        spent = next(iter(runs[world][arm].values()))
        cost = f"{made.get((world, arm), '')}, {right.get((world, arm), 'not known')}"
        lines.append([world, "yes" if arm == "auto" and world in TUNED else "", arm, cost,
                      f"{spent.il_units / spent.units[-1]:.2f}x", *cells, verdict_of(mine), name])  # fmt: skip
    head = ["world", "tuned on", "arm", "IL model, on the test set", "its cost"]
    head += [f"{baseline}, {bill}" for baseline in BASELINES for bill in BILLS.values()]
    return f"{_counts(found)}.\n\n{_table([*head, 'at most 2 points below', 'record'], lines)}"


def verdict_of(mine: Sequence[Regret]) -> str:
    """The worst of an arm's comparisons in a world, and which ones fail."""
    told = [one.holds for one in mine]
    if NO in told:
        which = [f"{one.baseline}, {BILLS[one.charged]}" for one in mine if one.holds == NO]
        few = min(len(one.values) for one in mine)
        return f"**{NO}**: {'; '.join(which)}" + (f" ({few} of {SEEDS} seeds)" if few < SEEDS else "")
    short = [words for words in told if words not in (MEAN, YES)]
    said = short[0] if short else MEAN if MEAN in told else YES
    return said if any(one.charged for one in mine) else f"{said}, as far as it is known: {BILLS[False]}"


def _points(one: Regret) -> str:
    told = f"{100 * one.difference:+.1f}"
    return told if math.isnan(one.low) else f"{told} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _il_models(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(world, arm) -> its IL model and for how long it was fitted."""
    fits = {(row["world"], row["arm"]): json.loads(row["settings"])["il"] for row in rows
            if row["kind"] == "setting" and row["settings"]}  # fmt: skip
    return {place: f"{fit['model']}" + (f", {fit['epochs']} epoch{'' if fit['epochs'] == 1 else 's'}"
                                        if "epochs" in fit else "") for place, fit in fits.items()}  # fmt: skip


def _il_accuracy(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(world, arm) -> how right its IL model is on the test set."""
    return {(row["world"], row["arm"]): f"{100 * row['middle']:.1f} %" for row in rows
            if row["kind"] == "comparison" and row["metric"] == SAYS[IL_ACCURACY] and row["middle"] is not None
            }  # fmt: skip


def _seeds(arms: Mapping[str, Mapping[int, Curve]]) -> str:
    least, most = (f(len(seeds) for seeds in arms.values()) for f in (min, max))
    return f"{most} seed{'' if most == 1 else 's'}" if least == most else f"{least} to {most} seeds"


def _of(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if len(known) == len(values) and known else math.nan


def _mean(values: Sequence[float], began: bool = True) -> str:
    centre = _of(values)
    if math.isnan(centre):
        return "ends before" if began else "not begun"
    _, low, high = interval(values)
    return f"{100 * centre:.1f}" if math.isnan(low) else f"{100 * centre:.1f} ± {100 * (high - centre):.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
