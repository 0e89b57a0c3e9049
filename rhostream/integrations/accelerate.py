"""A run in the loop of Hugging Face Accelerate, saved and loaded by its `save_state` and `load_state`.

    run = AcceleratedRun(accelerator, "runs/rho", stream, selector)       behind accelerator.prepare(model, optimizer)
    for kept in run:
        with accelerator.accumulate(model): ...                           the last batch of the run closes its update

The loop stays the user's. Here is what Accelerate must know of the run, that its last batch is the last, and what the
run must know of Accelerate: which updates were made, and that a checkpoint which is written over is no checkpoint
until all of it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from rhostream.errors import MissingExtraError, UsageError
from rhostream.runs.run import Run
from rhostream.runs.state import unwrapped
from rhostream.selection.selector import Selection, Selector
from rhostream.stream.loader import Loader

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
except ImportError as exc:
    raise MissingExtraError.of("accelerate", "accelerate") from exc

_CUSTOM = "custom_checkpoint_*.pkl"  # where Accelerate saves registered objects, behind all else


class AcceleratedRun(Run):
    """A `Run` without `state=` whose checkpoints are Accelerate's: iterate it in the place of a prepared DataLoader.

    `accelerator`: has prepared the model that `selector` scores; its `gradient_accumulation_steps` are the batches of
    an update. `options`: others of `Run` ("config", "steps", "metrics", "seed_steps", "take_over", ...).

    The run is registered for checkpointing: `save_state` on every rank, behind an update, holds it, and `load_state`
    before the first batch goes on from there, without `skip_first_batches`. Neither it nor its stream is prepared.
    A loop that asks for the next batch says that `save_state` came back; behind the last one say `run.confirm()`.

    Raises UsageError for a selector of another model, and for a prepared scheduler that would step once for each rank;
    what `Run` raises; MissingExtraError, when the module is imported, without Accelerate.
    """

    def __init__(
        self, accelerator: Accelerator, folder: str, stream: Loader, selector: Selector, **options: Any
    ) -> None:
        if taken := {"state", "accumulate", "gradients"} & {*options}:
            raise UsageError(f"{', '.join(sorted(taken))} of a run in Accelerate's loop: that is the accelerator's")
        # Accelerate averages gradients over the ranks, whatever it has wrapped the model in.
        steps = accelerator.gradient_accumulation_steps
        super().__init__(folder, stream, selector, accumulate=steps, gradients="mean", **options)
        self._accelerator, self._saved, self._unconfirmed = accelerator, dict[str, Any](), False
        self._require_prepared()
        accelerator.register_for_checkpointing(self)
        accelerator.register_save_state_pre_hook(self._before_save)

    def __len__(self) -> int:
        """Buffers to the end of the run: batches, unless of some nothing is kept."""
        if self.last_step is None:
            raise TypeError("an endless run has no length")
        return max(self.last_step - self.steps, 0)

    def __getitem__(self, number: Any) -> NoReturn:
        raise UsageError(
            "a run in a DataLoader: its batches are chosen with the weights of the moment and divided over the ranks "
            "already, so iterate it as it is, and neither wrap nor prepare it"
        )

    def __iter__(self) -> Iterator[Selection]:
        """Batches until the run's end, each needs its `step`; raises what the loop of `Run` raises."""
        with _Batches(self._accelerator) as seen:
            for kept in super().__iter__():
                seen.end_of_dataloader = self._at_end
                yield kept
                if self._unconfirmed:
                    self.confirm()

    def step(self, loss_b: Tensor | None, applied: bool | Tensor | None = None, *, mean: Tensor | None = None) -> None:
        """Record the batch at hand, as `Run.step` says; whether its update was made is asked of the accelerator.

        Raises UsageError too where update and run don't go together: a batch outside `accelerator.accumulate`.
        """
        accelerator, closing = self._accelerator, self.closing
        if accelerator.sync_gradients != closing and not self._at_end:
            one, other = ("run", "accelerator") if closing else ("accelerator", "run")
            raise UsageError(
                f"step {self.steps} closes an update of {accelerator.gradient_accumulation_steps} batches for the "
                f"{one} and not for the {other}: every batch belongs into one `with accelerator.accumulate(model)`"
            )
        if applied is None:
            made = accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped
            applied = made or not closing
        super().step(loss_b, applied, mean=mean)

    def state_dict(self) -> dict[str, Any]:
        """The run's part of a checkpoint, as `Run.state_dict` says; within `save_state` what that began with."""
        saved, self._saved, self._unconfirmed = self._saved, {}, True
        return saved or super().state_dict()

    def confirm(self) -> None:
        """Say that the newest checkpoint is kept: readers stop calling it unconfirmed."""
        super().confirm()
        self._unconfirmed = False

    def _before_save(self, models: Any, weights: Any, folder: str) -> None:
        """Whatever can fail fails before the checkpoint of before is touched, and that one's run goes first.

        A save over it that is killed leaves new weights, and would leave the run of the old ones beside them.
        """
        self._saved = super().state_dict()
        if self._accelerator.is_local_main_process:
            for path in Path(folder).glob(_CUSTOM):
                path.unlink(missing_ok=True)
        self._accelerator.wait_for_everyone()

    @property
    def _at_end(self) -> bool:
        """Whether the buffer at hand is the run's last one."""
        return self.last_step is not None and self.steps + 1 >= self.last_step

    def _require_prepared(self) -> None:
        accelerator, model = self._accelerator, unwrapped(self.selector.model)
        # Names of Accelerate's own; a version without them goes unchecked.
        prepared = getattr(accelerator, "_models", None)
        if prepared is not None and not any(unwrapped(given) is model for given in prepared):
            raise UsageError(
                f"the selector scores a {type(model).__name__} that this accelerator hasn't prepared: call "
                "accelerator.prepare(model, optimizer) first, and make the Selector of what it gives back"
            )
        if self.ranks.size > 1 and getattr(accelerator, "_schedulers", ()) and not accelerator.split_batches:
            raise UsageError(
                f"a prepared scheduler would step {self.ranks.size} times an update, as for batches of each rank, and "
                "a run's batch is that of all ranks: say Accelerator(dataloader_config="
                "DataLoaderConfiguration(split_batches=True))"
            )


class _Batches(DataLoaderStateMixin):  # type: ignore[misc]
    """What Accelerate sees of the batches: as of a DataLoader of its own, whether the last one is at hand."""

    end_of_dataloader: bool

    def __init__(self, accelerator: Accelerator) -> None:
        self.gradient_state = accelerator.gradient_state

    def __enter__(self) -> _Batches:
        self.begin()
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()
