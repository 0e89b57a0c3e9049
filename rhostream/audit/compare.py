"""Runs against uniform choice, training on everything, and a filter before uniform choice: who is measured by whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rhostream.audit.alike import OF_D, SHOWN, differing, says_difference, shown, unfair
from rhostream.audit.facts import RunFacts
from rhostream.audit.metrics import best, steps_to_reach
from rhostream.runs.cost import break_even

UNIFORM, EVERYTHING, FILTERED = "uniform", "everything", "filtered"
KINDS = (UNIFORM, EVERYTHING, FILTERED)
NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Comparison:
    """A run against a baseline: what each spent to reach the baseline's own best accuracy, of means over a window."""

    run: str
    baseline: str
    kind: str  # of KINDS
    target: float
    budget: int  # steps that the baseline had
    had: int  # steps that the run had
    baseline_steps: int
    baseline_units: float  # forward units; NaN where unknown
    steps: int | None  # None: not reached
    units: float
    even: float  # the break-even ratio of the run's sizes
    highest: float  # the run's own best, measured as the target
    last: float  # the run's last evaluation alone

    @property
    def speedup(self) -> float | None:
        """How many times fewer steps; None when the target was not reached."""
        return None if self.steps is None else self.baseline_steps / self.steps

    @property
    def saved(self) -> float:
        """Forward units saved; NaN where it isn't known or not reached."""
        return math.nan if self.steps is None else self.baseline_units - self.units


def grouped(facts: Iterable[RunFacts]) -> dict[str, list[RunFacts]]:
    """Runs that differ in their seed alone, together, under a name that tells the groups apart."""
    groups: list[list[RunFacts]] = []
    for run in facts:
        alike = (g for g in groups if "rule" in run.setting and not differing(g[0].setting, run.setting))
        if (group := next(alike, None)) is None:
            groups.append([run])
        else:
            group.append(run)
    named: dict[str, list[RunFacts]] = {}
    for runs in groups:
        twins = [g[0].setting for g in _called_alike(runs, groups) if g is not runs]
        names = sorted({name for other in twins for name in differing(runs[0].setting, other)})
        tells = [f", {n.replace('_', ' ')} {shown(runs[0].setting.get(n, 'not stated'))}" for n in names[:SHOWN]]
        name = _called(runs, groups) + "".join(tells)
        named[name if name not in named else f"{name} ({runs[0].name})"] = runs
    return named


def _called(runs: Sequence[RunFacts], groups: Sequence[Sequence[RunFacts]]) -> str:
    """What a group does, in words: the rule with its options; model and sizes where groups differ in them."""
    row, name = runs[0].row, runs[0].kind
    sizes = {g[0].row["buffer_size"] for g in groups if g[0].kind == name}
    name += f", {row['model']}" if len({g[0].row["model"] for g in groups}) > 1 else ""
    return name + (f", {row['batch_size']} of {row['buffer_size']}" if len(sizes) > 1 else "")


def _called_alike(runs: Sequence[RunFacts], groups: Sequence[list[RunFacts]]) -> list[list[RunFacts]]:
    return [g for g in groups if _called(g, groups) == _called(runs, groups)]


def not_compared(groups: Mapping[str, Sequence[RunFacts]], selected: Iterable[str]) -> list[str]:
    """In words: groups that look like seeds of one setting and are not, and baselines that a run isn't measured by.

    And groups that select from other samples, or are tested on others: their accuracies can't be set side by side at
    any cost. One sentence each, with the settings that differ and both values.
    """
    says, listed, selected = [], list(groups.values()), list(selected)
    for at, (name, runs) in enumerate(groups.items()):
        for other in list(groups)[:at]:
            theirs = groups[other]
            if _called(runs, listed) == _called(theirs, listed):
                says.append(
                    _apart("Not one setting", other, theirs, name, runs, differing(theirs[0].setting, runs[0].setting))
                )
    for at, name in enumerate(selected):
        says += [
            _apart("Not compared", name, groups[name], other, groups[other], names)
            for other, names in refused(groups, name).items()
        ]
        apart = {o: differing(groups[name][0].setting, groups[o][0].setting) for o in selected[:at]}
        says += [
            _apart("Not at equal cost", other, groups[other], name, groups[name], of_data)
            for other, names in apart.items()
            if (of_data := [one for one in names if one in OF_D])
        ]
    return says


def refused(groups: Mapping[str, Sequence[RunFacts]], name: str) -> dict[str, list[str]]:
    """The groups that a group that selects isn't measured by, and the settings in which they differ unfairly."""
    run = groups[name][0]
    found = {
        other: unfair(run.setting, theirs[0].setting, theirs[0].everything)
        for other, theirs in groups.items()
        if theirs[0].is_baseline and not run.is_baseline
    }
    return {other: names for other, names in found.items() if names}


def _apart(
    what: str, one: str, runs: Sequence[RunFacts], other: str, theirs: Sequence[RunFacts], names: Sequence[str]
) -> str:
    why = says_difference(runs[0].setting, theirs[0].setting, names) or "what they did is not stated"
    return f"{what}: {one} and {other} ({why})."


def compare(run: RunFacts, baseline: RunFacts, kind: str, window: int) -> Comparison | None:
    """None when one of them was never evaluated."""
    goal = best(baseline.curve.accuracy, window)
    own = steps_to_reach(baseline.curve.steps, baseline.curve.accuracy, goal, window)
    if own is None or not run.curve.steps:
        return None
    steps = steps_to_reach(run.curve.steps, run.curve.accuracy, goal, window)
    units = [curve.units_at(at) for curve, at in ((baseline.curve, own), (run.curve, steps))]
    baseline_units, run_units = (math.nan if u is None else u for u in units)
    return Comparison(run.name, baseline.name, kind, goal, baseline.curve.steps[-1], run.curve.steps[-1], own,
                      baseline_units, steps, run_units, even_of(run), best(run.curve.accuracy, window),
                      run.curve.accuracy[-1])  # fmt: skip


def even_of(run: RunFacts) -> float:
    """How many times fewer steps a run must need to pay for its forwards; NaN where run.json doesn't name the sizes.

    (n_B + 3 n_b) / (3 n_b); with a cascade what its steps did cost over the 3 n_b of a uniform step.
    """
    n_B, n_b, steps, units = (run.row[name] for name in ("buffer_size", "batch_size", "steps", "forward_units"))
    if not (n_B and n_b):
        return math.nan
    return float(units) / steps / (3 * n_b) if run.stages and steps and units else break_even(n_B, n_b)


def baseline_of(run: RunFacts, others: Iterable[RunFacts], kind: str) -> RunFacts | None:
    """A baseline that differs from the run in the rule alone, of the same seed if possible; None without one.

    One that trains on everything has a buffer of its own, and may have another batch size: units compare all the same.
    One that is filtered drops samples by a column of the table, such as the similarity of pairs, before it reads them.
    """
    fits = [
        other
        for other in others
        if other.rule == "uniform"
        and (other.filtered and not run.is_baseline if kind == FILTERED else other.everything == (kind == EVERYTHING))
        and not (kind == EVERYTHING and other.filtered)
        and other.name != run.name
        and "rule" in run.setting
        and not unfair(run.setting, other.setting, other.everything)
    ]
    # A uniform run with a keep-list, a band or a quota is a selection too: it stands in only where there is no other.
    return min(
        fits,
        key=lambda o: (bool(o.stages), [o.row[k] != run.row[k] for k in ("batch_size", "seed")], o.name),
        default=None,
    )


def pairs_of(mine: Sequence[RunFacts], others: Sequence[RunFacts], kind: str) -> list[tuple[RunFacts, RunFacts]]:
    """Each run of `mine` beside its baseline of that kind, where there is one."""
    pairs = [(run, baseline_of(run, others, kind)) for run in mine]
    return [(run, other) for run, other in pairs if other is not None]


def comparisons(mine: Sequence[RunFacts], others: Sequence[RunFacts], kind: str, window: int) -> list[Comparison]:
    """Each run of `mine` against its baseline of that kind, where there is one."""
    found = [compare(run, other, kind, window) for run, other in pairs_of(mine, others, kind)]
    return [c for c in found if c is not None]
