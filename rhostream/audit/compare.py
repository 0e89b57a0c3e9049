"""Did selection pay? Runs against uniform choice and against training on everything: pure figures and plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rhostream.audit.alike import SHOWN, differing, says_difference, shown, unfair
from rhostream.audit.facts import RunFacts
from rhostream.audit.metrics import best, steps_to_reach
from rhostream.runs.cost import break_even

UNIFORM, EVERYTHING = "uniform", "everything"
NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Comparison:
    """A run against a baseline: what each spent to reach the baseline's own best smoothed accuracy."""

    run: str
    baseline: str
    kind: str  # UNIFORM or EVERYTHING
    target: float
    budget: int  # steps that the baseline had
    had: int  # steps that the run had
    baseline_steps: int
    baseline_units: float  # forward units; NaN where unknown
    steps: int | None  # None: not reached
    units: float
    even: float  # the break-even ratio of the run's sizes

    @property
    def speedup(self) -> float | None:
        """How many times fewer steps; None when the target was not reached."""
        return None if self.steps is None else self.baseline_steps / self.steps

    @property
    def saved(self) -> float:
        """Forward units saved; NaN where it isn't known or not reached."""
        return math.nan if self.steps is None else self.baseline_units - self.units


@dataclass(frozen=True)
class Verdict:
    """The headline of a group of runs: `tone` is good, mixed, bad or none (nothing to compare with)."""

    tone: str
    title: str
    text: str


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

    One sentence each, with the settings that differ and both values.
    """
    says, listed = [], list(groups.values())
    for at, (name, runs) in enumerate(groups.items()):
        for other in list(groups)[:at]:
            theirs = groups[other]
            if _called(runs, listed) == _called(theirs, listed):
                says.append(
                    _apart("Not one setting", other, theirs, name, runs, differing(theirs[0].setting, runs[0].setting))
                )
    for name in selected:
        says += [
            _apart("Not compared", name, groups[name], other, groups[other], names)
            for other, names in refused(groups, name).items()
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
                      baseline_units, steps, run_units, even_of(run))  # fmt: skip


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
    """
    fits = [
        other
        for other in others
        if other.rule == "uniform"
        and other.everything == (kind == EVERYTHING)
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


def comparisons(mine: Sequence[RunFacts], others: Sequence[RunFacts], kind: str, window: int) -> list[Comparison]:
    """Each run of `mine` against its baseline of that kind, where there is one."""
    pairs = [(run, baseline_of(run, others, kind)) for run in mine]
    found = [compare(run, other, kind, window) for run, other in pairs if other is not None]
    return [c for c in found if c is not None]


def paid_after(il_units: float, saved: Sequence[float]) -> int | None:
    """After how many runs the IL's units are paid by what each saves; None when it never is, or isn't known."""
    mean = sum(saved) / len(saved) if saved else math.nan
    return max(1, math.ceil(il_units / mean)) if mean > 0 else None


def verdict(runs: Sequence[RunFacts], found: Sequence[Comparison], window: int, apart: bool = False) -> Verdict:
    """What the comparisons with uniform say, in words: it paid, it saved steps alone, or it did not pay.

    `apart`: there are baselines that differ in more than the rule, which the page names.
    """
    first = runs[0]
    if first.rule == "uniform":
        return Verdict("none", "No selection in this run",
                       "It chooses at random; give it as --against of a run that selects.")  # fmt: skip
    if not found:
        missing = "none of its evaluations can be compared" if first.curve.steps else "it was never evaluated"
        other = " that differs in the rule alone (what the ones here differ in is said below)" if apart else ""
        return Verdict("none", "Nothing to compare with", f"For a verdict give a uniform run of the same model, sizes "
                       f"and settings with --against; there is none here{other}, or {missing}.")  # fmt: skip
    missed = [c for c in found if c.speedup is None]
    target = _percent([c.target for c in found])
    goal = (f"Uniform choice at its best reaches {target} test accuracy (mean of {window} evaluations, within "
            f"{max(c.budget for c in found):,} steps).")  # fmt: skip
    if missed:
        had = max(c.had for c in missed)
        who = "The run" if len(found) == 1 else f"{len(missed)} of {len(found)} runs"
        return Verdict("bad", "Selection did not pay: uniform's best was not reached",
                       f"{goal} {who} did not reach that within {had:,} steps.")  # fmt: skip
    gains = [c.speedup for c in found if c.speedup is not None]
    return _reached(found, gains, goal, first.row["il_units"] or 0.0)


def _reached(found: Sequence[Comparison], gains: Sequence[float], goal: str, il_units: float) -> Verdict:
    mean, even = sum(gains) / len(gains), found[0].even
    spread = f" ({min(gains):.2f} to {max(gains):.2f} over {len(gains)} runs)" if len(gains) > 1 else ""
    steps, base = (_mean([float(getattr(c, n)) for c in found]) for n in ("steps", "baseline_steps"))
    saved = [c.saved for c in found]
    # The measured units where they are known: they count the samples that really reached a forward.
    pays = _mean(saved) > 0 if all(map(math.isfinite, saved)) else mean > even
    text = (f"{goal} With selection that took {steps:,.0f} steps instead of {base:,.0f}: {mean:.2f} times fewer"
            f"{spread}. The break-even in forwards is {even:.2f} times fewer, because every step first looks at the "
            "whole buffer.")  # fmt: skip
    paid = paid_after(il_units, saved) if il_units else None
    if paid is not None:
        text += f" The irreducible loss comes on top, once: paid after {paid:,} such run{'s'[: paid > 1]}."
    if mean <= 1:
        return Verdict("bad", "Selection did not pay: it needed as many steps as uniform choice, or more", text)
    if not pays:
        return Verdict("mixed", f"{mean:.1f} times fewer steps, but selection did not pay in arithmetic", text)
    return Verdict("good", f"Selection paid: {mean:.1f} times fewer steps", text)


def il_account(run: RunFacts, found: Mapping[str, Sequence[Comparison]]) -> str:
    """What the irreducible loss cost, and after how many runs it is paid, in words."""
    units, accuracy = run.row["il_units"], run.row["il_accuracy"]
    listed = run.row.get("keep_list_units") or 0.0
    made = f" Making its keep-list cost {listed:,.0f} forward units, once." if listed else ""
    if not run.folder.il_model and not units:
        return "This run used no irreducible loss, so there is none to pay." + made
    text = "How much the irreducible loss cost is not known."
    if units:
        text = (f"Fitting the IL model and scoring every sample once cost {units:,.0f} forward units (of the target), "
                "for this and every later run.")  # fmt: skip
        account = (run.folder.cost or {}).get("il") or {}
        if "fit_samples" in account and "checked_samples" not in account:
            text += (" Not counted: the forwards that chose its checkpoint and measured it, as the model was fitted by "
                     "an older version.")  # fmt: skip
        saved = [c.saved for c in found.get(UNIFORM, ()) if math.isfinite(c.saved)]
        runs = paid_after(units, saved)
        if runs is not None:
            text += (f" On the way to uniform's best each run saved {_mean(saved):,.0f} units, so the irreducible loss "
                     f"is paid after {runs:,} run{'' if runs == 1 else 's'}.")  # fmt: skip
        elif saved:
            text += (f" On the way to uniform's best each run spent {-_mean(saved):,.0f} units more than uniform, so "
                     "the irreducible loss is never paid.")  # fmt: skip
        else:
            text += " Uniform's best was not reached or is not known, so nothing is there to pay it with."
    if accuracy is not None:
        final = run.row["final_test_accuracy"]
        text += f" The IL model itself is right for {100 * accuracy:.1f} % of the labels as they are"
        text += " (of samples that it didn't learn from)"
        text += f"; the target ended at {100 * final:.1f} % of the test set." if final is not None else "."
    return text + made


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
