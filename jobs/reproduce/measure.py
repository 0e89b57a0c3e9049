"""What a run gave, from its ledger: its curve, and by SQL what it kept. Only the steps of the arm's budget count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rhostream
from jobs.reproduce import il_accuracy
from jobs.reproduce.execute import Training
from rhostream.audit.metrics import smooth

EARLY = "correct early"
IL_ACCURACY = "il accuracy"  # of the frozen IL model, or of the one that learns along, pass by pass
WINDOW = 5  # evaluations that are averaged for bests, finals and targets


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run, and shares of what it kept, by name; NaN where nothing is known."""

    steps: list[int]
    accuracy: list[float]
    loss: list[float]
    worst: list[float]  # accuracy of the worst class
    units: list[float]  # forward units spent so far, the IL model's not included
    il_units: float
    seconds: float  # reading, scoring, training, logging
    shares: dict[str, float]
    by_pass: dict[str, list[float]]  # the same, pass by pass

    @property
    def final(self) -> float:
        """The mean of the last `WINDOW` evaluations."""
        return float(smooth(self.accuracy, WINDOW)[-1])


_CURVE = """
SELECT step + 1 AS step, test_accuracy, test_loss, forward_units,
       list_min(list_filter(class_accuracy, lambda a: isfinite(a))) AS worst
FROM steps WHERE test_accuracy IS NOT NULL AND step < $budget AND (step + 1) % $every = 0
AND ($units IS NULL OR forward_units <= $units) ORDER BY step
"""
_SECONDS = "SELECT sum(seconds) AS seconds FROM steps WHERE step < $budget"
# Of the kept: a share as the mean of 0 and 1, by pass. `step < $budget` leaves out what a longer run kept later.
_KEPT = "FROM selections JOIN samples USING (shard, ordinal) WHERE kept AND step < $budget GROUP BY pass ORDER BY pass"
SHARES = {
    "noisy": "SELECT pass, sum(is_noisy::INT::DOUBLE) AS part, count(is_noisy) AS whole " + _KEPT,
    "correct": "SELECT pass, sum(correct::INT::DOUBLE) AS part, count(loss) AS whole " + _KEPT,
    "less relevant": "SELECT pass, sum((NOT relevant)::INT::DOUBLE) AS part, count(relevant) AS whole " + _KEPT,
    "il of clean": "SELECT pass, sum(il) FILTER (NOT is_noisy AND isfinite(il)) AS part, "
                   "count(*) FILTER (NOT is_noisy AND isfinite(il)) AS whole "
                   "FROM selections JOIN samples USING (shard, ordinal) WHERE step < $budget AND score IS NOT NULL "
                   "GROUP BY pass ORDER BY pass",
}  # fmt: skip
SHARES[EARLY] = SHARES["correct"]
# The field of the samples' json that a share needs; where the table doesn't keep it, nothing is known.
NEEDS = {"noisy": "is_noisy", "less relevant": "relevant", "il of clean": "is_noisy"}
SAYS = {
    "noisy": "kept with a wrong label", "correct": "kept though classified correctly",
    EARLY: "kept though classified correctly, while below the weakest arm's end",
    "less relevant": "kept of less relevant classes",
    "il of clean": "mean il of candidates that are labelled right (nats)",
    IL_ACCURACY: "IL model's accuracy on the test set",
}  # fmt: skip


def measure(training: Training, shares: Sequence[str] = (), until: int | None = None) -> Curve:
    """Read a run's ledger; `until`: shares of the first so many steps only. Raises what `open_ledger` raises."""
    arm = training.arm
    with rhostream.open_ledger(training.folder) as ledger:
        asked = {"budget": arm.steps, "every": arm.eval_every, "units": arm.units}
        rows = ledger.sql(_CURVE, asked).to_pydict()
        steps = arm.steps if arm.units is None else max(rows["step"], default=0)
        budget = {"budget": steps if until is None else min(until, steps)}
        (seconds,) = ledger.sql(_SECONDS, {"budget": steps}).to_pydict()["seconds"]
        (il_units,) = ledger.sql("SELECT il_units FROM runs").to_pydict()["il_units"]
        kept = {name: ledger.sql(SHARES[name], budget).to_pylist() if NEEDS.get(name) in (None, *arm.world.keep) else []
                for name in shares if name != IL_ACCURACY}  # fmt: skip
    known = il_accuracy.by_pass(training) if IL_ACCURACY in shares and il_units else []
    return Curve(
        steps=rows["step"], accuracy=_floats(rows["test_accuracy"]), loss=_floats(rows["test_loss"]),
        worst=_floats(rows["worst"]), units=_floats(rows["forward_units"]), il_units=float(il_units or 0.0),
        seconds=float(seconds or 0.0),
        shares={name: _share(sum(r["part"] or 0 for r in by), sum(r["whole"] for r in by))
                for name, by in kept.items()} | {IL_ACCURACY: known[-1] if known else float("nan")},
        by_pass={name: [_share(r["part"] or 0, r["whole"]) for r in by] for name, by in kept.items()}
        | {IL_ACCURACY: known},
    )  # fmt: skip


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")
