"""Algorithm 1 of the paper, on tar shards: draw n_B, score, keep n_b, step; every decision is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.selection.proxy import step_if_finite
from rhostream.selection.selector import NONFINITE_BUFFERS, Selection, Selector
from rhostream.signals import StopRequest
from rhostream.stream.dataset import Loader
from rhostream.stream.progress import StepProgress
from rhostream.training.augment import augment as augmented
from rhostream.training.evaluate import Evaluation, TestSet
from rhostream.training.run import Run

Metrics = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Step:
    """A step that was taken and isn't logged yet: its losses are still on the device."""

    number: int
    candidates: Candidates  # on the host
    selection: Selection
    loss_b: Tensor | None  # (n_kept,), None when nothing was kept
    seconds: dict[str, float]
    units: float  # forward units so far
    evaluation: Evaluation | None


@dataclass
class Trainer:
    """One attempt at a run, assembled: what the loop needs and nothing that it doesn't."""

    loader: Loader
    selector: Selector
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run
    device: torch.device
    seed: int
    last_step: int
    accumulate: int = 1
    augment: str = "none"
    tests: TestSet | None = None
    eval_every: int = 100
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    metrics: Metrics | None = None
    precision: torch.dtype | None = None  # of the gradient step, None for float32
    compile: bool = False
    evaluation: Evaluation | None = None
    _dead: int = field(default=0, init=False)
    _open: _Step | None = field(default=None, init=False)  # taken, and not yet in the log
    _loss: float | None = field(default=None, init=False)  # of the last step in the log

    def __post_init__(self) -> None:
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.compile else self.model

    def loop(self) -> None:
        """Algorithm 1. Raises Interrupted after committing when a signal asked to stop."""
        clock, run = _Clock(self.run.cost.seconds), self.run
        progress = StepProgress("train", self.last_step, run.step)
        with StopRequest("train", patient=True) as stop, progress:
            for candidates in stop.while_waiting(self.loader):  # line 5: the next n_B of the plan
                clock.lap("wait")
                _seed(self.device, _step_seed(self.seed, run.step))  # dropout is a function of the step
                selection = self.selector(candidates.to(self.device))  # lines 6-8: score, keep the top n_b
                crash_point("train: buffer scored")
                clock.lap("score")
                self._finish_step(clock)  # the one before: its losses have come to the host with these scores
                loss_b = self._gradient_step(selection)  # lines 9-10
                crash_point("train: optimizer stepped")
                clock.lap("train")
                done = run.step + 1 >= self.last_step
                self._open = _Step(run.step, candidates.host, selection, loss_b, dict(clock.last), self._account(
                    candidates, selection), self._evaluate(run.step, done, clock))  # fmt: skip
                self.loader.consumed()
                run.step += 1
                progress.step("" if self._loss is None else f"loss {self._loss:.3f}")
                if done or stop.signal or run.step % self.checkpoint_every == 0:
                    self._finish_step(clock)
                    self._commit(done, clock)
                if done:
                    return
                if stop.signal:
                    raise stop.error(run.step)
            if stop.signal:  # it came while the next buffer was waited for
                if run.uncommitted:
                    self._finish_step(clock)
                    self._commit(False, clock)
                raise stop.error(run.step)

    def _gradient_step(self, selection: Selection) -> Tensor | None:
        """One fresh forward and backward on the kept samples, the mean loss; with none, the optimizer isn't called.

        The losses (n_kept,) stay on the device: nothing waits for them, and a batch whose loss isn't finite changes no
        weight.
        """
        if selection.input is None:
            return None
        if not self.model.training:
            self.model.train()
        x, label = selection.input, selection.label
        if self.augment != "none":
            x = augmented(x, self.augment, _step_seed(self.seed, self.run.step))
        self.optimizer.zero_grad(set_to_none=True)
        size = -(-len(x) // self.accumulate)
        losses = []
        for part, labels in zip(x.split(size), label.split(size), strict=True):
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                logits = self._forward(part)
            loss_b = self.selector.loss(logits.float(), labels)
            (loss_b.sum() / len(x)).backward()
            losses.append(loss_b.detach())
        crash_point("train: loss computed")
        loss_b = torch.cat(losses) if len(losses) > 1 else losses[0]
        step_if_finite(self.optimizer, loss_b.mean())
        return loss_b

    def _account(self, candidates: Candidates, selection: Selection) -> float:
        """Charge a step; returns the units so far."""
        cost = self.run.cost
        cost.scored += selection.scored
        cost.shortlisted += selection.shortlisted
        cost.trained += len(selection)
        cost.proxy_trained += len(selection) if self.selector.proxy is not None else 0
        cost.decoded += int(np.count_nonzero(candidates.host.reason == CANDIDATE))
        cost.reread += selection.reread
        return cost.forward_units

    def _evaluate(self, step: int, done: bool, clock: _Clock) -> Evaluation | None:
        """At its steps, and at the last one."""
        if self.tests is None or not (done or (step + 1) % self.eval_every == 0):
            return None
        self.evaluation = self.tests.evaluate(self.model)
        self.run.cost.evaluated += self.evaluation.samples
        clock.lap("evaluate")
        return self.evaluation

    def _finish_step(self, clock: _Clock) -> None:
        """Log the step whose losses are on their way to the host."""
        if self._open is None:
            return
        step, self._open = self._open, None
        loss_b = None if step.loss_b is None else step.loss_b.cpu().numpy()
        self._loss = None if loss_b is None or not len(loss_b) else float(loss_b.mean(dtype=np.float32))
        if self._loss is not None and not math.isfinite(self._loss):
            self._without_nonfinite(step, loss_b)
        else:
            self._dead = 0
        run, selection = self.run, step.selection
        run.log.take(step.candidates, step.number, selection.columns(), step.number)
        _count(run.counts, selection.reason)
        crash_point("train: step logged")
        self._end_of_pass(step)
        reached = selection.loss[~np.isnan(selection.loss)]
        row = {
            "step": step.number, "pass": step.candidates.pass_index, "candidates": len(step.candidates.candidate_rows),
            "kept": int(selection.kept.sum()), "loss_kept": self._loss,
            "loss_candidates": float(reached.mean()) if len(reached) else None,
            "accuracy_candidates": float(selection.correct.sum() / len(reached)) if len(reached) else None,
            "learning_rate": self.optimizer.param_groups[0]["lr"], "forward_units": step.units,
            **{f"seconds_{phase}": step.seconds.get(phase, 0.0) for phase in ("wait", "score", "train", "log")},
            **(step.evaluation.columns() if step.evaluation else {}),
        }
        run.steps.append(row)
        if self.metrics is not None:
            self.metrics(row)
        clock.lap("log")

    def _without_nonfinite(self, step: _Step, loss_b: np.ndarray[Any, Any] | None) -> None:
        """A NaN in the batch would have poisoned the weights: no step was taken, and the log says which samples it was.

        Raises NonFiniteError when it happens again and again.
        """
        self._dead += 1
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"the training loss of {self._dead} batches in a row is NaN or infinite (step "
                                 f"{step.number}); lower --lr, or use float32 or bfloat16")
        assert loss_b is not None
        selection = step.selection
        selection.kept[selection.rows] = False
        selection.reason[selection.rows] = np.where(np.isfinite(loss_b), Reason.below, Reason.nonfinite)

    def _end_of_pass(self, step: _Step) -> None:
        """The tail of a pass is logged with its last step."""
        stream, candidates = self.loader.stream, step.candidates
        if candidates.index + 1 < stream.plan(candidates.pass_index).buffers:
            return
        tail = stream.tail(candidates.pass_index)
        if len(tail):
            n, never = len(tail), np.full(len(tail), np.nan, np.float32)
            columns = {"loss": never, "score": never, "correct": np.zeros(n, bool), "kept": np.zeros(n, bool),
                       "reason": tail.reason, "weight": np.ones(n, np.float32), "lag": np.zeros(n, np.uint8)}
            self.run.log.take(tail, None, columns, step.number)
            _count(self.run.counts, tail.reason)

    def _commit(self, done: bool, clock: _Clock) -> None:
        state = self.loader.state_dict()
        self.run.commit(self.model, self.optimizer, self.selector.proxy, pass_index=state["pass"],
                        buffer=state["buffer"], complete=done, keep=self.keep_checkpoints)
        clock.lap("checkpoint")


class _Clock:
    """Splits wall time into phases: seconds of the last lap of each, and running totals."""

    def __init__(self, totals: dict[str, float]) -> None:
        self.totals, self._mark = totals, time.perf_counter()
        self.last: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.last[phase] = now - self._mark
        self.totals[phase] = self.totals.get(phase, 0.0) + self.last[phase]
        self._mark = now


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % (1 << 63)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators in use: torch.manual_seed also writes down a stack trace for each kind that isn't."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _count(counts: dict[str, int], reason: np.ndarray[Any, Any]) -> None:
    for value, number in enumerate(np.bincount(reason).tolist()):
        if number:
            name = Reason(value).name
            counts[name] = counts.get(name, 0) + number
