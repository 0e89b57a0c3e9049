"""What a step leaves behind: its rows of the log, its row of the steps table, and what it is charged to the run.

Numbers of a step are those of all ranks; each rank logs its own rows, and rank 0 keeps the steps table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.runs.attempt import Attempt
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import NONFINITE_BUFFERS, Selection
from rhostream.stream.dataset import CandidateStream

Metrics = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Evaluation:
    """One look at the test set: means over its usable samples."""

    loss: float  # nats
    accuracy: float  # of language: the share of a sequence's tokens that were the likeliest
    class_accuracy: list[float | None]  # None for a class without test samples
    samples: int

    def columns(self) -> dict[str, Any]:
        """As the steps table names them."""
        return {"test_loss": self.loss, "test_accuracy": self.accuracy, "class_accuracy": self.class_accuracy,
                "test_samples": self.samples}


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


@dataclass(frozen=True)
class Step:
    """A step that was taken and isn't logged yet: its losses are still on the device."""

    number: int
    candidates: Candidates  # on the host
    selection: Selection
    loss_b: Tensor | None  # (n_kept,) of this rank, None when no rank kept any
    mean: Tensor | None  # over all ranks
    totals: Totals
    seconds: dict[str, float]
    units: float  # forward units so far
    evaluation: Evaluation | None


def totals_of(candidates: Candidates, selection: Selection, signal: int, ranks: Ranks) -> Totals:
    """Add a step up over the ranks. Collective."""
    reached = selection.loss[~np.isnan(selection.loss)]
    told = ranks.gather(torch.tensor([
        np.count_nonzero(candidates.host.reason == CANDIDATE), len(selection), len(reached),
        reached.sum(dtype=np.float64), np.count_nonzero(selection.correct), selection.scored, selection.shortlisted,
        selection.reread, selection.live_scored, selection.live_trained, signal,
    ], dtype=torch.float64))  # fmt: skip
    loss = float(told[:, 3].sum())
    of_all, kept, count, _, correct, scored, short, reread, live, learned, _ = (
        int(n) for n in told.sum(0).nan_to_num().tolist())
    return Totals(of_all, kept, count, loss, correct, scored, short, reread, live, learned, int(told[:, -1].max()))


class Book:
    """Enters steps into the run, one behind the loop."""

    def __init__(self, run: Attempt, stream: CandidateStream, metrics: Metrics | None) -> None:
        self._run, self._stream, self._metrics = run, stream, metrics
        self._dead = 0
        self.loss: float | None = None  # mean of the kept samples of the last step entered

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

    def enter(self, step: Step, learning_rate: float) -> None:
        """Log a step whose losses are on their way to the host. Raises NonFiniteError, and what the log raises."""
        run, selection, totals = self._run, step.selection, step.totals
        loss_b = None if step.loss_b is None else step.loss_b.cpu().numpy()
        self.loss = self._mean(step, loss_b)
        finite = self.loss is None or math.isfinite(self.loss)
        if finite:
            self._dead = 0
        else:
            self._without_nonfinite(step, loss_b)
        run.log.take(step.candidates, step.number, selection.columns(), step.number)
        if (seen := selection.shadow) is not None and len(seen.rows):
            c = step.candidates
            run.shadow.take(c.pass_index, step.number, c.shard[seen.rows], c.shard_names, c.ordinal[seen.rows],
                            seen.score, seen.kept)
        _count(run.counts, selection.reason)
        crash_point("train: step logged")
        self._end_of_pass(step)
        if not run.ranks.first:
            return
        row = {
            "step": step.number, "pass": step.candidates.pass_index, "candidates": totals.candidates,
            "kept": totals.kept if finite else 0, "loss_kept": self.loss,
            "loss_candidates": totals.loss / totals.reached if totals.reached else None,
            "accuracy_candidates": totals.correct / totals.reached if totals.reached else None,
            "learning_rate": learning_rate, "forward_units": step.units,
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
        if self._run.ranks.alone and step.selection.factors is None:
            with np.errstate(over="ignore"):  # an infinite mean is what is looked for
                return float(loss_b.mean(dtype=np.float32)) if len(loss_b) else None
        # By the very number that the optimizer's step hung on, or ranks could part.
        return None if step.mean is None else float(step.mean)

    def _without_nonfinite(self, step: Step, loss_b: np.ndarray[Any, Any] | None) -> None:
        """A NaN in the batch would have poisoned the weights: no step was taken, and the log says which samples it was.

        Where each loss is finite and the gradient isn't, it was the batch. Collective; raises NonFiniteError when it
        happens again and again.
        """
        self._dead += 1
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"the training loss of {self._dead} batches in a row, or its gradient, is NaN or "
                                 f"infinite (step {step.number}); lower --lr, or use float32 or bfloat16")
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
        selection.reason[selection.rows] = [Reason.nonfinite if whole or row + start in everywhere else Reason.below
                                            for row in selection.rows.tolist()]

    def _end_of_pass(self, step: Step) -> None:
        """The tail of a pass is logged with its last step."""
        candidates = step.candidates
        if candidates.index + 1 < self._stream.plan(candidates.pass_index).buffers:
            return
        tail = self._stream.tail(candidates.pass_index)
        if len(tail):
            n, never = len(tail), np.full(len(tail), np.nan, np.float32)
            columns = {"loss": never, "score": never, "correct": np.zeros(n, bool), "kept": np.zeros(n, bool),
                       "reason": tail.reason, "weight": np.ones(n, np.float32), "lag": np.zeros(n, np.uint8)}
            self._run.log.take(tail, None, columns, step.number)
            _count(self._run.counts, tail.reason)


def _count(counts: dict[str, int], reason: np.ndarray[Any, Any]) -> None:
    for value, number in enumerate(np.bincount(reason).tolist()):
        if number:
            name = Reason(value).name
            counts[name] = counts.get(name, 0) + number
