"""What a rule keeps, in the hands of a trainer that calls its own loop and owns its checkpoint.

    n_B candidates > scored with the weights as they are > n_b kept > handed out in `accumulate` pieces > one update

Such a trainer calls nothing back. That it asks for the piece behind an update says that the update's turn is over; a
hook on the optimizer says whether it was made, which a GradScaler or a guard may refuse. A trainer that saves between
the two is served by `state_dict`, which records the update first. So the buffer is always scored with the weights that
its update changes, and the ledger that counts is the one which the loaded checkpoint names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rhostream.errors import MismatchError, UsageError
from rhostream.runs.run import Run
from rhostream.samples.fields import Input, Target
from rhostream.selection.selector import Selection

_VERSION = 1


@dataclass(frozen=True)
class Piece:
    """The rows of one forward and backward: this rank's share of a buffer's kept rows, cut into `accumulate`."""

    input: Input  # (n, ...) as the model is called with it, normalised, on the device of the model
    target: Target  # (n, ...) what the loss is called with beside the model's output
    factor: float  # of the piece's mean loss: 1 where all pieces of all ranks are alike


Form = Callable[[Piece], Any]


class Batches:
    """Iterates the kept rows of a run, an epoch (a pass of the stream) at a time; hand it to a trainer as it is.

    `run`: a `Run` without `state=`, on the trainer's ranks. `form`: of a `Piece` to what the trainer takes for a batch,
    by default {"input": ..., "target": ...}. `accumulate`: forwards of one update, into which the n_b kept of a buffer
    are cut, of all ranks. A trainer that takes the mean of each piece's losses, averages these over an update and its
    gradients over the ranks makes the step that the rule meant, once it multiplies a piece's loss by `factor`, which is
    1 unless fewer than n_b were kept. Of a buffer that gives some piece too few rows nothing is handed out: it is
    logged as `unapplied`.

    `watch(optimizer)` before the first batch: it tells which updates were made. `losses(loss)` enters a piece's mean
    loss into the ledger. Raises UsageError for a rule that weighs its losses, a run that commits by itself, sizes that
    can't be divided, and in a loader's worker: scores are of the weights of this process.
    """

    def __init__(self, run: Run, form: Form | None = None, *, accumulate: int = 1) -> None:
        selector, pieces = run.selector, run.ranks.size * accumulate
        if accumulate < 1:
            raise UsageError(f"accumulate {accumulate}: expected at least 1")
        if run.objects:
            raise UsageError("a run in a trainer's hands takes no state=: the trainer's own checkpoint holds it")
        if selector.rule.sampled:
            raise UsageError(
                f"the rule {selector.rule.name} weighs its losses, and a trainer that takes their mean knows no weights"
            )
        if selector.options.auto:
            raise UsageError(
                "--ratio auto keeps more or less of each buffer, in several updates, and a trainer that owns the "
                "loop makes one of each: take a loop of your own, or rhostream train"
            )
        if selector.batch_size % pieces:
            raise UsageError(
                f"batch_size {selector.batch_size} doesn't divide into {run.ranks.size} ranks x {accumulate} forwards "
                "of an update: their means would not count alike"
            )
        self.run, self.accumulate, self._form = run, accumulate, form or _plain
        self._ranks = run.ranks.size
        self._least = self._ranks * accumulate * selector.least_rows
        self._kept: Selection | None = None  # of the update at hand
        self._pieces = 0  # of it, handed out
        self._applied: bool | Tensor = False
        self._loss: Tensor | float | None = None  # the sum of this rank's losses of it
        self._watched: list[torch.optim.Optimizer] = []
        self._batches: Iterator[Selection] | None = None
        self._newest: tuple[Any, dict[str, Any]] | None = None  # (where, state) of the newest that was handed out
        self._unconfirmed = False
        self.updates = 0  # for which batches were handed out

    def __repr__(self) -> str:
        """Where it is."""
        return f"<batches of {self.run!r}: {self.updates:,} updates, {self.accumulate} a buffer>"

    def __len__(self) -> int:
        """Batches of an epoch: forwards of a whole pass of the stream, or of as many buffers as the run has."""
        buffers = self.run.stream.stream.buffers_per_pass
        last = self.run.last_step
        return (buffers if last is None else min(buffers, last)) * self.accumulate

    def __getitem__(self, number: Any) -> Any:
        raise UsageError(
            "batches of a run are chosen with the weights of the moment: give them to the trainer as they are, "
            "not as a dataset to a DataLoader, a sampler or prepare()"
        )

    def __iter__(self) -> Iterator[Any]:
        """The epoch's batches, from where the run is. Raises what the run raises."""
        if get_worker_info() is not None:
            self[0]
        while True:
            self._record()
            if self._batches is None:
                self._batches = iter(self.run)
            if (kept := next(self._batches, None)) is None:
                return
            if kept.total < self._least:
                self._newest = None
                self.run.step(None, applied=False)
            else:
                self._kept, self._pieces, self._applied, self._loss = kept, 0, not self._watched, None
                self.updates += 1
                for piece in self._cut(kept):
                    self._pieces += 1
                    yield self._form(piece)
                self._record()
            if self._is_end_of_pass():
                return

    def _is_end_of_pass(self) -> bool:
        """Whether the buffer at hand is its pass's last one; not at the end of the run, whose own loop ends there."""
        candidates, last = self.run.candidates, self.run.last_step
        assert candidates is not None
        over = last is not None and self.run.steps + 1 >= last
        return not over and candidates.index + 1 >= self.run.stream.stream.plan(candidates.pass_index).buffers

    def _cut(self, kept: Selection) -> list[Piece]:
        assert kept.input is not None
        inputs: Sequence[Input] = kept.input.tensor_split(self.accumulate)
        targets: Sequence[Target] = kept.target.tensor_split(self.accumulate)
        per_row = self._ranks * self.accumulate / kept.total
        return [Piece(x, y, len(y) * per_row) for x, y in zip(inputs, targets, strict=True)]

    # -- what the trainer's loop doesn't say ---------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Learn from the optimizer whether it made an update; without one, every update counts as made.

        `optimizer`: torch's own, which a trainer may have wrapped.
        """
        if not any(known is optimizer for known in self._watched):
            self._watched.append(optimizer)
            optimizer.register_step_post_hook(self._stepped)

    def losses(self, loss: Tensor, rows: int) -> None:
        """Enter the mean loss () of `rows` rows of the piece at hand, which this rank trains on, into the ledger."""
        own = loss.detach() * rows
        self._loss = own if self._loss is None else self._loss + own

    def leave_out(self) -> None:
        """Of the pieces at hand nothing was learned, whatever the optimizer did."""
        self._applied = False

    def evaluated(self, **means: Any) -> None:
        """Enter an evaluation into the steps table, as `Run.evaluated` takes it, at the update at hand; one that a
        trainer makes behind the checkpoint of that update isn't entered."""
        if self._kept is not None:
            self.run.evaluated(**means)

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The optimizer made an update; one that looks at a GradScaler's word by itself perhaps didn't."""
        refused = getattr(optimizer, "found_inf", None)
        self._applied = True if refused is None else refused.sum() == 0

    def _record(self) -> None:
        """The update of the rows at hand has had its turn."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self._newest = None
        mean = None
        if self._loss is not None:
            mean = torch.as_tensor(self._loss, dtype=torch.float64)
            if self._ranks > 1:
                mean = torch.tensor(self.run.ranks.sum([float(mean)])[0])
            mean = mean / kept.total
        self.run.step(None, self._applied, mean=mean)

    # -- the trainer's checkpoint --------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether all pieces of the update at hand were handed out: then there may be a state behind its step."""
        return self._kept is None or self._pieces == self.accumulate

    def state_dict(self, *, complete: bool = False) -> dict[str, Any]:
        """What belongs into the trainer's checkpoint, plain values and tensors; collective, behind the update.

        `complete`: readers are told that the trainer has come to its end. Asked again at the same place it is the same
        state. Raises UsageError inside an update: behind its last backward and step there is a state.
        """
        if not self.whole:
            raise UsageError(
                f"a checkpoint inside an update of {self.accumulate} batches (the {self._pieces}. is at hand): save "
                "behind the optimizer's step"
            )
        if self._kept is None and self._newest is not None and self._newest[0] == (self.run.steps, complete):
            return self._newest[1]
        self._record()
        state = {
            "version": _VERSION, "run": self.run.state_dict(complete=complete), "updates": self.updates,
            "accumulate": self.accumulate,
        }  # fmt: skip
        self._newest, self._unconfirmed = ((self.run.steps, complete), state), True
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, before the first batch. Collective. Raises MismatchError for what is none."""
        if not isinstance(state, Mapping) or not {"version", "run", "updates"} <= {*state}:
            raise MismatchError("this is no state of a run's batches: expected what state_dict() of them gave")
        if state["version"] > _VERSION:
            raise MismatchError(
                f"this state was written by a newer rhostream (version {state['version']}); upgrade rhostream"
            )
        self.run.load_state_dict(state["run"])
        self.updates = int(state["updates"])

    def confirm(self) -> None:
        """Say that the checkpoint with the newest `state_dict()`, if there is one, is saved whole."""
        if self._unconfirmed:
            self.run.confirm()
            self._unconfirmed = False

    def close(self) -> None:
        """Let go of the stream's workers, where a trainer leaves before the end; the ledger stays as it was saved."""
        if self._batches is not None:
            close = getattr(self._batches, "close", None)
            if close is not None:
                close()
            self._batches = None


def _plain(piece: Piece) -> dict[str, Any]:
    return {"input": piece.input, "target": piece.target}
