"""A run in the user's hand: any loop with the ledger, commits, exact resume and cost account that `train` has.

    for kept in run:                        draws n_B, scores, keeps n_b; resumes where the last commit was
        loss_b = ...(model(kept.input), kept.label)
        kept.mean(loss_b).backward()
        optimizer.step()
        run.step(loss_b)                    records the step; the commit comes when the next batch is asked for

A step is logged one behind, when its losses have come to the host with the next scores, so nothing waits for the
device. The commit names every segment of the log, so after any crash the ledger holds exactly the steps that the
weights saw (DESIGN: the run).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rhostream import storage
from rhostream.candidates import Candidates
from rhostream.crashpoints import crash_point
from rhostream.errors import MismatchError, UsageError
from rhostream.inert import one_line
from rhostream.randomness import torch_seed
from rhostream.runs import state as states
from rhostream.runs import turns
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Book, Clock, Evaluation, Metrics, Step, totals_of
from rhostream.runs.chain import head
from rhostream.runs.doubts import after_work, doubts_in
from rhostream.runs.fitting import choose_before_decoding, require_ranks
from rhostream.runs.link import Link, Place, place_of
from rhostream.runs.measure import measure
from rhostream.runs.pins import il_account, pins_of, plain_config, record_of
from rhostream.runs.process import at_work
from rhostream.runs.record import recorded
from rhostream.runs.saving import Saver
from rhostream.selection.ranks import default_ranks
from rhostream.selection.selector import Selection, Selector
from rhostream.signals import StopRequest
from rhostream.stream.loader import Loader
from rhostream.stream.progress import StepProgress

LOG = logging.getLogger("rhostream")
STATE_VERSION = 1
_ABSENT_SECONDS = 30.0  # how long a collective call waits for the ranks that don't make it


class Run:
    """A run folder and the loop that fills it: iterate it for batches, and call `step` once for each.

    `folder`: a path or a URL of a store, the run's own. `stream`: of `open_stream`; its `passes` are the run's.
    `selector`: a `Selector` of the model that learns. `state`: what a commit saves and a resume restores, by name:
    everything with `state_dict()`: {"model": model, "optimizer": optimizer, "scheduler": scheduler}. Without it the
    checkpoint is yours: save `run.state_dict()` with it, and give it back to `load_state_dict`.

    `config`: what only you know of the loop, {"lr": 1e-3, "augment": "flip"}: a resume must agree with it, and reports
    group runs by it; without one a run is never called a seed of another. `steps`: buffers after which the run ends,
    by default those of the stream's passes. `accumulate`: batches that make one update; see `closing`. `gradients`:
    "mean" or "sum", what reduces them over several ranks where the model doesn't tell. `seed_steps`: torch's, numpy's
    and Python's generators are seeded by (seed, step, rank) before each batch, so that dropout is a function of the
    step; without it a resume is exact but for your own draws. `commit_every` buffers, or `commit_seconds`, a commit is
    made when the loop asks for the next batch; `keep_checkpoints` of them keep their tensors. `metrics` is called with
    each row of the steps table, one step late.

    After a loss spike: `from_step` goes back to the commit of that step, whose state must still be kept, and
    `skip_buffers` "A:B" passes over the buffers of these numbers (counted from 0, B not included), on none of which it
    was trained yet; every row of theirs is logged as `passed_over`. `grow`: at the end of a pass the run goes on with
    the stream's list of shards, which has those of before and more. All three are recorded as changes, and the same
    script again doesn't do them twice. Without `state` go back by loading an older one.

    `take_over`: go on from the newest commit even while another process of this machine is at the run, whose steps
    since then are lost; without it that is refused.

    The same script again goes on after the last commit, with the same batches. Raises UsageError for what can't go
    together, MismatchError where the folder is of another run, SupersededError where a newer attempt took over,
    NonFiniteError instead of committing weights or losses that aren't finite, Interrupted after a signal and a commit,
    RankLostError where another rank is gone.
    """

    _asked: turns.Asked | None  # the turn that isn't taken up yet

    def __init__(
        self,
        folder: str,
        stream: Loader,
        selector: Selector,
        *,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        steps: int | None = None,
        accumulate: int = 1,
        gradients: str | None = None,
        group: dist.ProcessGroup | str | None = "default",
        seed_steps: bool = True,
        commit_every: int = 500,
        commit_seconds: float | None = None,
        keep_checkpoints: int = 2,
        metrics: Metrics | None = None,
        from_step: int | None = None,
        skip_buffers: str | None = None,
        grow: bool = False,
        take_over: bool = False,
    ) -> None:
        if not isinstance(stream, Loader) or not isinstance(selector, Selector):
            raise UsageError("a run takes the stream of open_stream and a Selector, in this order, after its folder")
        for name, number in {
            "steps": steps,
            "accumulate": accumulate,
            "commit_every": commit_every,
            "keep_checkpoints": keep_checkpoints,
        }.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise UsageError(f"{name} {number!r} of a run: expected a whole number of at least 1")
        if commit_seconds is not None and not commit_seconds > 0:
            raise UsageError(f"commit_seconds {commit_seconds!r}: expected more than 0")
        ranks, config = default_ranks(group), plain_config(config)
        require_ranks(stream, selector, ranks, gradients)
        objects = states.checked_state(state or {})
        asked = turns.Asked(from_step=from_step, skip_buffers=skip_buffers, grow=grow)
        if from_step is not None and not objects:
            raise UsageError(
                "from_step of a run without state=: the checkpoint is yours, so go back by giving "
                "load_state_dict the state of an older one"
            )
        self._ends = stream.stream.passes, steps
        last_step = turns.last_step(stream.stream, *self._ends)
        pins = pins_of(stream, selector, selector.model, config, accumulate=accumulate, seed_steps=seed_steps)
        attempt = Attempt(storage.resolve(storage.text_of(folder)), pins, ranks, take_over=take_over)
        attempt.cost.il = il_account(stream) if pins["il"] else {}
        choose_before_decoding(stream, selector)
        self._assemble(
            attempt,
            record_of(stream, pins, last_step, ranks.size),
            stream,
            selector,
            objects,
            last_step,
            seed=selector.seed,
            accumulate=accumulate,
            seed_steps=seed_steps,
            commit_every=commit_every,
            commit_seconds=commit_seconds,
            keep_checkpoints=keep_checkpoints,
            metrics=metrics,
        )
        self._measured, self._asked = False, asked

    @classmethod
    def assembled(
        cls,
        attempt: Attempt,
        record: Mapping[str, Any],
        stream: Loader,
        selector: Selector,
        objects: Mapping[str, Any],
        last_step: int,
        **options: Any,
    ) -> Run:
        """A run whose attempt, pins and record are those of its caller; `options` as `_assemble` takes them."""
        run = cls.__new__(cls)
        run._assemble(attempt, record, stream, selector, objects, last_step, **options)
        return run

    def _assemble(
        self,
        attempt: Attempt,
        record: Mapping[str, Any],
        stream: Loader,
        selector: Selector,
        objects: Mapping[str, Any],
        last_step: int | None,
        *,
        seed: int,
        accumulate: int = 1,
        seed_steps: bool = True,
        commit_every: int = 500,
        commit_seconds: float | None = None,
        keep_checkpoints: int = 2,
        metrics: Metrics | None = None,
        changeable: Any = (),
        note: Mapping[str, Any] | None = None,
        job: str = "run",
        start: Place | None = None,
        evaluate: Callable[[int, bool], Evaluation | None] | None = None,
    ) -> None:
        self.attempt, self.stream, self.selector, self.last_step = attempt, stream, selector, last_step
        self.ranks, self.objects, self.device = attempt.ranks, dict(objects), _device_of(stream, selector)
        self.candidates: Candidates | None = None  # of the batch at hand
        self._record, self._changeable, self._note, self._job = record, tuple(changeable), dict(note or {}), job
        self._seed, self._seed_steps = seed, seed_steps
        self._start = start  # the commit to go on from, where it isn't the newest
        self._asked = None
        self._commit_every, self._commit_seconds, self._keep = commit_every, commit_seconds, keep_checkpoints
        self._saver = Saver(attempt, self.objects, selector, stream, keep_checkpoints)
        self._evaluate, self._signal, self._due = evaluate, 0, False
        self._evaluation: Evaluation | None = None
        self.doubt: str | None = None  # what was to be said of its batches when it ended; None before
        self._evaluated: Evaluation | None = None  # of the step that was closed last, not shown yet
        self._book, self._clock = Book(attempt, stream.stream, metrics, accumulate), Clock({})
        self._measured, self._over = True, False
        self._opened = self._claimed = False
        self._stop = StopRequest(job, patient=True)
        self._at_hand: Selection | None = None  # drawn, and not closed yet
        self._taken: Step | None = None  # what `step` was told of it
        self._committed_at = time.monotonic()

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
        if self._at_hand is not None and self._taken is None:
            raise UsageError(
                f"the loop before was left in the middle of step {self.steps}, without run.step: nobody "
                "knows whether the weights saw its batch; start the script again, and it goes on after "
                "the last commit"
            )
        self._begin()
        if self.complete:
            self._over = True
            return
        self._clock = Clock(self.attempt.cost.seconds)
        silent = not self.ranks.first or self.last_step is None
        progress = StepProgress(self._job, self.last_step or 0, self.steps, silent=silent)
        with at_work(self.attempt.process), self.attempt.beginning(), self._stop as stop, progress:
            yield from self._batches(stop, progress)
            self._over = True

    def _batches(self, stop: StopRequest, progress: StepProgress) -> Iterator[Selection]:
        """Algorithm 1, lines 5 to 8; what the body of the loop does are lines 9 and 10."""
        clock, alone = self._clock, self.ranks.alone
        if self._at_hand is not None and self._after_step(stop, progress):  # the loop before was left after its step
            return
        self.stream.give_back()  # what a loop that a signal ended had drawn, and didn't see
        # A rank that stopped waiting would leave the others in their next collective.
        for candidates in stop.while_waiting(self.stream) if alone else self.stream:  # line 5: the next n_B
            clock.lap("wait")
            self._measure()
            self._seed_generators()  # for a proxy that learns
            selection = self.selector(candidates.to(self.device), self.steps)  # lines 6-8: score, keep the top n_b
            crash_point("train: buffer scored")
            clock.lap("score")
            self._log()  # what is closed: its losses have come to the host with these scores
            self.candidates, self._at_hand, self._taken = candidates, selection, None
            self.total = self._draws(selection)
            if self.total:
                self._seed_generators()  # again: scoring, or a callback, may have drawn numbers since
                yield selection
                if self._at_hand is not None and self._taken is None:
                    raise UsageError(
                        f"run.step(losses) was forgotten in step {self.steps}: call it once for each "
                        "batch, after the optimizer's step"
                    )
            if self._after_step(stop, progress):
                return
        if alone and stop.signal:  # it came while the next buffer was waited for
            if self.attempt.uncommitted:
                self._log()
                self._commit_own(False)
            raise stop.error(self.steps)

    def _after_step(self, stop: StopRequest, progress: StepProgress) -> bool:
        """Close the batch at hand and commit where it is time to; whether the run is over. Collective."""
        self._close()
        crash_point("train: step closed")
        progress.step("" if self._book.loss is None else f"loss {self._book.loss:.3f}")
        if self._evaluated is not None:
            progress.evaluated(self._evaluated.in_words())
            self._evaluated = None
        # A rank may know of a signal that another will only see a step later: all go by what was gathered.
        signal = stop.signal if self.ranks.alone else self._signal
        if not self._book.open and (self.complete or signal or self._is_due()):
            self._commit_own(self.complete)
        if self.complete:
            self._end()
        elif signal and not self._book.open:
            stop.signal = signal
            raise stop.error(self.steps)
        return self.complete

    def step(self, loss_b: Tensor, applied: bool | Tensor = True, *, mean: Tensor | None = None) -> None:
        """Record the batch at hand: once for each, after the optimizer's step and before the scheduler's.

        `loss_b`: its losses (n,), one for each kept sample, in nats where the loss is; they stay on the device.
        `applied=False`: the update was left out, by GradScaler or a guard, so the ledger must not call its samples
        trained on (reason `unapplied`, or `nonfinite`); a tensor is looked at once it has come to the host. `mean`: the
        batch's mean over all ranks, where the loop knows it. Raises UsageError for a second call, losses of another
        shape, and without a batch.
        """
        selection = self._at_hand
        if selection is None:
            raise UsageError("run.step without a batch: it belongs into the loop over the run, once for each batch")
        if self._taken is not None:
            raise UsageError(f"run.step was called twice for the batch of step {self.steps}")
        shape = tuple(loss_b.shape) if isinstance(loss_b, Tensor) else type(loss_b).__name__
        if shape != (len(selection),):
            raise UsageError(
                f"run.step got losses of shape {shape}, expected ({len(selection)},), one for each kept "
                "sample: in torch's own losses, reduction='none'"
            )
        self._book.batches += 1
        self._taken = self._as_step(loss_b.detach(), applied, mean)

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
        batches = self._book.batches + (self._taken is None)
        return batches >= self._book.accumulate or (self.last_step is not None and self.steps + 1 >= self.last_step)

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return self.last_step is not None and self.steps >= self.last_step

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
        if self._at_hand is None:
            raise UsageError("run.evaluated belongs into the body of the loop over the run")
        self._evaluation = Evaluation(loss, accuracy, class_accuracy, samples)

    # -- commits -------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit now; for a loop that is left by `break`. Collective.

        Raises UsageError where the batch at hand has no `step` yet, inside an update of several batches, and where no
        `state` was given: then the checkpoint is yours, and `state_dict` is its part of the run.
        """
        if not self.objects:
            raise UsageError(
                "this run was given no state=, so it has nothing to commit: save run.state_dict() with "
                "your own checkpoint"
            )
        if self._at_hand is None and not self.attempt.uncommitted:
            return  # all of it is committed already
        self._settle_step("commit")
        self._log()
        self._commit_own(self.complete)

    def state_dict(self) -> dict[str, Any]:
        """What of this run belongs into a checkpoint that another trainer owns, as tensors and plain values.

        Collective: every rank calls it, and saves or forgets the same. Until `confirm()`, or a run that loads it, the
        ledger shows the newest state and says that nobody confirmed it. Raises UsageError within 30 seconds where
        ranks don't come, where the batch at hand has no `step` yet, and inside an update of several batches.
        """
        self._require_all("state_dict")
        self._begin()
        if self.attempt.attempt < 0:  # a run that is through isn't claimed by opening it
            self._claim()
        self._settle_step("state_dict")
        self._log()
        link = self._saver.hand_out(complete=self.complete)
        return {
            "version": STATE_VERSION,
            "link": asdict(link.place),
            "step": self.steps,
            "cursor": self.stream.consumed_state_dict(),
            "selector": {"calls": self.steps, **self.selector.state_dict()},
            "models": dict(states.own_models(self.selector)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, before the first batch: the log that counts from here on is the one it names.

        Collective. Claims the run: a newer state that was lost, and its segments, are never seen again. Raises
        MismatchError for the state of another run, plan or table, and for what is none; UsageError after a batch.
        """
        if self._opened:
            raise UsageError("load_state_dict comes before the first batch of a run")
        try:
            version, place, cursor = int(state["version"]), place_of(state["link"]), state["cursor"]
            selector, models = dict(state["selector"]), dict(state["models"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MismatchError(
                f"this is no state of a run: expected what run.state_dict() gave ({type(exc).__name__}: {exc})"
            ) from exc
        if version > STATE_VERSION:
            raise MismatchError(
                f"this state of a run was written by a newer rhostream (version {version}); upgrade rhostream"
            )
        self._keep_lanes()
        self._take_up(lambda: self.attempt.at(place))
        self.attempt.open(self._record, self._changeable, start=place)
        # The plan of a cursor is that of before the run grew; what a run pins says more.
        self.stream.load_state_dict(cursor if self.attempt.grown is None else {**cursor, "plan": None})
        try:
            self.selector.load_state_dict(selector)
            states.load_own_models(self.selector, models)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise MismatchError(
                f"the state of step {self.steps} doesn't fit this run's selector: {' '.join(str(exc).split())[:300]}"
            ) from exc
        self._claim()
        self._opened = self._claimed = True

    def confirm(self) -> None:
        """Say that the newest `state_dict()` is kept: readers stop calling it unconfirmed."""
        self.attempt.confirm()

    # -- what the loop is made of --------------------------------------------------------------------------------------

    def open(self) -> Link | None:
        """Make run.json, or check it and restore everything from the newest commit; returns that. Nothing is claimed.

        Raises MismatchError naming what differs, TableError for a commit that can't be read.
        """
        self._keep_lanes()
        self._take_up(lambda: head(self.attempt.url) if self.objects else None)
        point = self.attempt.open(self._record, self._changeable, start=self._start, fresh=not self.objects)
        if point is not None:
            self.attempt.settle(point, self._keep)
            self._saver.restore(point)
        self._opened = True
        return point

    def _begin(self) -> None:
        """Open and claim, once: at the first draw, never by constructing."""
        if not self._opened:
            if self.ranks.first:
                storage.probe_writable(self.attempt.url)
            cursor = self.stream.state_dict()
            if self.open() is None and (cursor["pass"], cursor["buffer"]) != (0, 0):
                raise UsageError(
                    f"a run begins at the stream's beginning, and this stream is at buffer "
                    f"{cursor['buffer']} of pass {cursor['pass']}: a run moves the cursor itself, so give "
                    "it a stream that nobody has moved"
                )
        if self.ranks.first and not self.steps:
            for says in doubts_in(self._record):
                LOG.warning("warning: %s", says)
        if self.complete:
            turns.require_steps(self.attempt.changing, self.attempt.url, self.steps)
        elif not self._claimed:
            self._claim()
        self._claimed = True

    def _keep_lanes(self) -> None:
        """A run keeps the lanes that it began with, whatever the number of ranks now."""
        pinned, stream = self.attempt.pinned, self.stream.stream
        if pinned.get("loop") != "own":
            return
        known = recorded(self.attempt.url).get("fingerprints", {}) if self.ranks.first else {}
        same = known.get("buffer_size") == stream.buffer_size  # else the pins say more
        lanes = self.ranks.from_first(known.get("lanes") if same else None)
        if isinstance(lanes, int) and lanes != stream.lanes and stream.carry(lanes):
            pinned["lanes"] = lanes

    def _take_up(self, point: Callable[[], Link | None]) -> None:
        """Once: let stream and attempt go by what was asked for and by what is in force at the commit of `point`."""
        if self._asked is None:
            return
        turn = turns.look(self.attempt.url, self._asked, self.ranks, point)
        turns.take_up(turn, self.stream.stream)
        self.attempt.changes, self.attempt.changing, self.attempt.grown = turn.changes, turn.changing, turn.grown
        self._start, self._asked = turn.start, None
        self.last_step = turns.last_step(self.stream.stream, *self._ends)

    def _claim(self) -> None:
        self.attempt.claim({**self._note, "last_step": self.last_step})

    def _as_step(self, loss_b: Tensor | None, applied: bool | Tensor, mean: Tensor | None) -> Step:
        assert self.candidates is not None and self._at_hand is not None
        return Step(self.steps, self.candidates.host, self._at_hand, loss_b, mean, applied, _rate(self.objects))

    def _settle_step(self, what: str) -> None:
        """Close the batch at hand, for a commit out of the loop's body."""
        if self._at_hand is not None:
            if self._taken is None:
                raise UsageError(
                    f"run.{what}() in the middle of step {self.steps}: call it after run.step(losses), so "
                    "that the batch at hand is in it"
                )
            self._close()
        if self._book.open:
            raise UsageError(
                f"run.{what}() inside an update of {self._book.accumulate} batches: call it where run.closing was true"
            )

    def _close(self) -> None:
        """The batch at hand is done: charge it, move the cursor. Collective."""
        if self._at_hand is None:
            return  # a commit out of the loop's body has closed it
        step = self._taken or self._as_step(None, True, None)
        self._clock.lap("train")
        due = self._commit_seconds is not None and time.monotonic() - self._committed_at >= self._commit_seconds
        assert self.candidates is not None
        step.totals = totals_of(self.candidates, step.selection, self._stop.signal or 0, due, self.ranks)
        self._signal, self._due = step.totals.signal, step.totals.due
        step.seconds = dict(self._clock.last)
        step.units = self._book.charge(step.totals, self.selector.proxy is not None)
        done = self.last_step is not None and self.steps + 1 >= self.last_step
        if self._evaluate is not None:
            self._evaluation = self._evaluate(self.steps, done)
        if self._evaluation is not None:
            self.attempt.cost.evaluated += self._evaluation.samples or 0
            self._clock.lap("evaluate")
        step.evaluation, self._evaluated, self._evaluation = self._evaluation, self._evaluation, None
        self._book.add(step, done)
        self.stream.consumed()
        self.attempt.step += 1
        self._at_hand = self._taken = None

    def _log(self) -> None:
        """Enter what is closed into the book; its losses are on the host, or on their way."""
        self._book.enter_closed()
        self._clock.lap("log")

    def _is_due(self) -> bool:
        return (self.steps - self.attempt.committed_step) >= self._commit_every or self._due

    def _commit_own(self, done: bool) -> None:
        """Log, look at weights and losses once, and commit; a trainer that owns the checkpoint commits by itself."""
        self._log()
        if not self.objects:
            return
        self._saver.commit(complete=done)
        self._committed_at = time.monotonic()
        self._clock.lap("checkpoint")

    def _end(self) -> None:
        self.doubt = after_work(self.attempt.url) if self.ranks.first else ""
        if self.doubt:
            LOG.warning("warning: %s", self.doubt)
        if not self.objects and self.attempt.uncommitted:
            LOG.warning(
                "warning: the run is through at step %d, and the ledger will hold nothing after the last "
                "state_dict() that was saved: save run.state_dict() with your checkpoint once more",
                self.steps,
            )

    def _draws(self, selection: Selection) -> int:
        """What the sum of the batch's losses is divided by, over all ranks; 0 where none kept any."""
        if self.selector.ranks.size == self.ranks.size:
            return selection.draws
        return int(self.ranks.sum([selection.draws])[0])  # each rank keeps its own n_b / ranks

    def _seed_generators(self) -> None:
        """Dropout is a function of the step, and of the rank: other rows, other draws."""
        if not self._seed_steps:
            return
        seed = torch_seed(self._seed, "step", self.steps, self.ranks.rank)
        # Only the generators in use: torch.manual_seed also writes down a stack trace for each kind that isn't.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))

    def _measure(self) -> None:
        """Multiply-adds of one sample, at the first buffer: cost is told in forwards of the target."""
        if self._measured:
            return
        self._measured = True
        measure(self.attempt.cost, self.selector, self.stream.stream)

    def _require_all(self, what: str) -> None:
        """Raise UsageError, within 30 seconds, where some ranks don't make a collective call."""
        if self.ranks.alone:
            return
        if absent := self.ranks.absent(f"{what}/{self.attempt.attempt}/{self.steps}", _ABSENT_SECONDS):
            raise UsageError(
                f"run.{what}() was called by rank {self.ranks.rank} and not, within "
                f"{_ABSENT_SECONDS:g} s, by rank {', '.join(map(str, absent))}: it is collective; call it "
                "on every rank, and let one of them save what it gives"
            )


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
