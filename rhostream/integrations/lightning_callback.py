"""The callback beneath `SelectionData`: losses, factors and checkpoints of Lightning's Trainer, and what it may not do.

It is no `Checkpoint` of Lightning's, which would stand for the Trainer's default one, and it is the first of all
callbacks: what it enters lies in the checkpoint that another one saves at the same hook.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch

from rhostream.errors import MissingExtraError, UsageError
from rhostream.selection.ranks import default_ranks

# The same classes under two names, which don't know each other: those that the script's Trainer is of.
_OLD = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
try:
    pl: Any = importlib.import_module("pytorch_lightning" if _OLD else "lightning.pytorch")
except ImportError as exc:
    raise MissingExtraError.of("lightning", "lightning") from exc

STATE = "rhostream"  # the name in a checkpoint
AUTOCAST = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # by Trainer(precision=)


class Commits(pl.Callback):  # type: ignore[misc]
    """Enters losses into the ledger, weighs them where that is due, and puts the run's state into checkpoints."""

    def __init__(self, data: Any) -> None:
        self._data = data  # the SelectionData
        self._learned = -1  # the newest update with a backward
        self._steps = 0  # of the optimizer, before the batch at hand

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what can't go together."""
        require_possible(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The run begins."""
        if trainer.train_dataloader is not self._data.loader:
            raise UsageError(
                "the training batches go through another loader, which may draw ahead or share them out again: "
                "give SelectionData to Trainer.fit(datamodule=) as it is"
            )
        batches, pieces = trainer.num_training_batches, trainer.accumulate_grad_batches
        if batches % pieces and not trainer.fast_dev_run:
            raise UsageError(
                f"an epoch of {batches} batches ends inside an update of {pieces}: take a limit_train_batches that "
                "accumulate_grad_batches divides"
            )
        self._data.begin()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Refuse updates that change their length."""
        self._steps = trainer.global_step
        batches = self._data.batches
        assert batches is not None
        # SWA's last epoch makes the statistics of batch norm and no update.
        if trainer.accumulate_grad_batches != batches.accumulate and not trainer.fit_loop._skip_backward:
            raise UsageError(
                f"accumulate_grad_batches became {trainer.accumulate_grad_batches} in a run of updates of "
                f"{batches.accumulate}: a run keeps it"
            )

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The batch counts as many rows as it has."""
        batches, piece = self._data.batches, self._data.piece
        assert batches is not None and piece is not None
        self._learned = batches.updates
        if piece.factor != 1:
            factor = piece.factor
            loss.register_hook(lambda gradient: gradient * factor)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Enter the loss, before anybody saves."""
        batches, piece = self._data.batches, self._data.piece
        assert batches is not None and piece is not None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            batches.losses(loss * scale, len(piece.target))
        if self._learned != batches.updates:  # training_step gave None
            batches.leave_out()
        elif not pl_module.automatic_optimization and trainer.global_step == self._steps:
            raise UsageError(
                "training_step called no optimizer of its own for this batch: with manual optimization each batch is "
                "an update; accumulate with Trainer(accumulate_grad_batches=) and automatic optimization"
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The run's part. Collective."""
        if (state := self._data.state()) is not None:
            checkpoint[STATE] = state

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The run goes on from what the checkpoint names."""
        self._data.take(checkpoint.get(STATE))


def is_over(trainer: Any) -> bool:
    """Whether the Trainer has come to its end, as far as its limits and its callbacks say."""
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(steps or trainer.should_stop or (last_epoch and trainer.is_last_batch))


def require_possible(trainer: Any, module: Any) -> None:
    """Raise UsageError for what selection can't go with."""
    callbacks, pieces = pl.callbacks, trainer.accumulate_grad_batches
    if trainer.precision not in AUTOCAST:
        raise UsageError(f"precision {trainer.precision}: expected one of {', '.join(AUTOCAST)}")
    if trainer.overfit_batches:
        raise UsageError("overfit_batches: batches are chosen anew for each update, and none comes twice in a pass")
    if trainer.strategy.handles_gradient_accumulation:
        raise UsageError(f"{type(trainer.strategy).__name__} makes updates by itself; take the strategy ddp")
    replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
    if not replicas == trainer.world_size == default_ranks("default").size:
        raise UsageError(
            f"{trainer.world_size} ranks hold {replicas} shares of the data: selection splits a buffer over all ranks"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise UsageError("training_step(dataloader_iter) may draw ahead: take training_step(batch)")
    for callback in trainer.callbacks:
        if isinstance(callback, callbacks.BatchSizeFinder | callbacks.LearningRateFinder):
            raise UsageError(
                f"{type(callback).__name__} trains and takes it back, which no ledger can: find it with a plain loader"
            )
        if pieces > 1 and getattr(callback, "_train_time_interval", None) is not None:
            raise UsageError(
                f"train_time_interval saves inside of updates of {pieces} batches: take every_n_train_steps"
            )
