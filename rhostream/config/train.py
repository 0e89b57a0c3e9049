"""The settings of `train`, each told once; the options of the rule are in `selection/options.py`.

To add one: its field here, and the line that reads it where it acts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rhostream.config.shared import (
    INIT,
    KIND,
    MODEL,
    RESIZE,
    ROOT,
    SHARDS,
    TASK,
    TASKS,
    TEXT_LENGTH,
    TOKENIZER,
    WORKERS,
    brief_config,
)
from rhostream.errors import UnknownNameError, UsageError
from rhostream.foreign import RESIZES
from rhostream.selection.options import Options
from rhostream.selection.rules import RULES as RULE_NAMES
from rhostream.setting import (
    ALWAYS,
    ASKED,
    CANDIDATES,
    CASCADE,
    CHOICE,
    MACHINE,
    PLAN,
    RECORDED,
    RECORDS,
    RESOLVED,
    RULES,
    WEIGHTS,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

    from rhostream.runs.book import Metrics

_HARDWARE = "how fast a step is made, and where, doesn't change it"
_LENGTH = "a run may go on for longer"
_TESTS = "the test set is for reporting only"
_STATE = "it is part of what the optimizer remembers"
STEP = "The gradient step"
OPTIMIZERS = ("adamw", "sgd", "adafactor")
SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """What a run of `train` is asked for. Raises UsageError for a value that can't be, naming the field."""

    verb: ClassVar[str] = "train"
    __repr__ = brief_config

    shards: str | Iterable[str] = setting(
        help=SHARDS, metavar="URL...", place=True, pin=RESOLVED, pinned_as=("shards",), fixed=PLAN
    )
    roots: Mapping[str, str] | None = setting(
        None, help=ROOT, metavar="NAME=URL", option="root", place=True, pin=RESOLVED, pinned_as=("shards",), fixed=PLAN
    )
    workers: int = setting(0, help=WORKERS, pin=RECORDED, free=_HARDWARE)
    kind: str | None = setting(
        None, help=KIND, metavar="NAME", imports=True, pin=RESOLVED, pinned_as=("preprocess_kind",), fixed=CANDIDATES
    )
    tokenizer: str | None = setting(
        None,
        help=TOKENIZER,
        metavar="NAME",
        unset="the table's or the model's, else words:30000",
        pin=RESOLVED,
        pinned_as=("preprocess_tokenizer",),
        fixed=CANDIDATES,
    )
    text_length: int | None = setting(
        None,
        help=TEXT_LENGTH,
        metavar="T",
        unset="128",
        pin=RESOLVED,
        pinned_as=("preprocess_length",),
        fixed=CANDIDATES,
    )
    task: str | None = setting(
        None,
        help=TASK,
        choices=TASKS,
        unset="language of text-lm, label of any other",
        pin=RESOLVED,
        pinned_as=("preprocess_task",),
        fixed=CANDIDATES,
    )
    il: str = setting(
        help="The table of compute-il, or of index.",
        metavar="URL",
        place=True,
        pin=RESOLVED,
        pinned_as=("il",),
        fixed=CANDIDATES,
    )
    run: str = setting(
        help="Run folder; the same command again resumes it.",
        metavar="DIR",
        place=True,
        free="it is the run's own folder",
    )
    model: str = setting("mlp", help=MODEL, imports=True, pin=ALWAYS, fixed=WEIGHTS)
    rule: str = setting(
        "rho",
        help=", ".join(RULE_NAMES) + " or your module:function.",
        metavar="NAME",
        imports=True,
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    buffer_size: int = setting(320, help="n_B: samples looked at each step.", pin=ALWAYS, fixed=PLAN, part="sizes")
    batch_size: int = setting(32, help="n_b: samples kept for the gradient.", pin=ALWAYS, fixed=CHOICE, part="sizes")
    test_shards: Iterable[str] | str = setting(
        (), help="Evaluated for reporting only.", metavar="URL...", place=True, free=_TESTS
    )
    max_bad_fraction: float = setting(
        0.01, help="Of the test shards: more bad samples than this in one, or in all, stop the run.", free=_TESTS
    )
    max_bad_samples: int | None = setting(
        None,
        help="More bad samples in all test shards stop the run.",
        metavar="N",
        unset="by --max-bad-fraction",
        free=_TESTS,
    )
    passes: int | None = setting(
        None, help="Passes over the shards.", unset="1, or as many as --steps needs", pin=RECORDED, free=_LENGTH
    )
    steps: int | None = setting(None, help="Stop after this many steps.", pin=RECORDED, free=_LENGTH)
    missing_il: str = setting(
        "error",
        help="What happens to samples without an il.",
        choices=("error", "skip", "uniform"),
        pin=ALWAYS,
        fixed=CANDIDATES,
    )
    init: str | None = setting(
        None, help=INIT, metavar="WEIGHTS", place=True, pin=RESOLVED, pinned_as=("init",), fixed=WEIGHTS
    )
    accumulate: int = setting(
        1, help="Split the kept batch into this many forwards.", heading=STEP, pin=ALWAYS, fixed="", part="sizes"
    )
    optimizer: str = setting(
        "adamw",
        help=", ".join(OPTIMIZERS) + " or your module:function(model, lr=, weight_decay=), with parameter "
        "groups of its own.",
        heading=STEP,
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed=_STATE,
    )
    lr: float = setting(1e-3, help="Learning rate.", heading=STEP, pin=ALWAYS, fixed="")
    weight_decay: float = setting(
        0.01, help="Decoupled from the gradient, but with sgd.", heading=STEP, pin=ALWAYS, fixed=""
    )
    no_decay: bool = setting(
        False,
        help="Biases and the weights of norms (all of one dimension) have no weight decay.",
        heading=STEP,
        pin=ASKED,
        fixed=_STATE,
    )
    momentum: float | None = setting(None, help="Of --optimizer sgd.", heading=STEP, unset="0.9", pin=ASKED, fixed="")
    schedule: str = setting(
        "constant",
        help=", ".join(SCHEDULES) + " (to 0 at the run's end) or your module:function(optimizer, steps=).",
        heading=STEP,
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed="its state is in every checkpoint; --change lr=..., schedule_steps=... bends the one that there is",
    )
    schedule_steps: int | None = setting(
        None,
        help="Where the schedule ends.",
        heading=STEP,
        metavar="N",
        unset="the run's last step, as it began",
        pin=RESOLVED,
        pinned_as=("schedule_steps",),
        fixed="",
    )
    lr_warm_up: int = setting(
        0,
        help="The rate rises linearly in the first N steps.",
        heading=STEP,
        metavar="N",
        pin=ASKED,
        fixed="it is how a run begins",
    )
    clip_gradient: float | None = setting(
        None,
        help="Scale a gradient whose norm over all parameters is larger down to it.",
        heading=STEP,
        metavar="NORM",
        pin=ASKED,
        fixed="",
    )
    ema: float | None = setting(
        None,
        help="Keep an exponential moving average of the weights, and evaluate that: its decay, as 0.999.",
        heading=STEP,
        metavar="DECAY",
        pin=ASKED,
        fixed="an average is of all the weights from the beginning on",
    )
    loss: str = setting(
        "cross_entropy",
        help="cross_entropy or your module:function of (logits, label), one loss a sample.",
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed=CHOICE,
    )
    token_share: float | None = setting(
        None,
        help="Of language: train on this share of a kept sequence's tokens, the largest loss - il (Rho-1).",
        metavar="F",
        pin=ASKED,
        fixed=CHOICE,
    )
    augment: str = setting(
        "none",
        help="Of kept samples alone: none, flip, shift, flip-shift; random_resized_crop, random_resized_crop-flip "
        "or (of your own kind) decode, from their bytes again; or your module:function of (input_b, seed_b).",
        heading=STEP,
        metavar="NAME",
        imports=True,
        pin=ALWAYS,
        fixed="",
    )
    keep_holdout: bool = setting(
        False, help="Candidates may be samples that the IL model learned from.", pin=ALWAYS, fixed=CANDIDATES
    )
    classes: int | None = setting(
        None, help="Number of classes; else the table's.", pin=RESOLVED, pinned_as=("classes",), fixed=CANDIDATES
    )
    seed: int = setting(0, help="Of everything that is drawn: weights, order, choices.", pin=ALWAYS, fixed=PLAN)

    loss_cap: bool = setting(
        False,
        help="Clip loss and il at ln C (ours; for noisy IL models).",
        heading=RULES,
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    il_model: str | None = setting(
        None,
        help="rho_updated: the IL model that learns along.",
        heading=RULES,
        metavar="DIR",
        unset="where the table's lay",
        place=True,
        free="the table's fingerprint says which IL model it is",
        fixed=CHOICE,
    )
    il_lr_scale: float = setting(
        0.01,
        help="Its rate, times --lr.",
        heading=RULES,
        metavar="S",
        pin=RESOLVED,
        pinned_as=("il_lr_scale",),
        fixed="",
        part="rule",
    )
    il_code: str | None = setting(
        None,
        help="Its package.module:function, where it is your own code.",
        heading=RULES,
        metavar="NAME",
        imports=True,
        free="the IL model names its own code, and this only says that it is trusted",
        fixed=CHOICE,
    )

    keep_list: str | None = setting(
        None,
        help="Parquet, CSV or JSON of (shard, ordinal) or (shard, key): nothing else is a candidate.",
        heading=CASCADE,
        metavar="FILE",
        place=True,
        pin=RESOLVED,
        pinned_as=("keep_list",),
        fixed=CANDIDATES,
        part="rule",
        words="keep-list",
    )
    band: str | None = setting(
        None,
        help="Drop samples whose il is outside, before they are read: 20%:90% of the table, or nats.",
        heading=CASCADE,
        metavar="LOW:HIGH",
        pin=ALWAYS,
        fixed=CANDIDATES,
        part="rule",
        words="band",
    )
    view_size: int | None = setting(
        None,
        help="Decode at this many pixels to score or shortlist; what goes on is decoded at full size.",
        heading=CASCADE,
        pin=ALWAYS,
        fixed=CANDIDATES,
        part="rule",
        words="view of",
    )
    shortlist: str | None = setting(
        None,
        help="proxy:4 or view:4: a cheaper forward picks 4 n_b, and fresh scores pick n_b of these.",
        heading=CASCADE,
        metavar="KIND:R",
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
        words="shortlist",
    )
    proxy_model: str = setting(
        "mlp-64",
        help="The small model of --shortlist proxy; it learns from what is kept.",
        heading=CASCADE,
        imports=True,
        pin=RESOLVED,
        pinned_as=("proxy_model",),
        fixed=CHOICE,
        part="rule",
    )

    precision: str = setting(
        "float32", help="Of scoring: float32 or bfloat16.", heading=MACHINE, pin=ALWAYS, fixed="", part="rule"
    )
    train_precision: str = setting(
        "float32", help="Of the gradient step: float32 or bfloat16.", heading=MACHINE, pin=ALWAYS, fixed=""
    )
    chunk: int | None = setting(
        None,
        help="Score at most this many samples at once (memory).",
        heading=MACHINE,
        pin=ALWAYS,
        fixed="",
        part="rule",
    )
    batch_norm: str = setting(
        "buffer",
        help="Statistics while scoring.",
        heading=MACHINE,
        choices=("buffer", "eval"),
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    lanes: int | None = setting(
        None,
        help="Shards that are mixed at a time.",
        heading=MACHINE,
        unset="up to 64",
        pin=RESOLVED,
        pinned_as=("lanes",),
        fixed=PLAN,
        part="sizes",
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1.", heading=MACHINE, free=_HARDWARE)
    threads: int | None = setting(
        None,
        help="Threads of the model.",
        heading=MACHINE,
        unset="the cores that the workers leave, as the run began",
        free=_HARDWARE,
    )
    compile: bool = setting(False, help="Run the model through torch.compile.", heading=MACHINE, pin=ALWAYS, fixed="")
    image_size: int | None = setting(
        None,
        help="Pixels of the square input; else the table's.",
        heading=MACHINE,
        pin=RESOLVED,
        pinned_as=("preprocess_image_size",),
        fixed=CANDIDATES,
    )
    channels: int | None = setting(
        None,
        help="1 for grey, 3 for RGB; else the table's.",
        heading=MACHINE,
        metavar="1|3",
        pin=RESOLVED,
        pinned_as=("preprocess_channels",),
        fixed=CANDIDATES,
    )
    resize: str | None = setting(
        None,
        help=RESIZE,
        heading=MACHINE,
        choices=RESIZES,
        unset="the table's",
        pin=RESOLVED,
        pinned_as=("preprocess_resize",),
        fixed=CANDIDATES,
    )
    decoder: str = setting(
        "auto",
        help="auto, pillow or simplejpeg.",
        heading=MACHINE,
        pin=RESOLVED,
        pinned_as=("decoder",),
        fixed=CANDIDATES,
    )
    selection: str = setting(
        "global",
        help="Under torchrun: the best n_b of the whole buffer, or n_b / ranks of each rank's share.",
        heading=MACHINE,
        choices=("global", "rank"),
        pin=RESOLVED,
        pinned_as=("selection",),
        fixed=CHOICE,
        part="rule",
    )
    rank_timeout: float = setting(
        600.0, help="Seconds that a rank waits for the others before it stops.", heading=MACHINE, free=_HARDWARE
    )

    eval_every: int = setting(100, help="Steps between evaluations.", heading=RECORDS, pin=RECORDED, free=_TESTS)
    evaluate: str | None = setting(
        None,
        help="Your module:function(model), in place of test shards: gives accuracy, loss and samples.",
        heading=RECORDS,
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed="a curve is of one evaluation",
    )
    smoothing: int = setting(
        5, help="Evaluations that reports average.", heading=RECORDS, pin=RECORDED, free="it is for reports only"
    )
    checkpoint_every: int = setting(
        500,
        help="Steps between checkpoints.",
        heading=RECORDS,
        pin=RECORDED,
        free="a checkpoint changes nothing of what comes after it",
    )
    keep_checkpoints: int = setting(
        2, help="How many checkpoints stay.", heading=RECORDS, free="a checkpoint changes nothing of what comes after"
    )
    change: Mapping[str, Any] | str | Iterable[str] | None = setting(
        None,
        help="Of a run that goes on: another lr, weight_decay, accumulate, augment, chunk, precision, ... from "
        "its newest checkpoint on; recorded, and said by status and report.",
        heading=RECORDS,
        metavar="NAME=VALUE...",
        kept=False,
        free="every change is recorded by itself",
    )
    from_step: int | None = setting(
        None,
        help="Go back to the commit of this step, whose state must still be kept, in a new attempt.",
        heading=RECORDS,
        metavar="S",
        kept=False,
        free="it is recorded as a change",
    )
    skip_buffers: str | None = setting(
        None,
        help="Pass over buffers A to B - 1 (counted from 0, as steps are), on which nothing was trained yet: "
        "after a loss spike, with --from-step.",
        heading=RECORDS,
        metavar="A:B",
        kept=False,
        free="it is recorded as a change",
    )
    grow: bool = setting(
        False,
        help="At the end of a pass: go on with this list of shards, which has those of before and more.",
        heading=RECORDS,
        kept=False,
        free="it is recorded as a change",
    )
    take_over: bool = setting(
        False,
        help="Go on from the newest commit though another process of this machine is at the run, whose steps since "
        "then are lost.",
        heading=RECORDS,
        kept=False,
        free="who runs it changes nothing",
    )
    tensorboard: bool = setting(
        False, help="Also write TensorBoard events below the run.", heading=RECORDS, free="who looks on changes nothing"
    )
    metrics: Metrics | None = setting(
        None,
        help="Called with each step's row, one step late.",
        code=True,
        command_line=False,
        kept=False,
        free="who looks on changes nothing",
    )
    make_model: Callable[[], nn.Module] | None = setting(
        None,
        help="Makes the model, which `model` then only names.",
        code=True,
        command_line=False,
        pin=RESOLVED,
        pinned_as=("model",),
        fixed=WEIGHTS,
    )

    def __post_init__(self) -> None:
        from rhostream import storage
        from rhostream.tables.names import checked_roots

        for name in ("shards", "test_shards"):  # an iterable is asked twice: for the data, and for run.json
            given = getattr(self, name)
            listed = storage.listed(() if name == "test_shards" and given is None else given)
            object.__setattr__(self, name, tuple(listed))
        object.__setattr__(self, "roots", checked_roots(self.roots))
        super().__post_init__()
        n_B, n_b = self.buffer_size, self.batch_size
        if not 1 <= n_b <= n_B:
            raise UsageError(f"--batch-size {n_b} of --buffer-size {n_B}: expected 1 <= n_b <= n_B")
        numbers = (self.accumulate, self.eval_every, self.checkpoint_every, self.steps, self.passes)
        if any(n is not None and n < 1 for n in numbers):
            raise UsageError("--steps, --passes, --accumulate, --eval-every and --checkpoint-every must be at least 1")
        if not 0 < self.il_lr_scale < math.inf:
            raise UsageError(f"--il-lr-scale {self.il_lr_scale:g}: expected a number above 0")
        self._check_step()

    def _check_step(self) -> None:
        """Raise UsageError, UnknownNameError for an optimizer, a schedule, ... that can't be."""
        for what, name, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if ":" not in name and name not in known:
                raise UnknownNameError.of(what, name, [*known, "package.module:function"])
        if self.clip_gradient is not None and not 0 < self.clip_gradient < math.inf:
            raise UsageError(f"--clip-gradient {self.clip_gradient:g}: expected a norm above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema {self.ema:g}: expected a decay between 0 and 1, as 0.999")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"--momentum {self.momentum:g}: expected 0 or more, and less than 1")
        if self.momentum is not None and self.optimizer != "sgd":
            raise UsageError(f"--momentum is that of --optimizer sgd, and this run has {self.optimizer}")
        if self.no_decay and ":" in self.optimizer:
            raise UsageError(f"--no-decay is for the built-in optimizers: {self.optimizer} makes its own groups")
        if self.lr_warm_up < 0 or (self.schedule_steps is not None and self.schedule_steps < 1):
            raise UsageError("--lr-warm-up must be at least 0 and --schedule-steps at least 1")
        if self.schedule_steps is not None and self.schedule == "constant":
            raise UsageError(
                "--schedule-steps is where a --schedule ends, and a constant rate doesn't: give "
                "--schedule cosine, linear or your own"
            )
        if self.lr_warm_up and ":" in self.schedule:
            raise UsageError(f"--lr-warm-up goes before the built-in schedules: {self.schedule} makes its own")
        if self.evaluate is not None and ":" not in self.evaluate:
            raise UsageError(f"--evaluate {self.evaluate!r}: expected your package.module:function(model)")
        if self.evaluate is not None and self.test_shards:
            raise UsageError("--evaluate and --test-shards fill the same columns (test_accuracy, test_loss): give one")
