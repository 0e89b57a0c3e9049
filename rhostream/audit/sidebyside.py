"""The verdict's table, and that of several settings side by side: accuracies with their interval, cost with the il."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhostream.audit import account
from rhostream.audit.account import AGAIN, FIRST, NEVER, PAID, SLOWER, STEPS, Standing, mean
from rhostream.audit.alike import other_tests
from rhostream.audit.compare import EVERYTHING, NOT_REACHED, UNIFORM, Comparison
from rhostream.audit.facts import RunFacts
from rhostream.audit.il_test import ILTest, accuracy_of
from rhostream.audit.tabulate import UNKNOWN, class_means, class_name, number, percent
from rhostream.audit.verdict import BAD, GOOD, MIXED, Verdict, of_evaluations, ordinal

_BASELINES = {UNIFORM: "against uniform choice", EVERYTHING: "against training on everything"}
NOT_BEGUN = "not begun: the il alone cost more"
NOT_KNOWN = "not known: see what to do next"  # how right an IL model is on the test set
OTHER_TESTS = "of another test set"


def bill_rows(runs: Sequence[RunFacts], found: Mapping[str, Sequence[Comparison]], stand: Sequence[Standing],
              window: int, tested: ILTest | None) -> list[list[str]]:  # fmt: skip
    """The table under a verdict: [what, selection, baseline, difference], with everything on the first run's bill."""
    ends, once = account.finals(runs, window), account.bill(runs)
    rows = [[f"test accuracy at the end ({of_evaluations(window)})", with_interval(ends), "", ""]] if ends else []
    for one in stand:
        what = f"{_BASELINES[one.kind]}, best after {_amount(one)}"
        too_few = f"fewer than {window} evaluations by then"
        ours, theirs = (too_few if share is None else percent(share) for share in (one.mine, one.theirs))
        rows.append([what, ours if one.begun else NOT_BEGUN, theirs, points(one.gains)])
    for kind in (UNIFORM, EVERYTHING):
        rows += _to_the_best(found.get(kind, ()), kind, once)
    if runs[0].folder.il_model and not runs[0].is_baseline and not runs[0].folder.no_class:
        known = NOT_KNOWN if tested is None else f"{percent(tested.accuracy)} of {tested.samples:,}"
        gains = [end - tested.accuracy for end in ends] if tested else []
        rows.append(["against the IL model itself, on the test set", percent(mean(ends)), known, points(gains)])
    return rows


def _amount(one: Standing) -> str:
    if one.over == STEPS:
        return f"{one.spent:,.0f} steps each"
    return f"{number(one.spent)} units each, " + {FIRST: "il included", AGAIN: "of a later run"}[one.over]


def _to_the_best(found: Sequence[Comparison], kind: str, once: float | None) -> list[list[str]]:
    if not found:
        return []
    what = f"{_BASELINES[kind]}, units to its best of {percent(mean(c.target for c in found))}"
    came = account.outcome(found, once)
    theirs = mean(c.baseline_units for c in found)
    if any(c.steps is None for c in found):
        return [[what, NOT_REACHED, number(theirs), UNKNOWN]]
    ours = mean(c.units for c in found)
    extra = "" if once == 0 else f" + {number(once)} once" if once is not None else " + an unknown amount once"
    pays = "paid on the first run" if came.state == PAID else "never paid" if came.state in (NEVER, SLOWER) else (
        f"paid after {came.nth:,} runs" if came.nth else "not known")  # fmt: skip
    return [[what, f"{number(ours)}{extra}", number(theirs), pays]]


def with_interval(values: Sequence[float]) -> str:
    """A mean of accuracies with the interval that it lies in by 95 %, or that one seed is no claim."""
    centre, known = mean(values), account.interval(values)
    if centre is None:
        return UNKNOWN
    if known is None:
        return f"{percent(centre)} (one seed: no claim)"
    return f"{percent(centre)} (95 % interval {_bounded(known[0])} to {_bounded(known[1])} %, {len(values)} seeds)"


def _short(values: Sequence[float]) -> str:
    centre, known = mean(values), account.interval(values)
    if centre is None:
        return UNKNOWN
    return f"{percent(centre)}, one seed" if known is None else f"{percent(centre)} ± {100 * (known[1] - centre):.1f}"


def points(gains: Sequence[float]) -> str:
    """A difference of accuracies in percentage points, with its interval over the pairs of runs."""
    centre, known = mean(gains), account.interval(gains)
    if centre is None:
        return UNKNOWN
    if known is None:
        return f"{100 * centre:+.1f} points (one seed: no claim)"
    return f"{100 * centre:+.1f} points ({100 * known[0]:+.1f} to {100 * known[1]:+.1f})"


def _bounded(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}"


def settings(groups: Mapping[str, Sequence[RunFacts]], verdicts: Mapping[str, Verdict],
             looks: Mapping[str, Any], window: int, tested: ILTest | None) -> list[dict[str, Any]]:  # fmt: skip
    """A row a setting of the page: how accurate, at what cost with and without the il, what it kept; its verdict.

    Beside each target stands how right its IL model is on the test set. Accuracies of runs that were tested on other
    samples than the first are left out: the page says which.
    """
    rows, main = [], next(iter(groups.values()))[0].setting
    for name, runs in groups.items():
        comparable = not other_tests(main, runs[0].setting)
        units, once = mean(run.row["forward_units"] for run in runs), account.bill(runs)
        worst = class_means(runs) if comparable else {}
        least = min(worst, key=lambda label: (worst[label], label), default=None)
        rates = [_kept_rate(run) for run in runs]
        said = verdicts.get(name)
        rows.append({
            "name": name, "swatch": looks[name].swatch, "tone": said.tone if said else "",
            "pays": _pays(said) if said else "a baseline",
            "cells": [
                f"{len(runs)}", _short(account.finals(runs, window)) if comparable else OTHER_TESTS,
                _il_model(runs, tested), number(mean(r.row["steps"] for r in runs)),
                number(units), UNKNOWN if units is None or once is None else number(units + once),
                percent(mean(rates)), percent(mean(run.noisy.get(True) for run in runs)),
                UNKNOWN if least is None else f"{percent(worst[least])} ({class_name(runs[0], least)})",
            ],
        })  # fmt: skip
    return rows


SETTINGS_HEAD = ("setting", "does it pay?", "runs", "test accuracy at the end (± 95 %)",
                 "its IL model on the test set", "steps", "forward units",
                 "first run, il included", "kept", "wrong labels among kept", "worst class")  # fmt: skip


def _il_model(runs: Sequence[RunFacts], tested: ILTest | None) -> str:
    """How right the IL model of a group is on the test set: "none" where it looks at no il, or has no classes."""
    if runs[0].is_baseline or not runs[0].folder.il_model or runs[0].folder.no_class:
        return "none"
    accuracy = accuracy_of(tested, runs)
    return NOT_KNOWN if accuracy is None else percent(accuracy)


def _pays(said: Verdict) -> str:
    if said.tone == GOOD:
        return "yes, on the first run"
    if said.tone == MIXED:
        return f"from the {ordinal(said.nth or 1)} run on"
    return "no" if said.tone == BAD else "not known"


def _kept_rate(run: RunFacts) -> float | None:
    looked = sum(n for reason, n in run.reasons.items() if reason != "tail")
    return run.reasons.get("kept", 0) / looked if looked else None
