"""Hugging Face's Trainer on what a rule keeps: its loop, its checkpoints and its evaluations, with selection beneath.

    trainer = SelectionTrainer(model, args, shards="shards/*.tar", il="il", eval_dataset=...)
    trainer.train(resume_from_checkpoint=True)

n_B candidates > scored with the weights as they are > n_b kept > handed out in `gradient_accumulation_steps` batches

The Trainer takes all batches of an update before the first forward, so they are chosen by the weights that the update
changes. A checkpoint has the run's state beside the weights (`checkpoint-N/rhostream.pt`), written before the Trainer's
own last file: whichever checkpoint is resumed, the ledger goes on from what those very weights saw.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rhostream import storage
from rhostream.errors import MissingExtraError, UsageError
from rhostream.integrations import huggingface_checkpoints as checkpoints
from rhostream.integrations.batches import Batches, Piece
from rhostream.integrations.huggingface_models import Inputs, parts_of, require_loss, whole_number
from rhostream.models.stored import of_transformers
from rhostream.runs.run import Run
from rhostream.selection.ranks import default_ranks
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader
from rhostream.stream.open import open_stream
from rhostream.tables import il as il_table

try:
    if importlib.util.find_spec("accelerate") is None:  # transformers says so only when a Trainer is made
        raise ImportError
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import SaveStrategy
except ImportError as exc:
    raise MissingExtraError.of("transformers or accelerate", "trainer") from exc

# What of the TrainingArguments decides what a batch teaches: pinned, and what runs are grouped by.
PINNED = (
    "learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "label_smoothing_factor", "bf16",
    "fp16", "neftune_noise_alpha",
)  # fmt: skip


class SelectionTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that trains on what `rule` keeps of `shards`, with a ledger and exact resume; all else stays its own.

    `shards` and `il`: as `open_stream` takes them. An update takes n_b = per_device_train_batch_size x ranks x
    gradient_accumulation_steps samples, of a buffer of `buffer_size` (10 n_b unless given); an epoch is a pass. `run`:
    the run's folder, by default `rhostream` in `output_dir`. `inputs`: of what is kept to the names that the model
    takes, by default {"pixel_values": x} of images, ids and attention mask of text. `stream` and `selector`: more
    options of `open_stream` ({"band": ..., "keep_list": ...}) and of `Selector`. `config`: what is pinned instead of
    the TrainingArguments that decide the learning. Images are made as `processing_class`, an image processor, says,
    or else of the model's size with values in -1 to 1.

    Of several bases it comes first: `class Mine(SelectionTrainer, Seq2SeqTrainer)`.

    Raises UsageError for arguments that can't go with it, MismatchError for a checkpoint of another run or of none.
    """

    def __init__(
        self,
        *args: Any,
        shards: Any,
        il: str | os.PathLike[str],
        rule: str = "rho",
        buffer_size: int | None = None,
        run: str | os.PathLike[str] | None = None,
        inputs: Inputs | None = None,
        stream: Mapping[str, Any] | None = None,
        selector: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        _require_possible(self)
        self.args.ignore_data_skip = True  # the run knows where it is; skipping would read and score all past buffers
        self.batches: Batches | None = None  # of the training at hand
        self._shards, self._il, self._rule, self._buffer_size = shards, il, rule, buffer_size
        self._run = os.fspath(run or os.path.join(self.args.output_dir, "rhostream"))
        self._inputs, self._stream, self._selector = inputs, dict(stream or {}), dict(selector or {})
        self._config = config
        self._resumed: str | None = None  # the checkpoint that the training at hand goes on from
        self._at_hand: _Batch | None = None  # what training_step is at
        self._weighed = False  # whether its loss went through compute_loss here
        self.add_callback(_Ledger(self))

    # -- what the Trainer asks for -------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """As the Trainer's; True goes on from the newest checkpoint that was saved whole.

        Raises MismatchError for a checkpoint that holds no run, or of which a part is missing.
        """
        if options.get("trial") or args:
            raise UsageError("hyperparameter_search: each trial is a run of its own; start one training for each")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.newest_whole(self.args.output_dir)
        elif resume_from_checkpoint:
            checkpoints.require_whole(os.fspath(resume_from_checkpoint))
        self._resumed = resume_from_checkpoint or None
        try:
            return super().train(resume_from_checkpoint, **options)
        finally:
            if self.batches is not None:
                self.batches.close()

    def get_train_dataloader(self) -> Any:
        """The run's batches, as they are: neither a sampler nor Accelerate shares them out again."""
        args, pieces = self.args, self.args.gradient_accumulation_steps
        ranks = default_ranks("default")
        size = self._train_batch_size * ranks.size * pieces
        opened = self._open(self._buffer_size or 10 * size)
        scored, self._of_inputs, self._labels = parts_of(self.model, opened, self._inputs)
        options = {"seed": args.seed, "autocast": _autocast(args), "gradients": "mean", **self._selector}
        selector = Selector(scored, self._rule, size, **options)
        if selector.rule.needs_il and "loss" not in self._selector:
            require_loss(opened, self._rule)
        epochs = math.ceil(args.num_train_epochs * opened.stream.buffers_per_pass)
        pinned, known = self._config, args.to_dict()
        if pinned is None:
            pinned = {"model": type(self.model).__name__, **{name: known[name] for name in PINNED if name in known}}
        steps = args.max_steps if args.max_steps > 0 else epochs
        run = Run(self._run, opened, selector, config=pinned, steps=steps)
        self.batches = Batches(run, self._form, accumulate=pieces)
        if self._resumed is not None:
            self.batches.load_state_dict(checkpoints.read(self._resumed))
        return self.batches

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """As the Trainer's: the batches of an update."""
        batches, items = super().get_batch_samples(*args, **options)
        for batch in batches:
            if isinstance(batch, _Batch):
                batch.of_rank = sum(other.factor for other in batches) / len(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """As the Trainer's, of a batch of the run, whose loss is entered into the ledger."""
        if not isinstance(inputs, _Batch) or self.batches is None:
            raise UsageError(
                "the training batches went through another loader, which may draw ahead or share them out again: leave "
                "get_train_dataloader and prepare() of SelectionTrainer's batches alone"
            )
        self._at_hand, self._weighed = inputs, False
        try:
            loss = super().training_step(model, inputs, *args, **options)
        finally:
            self._at_hand = None
        if not self._weighed:
            raise UsageError(
                f"compute_loss of {type(self).__name__} doesn't go through SelectionTrainer's, which weighs batches of "
                "unlike sizes: name SelectionTrainer before the class that has it, or call super().compute_loss"
            )
        # Whatever made it, over the pieces and ranks of an update it adds up to ranks times the update's mean.
        self.batches.losses(loss * (self.batches.accumulate / inputs.factor), inputs.rows)
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **options: Any) -> Any:
        """As the Trainer's; of a training batch that has fewer rows than others as much less."""
        made = super().compute_loss(model, inputs, return_outputs, *args, **options)
        if self._at_hand is None:
            return made
        self._weighed = True
        loss, outputs = made if return_outputs else (made, None)
        items = options.get("num_items_in_batch", args[0] if args else None)
        if (factor := self._factor(self._at_hand, items)) != 1:
            loss = loss * factor
        return (loss, outputs) if return_outputs else loss

    def _factor(self, batch: _Batch, items: Any) -> float:
        """What a batch's loss is multiplied by: a mean of its rows by their share, a sum over the items of the update,
        as models of transformers make it, by nothing but what the items of other ranks are."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        if not scaled:
            return batch.factor
        return 1.0 if items is not None and self.args.average_tokens_across_devices else batch.of_rank

    # -- the run -------------------------------------------------------------------------------------------------------

    def _open(self, buffer_size: int) -> Loader:
        args, options = self.args, dict[str, Any]()
        picture = il_table.open_info(storage.resolve(storage.text_of(self._il))).content == "image"
        processor = self.processing_class if hasattr(self.processing_class, "image_mean") else None
        if picture:
            made = of_transformers(processor, whole_number(self.model, "image_size"))
            options = {"image_size": made.image_size, "channels": whole_number(self.model, "num_channels")}
            if processor is not None:
                options["resize"] = made.resize
        options |= {
            "seed": args.seed if args.data_seed is None else args.data_seed, "workers": args.dataloader_num_workers,
            **self._stream,
        }  # fmt: skip
        fixed = {"buffer_size": buffer_size, "passes": None, "device": args.device}
        opened = open_stream(self._shards, self._il, **fixed, **options)
        if picture and processor is not None:
            opened.stream.preprocess = opened.stream.preprocess.normalized(made.mean, made.std)
        return opened

    def _form(self, piece: Piece) -> _Batch:
        named = {**self._of_inputs(piece.input), "labels": self._labels(piece.input, piece.target)}
        return _Batch(named, len(piece.input), piece.factor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer's, with the run's state in it; collective. Who saves the model only saves no run."""
        assert self.batches is not None
        if self.args.save_only_model:
            return super()._save_checkpoint(model, trial)  # type: ignore[no-any-return]
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        state = self.batches.state_dict()
        if self.args.should_save:
            checkpoints.write(state, folder)
        super()._save_checkpoint(model, trial)
        self.batches.confirm()


class _Batch(dict[str, Any]):
    """What the model is called with, and how much it counts; the Trainer makes copies of the former alone."""

    def __init__(self, inputs: Mapping[str, Any], rows: int = 0, factor: float = 1.0) -> None:
        super().__init__(inputs)
        self.rows, self.factor = rows, factor
        self.of_rank = factor  # the mean of this over the rank's batches of the update


class _Ledger(TrainerCallback):  # type: ignore[misc]
    """What the Trainer says on its way that the run has to know."""

    def __init__(self, trainer: SelectionTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """The optimizer is there: it says which updates were made."""
        optimizer = options["optimizer"]
        self._batches.watch(getattr(optimizer, "optimizer", optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """An epoch that was resumed in its middle goes on there."""
        updates = len(self._batches) // self._batches.accumulate
        whole, over = divmod(state.global_step - 1, updates)
        state.epoch = whole + (over + 1) / updates

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **options: Any) -> None:
        """An evaluation between two updates is entered at the one before it."""
        entered = {name: (metrics or {}).get(f"eval_{name}") for name in ("accuracy", "loss")}
        if self._trainer.is_in_train and any(value is not None for value in entered.values()):
            self._batches.evaluated(**entered)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
        """Where buffers had nothing to learn from the run ends an update early, and the Trainer with it."""
        if self._batches.run.complete and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save |= args.save_strategy == SaveStrategy.STEPS
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """The ledger is whole, whatever was saved."""
        self._batches.state_dict()
        self._batches.confirm()

    @property
    def _batches(self) -> Batches:
        batches = self._trainer.batches
        assert batches is not None
        return batches


def _autocast(args: Any) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _require_possible(trainer: Any) -> None:
    args, config = trainer.args, trainer.args.accelerator_config
    if trainer.train_dataset is not None:
        raise UsageError("train_dataset of SelectionTrainer: it trains on what is kept of shards=, so leave it out")
    if args.auto_find_batch_size:
        raise UsageError("auto_find_batch_size changes what an update keeps, and a run keeps n_b: leave it out")
    for name in ("dispatch_batches", "split_batches"):
        if getattr(config, name, None):
            raise UsageError(f"accelerator_config {name}: a buffer is divided over the ranks already, so leave it out")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UsageError(
            "FSDP and DeepSpeed of the Trainer wrap the model behind the selector's back: take DDP (torchrun), or a "
            "loop of Accelerate's, which says when it is wrapped"
        )
    if getattr(trainer, "is_distributed_loading_by_transformers", False) or getattr(args, "parallelism_config", None):
        raise UsageError("a model or a batch that is divided over ranks: selection counts each rank as one of its own")
    if args.n_gpu > 1:
        raise UsageError(f"{args.n_gpu} GPUs in one process (DataParallel): start a process for each, with torchrun")
