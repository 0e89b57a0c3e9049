"""Algorithm 1 of the paper, on tar shards: draw n_B, score, keep n_b, step; every decision is logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rhostream.candidates import Candidates, to_device
from rhostream.crashpoints import crash_point
from rhostream.randomness import torch_seed
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Book, Evaluation, Metrics, Step, totals_of
from rhostream.runs.tensors import payload
from rhostream.selection.gradient import require_finite, take_step
from rhostream.selection.selector import Selection, Selector
from rhostream.selection.tokens import TokenShare
from rhostream.signals import StopRequest
from rhostream.stream.dataset import Loader
from rhostream.stream.progress import StepProgress
from rhostream.training.augment import augment as augmented
from rhostream.training.evaluate import TestSet
from rhostream.training.live import states_of

__all__ = ["Metrics", "Trainer"]


@dataclass
class Trainer:
    """One attempt at a run, assembled: what the loop needs and nothing that it doesn't."""

    loader: Loader
    selector: Selector
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Attempt
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
    tokens: TokenShare | None = None  # of language: which of a kept sequence's tokens the gradient goes through
    evaluation: Evaluation | None = None
    _open: Step | None = field(default=None, init=False)  # taken, and not yet in the log

    def __post_init__(self) -> None:
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.compile else self.model
        self._book = Book(self.run, self.loader.stream, self.metrics)
        self._ranks = self.run.ranks

    def loop(self) -> None:
        """Algorithm 1. Raises Interrupted after committing when a signal asked to stop."""
        clock, run, ranks = _Clock(self.run.cost.seconds), self.run, self._ranks
        progress = StepProgress("train", self.last_step, run.step, silent=not ranks.first)
        with StopRequest("train", patient=True) as stop, progress:
            # A rank that stopped waiting would leave the others in their next collective.
            for candidates in stop.while_waiting(self.loader) if ranks.alone else self.loader:  # line 5: the next n_B
                clock.lap("wait")
                self._seed_step()  # for a proxy that learns
                selection = self.selector(candidates.to(self.device), run.step)  # lines 6-8: score, keep the top n_b
                crash_point("train: buffer scored")
                clock.lap("score")
                self._finish_step(clock)  # the one before: its losses have come to the host with these scores
                loss_b, mean = self._gradient_step(selection, candidates)  # lines 9-10
                crash_point("train: optimizer stepped")
                clock.lap("train")
                done = run.step + 1 >= self.last_step
                totals = totals_of(candidates, selection, stop.signal or 0, ranks)
                units = self._book.charge(totals, self.selector.proxy is not None)
                self._open = Step(run.step, candidates.host, selection, loss_b, mean, totals, dict(clock.last), units,
                                  self._evaluate(run.step, done, clock))
                self.loader.consumed()
                run.step += 1
                progress.step("" if self._book.loss is None else f"loss {self._book.loss:.3f}")
                # A rank may know of a signal that another will only see a step later: all go by what was told.
                stopping = stop.signal if ranks.alone else totals.signal
                if done or stopping or run.step % self.checkpoint_every == 0:
                    self._finish_step(clock)
                    self._commit(done, clock)
                if done:
                    return
                if stopping:
                    stop.signal = stopping
                    raise stop.error(run.step)
            if ranks.alone and stop.signal:  # it came while the next buffer was waited for
                if run.uncommitted:
                    self._finish_step(clock)
                    self._commit(False, clock)
                raise stop.error(run.step)

    def _gradient_step(self, selection: Selection,
                       candidates: Candidates) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """One fresh forward and backward on the kept samples of all ranks; with none, the optimizer isn't called.

        The losses of what this rank trains on, (n,), and the mean stay on the device: nothing waits for them, and a
        batch whose loss or gradient isn't finite changes no weight.
        """
        total = selection.draws
        if self.selector.ranks.size != self._ranks.size:  # each rank keeps its own n_b / ranks
            total = int(self._ranks.sum([selection.draws])[0])
        if not total:
            return None, None
        x = selection.input
        if x is None:
            x = self.loader.stream.preprocess.example(0).to(self.device)
        self._seed_step()  # again: a callback of the user's may have drawn numbers since
        if self.augment != "none" and len(x):
            part = candidates.slice_of(self._ranks.rank, self._ranks.size)
            start = 0 if self.selector.ranks.size == self._ranks.size else part.first
            x = augmented(x, self.augment, torch_seed(self.seed, "augment", self.run.step),
                          rows=torch.from_numpy(selection.place) + start, planned=part.planned)
        label, loss = selection.label, self.selector.loss
        if self.tokens is not None and selection.il_tokens is not None:
            label = to_device(selection.il_tokens, self.device)
            loss = self.tokens
        return take_step(self.model, self.optimizer, x, label, loss, forward=self._forward,
                         accumulate=self.accumulate, autocast=self.precision, ranks=self._ranks, total=total,
                         weight=selection.factors)

    def _seed_step(self) -> None:
        """Dropout is a function of the step, and of the rank: other rows, other draws."""
        seed = torch_seed(self.seed, "step", self.run.step, self._ranks.rank)
        # Only the generators in use: torch.manual_seed also writes down a stack trace for each kind that isn't.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

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
        self._book.enter(step, self.optimizer.param_groups[0]["lr"])
        clock.lap("log")

    def _commit(self, done: bool, clock: _Clock) -> None:
        proxy, live = self.selector.proxy, self.selector.live
        require_finite({"the model": self.model, "the proxy": None if proxy is None else proxy.model,
                        "the IL model that learns along": None if live is None else nn.ModuleList(live.networks)},
                       self.run.step)
        state = self.loader.state_dict()
        files = payload(self.model.state_dict(), self.optimizer.state_dict(),
                        states_of(self.selector.proxy, self.selector.live)) if self._ranks.first else {}
        self.run.commit(files, pass_index=state["pass"], buffer=state["buffer"], complete=done,
                        keep=self.keep_checkpoints, selector=self.selector.state_dict())
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
