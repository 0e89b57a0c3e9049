"""What a report says of the baselines beside uniform choice, each in one sentence: all, and a filter before it."""

from __future__ import annotations

from collections.abc import Sequence

from rhostream.audit.account import mean
from rhostream.audit.compare import Comparison
from rhostream.audit.facts import RunFacts
from rhostream.audit.tabulate import number, percent


def against_everything(found: Sequence[Comparison], once: float | None) -> str:
    """The second baseline in one sentence, "" where there is none; `once`: what was paid before the first run."""
    if not found:
        return ""
    goal = f"Training on everything reaches {percent(mean(c.target for c in found))} at its best"
    if any(c.steps is None for c in found):
        return f"{goal}, which selection did not reach."
    theirs, ours = mean(c.baseline_units for c in found), mean(c.units for c in found)
    if not theirs or not ours:
        return f"{goal}, which selection reached after {number(mean(c.steps for c in found))} steps."
    says = f"{goal}, after {number(theirs)} forward units; selection reached that after {number(ours)}"
    if once is None:
        return f"{says} ({_times(ours, theirs)}) and what its irreducible loss cost, which isn't known."
    if not once:
        return f"{says}: {_times(ours, theirs)}."
    return (f"{says} and the {number(once)} that are paid once: {_times(ours + once, theirs)} on the first run, "
            f"{_times(ours, theirs)} on a later one.")  # fmt: skip


def _times(ours: float, theirs: float) -> str:
    if ours < theirs:
        return f"{theirs / ours:.2f} times less arithmetic"
    return f"{ours / theirs:.2f} times more arithmetic"


def against_filter(runs: Sequence[RunFacts], found: Sequence[Comparison]) -> str:
    """The baseline of pairs in one sentence: a filter by similarity before uniform choice. "" where it is none."""
    if not found:
        if not runs[0].of_pairs or runs[0].is_baseline:
            return ""
        return ("Not compared with a filter by similarity and uniform choice, which is the baseline to beat of pairs: "
                "train with --rule uniform --band similarity=70%: and give that run with --against.")  # fmt: skip
    goal = (f"A filter before uniform choice ({', '.join(sorted({c.baseline for c in found}))}), which makes no "
            f"forward, reaches {percent(mean(c.target for c in found))} at its best")  # fmt: skip
    if any(c.steps is None for c in found):
        return f"{goal}, which selection did not reach."
    steps, theirs, ours = (mean(getattr(c, name) for c in found) for name in ("steps", "baseline_units", "units"))
    says = f"{goal}, and selection reaches that after {number(steps)} steps"
    if not theirs or not ours:
        return f"{says}."
    more = f"{ours / theirs:.2f} times more" if ours >= theirs else f"{theirs / ours:.2f} times less"
    return f"{says} and {more} arithmetic ({number(ours)} against {number(theirs)} forward units)."
