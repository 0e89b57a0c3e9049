"""The account of a group of runs: what selection saved against a baseline, with everything on the first run's bill.

What was paid once, before the first run (the irreducible loss, a keep-list), stands on the bill of the first run; a
later one finds it there. Amounts are forward units; what a group reaches is the best of its smoothed evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rhostream.audit.compare import EVERYTHING, UNIFORM, Comparison, pairs_of
from rhostream.audit.facts import Curve, RunFacts
from rhostream.audit.metrics import best, final

# What became of a group against one baseline.
NONE, MISSED, SLOWER, NEVER, UNKNOWN, LATER, PAID = "none", "missed", "slower", "never", "unknown", "later", "paid"
STATES = (NONE, MISSED, SLOWER, NEVER, UNKNOWN, LATER, PAID)
STEPS, FIRST, AGAIN = "steps", "first", "again"  # equal in steps; in units of the first run, and of a later one
# Student's t: 97.5 % of the distributions with 1, 2, ... degrees of freedom; the last one stands for more, too.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Outcome:
    """What became of a group against one baseline, by the units that each needed to reach the baseline's best."""

    state: str  # of STATES
    saved: float | None = None  # by each run, in the mean; less than 0 where it spent more; None where it isn't known
    once: float | None = None  # what was paid before the first run; None where that isn't known
    nth: int | None = None  # after so many runs what was paid once is paid; None where it never is, or isn't known


@dataclass(frozen=True)
class Standing:
    """A group beside a baseline after the same amount: means over its pairs of runs of the best that each reached."""

    kind: str  # of the baseline
    over: str  # STEPS, FIRST or AGAIN
    spent: float
    mine: float | None  # None: too few evaluations by then
    theirs: float | None
    gains: tuple[float, ...] = ()  # of each pair, where both are known
    begun: bool = True  # False: what is paid once alone had cost more than that

    @property
    def gain(self) -> float | None:
        """The mean of the differences of accuracies; None where one isn't known."""
        return mean(self.gains)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values, None without one."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean lies with 95 % confidence (Student's t); None for fewer than two values: no claim on one seed."""
    n = len(values)
    if n < 2:
        return None
    centre = sum(values) / n
    spread = math.sqrt(sum((value - centre) ** 2 for value in values) / (n - 1) / n)
    wide = _T[min(n - 1, len(_T)) - 1] * spread
    return centre - wide, centre + wide


def finals(runs: Sequence[RunFacts], window: int) -> list[float]:
    """The mean of each run's last `window` evaluations, of the runs that were evaluated."""
    ends = [final(run.curve.accuracy, window) for run in runs]
    return [end for end in ends if math.isfinite(end)]


def il_units(runs: Sequence[RunFacts]) -> float | None:
    """What a group's irreducible loss cost once, in forward units; None where that isn't known."""
    return mean([run.row["il_units"] for run in runs])


def list_units(runs: Sequence[RunFacts]) -> float:
    """What a group's keep-list cost once; 0 where it has none."""
    return mean([run.row.get("keep_list_units") for run in runs]) or 0.0


def bill(runs: Sequence[RunFacts]) -> float | None:
    """Forward units that are paid once, before the first run; None where the irreducible loss's cost isn't known."""
    units = il_units(runs)
    if not units and any(run.folder.il_model and not run.is_baseline for run in runs):
        return None
    return (units or 0.0) + list_units(runs)


def paid_after(units: float, saved: Sequence[float]) -> int | None:
    """After how many runs those units are paid by what each saves; None when they never are, or it isn't known."""
    each = sum(saved) / len(saved) if saved else math.nan
    return max(1, math.ceil(units / each)) if each > 0 else None


def outcome(found: Sequence[Comparison], once: float | None) -> Outcome:
    """What the comparisons of a group with one kind of baseline come to, with `once` on the first run's bill."""
    if not found:
        return Outcome(NONE, once=once)
    gains = [c.speedup for c in found]
    if any(gain is None for gain in gains):
        return Outcome(MISSED, once=once)
    measured = all(math.isfinite(c.saved) for c in found)
    saved = mean(c.saved for c in found) if measured else None
    nth = paid_after(once, [saved]) if saved is not None and once is not None else None
    quicker = (mean(gains) or 0.0) > 1
    if saved is None:
        # By the ratio of the sizes then; a baseline of another batch size has none.
        even = mean(c.even for c in found if c.kind == UNIFORM) or 1.0
        return Outcome(UNKNOWN if quicker and (mean(gains) or 0.0) > even else NEVER if quicker else SLOWER, once=once)
    if saved <= 0:
        return Outcome(NEVER if quicker else SLOWER, saved, once)
    if once is None:
        return Outcome(UNKNOWN, saved)
    return Outcome(PAID if once <= saved else LATER, saved, once, nth)


def best_within(curve: Curve, over: str, amount: float, window: int, before: float = 0.0) -> float | None:
    """The best smoothed accuracy (full windows) when at most `amount` of `over` was spent, `before` it began included.

    None where there is no such evaluation.
    """
    spent = [at + before <= amount for at in getattr(curve, over)]
    return _known(best(curve.accuracy[: sum(spent)], window)) if sum(spent) >= window else None


def standings(mine: Sequence[RunFacts], others: Sequence[RunFacts], window: int) -> list[Standing]:
    """A group beside uniform choice and training on everything, after equal steps and after equal units.

    Equal is what both have spent at the end of the shorter of the two.
    """
    found = []
    for kind in (UNIFORM, EVERYTHING):
        pairs = [(a, b) for a, b in pairs_of(mine, others, kind) if a.curve.steps and b.curve.steps]
        once = bill(mine)
        for over, before in ((STEPS, 0.0), (FIRST, once), (AGAIN, 0.0)):
            if pairs and before is not None and (over != AGAIN or once):
                found.append(_standing(pairs, kind, over, before, window))
    return [one for one in found if one is not None]


def _standing(
    pairs: Sequence[tuple[RunFacts, RunFacts]], kind: str, over: str, before: float, window: int
) -> Standing | None:
    axis = "steps" if over == STEPS else "units"
    amounts, ours, theirs = [], [], []
    for run, other in pairs:
        amount = min(getattr(run.curve, axis)[-1] + before, getattr(other.curve, axis)[-1])
        if not math.isfinite(amount):
            return None
        amounts.append(amount)
        ours.append(best_within(run.curve, axis, amount, window, before))
        theirs.append(best_within(other.curve, axis, amount, window))
    gains = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    whole = len(gains) == len(pairs)
    return Standing(kind, over, sum(amounts) / len(amounts), None if None in ours else mean(ours),
                    None if None in theirs else mean(theirs), tuple(gains) if whole else (),
                    all(before < amount for amount in amounts))  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
