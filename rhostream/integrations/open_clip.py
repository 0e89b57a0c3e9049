"""open_clip's own training loop on the pairs that a rule keeps: an object that it takes as its training data.

    data["train"] = OpenClipData(args, model, optimizer, shards=..., il="il")        in open_clip_train/main.py

n_B pairs > scored with the weights as they are > n_b kept > handed to their loop in --accum-freq batches > its step

Their loop calls nothing back. That it asks for the batch behind an update says that the update's turn is over; a hook
on the optimizer says whether it was made, which a GradScaler may refuse. An epoch's end is a commit of the run, and
another hook puts its name into the optimizer's state, so that it lies in their checkpoint and nowhere else: whichever
of their checkpoints is loaded, the ledger goes on from what those very weights saw.
"""

from __future__ import annotations

import io
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.errors import MismatchError, UsageError
from rhostream.models.pairs import TwoTowers
from rhostream.models.towers import Towers, towers_of
from rhostream.runs.run import Run
from rhostream.runs.state import unwrapped
from rhostream.samples.fields import Fields
from rhostream.selection.ranks import default_ranks
from rhostream.selection.selector import Selection, Selector
from rhostream.stream.loader import Loader
from rhostream.stream.open import open_stream

STATE = "rhostream"  # the name in the optimizer's state
# What of open_clip's options decides what a batch teaches: pinned, and what runs are grouped by.
PINNED = (
    "model", "pretrained", "opt", "lr", "wd", "beta1", "beta2", "eps", "momentum", "warmup", "lr_scheduler", "epochs",
    "precision", "grad_clip_norm", "lock_image", "lock_text", "siglip",
)  # fmt: skip
_AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}
_INPUTS = {"bf16": torch.bfloat16, "pure_bf16": torch.bfloat16, "fp16": torch.float16, "pure_fp16": torch.float16}


class OpenClipData:
    """What open_clip's `train_one_epoch` takes as `data["train"]`: selection, ledger and exact resume beneath it.

    `args`: open_clip's options, as its `parse_args` gives them. `model` and `optimizer`: those that its loop trains,
    after --resume was loaded into them; the model may be wrapped in DDP. `shards` and `il`: as `open_stream` takes
    them; of `shards` "::" joins several, as in --train-data, which they are unless given. `run`: the run's folder, by
    default `rhostream` in the folder of open_clip's logs.

    n_b is --batch-size x ranks x --accum-freq: a buffer of `buffer_size` pairs (5 n_b unless given) makes one update.
    An epoch is --train-num-samples kept pairs, one pass over the shards where that isn't given, and the run is over
    after --epochs times as many buffers as that is. `rule`: of the library's. `stream` and `selector`: more options of
    `open_stream` ({"band": ..., "keep_list": ..., "augment": ...}) and of `Selector`. `config`: what is pinned instead
    of open_clip's options.

    Pictures are made what the model's own preprocessing says: size, mean, deviation and resize mode; texts by the
    tokenizer of --model. The loss is --siglip's or CLIP's, in the precision of --precision.

    --resume goes on from the commit that the checkpoint names. Raises UsageError for options and rules that can't go
    with it, MismatchError for a checkpoint of another run, or of none, and for an il of another loss.
    """

    def __init__(
        self,
        args: Namespace,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        il: str | os.PathLike[str],
        shards: Any = None,
        run: str | None = None,
        rule: str = "rho",
        buffer_size: int | None = None,
        stream: Mapping[str, Any] | None = None,
        selector: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        _require_possible(args)
        ranks = default_ranks("default")
        self._accumulate, self._ranks = int(args.accum_freq), ranks.size
        batch = args.batch_size * ranks.size * self._accumulate
        inner = unwrapped(model)
        towers = towers_of(inner, args.model)
        loss = "siglip" if args.siglip else "clip"
        device = next(inner.parameters()).device
        selector_of = Selector(
            TwoTowers(inner, _INPUTS.get(args.precision)), rule, batch, loss=loss, seed=args.seed, gradients="mean",
            autocast=_AUTOCAST.get(args.precision), **(selector or {}),
        )  # fmt: skip
        if selector_of.rule.sampled:
            raise UsageError(f"the rule {rule} weighs its losses, and open_clip's loop takes no weights")
        opened = _open(
            args, towers, shards, il, device=device, buffer_size=buffer_size or 5 * batch,
            needs_il=selector_of.rule.needs_il, options=stream or {},
        )  # fmt: skip
        if selector_of.rule.needs_il:
            _require_loss(opened, loss, rule)
        samples = args.train_num_samples
        self.updates_per_epoch = -(-samples // batch) if samples else opened.stream.buffers_per_pass
        pinned = {name: getattr(args, name, None) for name in PINNED} if config is None else config
        self.run = Run(
            run or os.path.join(args.logs, args.name, "rhostream"), opened, selector_of, config=pinned,
            steps=args.epochs * self.updates_per_epoch,
        )  # fmt: skip
        self.num_batches, self.num_samples = self.updates_per_epoch * self._accumulate, self.updates_per_epoch * batch
        self.updates = 0  # batches of a whole buffer that were handed out so far, each for one update
        self._epoch: int | None = None
        self._state: dict[str, Any] | None = None  # of the newest commit
        self._saved = False  # whether somebody has that
        self._kept: Selection | None = None  # at hand
        self._whole = False  # whether all of it was handed out
        self._applied: bool | Tensor = False
        if args.resume:
            self._resume(args.resume)
        self._batches: Iterator[Selection] = iter(self.run)
        optimizer.register_step_post_hook(self._stepped)
        optimizer.register_state_dict_post_hook(self._enter)

    def __repr__(self) -> str:
        """Where it is."""
        return f"<pairs for open_clip: {self.updates:,} updates, {self.updates_per_epoch:,} an epoch, {self.run!r}>"

    # -- what open_clip's loop reads -----------------------------------------------------------------------------------

    @property
    def dataloader(self) -> OpenClipData:
        """Itself."""
        return self

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.num_batches

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 0; what was saved of the one before is confirmed.

        Raises MismatchError where the run isn't in that epoch.
        """
        if self._saved:
            self.confirm()
        begins = epoch * self.updates_per_epoch
        if not begins <= self.updates < begins + self.updates_per_epoch and not self.run.complete:
            raise MismatchError(
                f"epoch {epoch} begins at update {begins:,} ({self.updates_per_epoch:,} each), and this run is at "
                f"{self.updates:,}: give --resume the checkpoint whose weights these are, with the --train-num-samples "
                "and --batch-size that it was made with"
            )
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches: images (n, 3, H, W) float32 and token ids (n, L) int64, of this rank.

        Its last update is committed when the loop asks for more. Raises what the run raises.
        """
        if self._epoch is None:
            raise UsageError("set_epoch comes before the epoch's batches")
        end = (self._epoch + 1) * self.updates_per_epoch
        while self.updates < end and (kept := next(self._batches, None)) is not None:
            if kept.total % self._ranks or kept.total < self._ranks * self._accumulate:
                # open_clip's loss takes as many pairs of every rank; of a batch that isn't, nothing is learned.
                self.run.step(None, applied=False)
                continue
            assert isinstance(kept.input, Fields)
            self._kept, self._whole, self._applied = kept, False, False
            parts = kept.input.tensor_split(self._accumulate)
            for number, part in enumerate(parts, 1):
                self._whole = number == len(parts)
                yield part["pixels"], part["tokens"]
            self._record()
        self._commit()
        if self.run.complete:
            next(self._batches, None)  # the end of the run's own loop

    # -- what its loop doesn't say -------------------------------------------------------------------------------------

    def commit(self) -> None:
        """For a loop that saves within an epoch: on every rank, behind the optimizer's step and before the save.

        Raises UsageError within an update.
        """
        if self._kept is not None and not self._whole:
            raise UsageError(f"a commit within an update of {self._accumulate} batches: behind its last one there is")
        self._record()
        self._commit()

    def confirm(self) -> None:
        """Say that the checkpoint of the newest commit is saved; a new epoch says it too. Readers of the run, which
        show that commit, say until then that nobody confirmed it."""
        if self._saved:
            self.run.confirm()
        self._saved = False

    def _record(self) -> None:
        """The update of the batch at hand has had its turn."""
        if self._kept is not None:
            self.run.step(None, self._applied)
            self._kept = None
            self.updates += 1

    def _commit(self) -> None:
        at = None if self._state is None else (self._state["updates"], self._state["run"]["step"])
        if at != (self.updates, self.run.steps):
            self._state = {
                "run": self.run.state_dict(), "updates": self.updates, "updates_per_epoch": self.updates_per_epoch,
            }  # fmt: skip
            self._saved = False

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The optimizer made an update; one that looks at a GradScaler's word by itself perhaps didn't."""
        refused = getattr(optimizer, "found_inf", None)
        self._applied = True if refused is None else refused.sum() == 0

    def _enter(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The optimizer's state is asked for, to be saved with the weights: name the commit that belongs to them."""
        if self._kept is not None:
            if self._ranks > 1:
                raise UsageError("a checkpoint within an epoch: call commit() of the training data on every rank first")
            self.commit()
        if self._state is not None and self._state["updates"] == self.updates:
            state[STATE] = self._state
            self._saved = True

    def _resume(self, path: str) -> None:
        checkpoint = _load(path)
        if "epoch" not in checkpoint:  # weights alone, to begin with
            return
        state = checkpoint["optimizer"].get(STATE)
        if not isinstance(state, dict) or not {"run", "updates", "updates_per_epoch"} <= {*state}:
            raise MismatchError(
                f"{path} holds no state of a run: it was saved by a loop without this training data; begin with its "
                "weights by --pretrained"
            )
        if state["updates_per_epoch"] != self.updates_per_epoch:
            raise MismatchError(
                f"{path} was saved with epochs of {state['updates_per_epoch']} updates, these have "
                f"{self.updates_per_epoch}: take the --train-num-samples and --batch-size that it was made with"
            )
        self.run.load_state_dict(state["run"])
        self.updates, self._state = int(state["updates"]), state


def _require_possible(args: Namespace) -> None:
    if getattr(args, "horovod", False):
        raise UsageError("--horovod: ranks are those of torch.distributed; start it with torchrun")
    if getattr(args, "dataset_resampled", False):
        raise UsageError("--dataset-resampled draws shards with replacement; here a pass is exactly once")


def _open(
    args: Namespace,
    towers: Towers,
    shards: Any,
    il: str | os.PathLike[str],
    *,
    device: torch.device,
    buffer_size: int,
    needs_il: bool,
    options: Mapping[str, Any],
) -> Loader:
    """The stream of what the model takes: pixels of its size, normalised as its own are, and its tokenizer's ids."""
    shards = args.train_data if shards is None else shards
    given = {
        "seed": args.seed, "workers": args.workers, "image_size": towers.image_size, "channels": towers.channels,
        "resize": towers.resize, "tokenizer": towers.tokenizer, "text_length": towers.text_length, **options,
    }  # fmt: skip
    opened = open_stream(
        shards.split("::") if isinstance(shards, str) else shards, il, buffer_size=buffer_size, passes=None,
        needs_il=needs_il, device=device, kind="pair", **given,
    )  # fmt: skip
    kind = opened.stream.preprocess
    towers.require_made_for(kind.model_arguments())
    opened.stream.preprocess = kind.normalized(towers.mean, towers.std)
    return opened


def _require_loss(opened: Loader, loss: str, rule: str) -> None:
    table = opened.stream.table
    made = table.info.ingredients.get("loss", "cross_entropy")
    if made != loss:
        raise MismatchError(
            f"the il of {storage.redact(table.url)} is {made}, and open_clip's loss is {loss} here: the rule {rule} "
            f"would compare two different losses; make il of it with `rhostream fit-il --loss {loss}`"
        )


def _load(path: str) -> dict[str, Any]:
    """A checkpoint; of a file its tensors aren't read. Nothing in it is run."""
    if "://" in path:
        data = io.BytesIO(storage.read_bytes(storage.resolve(path)))
        return dict(torch.load(data, map_location="cpu", weights_only=True))
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
