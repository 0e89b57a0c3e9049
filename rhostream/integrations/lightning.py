"""Lightning's Trainer on what a rule keeps: a data module whose batches are chosen with the weights of the moment.

    data = SelectionData("shards", il="il", run="runs/rho", batch_size=32, data=validation_loader)
    trainer.fit(model, datamodule=data, ckpt_path="last")

n_B candidates > scored by the LightningModule > n_b kept > handed out in `accumulate_grad_batches` batches > one update

The Trainer owns the loop and the checkpoint. `Commits`, a callback that the data module puts before all others, enters
losses, and puts the run's state into each checkpoint of the Trainer: whichever of them is loaded, the ledger goes on
from what its weights saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from rhostream.errors import MismatchError, UsageError
from rhostream.integrations.batches import Batches, Form, Piece
from rhostream.integrations.lightning_callback import AUTOCAST, Commits, is_over, pl
from rhostream.runs.run import Run
from rhostream.samples.fields import Fields
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader
from rhostream.stream.open import open_stream

_SERVED = ("val_dataloader", "test_dataloader", "predict_dataloader", "on_before_batch_transfer",
           "transfer_batch_to_device", "on_after_batch_transfer")  # fmt: skip


class SelectionData(pl.LightningDataModule):  # type: ignore[misc]
    """Training batches that a rule keeps, with a ledger and exact resume; validation stays as it was.

    `shards` and `il`: as `open_stream` takes them; `run`: the run's folder. `batch_size`: rows of a batch on one
    device, as of a DataLoader, so that a buffer of `buffer_size` samples (ten times as many as an update takes, unless
    given) makes one update of batch_size x devices x accumulate_grad_batches. An epoch is a pass.

    `data`: your data module, or your validation loader: all but the training batches are still its matter. `model`: the
    name of the module within the LightningModule that maps inputs to logits, its own forward unless given. `form`: of a
    `Piece` to a batch, by default (input, target). `mean` and `std`: what pixels in 0 to 1 are normalised by,
    as your validation does it; 0.5 unless given. `rule`: of the library's; `stream` and `selector`: more options of
    `open_stream` and `Selector`; `config`: what the run pins, such as {"lr": 1e-3}; `seed`: of both.

    Raises UsageError where the Trainer does what selection can't go with, MismatchError for a checkpoint of another
    run.
    """

    def __init__(
        self,
        shards: Any,
        il: str | os.PathLike[str],
        run: str | os.PathLike[str],
        *,
        batch_size: int,
        buffer_size: int | None = None,
        rule: str = "rho",
        data: Any = None,
        model: str | None = None,
        form: Form | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stream: Mapping[str, Any] | None = None,
        selector: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._shards, self._il, self._run = shards, il, os.fspath(run)
        self._batch_size, self._buffer_size, self._rule, self._seed = batch_size, buffer_size, rule, seed
        self._stream, self._selector = dict(stream or {}), dict(selector or {})
        self._model, self._form, self._config = model, form or _pair, config
        self._normalised = None if mean is None or std is None else (tuple(mean), tuple(std))
        data = _Validation(data) if data is not None and not isinstance(data, pl.LightningDataModule) else data
        self._data, self._commits = data, Commits(self)
        self.batches: Batches | None = None  # of the fit at hand
        self.piece: Piece | None = None  # the batch at hand
        self._opened: Loader | None = None
        self.loader: _Endless | None = None
        self._loaded: Any = None  # a checkpoint's state, until there is a run that takes it
        for name in _SERVED:
            if data is not None and getattr(type(data), name) is not getattr(pl.LightningDataModule, name):
                setattr(self, name, getattr(data, name))

    # -- what Lightning calls --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Your data module's."""
        if self._data is not None:
            self._data.trainer = self.trainer
            self._data.prepare_data()

    def setup(self, stage: str) -> None:
        """Your data module's; and the callback takes its place."""
        if self._data is not None:
            self._data.trainer = self.trainer
            self._data.setup(stage)
        if stage == "fit":
            self.batches = self._loaded = None
        others = [callback for callback in self.trainer.callbacks if not isinstance(callback, Commits)]
        self.trainer.callbacks = [self._commits, *others] if stage == "fit" else others

    def teardown(self, stage: str) -> None:
        """Let go of the stream's workers."""
        if stage == "fit":
            if self.batches is not None:
                self.batches.confirm()  # whatever was saved is on disk by now
            self.leave()
        if self._data is not None:
            self._data.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Let go of the stream's workers; what was saved of the run stays."""
        self.leave()
        if self._data is not None:
            self._data.on_exception(exception)

    def state_dict(self) -> dict[str, Any]:
        """Your data module's; the run's is saved by the callback."""
        return {} if self._data is None else dict(self._data.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Your data module's."""
        if self._data is not None:
            self._data.load_state_dict(state_dict)

    def train_dataloader(self) -> Any:
        """Sized, and the same for a whole fit; the run begins with its first batch."""
        if self.loader is None:
            self._opened = self._open()
            length = self._opened.stream.buffers_per_pass * self.trainer.accumulate_grad_batches
            self.loader = _Endless(self, length)
        return self.loader

    # -- the run ---------------------------------------------------------------------------------------------------

    @property
    def update_size(self) -> int:
        """Rows of one update: n_b."""
        return self._batch_size * int(self.trainer.world_size) * int(self.trainer.accumulate_grad_batches)

    def _open(self) -> Loader:
        options = {"seed": self._seed, "device": self.trainer.strategy.root_device, **self._stream}
        opened = open_stream(
            self._shards, self._il, buffer_size=self._buffer_size or 10 * self.update_size, passes=None, **options
        )
        if self._normalised is not None:
            kind = opened.stream.preprocess.normalized(*self._normalised)
            try:
                kind.check(kind.to_json())
            except ValueError as exc:
                raise UsageError(f"mean={self._normalised[0]}, std={self._normalised[1]}: {exc}") from exc
            opened.stream.preprocess = kind
        return opened

    def begin(self) -> None:
        """Make the run: the module is on its device, wrapped, and its optimizers are there. Collective."""
        trainer, module = self.trainer, self.trainer.lightning_module
        assert self._opened is not None
        scored: nn.Module = module if self._model is None else module.get_submodule(self._model)
        options = {"seed": self._seed, "autocast": AUTOCAST[trainer.precision], "gradients": "mean", **self._selector}
        selector = Selector(scored, self._rule, self.update_size, **options)
        run = Run(self._run, self._opened, selector, config=self._config)
        self.batches = Batches(run, self._given, accumulate=trainer.accumulate_grad_batches)
        for optimizer in trainer.optimizers:
            self.batches.watch(optimizer)
        if self._loaded is not None:
            self.batches.load_state_dict(self._loaded)
            self._loaded = None

    def take(self, state: Any) -> None:
        """Keep a checkpoint's state for the run that is to come. Raises MismatchError for what is none."""
        if not isinstance(state, Mapping):
            raise MismatchError(
                "this checkpoint holds no state of a run: it was saved without this data module or with weights alone: "
                "begin with its weights, load_from_checkpoint, and without ckpt_path"
            )
        if "inside" in state:
            raise MismatchError(
                f"this checkpoint was saved inside an update of {state['inside']} batches, whose gradients nobody has "
                "any more: go on from one before it"
            )
        self._loaded = state

    def state(self) -> Any:
        """What belongs into a checkpoint that is being saved. Collective."""
        if self.batches is None:
            return self._loaded
        if not self.batches.whole:  # by a signal, an exception or a stop; its weights are good
            return {"inside": self.batches.accumulate}
        return self.batches.state_dict(complete=is_over(self.trainer))

    def leave(self) -> None:
        """The fit has ended, or an exception ended it."""
        if self.batches is not None:
            self.batches.close()
        self.loader = self._opened = self.piece = None

    def chosen(self) -> Iterator[Any]:
        """Batches without an end: the Trainer says where an epoch has one, and a pass may be short of a batch."""
        if self.batches is None:
            raise UsageError("no run was begun: a setup() of your own calls super().setup(stage) of SelectionData")
        while True:
            before = self.batches.updates
            for batch in self.batches:
                yield batch
                if not isinstance(self.trainer.strategy.checkpoint_io, pl.plugins.io.AsyncCheckpointIO):
                    self.batches.confirm()
            if self.batches.updates == before:
                raise UsageError(
                    "a whole pass gave no batch: of no buffer there were enough samples left to train on; "
                    "`rhostream sql RUN` says why"
                )

    def _given(self, piece: Piece) -> Any:
        self.piece = piece
        return self._form(piece)


class _Endless:
    """What the Trainer takes for its training loader: sized, and resumable by what the callback saves."""

    def __init__(self, data: SelectionData, length: int) -> None:
        self._data, self._length = data, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return self._data.chosen()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing: the callback has it."""


class _Validation(pl.LightningDataModule):  # type: ignore[misc]
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = loader

    def val_dataloader(self) -> Any:
        return self._loader


def _pair(piece: Piece) -> Any:
    inputs = piece.input
    return (dict(inputs.items()) if isinstance(inputs, Fields) else inputs), piece.target
