"""Did selection pay? What the comparisons of a group of runs say, in plain words with their numbers.

Green is only what paid on the first run with everything on its bill, against every baseline at hand; amber is what pays
from the Nth run on; red is what doesn't, grey what isn't known. All figures of a group are means over its runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhostream.audit import account
from rhostream.audit.account import AGAIN, FIRST, LATER, MISSED, NEVER, PAID, SLOWER, UNKNOWN, Outcome, Standing, mean
from rhostream.audit.compare import EVERYTHING, UNIFORM, Comparison
from rhostream.audit.facts import RunFacts
from rhostream.tables.il import reference_doubts

GOOD, MIXED, UNDECIDED, BAD = TONES = ("good", "mixed", "none", "bad")


@dataclass(frozen=True)
class Verdict:
    """The headline of a group of runs: `tone` is good, mixed, bad or none (nothing to compare with, or not known)."""

    tone: str
    title: str
    text: str
    nth: int | None = None  # from which run on it pays, where it does


def final_accuracy(runs: Sequence[RunFacts], window: int) -> float | None:
    """The mean over runs of each one's last `window` evaluations; None where none was evaluated."""
    return mean(account.finals(runs, window))


def of_evaluations(window: int) -> str:
    """What an accuracy of this page is, for a bracket: `mean of 5 evaluations`."""
    return f"mean of {window} evaluations" if window > 1 else "single evaluations"


def verdict(runs: Sequence[RunFacts], found: Sequence[Comparison], window: int, apart: bool = False, *,
            everything: Sequence[Comparison] = (), stand: Sequence[Standing] = ()) -> Verdict:  # fmt: skip
    """What the comparisons with uniform choice (`found`) and with training on everything say, in words.

    `stand`: the same groups after equal amounts; `apart`: there are baselines that differ in more than the rule, which
    the page names.
    """
    first = runs[0]
    if first.rule == "uniform":
        return Verdict(UNDECIDED, "No selection in this run",
                       "It chooses at random; give it as --against of a run that selects.")  # fmt: skip
    if not found:
        missing = "it was never evaluated"
        if first.curve.steps or first.test_losses:
            missing = "none of its evaluations can be compared" + ("" if first.curve.steps else " (losses alone)")
        other = " that differs in the rule alone (what the ones here differ in is said below)" if apart else ""
        text = (f"For a verdict give a uniform run of the same model, sizes and settings with --against; there is none "
                f"here{other}, or {missing}.")  # fmt: skip
        return Verdict(UNDECIDED, "Nothing to compare with", text)
    once = account.bill(runs)
    ours, theirs = account.outcome(found, once), account.outcome(everything, once)
    tone, title, nth = headline(ours, theirs, mean(c.speedup for c in found) or 0.0,
                                ahead(stand, UNIFORM),
                                ahead(stand, EVERYTHING, FIRST if ours.state == PAID else AGAIN))  # fmt: skip
    goal = (f"Uniform choice at its best reaches {_percent([c.target for c in found])} test accuracy "
            f"({of_evaluations(window)}, within {max(c.budget for c in found):,} steps).")  # fmt: skip
    if ours.state == MISSED:
        missed = [c for c in found if c.speedup is None]
        title += f" by {len(missed)} of {len(found)} runs" if len(missed) < len(found) else ""
        return Verdict(tone, title, _missed(missed, len(found), goal, window, ahead(stand, UNIFORM)))
    return Verdict(tone, title, _reached(runs, found, goal, ours), nth)


def ahead(stand: Sequence[Standing], kind: str, over: str = FIRST) -> float | None:
    """By how much a group is ahead of a baseline after equal units, of the first run with all that is on its bill.

    Accuracies; minus infinity where it had not begun by then, None where it isn't known.
    """
    one = next((one for one in stand if one.kind == kind and one.over == over), None)
    if one is None or one.theirs is None:
        return None
    return one.gain if one.begun else -math.inf


def headline(
    ours: Outcome, theirs: Outcome, gain: float, lead: float | None, lead_on_everything: float | None
) -> tuple[str, str, int | None]:
    """(tone, title, from which run on it pays) of what became of a group against uniform choice and everything.

    `gain`: times fewer steps; `lead`: accuracies by which it is ahead at equal cost, None where that isn't known.
    """
    fewer = f"{gain:.1f} times fewer steps" if gain > 1 else "No fewer steps"
    match ours.state:
        case "none":
            return UNDECIDED, "Nothing to compare with", None
        case "missed":
            return BAD, "Selection did not pay: uniform's best was not reached", None
        case "slower":
            return BAD, "Selection did not pay: it needed as many steps as uniform choice, or more", None
        case "never":
            return BAD, f"{fewer}, but selection did not pay in arithmetic", None
        case "unknown":
            return UNDECIDED, f"{fewer}; whether they pay for the irreducible loss isn't known", None
    if theirs.state in (NEVER, SLOWER):
        return BAD, "Selection did not pay: training on everything needed less arithmetic", None
    if theirs.state == MISSED and lead_on_everything is not None and lead_on_everything <= 0:
        return BAD, "Selection did not pay: training on everything reached more for the same arithmetic", None
    if theirs.state == MISSED:
        return UNDECIDED, f"{fewer} than uniform choice; training on everything went on to a better accuracy", None
    if theirs.state == UNKNOWN:
        return UNDECIDED, f"{fewer}; whether they pay against training on everything isn't known", None
    if ours.state == PAID and lead is not None and lead < 0:
        return UNDECIDED, f"{fewer} in the mean, but the runs disagree: at equal cost they are behind", None
    nth = max(ours.nth or 1, theirs.nth or 1)
    if ours.state == LATER:
        return MIXED, f"{fewer}; with the irreducible loss it pays from the {ordinal(nth)} run on", nth
    if theirs.state == LATER:
        return MIXED, f"{fewer}; against training on everything it pays from the {ordinal(nth)} run on", nth
    return GOOD, f"Selection paid: {fewer[0].lower()}{fewer[1:]}, with everything on the first run's bill", 1


def _missed(missed: Sequence[Comparison], of: int, goal: str, window: int, lead: float | None) -> str:
    who = "The run" if of == 1 else f"{len(missed)} of {of} runs"
    text = (f"{goal} {who} did not reach that within {max(c.had for c in missed):,} steps: "
            f"at best {_percent([c.highest for c in missed])} by that measure")  # fmt: skip
    if window > 1:  # a single evaluation may well lie above a mean that was not reached
        text += f" (the last evaluation alone: {_percent([c.last for c in missed])})"
    if lead is not None and lead > 0:
        text += ". Selection was ahead at the cost at which it ended: train it longer before you decide"
    return text + "."


def _reached(runs: Sequence[RunFacts], found: Sequence[Comparison], goal: str, ours: Outcome) -> str:
    gains = [c.speedup for c in found if c.speedup is not None]
    gain, even = sum(gains) / len(gains), _mean([c.even for c in found])
    spread = f" ({min(gains):.2f} to {max(gains):.2f} over {len(gains)} runs)" if len(gains) > 1 else ""
    steps, base = (_mean([float(getattr(c, n)) for c in found]) for n in ("steps", "baseline_steps"))
    text = (f"{goal} With selection that took {steps:,.0f} steps instead of {base:,.0f}: {gain:.2f} times fewer"
            f"{spread}. The break-even in forwards is {even:.2f} times fewer, because every step first looks at the "
            "whole buffer.")  # fmt: skip
    who, listed = "The run" if len(found) == 1 else "Each run", ", a keep-list" * bool(account.list_units(runs))
    if ours.state == UNKNOWN:
        return text + " What was paid once, before the first run, can't be set against that: its cost isn't known."
    if ours.state == PAID and ours.once:
        text += (f" {who} saved {ours.saved:,.0f} forward units, and what is paid once, before the first run, cost "
                 f"{ours.once:,.0f}: that is paid already.")  # fmt: skip
    if ours.state == LATER:
        text += (f" {who} saved {ours.saved:,.0f} forward units, and what is paid once (the irreducible loss{listed}) "
                 f"cost {ours.once:,.0f}: the first run cost more than uniform choice, and selection pays from the "
                 f"{ordinal(ours.nth or 1)} such run on.")  # fmt: skip
    return text


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, ..., 11th, ..., 21st."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"


def il_account(runs: Sequence[RunFacts], found: Mapping[str, Sequence[Comparison]], window: int,
               on_tests: float | None = None) -> str:  # fmt: skip
    """What the irreducible loss of a group cost, and after how many runs it is paid, in words.

    `on_tests`: the accuracy of its model on the test set; None says that it isn't known, and how to get it.
    """
    units, accuracy = account.il_units(runs), mean([run.row["il_accuracy"] for run in runs])
    listed = account.list_units(runs)
    made = f" Making its keep-list cost {listed:,.0f} forward units, once." if listed else ""
    if not any(run.folder.il_model for run in runs) and not units:
        return "This run used no irreducible loss, so there is none to pay." + made
    text = "".join(f"{says[0].upper()}{says[1:]}. " for says in _reference_doubts(runs))
    text += _il_cost(runs, units, account.outcome(found.get(UNIFORM, ()), account.bill(runs)))
    if accuracy is not None:
        text += f" The IL model itself is right for {100 * accuracy:.1f} % of the labels as they are"
        text += " (of samples that it didn't learn from)"
        ended = final_accuracy(runs, window)
        over = f"{of_evaluations(window)}" if window > 1 else "its last evaluation"
        over += f"; mean of {len(runs)} runs" if len(runs) > 1 else ""
        text += f"; the target ended at {100 * ended:.1f} % of the test set ({over})." if ended is not None else "."
    if on_tests is not None:
        text += f" On the test set it is right for {100 * on_tests:.1f} %."
    elif not runs[0].folder.no_class and not runs[0].is_baseline:
        text += (" How right it is on the test set isn't known: give the report a table of the test shards, scored by "
                 "it, with --il-test.")  # fmt: skip
    return text + made


def _reference_doubts(runs: Sequence[RunFacts]) -> list[str]:
    """What isn't known of the references that gave il to the runs, each said once."""
    references = [run.folder.il_model.get("reference") for run in runs]
    said = [says for one in references if isinstance(one, Mapping) for says in reference_doubts(one)]
    return list(dict.fromkeys(said))


def _il_cost(runs: Sequence[RunFacts], units: float | None, ours: Outcome) -> str:
    if not units:
        return "How much the irreducible loss cost is not known."
    made = "Scoring" if any("reference" in run.folder.il_model for run in runs) else "Fitting the IL model and scoring"
    text = (f"{made} every sample once cost {units:,.0f} forward units (of the target), "
            "for this and every later run.")  # fmt: skip
    spent = [(run.folder.cost or {}).get("il") or {} for run in runs]
    if any("fit_samples" in one and "checked_samples" not in one for one in spent):
        text += (" Not counted: the forwards that chose its checkpoint and measured it, as the model was fitted by "
                 "an older version.")  # fmt: skip
    if ours.nth is not None:
        all_of_it = "irreducible loss and the keep-list are" if account.list_units(runs) else "irreducible loss is"
        return text + (f" On the way to uniform's best each run saved {ours.saved:,.0f} units, so the {all_of_it} "
                       f"paid after {ours.nth:,} run{'' if ours.nth == 1 else 's'}.")  # fmt: skip
    if ours.saved is not None:
        return text + (f" On the way to uniform's best each run spent {-ours.saved:,.0f} units more than uniform, so "
                       "the irreducible loss is never paid.")  # fmt: skip
    return text + " Uniform's best was not reached or is not known, so nothing is there to pay it with."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
