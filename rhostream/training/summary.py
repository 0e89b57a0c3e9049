"""How a run of `train` ended: a value, made of its counts, its cost and its newest evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rhostream import storage
from rhostream.candidates import Reason
from rhostream.errors import BudgetError
from rhostream.inert import one_line
from rhostream.runs.attempt import Attempt
from rhostream.runs.chain import head, with_segments
from rhostream.runs.doubts import doubts_of
from rhostream.runs.step import Evaluation
from rhostream.tables.il import OK
from rhostream.tables.steps import OF_PAIRS, last_evaluation
from rhostream.training.settings import Settings


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run: str
    steps: int
    planned: int  # rows in the log
    reasons: dict[str, int]
    test_accuracy: float | None  # with --ema of the averaged weights
    cost: dict[str, Any]
    test_samples: int = 0  # of which the accuracy is
    test_left_out: dict[str, int] = field(default_factory=dict)  # test samples that can't be used, by status
    doubts: list[str] = field(default_factory=list)  # why selection may not pay here, a sentence each

    def __repr__(self) -> str:
        accuracy = "" if self.test_accuracy is None else f", test accuracy {self.test_accuracy:.4f}"
        kept = f"{self.reasons.get('kept', 0):,} of {self.planned:,} kept"
        return (
            f"<summary of run {one_line(self.run)}: {self.steps:,} steps, {kept}{accuracy}, {len(self.doubts)} doubts>"
        )


def evaluated_before(attempt: Attempt) -> Evaluation | None:
    """The newest evaluation in the ledger, of a run that an earlier call has brought here. Collective."""
    newest = None
    if attempt.ranks.first and (link := head(attempt.url)) is not None:
        newest = last_evaluation(attempt.url, with_segments(attempt.url, link).steps)
    newest = attempt.ranks.from_first(newest)
    if newest is None:
        return None
    classes, samples = newest["class_accuracy"], newest["test_samples"]
    of_pairs = {name: newest[name] for name in OF_PAIRS if newest[name] is not None}
    return Evaluation(newest["test_loss"], newest["test_accuracy"], classes, samples, of_pairs or None)


def summary_of(
    settings: Settings,
    attempt: Attempt,
    last_step: int,
    last: Evaluation | None,
    tested: Mapping[str, int],
    doubt: str | None,
) -> Summary:
    """How it ended; `doubt`: what the run said of its batches at its end, None where an earlier call ended it.

    Raises BudgetError for a run that came to its end and learned from nothing.
    """
    counts = dict(attempt.ranks.from_first(attempt.counts))
    if attempt.step >= last_step:
        _require_kept(attempt.url, settings.il, counts)
    left_out = {status: n for status, n in sorted(tested.items()) if status != OK}
    return Summary(
        attempt.url,
        attempt.step,
        sum(counts.values()),
        counts,
        None if last is None else last.accuracy,
        attempt.cost.as_json(),
        tested.get(OK, 0) or (last and last.samples) or 0,
        left_out,
        attempt.ranks.from_first(doubts_of(attempt.url, doubt) if attempt.ranks.first else None),
    )


def _require_kept(run: str, il: str, counts: Mapping[str, int]) -> None:
    """Raise BudgetError for a run that ended without one sample to learn from; `counts`: rows of its log by reason."""
    # Rows without an il were left out because it was asked for; whatever else left nothing over wasn't.
    if not {Reason.kept.name, Reason.missing_il.name} & {*counts}:
        raise BudgetError(
            f"{storage.redact(run)}: no sample of {sum(counts.values()):,} was kept ("
            + ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()))
            + f"), so nothing was learned; `rhostream sql {storage.redact(il)} "
            '"select status, error, count(*) from quarantine group by all"` says why'
        )
