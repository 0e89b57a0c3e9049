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

from rhostream.candidates import Candidates, Reason
from rhostream.errors import NonFiniteError
from rhostream.selection.selector import NONFINITE_BUFFERS, Selection, Selector
from rhostream.stream.dataset import Loader
from rhostream.stream.progress import StepProgress
from rhostream.tables.selections import rows_of
from rhostream.training.augment import augment as augmented
from rhostream.training.evaluate import Evaluation, TestSet
from rhostream.training.run import Run
from rhostream.training.signals import StopRequest

Metrics = Callable[[dict[str, Any]], None]


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
    evaluation: Evaluation | None = None
    _dead: int = field(default=0, init=False)

    def loop(self) -> None:
        """Algorithm 1. Raises Interrupted after committing when a signal asked to stop."""
        clock, step_of = _Clock(self.run.cost.seconds), self.run
        progress = StepProgress("train", self.last_step, step_of.step)
        with StopRequest() as stop, progress:
            for candidates in self.loader:  # line 5: the next n_B of the plan
                clock.lap("wait")
                torch.manual_seed(_step_seed(self.seed, step_of.step))  # dropout is a function of the step
                selection = self.selector(candidates.to(self.device))  # lines 6-8: score, keep the top n_b
                clock.lap("score")
                selection, loss = self._gradient_step(selection)  # lines 9-10
                clock.lap("train")
                self._record(candidates, selection, loss, clock)
                self.loader.consumed()
                self._end_of_pass(candidates)
                step_of.step += 1
                progress.step(f"loss {loss:.3f}")
                done = step_of.step >= self.last_step
                if done or stop.signal or step_of.step % self.checkpoint_every == 0:
                    self._commit(done, clock)
                if done:
                    return
                if stop.signal:
                    raise stop.error(step_of.step)

    def _gradient_step(self, selection: Selection) -> tuple[Selection, float]:
        """One fresh forward and backward on the kept samples, the mean loss; with none, the optimizer isn't called."""
        if selection.input is None:
            return selection, math.nan
        self.model.train()
        x, label = selection.input, selection.label
        if self.augment != "none":
            x = augmented(x, self.augment, _step_seed(self.seed, self.run.step))
        self.optimizer.zero_grad(set_to_none=True)
        size = -(-len(x) // self.accumulate)
        losses = []
        for part, labels in zip(x.split(size), label.split(size), strict=True):
            loss_b = self.selector.loss(self.model(part), labels)
            (loss_b.sum() / len(x)).backward()
            losses.append(loss_b.detach())
        loss = float(torch.cat(losses).mean())
        self.run.cost.trained += len(x)
        if math.isfinite(loss):
            self._dead = 0
            self.optimizer.step()
            return selection, loss
        return self._without_nonfinite(selection, torch.cat(losses)), loss

    def _without_nonfinite(self, selection: Selection, loss_b: Tensor) -> Selection:
        """A NaN in the batch would poison the weights: no step is taken, and the log says which samples it was."""
        self._dead += 1
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"the training loss of {self._dead} batches in a row is NaN or infinite (step "
                                 f"{self.run.step}); lower --lr, or use float32 or bfloat16")
        bad = ~torch.isfinite(loss_b).cpu().numpy()
        selection.kept[selection.rows] = False
        selection.reason[selection.rows] = np.where(bad, Reason.nonfinite, Reason.below)
        return selection

    def _record(self, candidates: Candidates, selection: Selection, loss: float, clock: _Clock) -> None:
        run, step = self.run, self.run.step
        run.cost.scored += selection.scored
        run.cost.decoded += len(candidates.candidate_rows)
        run.log.append(rows_of(candidates, step, selection.columns()), step)
        _count(run.counts, selection.reason)
        if self.tests is not None and ((step + 1) % self.eval_every == 0 or step + 1 == self.last_step):
            clock.lap("log")
            self.evaluation = self.tests.evaluate(self.model)
            run.cost.evaluated += self.evaluation.samples
            clock.lap("evaluate")
        reached = selection.loss[~np.isnan(selection.loss)]
        evaluation = self.evaluation if self.evaluation and (step + 1) % self.eval_every == 0 else None
        if step + 1 == self.last_step:
            evaluation = self.evaluation
        row = {
            "step": step, "pass": candidates.pass_index, "candidates": len(candidates.candidate_rows),
            "kept": int(selection.kept.sum()), "loss_kept": None if math.isnan(loss) else loss,
            "loss_candidates": float(reached.mean()) if len(reached) else None,
            "accuracy_candidates": float(selection.correct.sum() / len(reached)) if len(reached) else None,
            "learning_rate": self.optimizer.param_groups[0]["lr"], "forward_units": run.cost.forward_units,
            **{f"seconds_{phase}": clock.last.get(phase, 0.0) for phase in ("wait", "score", "train", "log")},
            **(evaluation.columns() if evaluation else {}),
        }
        run.steps.append(row)
        if self.metrics is not None:
            self.metrics(row)
        clock.lap("log")

    def _end_of_pass(self, candidates: Candidates) -> None:
        """The tail of a pass is logged with its last step."""
        stream = self.loader.stream
        if candidates.index + 1 < stream.plan(candidates.pass_index).buffers:
            return
        tail = stream.tail(candidates.pass_index)
        if len(tail):
            n, never = len(tail), np.full(len(tail), np.nan, np.float32)
            columns = {"loss": never, "score": never, "correct": np.zeros(n, bool), "kept": np.zeros(n, bool),
                       "reason": tail.reason, "weight": np.ones(n, np.float32), "lag": np.zeros(n, np.uint8)}
            self.run.log.append(rows_of(tail, None, columns), self.run.step)
            _count(self.run.counts, tail.reason)

    def _commit(self, done: bool, clock: _Clock) -> None:
        state = self.loader.state_dict()
        self.run.commit(self.model, self.optimizer, pass_index=state["pass"], buffer=state["buffer"], complete=done,
                        keep=self.keep_checkpoints)
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


def _count(counts: dict[str, int], reason: np.ndarray[Any, Any]) -> None:
    for value, number in zip(*np.unique(reason, return_counts=True), strict=True):
        name = Reason(int(value)).name
        counts[name] = counts.get(name, 0) + int(number)
