"""Did selection pay? What the comparisons of a group of runs say, in plain words with their numbers.

A group has paid when it saved more than everything on the first run's bill: its own forwards, the irreducible loss and
a keep-list. All figures of a group are means over its runs, the ones that stand in the page's tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rhostream.audit.compare import UNIFORM, Comparison, even_of
from rhostream.audit.facts import RunFacts
from rhostream.audit.metrics import final
from rhostream.tables.il import reference_doubts


@dataclass(frozen=True)
class Verdict:
    """The headline of a group of runs: `tone` is good, mixed, bad or none (nothing to compare with)."""

    tone: str
    title: str
    text: str


def group_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values, None without one."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else None


def final_accuracy(runs: Sequence[RunFacts], window: int) -> float | None:
    """The mean over runs of each one's last `window` evaluations; None where none was evaluated."""
    return group_mean([final(run.curve.accuracy, window) for run in runs])


def il_units(runs: Sequence[RunFacts]) -> float | None:
    """What a group's irreducible loss cost once, in forward units; None where that isn't known."""
    return group_mean([run.row["il_units"] for run in runs])


def of_evaluations(window: int) -> str:
    """What an accuracy of this page is, for a bracket: `mean of 5 evaluations`."""
    return f"mean of {window} evaluations" if window > 1 else "single evaluations"


def paid_after(units: float, saved: Sequence[float]) -> int | None:
    """After how many runs those units are paid by what each saves; None when they never are, or it isn't known."""
    mean = sum(saved) / len(saved) if saved else math.nan
    return max(1, math.ceil(units / mean)) if mean > 0 else None


def verdict(runs: Sequence[RunFacts], found: Sequence[Comparison], window: int, apart: bool = False) -> Verdict:
    """What the comparisons with uniform say, in words: it paid, it saved steps alone, or it did not pay.

    `apart`: there are baselines that differ in more than the rule, which the page names.
    """
    first = runs[0]
    if first.rule == "uniform":
        return Verdict("none", "No selection in this run",
                       "It chooses at random; give it as --against of a run that selects.")  # fmt: skip
    if not found:
        missing = "it was never evaluated"
        if first.curve.steps or first.test_losses:
            missing = "none of its evaluations can be compared" + ("" if first.curve.steps else " (losses alone)")
        other = " that differs in the rule alone (what the ones here differ in is said below)" if apart else ""
        return Verdict("none", "Nothing to compare with", f"For a verdict give a uniform run of the same model, sizes "
                       f"and settings with --against; there is none here{other}, or {missing}.")  # fmt: skip
    target = _percent([c.target for c in found])
    goal = (f"Uniform choice at its best reaches {target} test accuracy ({of_evaluations(window)}, within "
            f"{max(c.budget for c in found):,} steps).")  # fmt: skip
    if missed := [c for c in found if c.speedup is None]:
        return _missed(missed, len(found), goal, window)
    return _reached(runs, found, goal)


def _missed(missed: Sequence[Comparison], of: int, goal: str, window: int) -> Verdict:
    who = "The run" if of == 1 else f"{len(missed)} of {of} runs"
    title = "Selection did not pay: uniform's best was not reached"
    title += f" by {len(missed)} of {of} runs" if len(missed) < of else ""
    text = (f"{goal} {who} did not reach that within {max(c.had for c in missed):,} steps: "
            f"at best {_percent([c.highest for c in missed])} by that measure")  # fmt: skip
    if window > 1:  # a single evaluation may well lie above a mean that was not reached
        text += f" (the last evaluation alone: {_percent([c.last for c in missed])})"
    return Verdict("bad", title, text + ".")


def _reached(runs: Sequence[RunFacts], found: Sequence[Comparison], goal: str) -> Verdict:
    gains = [c.speedup for c in found if c.speedup is not None]
    mean, even = sum(gains) / len(gains), _mean([c.even for c in found])
    spread = f" ({min(gains):.2f} to {max(gains):.2f} over {len(gains)} runs)" if len(gains) > 1 else ""
    steps, base = (_mean([float(getattr(c, n)) for c in found]) for n in ("steps", "baseline_steps"))
    text = (f"{goal} With selection that took {steps:,.0f} steps instead of {base:,.0f}: {mean:.2f} times fewer"
            f"{spread}. The break-even in forwards is {even:.2f} times fewer, because every step first looks at the "
            "whole buffer.")  # fmt: skip
    if mean <= 1:
        return Verdict("bad", "Selection did not pay: it needed as many steps as uniform choice, or more", text)
    saved = [c.saved for c in found]
    measured = all(map(math.isfinite, saved))
    # The measured units where they are known: they count the samples that really reached a forward.
    if not (_mean(saved) > 0 if measured else mean > even):
        return Verdict("mixed", f"{mean:.1f} times fewer steps, but selection did not pay in arithmetic", text)
    once = _bill(runs)
    if once == 0 or (measured and once is not None and once <= _mean(saved)):
        text += f" {_on_the_first_bill(saved, once)}" if once else ""
        return Verdict("good", f"Selection paid: {mean:.1f} times fewer steps", text)
    if once is None or not measured:
        text += " What was paid once, before the first run, can't be set against that: its cost isn't known."
        return Verdict("mixed", f"{mean:.1f} times fewer steps; whether they pay for the irreducible loss isn't known",
                       text)  # fmt: skip
    nth = ordinal(paid_after(once, saved) or 1)
    text += (f" Each run saved {_mean(saved):,.0f} forward units, and what is paid once (the irreducible loss"
             f"{', a keep-list' * _has_list(runs)}) cost {once:,.0f}: the first run cost more than uniform choice, and "
             f"selection pays from the {nth} such run on.")  # fmt: skip
    return Verdict("mixed", f"{mean:.1f} times fewer steps; with the irreducible loss it pays from the {nth} run on",
                   text)  # fmt: skip


def _on_the_first_bill(saved: Sequence[float], once: float) -> str:
    who = "The run" if len(saved) == 1 else "Each run"
    return (f"{who} saved {_mean(saved):,.0f} forward units, and what is paid once, before the first run, cost "
            f"{once:,.0f}: that is paid already.")  # fmt: skip


def _bill(runs: Sequence[RunFacts]) -> float | None:
    """Forward units that are paid once, before the first run; None where the irreducible loss's cost isn't known."""
    units = il_units(runs)
    if not units and any(run.folder.il_model for run in runs):
        return None
    return (units or 0.0) + (group_mean([run.row.get("keep_list_units") for run in runs]) or 0.0)


def _has_list(runs: Sequence[RunFacts]) -> bool:
    return any(run.row.get("keep_list_units") for run in runs)


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, ..., 11th, ..., 21st."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"


def il_account(runs: Sequence[RunFacts], found: Mapping[str, Sequence[Comparison]], window: int) -> str:
    """What the irreducible loss of a group cost, and after how many runs it is paid, in words."""
    units, accuracy = il_units(runs), group_mean([run.row["il_accuracy"] for run in runs])
    listed = group_mean([run.row.get("keep_list_units") for run in runs]) or 0.0
    made = f" Making its keep-list cost {listed:,.0f} forward units, once." if listed else ""
    if not any(run.folder.il_model for run in runs) and not units:
        return "This run used no irreducible loss, so there is none to pay." + made
    text = "".join(f"{says[0].upper()}{says[1:]}. " for says in _reference_doubts(runs))
    text += _il_cost(runs, units, [c.saved for c in found.get(UNIFORM, ()) if math.isfinite(c.saved)])
    if accuracy is not None:
        text += f" The IL model itself is right for {100 * accuracy:.1f} % of the labels as they are"
        text += " (of samples that it didn't learn from)"
        ended = final_accuracy(runs, window)
        over = f"{of_evaluations(window)}" if window > 1 else "its last evaluation"
        over += f"; mean of {len(runs)} runs" if len(runs) > 1 else ""
        text += f"; the target ended at {100 * ended:.1f} % of the test set ({over})." if ended is not None else "."
    return text + made


def _reference_doubts(runs: Sequence[RunFacts]) -> list[str]:
    """What isn't known of the references that gave il to the runs, each said once."""
    references = [run.folder.il_model.get("reference") for run in runs]
    said = [says for one in references if isinstance(one, Mapping) for says in reference_doubts(one)]
    return list(dict.fromkeys(said))


def _il_cost(runs: Sequence[RunFacts], units: float | None, saved: Sequence[float]) -> str:
    if not units:
        return "How much the irreducible loss cost is not known."
    made = "Scoring" if any("reference" in run.folder.il_model for run in runs) else "Fitting the IL model and scoring"
    text = (f"{made} every sample once cost {units:,.0f} forward units (of the target), "
            "for this and every later run.")  # fmt: skip
    accounts = [(run.folder.cost or {}).get("il") or {} for run in runs]
    if any("fit_samples" in account and "checked_samples" not in account for account in accounts):
        text += (" Not counted: the forwards that chose its checkpoint and measured it, as the model was fitted by "
                 "an older version.")  # fmt: skip
    paid = paid_after(units, saved)
    if paid is not None:
        return text + (f" On the way to uniform's best each run saved {_mean(saved):,.0f} units, so the irreducible "
                       f"loss is paid after {paid:,} run{'' if paid == 1 else 's'}.")  # fmt: skip
    if saved:
        return text + (f" On the way to uniform's best each run spent {-_mean(saved):,.0f} units more than uniform, so "
                       "the irreducible loss is never paid.")  # fmt: skip
    return text + " Uniform's best was not reached or is not known, so nothing is there to pay it with."


def break_even_of(runs: Sequence[RunFacts]) -> float:
    """The mean break-even ratio of a group's runs; NaN where no run names its sizes."""
    known = group_mean([even_of(run) for run in runs])
    return math.nan if known is None else known


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
