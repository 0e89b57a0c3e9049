"""A run in the user's hand: any loop with the ledger, commits, exact resume and cost account that `train` has.

    for kept in run:                        draws n_B, scores, keeps n_b; resumes where the last commit was
        loss_b = ...(model(kept.input), kept.label)
        kept.mean(loss_b).backward()
        optimizer.step()
        run.step(loss_b)                    records the step; the commit comes when the next batch is asked for

The loop itself is `runs/loop.py`; here it is made of a stream and a selector, and its state is handed out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.runs import state as states
from rhostream.runs import turns
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Metrics
from rhostream.runs.fitting import choose_before_decoding, require_ranks
from rhostream.runs.loop import Loop
from rhostream.runs.pins import il_account, pins_of, plain_config, record_of
from rhostream.selection.ranks import default_ranks
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader
from rhostream.trackers import checked_trackers

_ABSENT_SECONDS = 30.0  # how long a collective call waits for the ranks that don't make it


class Run(Loop):
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
    step; without it a resume is exact but for your own draws. `track`: where to show the run, "tensorboard", "wandb",
    "mlflow:my experiment", "trackio" or several of them, each `track_every` steps.

    `commit_every` buffers, or `commit_seconds`, a commit is made when the loop asks for the next batch;
    `keep_checkpoints` of them keep their tensors. `metrics` is called with each row of the steps table, one step late.

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
        track: str | Iterable[str] = (),
        track_every: int = 10,
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
            "track_every": track_every,
        }.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise UsageError(f"{name} {number!r} of a run: expected a whole number of at least 1")
        if commit_seconds is not None and not commit_seconds > 0:
            raise UsageError(f"commit_seconds {commit_seconds!r}: expected more than 0")
        ranks, config, trackers = default_ranks(group), plain_config(config), checked_trackers(track)
        require_ranks(stream, selector, ranks, gradients)
        objects = states.checked_state(state or {})
        asked = turns.Asked(from_step=from_step, skip_buffers=skip_buffers, grow=grow)
        if from_step is not None and not objects:
            raise UsageError(
                "from_step of a run without state=: the checkpoint is yours, so go back by giving "
                "load_state_dict the state of an older one"
            )
        ends = stream.stream.passes, steps
        last_step = turns.last_step(stream.stream, *ends)
        pins = pins_of(stream, selector, selector.model, config, accumulate=accumulate, seed_steps=seed_steps)
        attempt = Attempt(storage.resolve(storage.text_of(folder)), pins, ranks, take_over=take_over)
        attempt.cost.il = il_account(stream) if pins["il"] else {}
        choose_before_decoding(stream, selector.options, selector.rule, selector.batch_size, selector.seed)
        super().__init__(
            attempt,
            record_of(stream, pins, last_step, ranks.size),
            stream,
            selector,
            objects,
            last_step,
            seed=selector.seed if seed_steps else None,
            accumulate=accumulate,
            commit_every=commit_every,
            commit_seconds=commit_seconds,
            keep_checkpoints=keep_checkpoints,
            metrics=metrics,
            track=trackers,
            track_every=track_every,
            measured=False,
            asked=asked,
            ends=ends,
        )

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
        if self._hand.selection is None and not self.attempt.uncommitted:
            return  # all of it is committed already
        self._settle("commit")
        self._commit_own(self.complete)

    def state_dict(self, *, complete: bool = False) -> dict[str, Any]:
        """What of this run belongs into a checkpoint that another trainer owns, as tensors and plain values.

        `complete`: that trainer has come to its end, which only it knows; who loads the state may go on all the same.

        Collective: every rank calls it, and saves or forgets the same. Until `confirm()`, or a run that loads it, the
        ledger shows the newest state and says that nobody confirmed it. Raises UsageError within 30 seconds where
        ranks don't come, where the batch at hand has no `step` yet, and inside an update of several batches.
        """
        self._require_all("state_dict")
        self._opening.begin()
        if self.attempt.attempt < 0:  # a run that is through isn't claimed by opening it
            self._opening.claim()
        self._settle("state_dict")
        self._hand.log()
        return self._opening.hand_out(complete=complete)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, before the first batch: the log that counts from here on is the one it names.

        Collective. Claims the run: a newer state that was lost, and its segments, are never seen again. Raises
        MismatchError for the state of another run, plan or table, and for what is none; UsageError after a batch.
        """
        self._opening.take_back(state)

    def confirm(self) -> None:
        """Say that the newest `state_dict()` is kept: readers stop calling it unconfirmed."""
        self.attempt.confirm()

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
