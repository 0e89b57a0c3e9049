"""The loop over a run: it draws batches, takes what became of each, and commits between two of them.

A step is logged one behind, when its losses have come to the host with the next scores, so nothing waits for the
device. The commit names every segment of the log, so after any crash the ledger holds exactly the steps that the
weights saw (DESIGN: the run).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rhostream.candidates import Candidates
from rhostream.crashpoints import crash_point
from rhostream.errors import UsageError
from rhostream.inert import one_line
from rhostream.runs import turns
from rhostream.runs.at_hand import AtHand, Evaluate
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Book, Clock, Metrics
from rhostream.runs.doubts import after_work
from rhostream.runs.link import Link, Place
from rhostream.runs.opening import Opening
from rhostream.runs.process import at_work
from rhostream.runs.saving import Saver
from rhostream.runs.step import Evaluation, checked_applied
from rhostream.runs.watching import Watch
from rhostream.selection.selector import Selection, Selector
from rhostream.signals import StopRequest
from rhostream.stream.loader import Loader
from rhostream.trackers.names import AskedTracker

LOG = logging.getLogger("rhostream")


class Loop:
    """Of a run whose attempt, pins and record (of run.json) the caller has made.

    `objects`: what a commit saves, by name; `seed`: of every generator before each batch, None to leave them alone;
    `measured`: whether the cost account knows its multiply-adds. The others as `Run`, `AtHand` and `Opening` say.
    """

    def __init__(
        self,
        attempt: Attempt,
        record: Mapping[str, Any],
        stream: Loader,
        selector: Selector,
        objects: Mapping[str, Any],
        last_step: int | None,
        *,
        seed: int | None,
        accumulate: int = 1,
        commit_every: int = 500,
        commit_seconds: float | None = None,
        keep_checkpoints: int = 2,
        metrics: Metrics | None = None,
        changeable: Iterable[str] = (),
        note: Mapping[str, Any] | None = None,
        job: str = "run",
        start: Place | None = None,
        evaluate: Evaluate | None = None,
        measured: bool = True,
        asked: turns.Asked | None = None,
        ends: tuple[int | None, int | None] = (None, None),
        track: tuple[AskedTracker, ...] = (),
        track_every: int = 10,
    ) -> None:
        self.attempt, self.stream, self.selector = attempt, stream, selector
        self.ranks, self.objects = attempt.ranks, dict(objects)
        self.doubt: str | None = None  # what was to be said of its batches when it ended; None before
        self._saver = Saver(attempt, self.objects, selector, stream, keep_checkpoints)
        self._opening = Opening(
            attempt=attempt,
            record=record,
            stream=stream,
            selector=selector,
            saver=self._saver,
            objects=self.objects,
            last_step=last_step,
            changeable=tuple(changeable),
            note=dict(note or {}),
            start=start,
            asked=asked,
            ends=ends,
        )
        self._watch = Watch(attempt, job, record, track, track_every)
        self._book = Book(attempt, stream.stream, metrics, accumulate, self._watch.entered)
        self._hand = AtHand(
            attempt, stream, selector, self.objects, self._book, seed=seed, measured=measured, evaluate=evaluate
        )
        self._commit_every, self._commit_seconds, self._committed_at = commit_every, commit_seconds, time.monotonic()
        self._over, self._stop = False, StopRequest(job, patient=True)

    def __repr__(self) -> str:
        """Where it lies and how far it is."""
        of = "" if self.last_step is None else f" of {self.last_step:,}"
        return f"<Run {one_line(self.attempt.url)}: step {self.steps:,}{of}, {self.selector!r}>"

    # -- the loop ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Selection]:
        """Batches until the run's end, from where the newest commit was; each needs its `step`."""
        if self._over:
            raise UsageError(
                f"this run is over (step {self.steps:,}): its passes are those of the stream, "
                "open_stream(passes=N), and they all go through one loop"
            )
        if self._hand.open:
            raise UsageError(
                f"the loop before was left in the middle of step {self.steps}, without run.step: nobody "
                "knows whether the weights saw its batch; start the script again, and it goes on after "
                "the last commit"
            )
        self._opening.begin()
        if self.complete:
            self._over = True
            return
        self._hand.clock = Clock(self.attempt.cost.seconds)
        # Signals are for who commits: another trainer's checkpoint has its own ways with them.
        listening = self._stop if self.objects else contextlib.nullcontext(self._stop)
        with (
            at_work(self.attempt.process),
            self.attempt.beginning(),
            listening as stop,
            self._watch.looking(self.last_step),
        ):
            yield from self._batches(stop)
            self._over = True

    def _batches(self, stop: StopRequest) -> Iterator[Selection]:
        """Algorithm 1, lines 5 to 8; what the body of the loop does are lines 9 and 10."""
        hand, alone = self._hand, self.ranks.alone
        if hand.selection is not None and self._after_step(stop):  # the loop before was left after its step
            return
        self.stream.give_back()  # what a loop that a signal ended had drawn, and didn't see
        # A rank that stopped waiting would leave the others in their next collective.
        for candidates in stop.while_waiting(self.stream) if alone else self.stream:  # line 5: the next n_B
            selection = hand.draw(candidates)  # lines 6-8: score, keep the top n_b
            if selection.draws:  # over all ranks; of none nothing can be learned
                yield selection
                if hand.open:
                    raise UsageError(
                        f"run.step(losses) was forgotten in step {self.steps}: call it once for each "
                        "batch, after the optimizer's step"
                    )
            if self._after_step(stop):
                return
        if alone and stop.signal:  # it came while the next buffer was waited for
            if self.attempt.uncommitted:
                self._commit_own(False)
            raise stop.error(self.steps)

    def _after_step(self, stop: StopRequest) -> bool:
        """Close the batch at hand and commit where it is time to; whether the run is over. Collective."""
        self._close()
        hand = self._hand
        crash_point("train: step closed")
        self._watch.stepped(hand.evaluated, self.device)
        hand.evaluated = None
        # A rank may know of a signal that another will only see a step later: all go by what was gathered.
        signal = stop.signal if self.ranks.alone else hand.signal
        if not self._book.open and (self.complete or signal or hand.due or self._is_due()):
            self._commit_own(self.complete)
        if self.complete:
            self._end()
        elif signal and not self._book.open:
            stop.signal = signal
            raise stop.error(self.steps)
        return self.complete

    def step(self, loss_b: Tensor | None, applied: bool | Tensor = True, *, mean: Tensor | None = None) -> None:
        """Record the batch at hand: once for each, after the optimizer's step and before the scheduler's.

        `loss_b`: its losses (n,), one for each kept sample, in nats where the loss is; they stay on the device. None
        where the loop has no loss of each: the step's `loss_kept` is then `mean`, or null.
        `applied=False`: the update was left out, by GradScaler or a guard, so the ledger must not call its samples
        trained on (reason `unapplied`, or `nonfinite`); a tensor is looked at once it has come to the host. Where a
        batch made several updates, (n,) bool says it of each sample, on every rank. `mean`: the batch's mean over all
        ranks, where the loop knows it. Raises UsageError for a second call, another shape, and without a batch.
        """
        selection = self._hand.selection
        if selection is None:
            raise UsageError("run.step without a batch: it belongs into the loop over the run, once for each batch")
        if self._hand.taken is not None:
            raise UsageError(f"run.step was called twice for the batch of step {self.steps}")
        shape = tuple(loss_b.shape) if isinstance(loss_b, Tensor) else type(loss_b).__name__
        if loss_b is not None and shape != (len(selection),):
            raise UsageError(
                f"run.step got losses of shape {shape}, expected ({len(selection)},), one for each kept "
                "sample: in torch's own losses, reduction='none'"
            )
        applied = checked_applied(applied, len(selection), self.ranks.alone)
        self._book.batches += 1
        self._hand.take(None if loss_b is None else loss_b.detach(), applied, mean)

    @property
    def candidates(self) -> Candidates | None:
        """The buffer that the batch at hand was chosen from."""
        return self._hand.candidates

    @property
    def device(self) -> torch.device:
        """Where buffers are scored."""
        return self._hand.device

    @property
    def last_step(self) -> int | None:
        """Buffers after which the run ends, None for never."""
        return self._opening.last_step

    @property
    def steps(self) -> int:
        """Buffers gone through so far; the number of the step at hand, counted from 0."""
        return self.attempt.step

    @property
    def closing(self) -> bool:
        """Whether the batch at hand closes an update of `accumulate` batches: then, and only then, call the optimizer.

        True at each `accumulate`-th batch, and at the last buffer of the run. A buffer of which nothing is kept is no
        batch. Batches that no update takes any more are logged as `unapplied`.
        """
        batches = self._book.batches + (self._hand.taken is None)
        return batches >= self._book.accumulate or (self.last_step is not None and self.steps + 1 >= self.last_step)

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return self._opening.complete

    def evaluated(
        self,
        *,
        accuracy: float | None = None,
        loss: float | None = None,
        samples: int | None = None,
        class_accuracy: list[float | None] | None = None,
    ) -> None:
        """Enter an evaluation into the steps table, at the step at hand: reports draw their curves from it.

        `accuracy` of 1, `loss` in nats, means over `samples` test samples. To be called in the loop's body, on every
        rank or on the first.
        """
        if self._hand.selection is None:
            raise UsageError("run.evaluated belongs into the body of the loop over the run")
        self._hand.evaluation = Evaluation(loss, accuracy, class_accuracy, samples)

    def open(self) -> Link | None:
        """Make run.json, or check it and restore everything from the newest commit; returns that. Nothing is claimed.

        Raises MismatchError naming what differs, TableError for a commit that can't be read.
        """
        return self._opening.open()

    def _close(self) -> None:
        """The batch at hand is done. Collective; nothing where a commit out of the loop's body has closed it."""
        due = self._commit_seconds is not None and time.monotonic() - self._committed_at >= self._commit_seconds
        self._hand.close(self._stop.signal or 0, due, self.last_step)

    def _settle(self, what: str) -> None:
        """Close the batch at hand, for a commit out of the loop's body."""
        self._hand.require_settled(what)
        self._close()
        if self._book.open:
            raise UsageError(
                f"run.{what}() inside an update of {self._book.accumulate} batches: call it where run.closing was true"
            )

    def _is_due(self) -> bool:
        return (self.steps - self.attempt.committed_step) >= self._commit_every

    def _commit_own(self, done: bool) -> None:
        """Log, look at weights and losses once, and commit; a trainer that owns the checkpoint commits by itself."""
        self._hand.log()
        if not self.objects:
            return
        self._saver.commit(complete=done)
        self._committed_at = time.monotonic()
        self._hand.clock.lap("checkpoint")

    def _end(self) -> None:
        self.doubt = after_work(self.attempt.url) if self.ranks.first else ""
        self._watch.complete(self.doubt)
        if self.doubt:
            LOG.warning("warning: %s", self.doubt)
        if not self.objects and self.attempt.uncommitted:
            LOG.warning(
                "warning: the run is through at step %d, and the ledger will hold nothing after the last "
                "state_dict() that was saved: save run.state_dict() with your checkpoint once more",
                self.steps,
            )
