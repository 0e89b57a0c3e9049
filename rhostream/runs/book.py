"""What a step leaves behind: its rows of the log, its row of the steps table, and what it is charged to the run.

Numbers of a step are those of all ranks; each rank logs its own rows, and rank 0 keeps the steps table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rhostream.candidates import Reason
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.runs.attempt import Attempt
from rhostream.runs.learned import Learned, places
from rhostream.runs.step import Step, Totals
from rhostream.selection.selector import NONFINITE_BUFFERS
from rhostream.stream.dataset import CandidateStream
from rhostream.tables.steps import RATIO, RECALL, WORTH

Metrics = Callable[[dict[str, Any]], None]


class Book:
    """Enters steps into the run, one behind the loop. `accumulate`: batches that make one update, entered together.

    `metrics` is called with each row of the steps table, `entered` with that and what the table doesn't hold.
    """

    def __init__(
        self,
        run: Attempt,
        stream: CandidateStream,
        metrics: Metrics | None,
        accumulate: int = 1,
        entered: Metrics | None = None,
    ) -> None:
        self._run, self._stream, self._metrics, self.accumulate = run, stream, metrics, accumulate
        self._entered = entered
        self._dead = 0
        self.batches = 0  # since the last update was closed
        self.open: list[Step] = []  # of an update that isn't closed
        self._closed: list[Step] = []  # whose losses are on their way to the host

    def add(self, step: Step, last: bool) -> None:
        """A step is over. It is entered with the update that it belongs to, as the batch that closes it says.

        What the `last` step of a run leaves of an update is closed with it; where that step is no batch, no optimizer
        came any more.
        """
        self.open.append(step)
        whole = self.batches in (0, self.accumulate)
        if not (whole or last):
            return
        taken = [one for one in self.open if one.selection.draws]
        if taken and (taken[-1].applied is False or (not whole and not step.selection.draws)):
            for one in taken:
                one.applied = False
        self._closed += self.open
        self.open, self.batches = [], 0

    def enter_closed(self) -> None:
        """Log every step whose update is closed. Collective; raises what `enter` raises."""
        while self._closed:
            self.enter(self._closed.pop(0))

    def charge(self, totals: Totals, proxy: bool) -> float:
        """Charge a step to the run's cost account; returns the forward units so far."""
        cost = self._run.cost
        cost.scored += totals.scored
        cost.shortlisted += totals.shortlisted
        cost.trained += totals.kept
        cost.proxy_trained += totals.kept if proxy else 0
        cost.live_scored += totals.live_scored
        cost.live_trained += totals.live_trained
        cost.decoded += totals.candidates
        cost.reread += totals.reread
        return cost.forward_units

    def enter(self, step: Step) -> None:
        """Log a step whose losses are on their way to the host. Collective.

        Raises NonFiniteError where a loss isn't finite and the weights took it, and what the log raises.
        """
        run, selection, totals = self._run, step.selection, step.totals
        assert totals is not None
        loss_b = None if step.loss_b is None else step.loss_b.float().cpu().numpy()
        learned = Learned.of(step, loss_b, run.ranks)
        loss = learned.loss
        finite, applied = loss is None or math.isfinite(loss), learned.any
        if learned.broken or (applied and not finite):
            raise NonFiniteError(
                f"the training loss of step {step.number} is NaN or infinite, and the optimizer "
                "took it: nothing since the newest commit is committed. Where a guard left the "
                "update out, say run.step(loss, applied=False); else lower the learning rate, or "
                "use float32 or bfloat16"
            )
        if not finite:
            self._without_nonfinite(step, loss_b)
        else:
            self._dead = 0
            if not applied:
                selection.kept[selection.rows], selection.reason[selection.rows] = False, Reason.unapplied
            elif learned.without:
                learned.mark(step, loss_b, run.ranks)
        run.log.take(step.candidates, step.number, selection.columns(), step.number)
        if (seen := selection.shadow) is not None and len(seen.rows):
            c = step.candidates
            run.shadow.take(
                c.pass_index,
                step.number,
                c.shard[seen.rows],
                c.shard_names,
                c.ordinal[seen.rows],
                seen.score,
                seen.kept,
            )
        _count(run.counts, selection.reason)
        crash_point("train: step logged")
        self._end_of_pass(step)
        if not run.ranks.first:
            return
        trained, classes = finite and applied, step.candidates.target_field is None
        whole = trained and not learned.without  # the classes of a part of what was kept aren't counted
        row = {
            "step": step.number,
            "pass": step.candidates.pass_index,
            "candidates": totals.candidates,
            "kept": totals.kept - learned.without if trained else 0,
            "loss_kept": loss,
            "loss_candidates": totals.loss / totals.reached if totals.reached else None,
            "accuracy_candidates": totals.correct / totals.reached if totals.reached and classes else None,
            "effective_classes": totals.balance.kept if whole else None,
            "effective_classes_uniform": totals.balance.uniform if whole else None,
            "learning_rate": step.learning_rate,
            RECALL: selection.recall,
            RATIO: selection.share[0],
            WORTH: list(selection.share[1]) or None,
            "forward_units": step.units,
            **{f"seconds_{phase}": step.seconds.get(phase, 0.0) for phase in ("wait", "score", "train", "log")},
            **(step.evaluation.columns() if step.evaluation else {}),
        }
        run.steps.append(row)
        if self._metrics is not None:
            self._metrics(row)
        if self._entered is not None:
            planned = self._stream.buffer_size
            self._entered(
                {
                    **row,
                    "planned": planned,
                    "kept_share": row["kept"] / planned,
                    "score_kept": totals.score_kept,
                    "il_kept": totals.il_kept,
                }
            )

    def _without_nonfinite(self, step: Step, loss_b: np.ndarray[Any, Any] | None) -> None:
        """A NaN in the batch would have poisoned the weights: no step was taken, and the log says which samples it was.

        Where each loss is finite and the gradient isn't, it was the batch. Collective; raises NonFiniteError when it
        happens again and again.
        """
        self._dead += 1
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(
                f"the training loss of {self._dead} batches in a row, or its gradient, is NaN or "
                f"infinite (step {step.number}); lower --lr, or use float32 or bfloat16"
            )
        selection, ranks = step.selection, self._run.ranks
        start = step.candidates.slice_of(ranks.rank, ranks.size).first
        everywhere = places(selection, None if loss_b is None else ~np.isfinite(loss_b), ranks)
        whole = not everywhere
        selection.kept[selection.rows] = False
        selection.reason[selection.rows] = [
            Reason.nonfinite if whole or row + start in everywhere else Reason.below for row in selection.rows.tolist()
        ]

    def _end_of_pass(self, step: Step) -> None:
        """The tail of a pass is logged with its last step."""
        candidates = step.candidates
        if candidates.index + 1 < self._stream.plan(candidates.pass_index).buffers:
            return
        tail = self._stream.tail(candidates.pass_index)
        if len(tail):
            n, never = len(tail), np.full(len(tail), np.nan, np.float32)
            columns = {
                "loss": never,
                "score": never,
                "correct": np.zeros(n, bool),
                "kept": np.zeros(n, bool),
                "reason": tail.reason,
                "weight": np.ones(n, np.float32),
            }
            self._run.log.take(tail, None, columns, step.number)
            _count(self._run.counts, tail.reason)


def _count(counts: dict[str, int], reason: np.ndarray[Any, Any]) -> None:
    for value, number in enumerate(np.bincount(reason).tolist()):
        if number:
            name = Reason(value).name
            counts[name] = counts.get(name, 0) + number


class Clock:
    """Splits wall time into phases: seconds of the last lap of each, and running totals."""

    def __init__(self, totals: dict[str, float]) -> None:
        self.totals, self._mark = totals, time.perf_counter()
        self.last: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.last[phase] = now - self._mark
        self.totals[phase] = self.totals.get(phase, 0.0) + self.last[phase]
        self._mark = now
