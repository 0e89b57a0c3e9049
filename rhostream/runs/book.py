"""What a step leaves behind: its rows of the log, its row of the steps table, and what it is charged to the run.

Numbers of a step are those of all ranks; each rank logs its own rows, and rank 0 keeps the steps table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.runs.attempt import Attempt
from rhostream.selection.balance import Balance, class_rows
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import NONFINITE_BUFFERS, Selection
from rhostream.stream.dataset import CandidateStream

Metrics = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Evaluation:
    """One look at the test set: means over its usable samples."""

    loss: float | None  # nats
    accuracy: float | None  # of language: the share of a sequence's tokens that were the likeliest
    class_accuracy: list[float | None] | None  # None for a class without test samples
    samples: int | None

    def in_words(self) -> str:
        """For people: `accuracy 87.1 %, loss 0.402, of 10,000 test samples`."""
        accuracy = "" if self.accuracy is None else f"accuracy {100 * self.accuracy:.1f} %"
        loss = "" if self.loss is None else f"test loss {self.loss:.3f}"
        return ", ".join(filter(None, (accuracy, loss))) or "evaluated"

    def columns(self) -> dict[str, Any]:
        """As the steps table names them."""
        return {
            "test_loss": self.loss,
            "test_accuracy": self.accuracy,
            "class_accuracy": self.class_accuracy,
            "test_samples": self.samples,
        }


@dataclass(frozen=True)
class Totals:
    """A step's numbers over all ranks, the same on each of them."""

    candidates: int
    kept: int
    reached: int  # samples with a loss of the target
    loss: float  # sum over these, nats
    correct: int
    scored: int
    shortlisted: int
    reread: int
    live_scored: int
    live_trained: int
    signal: int  # the largest signal that a rank was asked to stop by, 0 for none
    due: bool  # whether a rank's clock says that it is time for a commit
    balance: Balance  # the classes of what was kept


@dataclass
class Step:
    """A step that was taken and isn't logged yet: its losses are still on the device."""

    number: int
    candidates: Candidates  # on the host
    selection: Selection
    loss_b: Tensor | None  # (n_kept,) of this rank, None when no rank kept any
    mean: Tensor | None  # over all ranks, where the loop knows it
    applied: bool | Tensor  # whether the optimizer took the step; on the device where only that knows
    learning_rate: float | None
    totals: Totals | None = None  # these once the step is over
    seconds: dict[str, float] = field(default_factory=dict)
    units: float = 0.0  # forward units so far
    evaluation: Evaluation | None = None


def totals_of(candidates: Candidates, selection: Selection, signal: int, due: bool, ranks: Ranks) -> Totals:
    """Add a step up over the ranks. Collective."""
    reached = selection.loss[~np.isnan(selection.loss)]
    told = ranks.gather(torch.tensor([
        np.count_nonzero(candidates.host.reason == CANDIDATE), len(selection), len(reached),
        reached.sum(dtype=np.float64), np.count_nonzero(selection.correct), selection.scored, selection.shortlisted,
        selection.reread, selection.live_scored, selection.live_trained, due, signal,
    ], dtype=torch.float64))  # fmt: skip
    loss = float(told[:, 3].sum())
    of_all, kept, count, _, correct, scored, short, reread, live, learned, asked, _ = (
        int(n) for n in told.sum(0).nan_to_num().tolist()
    )
    return Totals(
        of_all, kept, count, loss, correct, scored, short, reread, live, learned, int(told[:, -1].max()), asked > 0,
        _balance(candidates, selection, ranks),
    )  # fmt: skip


def _balance(candidates: Candidates, selection: Selection, ranks: Ranks) -> Balance:
    """The classes of what all ranks kept, against what their rules could choose from. Collective."""
    host = candidates.host
    rows = class_rows(host.label)
    # `below` before the choice: `uniform` has chosen in the stream, before anything was decoded.
    offered = (host.reason == CANDIDATE) | (host.reason == Reason.below)
    if ranks.alone:
        return Balance.of(host.label.numpy()[rows], selection.kept[rows], offered[rows])
    label = host.label.double() if host.label.ndim == 1 else torch.zeros(len(rows), dtype=torch.float64)
    own = torch.stack([label, torch.from_numpy(selection.kept).double(), torch.from_numpy(offered).double()], 1)
    told = ranks.concat(own[torch.from_numpy(rows)], candidates.slice_of(ranks.rank, ranks.size).most)[0].numpy()
    return Balance.of(told[:, 0].astype(np.int64), told[:, 1] > 0, told[:, 2] > 0)


class Book:
    """Enters steps into the run, one behind the loop. `accumulate`: batches that make one update, entered together."""

    def __init__(self, run: Attempt, stream: CandidateStream, metrics: Metrics | None, accumulate: int = 1) -> None:
        self._run, self._stream, self._metrics, self.accumulate = run, stream, metrics, accumulate
        self._dead = 0
        self.loss: float | None = None  # mean of the kept samples of the last step entered
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
        taken = [one for one in self.open if one.loss_b is not None]
        if taken and (taken[-1].applied is False or (not whole and step.loss_b is None)):
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
        self.loss = self._mean(step, loss_b)
        finite, applied = self.loss is None or math.isfinite(self.loss), bool(step.applied)
        if not finite:
            if applied:
                raise NonFiniteError(
                    f"the training loss of step {step.number} is NaN or infinite, and the optimizer "
                    "took it: nothing since the newest commit is committed. Where a guard left the "
                    "update out, say run.step(loss, applied=False); else lower the learning rate, or "
                    "use float32 or bfloat16"
                )
            self._without_nonfinite(step, loss_b)
        else:
            self._dead = 0
            if not applied:
                selection.kept[selection.rows], selection.reason[selection.rows] = False, Reason.unapplied
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
        row = {
            "step": step.number,
            "pass": step.candidates.pass_index,
            "candidates": totals.candidates,
            "kept": totals.kept if trained else 0,
            "loss_kept": self.loss,
            "loss_candidates": totals.loss / totals.reached if totals.reached else None,
            "accuracy_candidates": totals.correct / totals.reached if totals.reached and classes else None,
            "effective_classes": totals.balance.kept if trained else None,
            "effective_classes_uniform": totals.balance.uniform if trained else None,
            "learning_rate": step.learning_rate,
            "forward_units": step.units,
            **{f"seconds_{phase}": step.seconds.get(phase, 0.0) for phase in ("wait", "score", "train", "log")},
            **(step.evaluation.columns() if step.evaluation else {}),
        }
        run.steps.append(row)
        if self._metrics is not None:
            self._metrics(row)

    def _mean(self, step: Step, loss_b: np.ndarray[Any, Any] | None) -> float | None:
        """The mean loss of what was kept; NaN where no step was made of it."""
        if loss_b is None:
            return None
        if step.mean is not None and not math.isfinite(mean := float(step.mean)):
            return mean
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite mean is what is looked for
            if self._run.ranks.alone and step.selection.factors is None:
                return float(loss_b.mean(dtype=np.float32)) if len(loss_b) else None
            if step.mean is not None:  # the very number that the optimizer's step hung on, or ranks could part
                return float(step.mean)
            factors = step.selection.factors
            weighed = loss_b if factors is None else loss_b * factors.float().cpu().numpy()
            return self._run.ranks.sum([float(weighed.sum(dtype=np.float64))])[0] / max(step.selection.draws, 1)

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
        assert loss_b is not None
        selection, ranks, start = step.selection, self._run.ranks, 0
        assert selection.place is not None
        if selection.ranks == ranks.size:  # what this rank read may have been another's to train on
            start = step.candidates.slice_of(ranks.rank, ranks.size).first
        bad = selection.place[~np.isfinite(loss_b)].tolist()
        told = ranks.gather_json(bad)
        everywhere = {place for one in told for place in one} if selection.ranks == ranks.size else set(bad)
        whole = not any(told)
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
