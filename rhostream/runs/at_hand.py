"""The batch that the loop's body has: drawn, told what became of it, closed, and entered in the book one step late."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import Candidates
from rhostream.crashpoints import crash_point
from rhostream.errors import UsageError
from rhostream.randomness import torch_seed
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Book, Clock
from rhostream.runs.measure import measure, price
from rhostream.runs.step import Evaluation, Step, totals_of
from rhostream.selection.heard import hear
from rhostream.selection.selector import Selection, Selector
from rhostream.stream.loader import Loader

Evaluate = Callable[[int, bool], Evaluation | None]  # of (step, whether it is the run's last)


class AtHand:
    """`seed`: of every generator before each batch, None where they are left alone; `measured`: the cost account knows
    its multiply-adds; `evaluate`: asked as each step is closed."""

    def __init__(
        self,
        attempt: Attempt,
        stream: Loader,
        selector: Selector,
        objects: Mapping[str, Any],
        book: Book,
        *,
        seed: int | None,
        measured: bool,
        evaluate: Evaluate | None,
    ) -> None:
        self._attempt, self._stream, self._selector, self._objects = attempt, stream, selector, objects
        self._book, self._seed, self._measured, self._evaluate = book, seed, measured, evaluate
        self.device = _device_of(stream, selector)
        self.clock = Clock({})
        self.candidates: Candidates | None = None  # of the newest batch
        self.selection: Selection | None = None  # drawn, and not closed yet
        self.taken: Step | None = None  # what `take` was told of it
        self.evaluation: Evaluation | None = None  # of it
        self.evaluated: Evaluation | None = None  # of the step that was closed last
        self.signal, self.due = 0, False  # as all ranks know them since the step that was closed last

    @property
    def open(self) -> bool:
        """Whether the body of the loop still owes it a step."""
        return self.selection is not None and self.taken is None

    def draw(self, candidates: Candidates) -> Selection:
        """Score the buffer and choose from it; meanwhile the losses of the step before come to the host. Collective."""
        self.clock.lap("wait")
        if not self._measured:  # cost is told in forwards of the target
            self._measured = True
            measure(self._attempt.cost, self._selector, self._stream.stream)
            price(self._selector, self._attempt.cost, self._stream.stream.table.info)
        self._seed_generators()  # for a proxy that learns
        selection = self._selector(candidates.to(self.device), self._attempt.step)
        crash_point("train: buffer scored")
        self.clock.lap("score")
        self.log()
        self.candidates, self.selection, self.taken = candidates, selection, None
        if selection.draws:
            self._seed_generators()  # again: scoring, or a callback, may have drawn numbers since
        return selection

    def take(self, loss_b: Tensor | None, applied: bool | Tensor = True, mean: Tensor | None = None) -> Step:
        """What the body of the loop made of it; see `Run.step`."""
        assert self.candidates is not None and self.selection is not None
        rate = _rate(self._objects)
        self.taken = Step(
            self._attempt.step, self.candidates.host, self.selection, loss_b, mean, applied, learning_rate=rate
        )
        return self.taken

    def close(self, signal: int, due: bool, last_step: int | None) -> None:
        """It is done: charge it, move the cursor. Collective; nothing where a commit has closed it."""
        if self.selection is None:
            return
        step = self.taken or self.take(None)
        self.clock.lap("train")
        assert self.candidates is not None
        step.totals = totals_of(self.candidates, step.selection, signal, due, self._attempt.ranks)
        self.signal, self.due = step.totals.signal, step.totals.due
        hear(self._selector, self.candidates, step.selection, step.loss_b)
        step.seconds = dict(self.clock.last)
        step.units = self._book.charge(step.totals, self._selector.proxy is not None and self._selector.proxy.learns)
        last = last_step is not None and step.number + 1 >= last_step
        if self._evaluate is not None:
            self.evaluation = self._evaluate(step.number, last)
        if self.evaluation is not None:
            self._attempt.cost.evaluated += self.evaluation.samples or 0
            self.clock.lap("evaluate")
        step.evaluation, self.evaluated, self.evaluation = self.evaluation, self.evaluation, None
        self._book.add(step, last)
        self._stream.consumed()
        self._attempt.step += 1
        self.selection = self.taken = None

    def require_settled(self, what: str) -> None:
        """Raise UsageError where `run.{what}()` comes before the batch's step."""
        if self.open:
            raise UsageError(
                f"run.{what}() in the middle of step {self._attempt.step}: call it after run.step(losses), so "
                "that the batch at hand is in it"
            )

    def log(self) -> None:
        """Enter what is closed into the book; its losses are on the host, or on their way."""
        self._book.enter_closed()
        self.clock.lap("log")

    def _seed_generators(self) -> None:
        """Dropout is a function of the step, and of the rank: other rows, other draws."""
        if self._seed is None:
            return
        seed = torch_seed(self._seed, "step", self._attempt.step, self._attempt.ranks.rank)
        # Only the generators in use: torch.manual_seed also writes down a stack trace for each kind that isn't.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))


def _device_of(stream: Loader, selector: Selector) -> torch.device:
    """Where buffers are scored: the stream's device, else that of the model."""
    if stream.device.type != "cpu":
        return stream.device
    return next((p.device for p in selector.model.parameters()), stream.device)


def _rate(objects: Mapping[str, Any]) -> float | None:
    """The learning rate of the first optimizer, None where there is none to see."""
    for given in objects.values():
        if isinstance(given, torch.optim.Optimizer):
            return float(given.param_groups[0]["lr"])
    return None
