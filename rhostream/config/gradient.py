"""Settings of `train`: its gradient step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rhostream.errors import UnknownNameError, UsageError
from rhostream.setting import (
    ALWAYS,
    ASKED,
    RESOLVED,
    setting,
)

_STATE = "it is part of what the optimizer remembers"
STEP = "The gradient step"
OPTIMIZERS = ("adamw", "sgd", "adafactor")
SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # a part of TrainConfig
class GradientStep:
    """What a step does with what was kept."""

    accumulate: int = setting(
        1, help="Split the kept batch into this many forwards.", heading=STEP, pin=ALWAYS, fixed="", part="sizes"
    )
    update_size: int | None = setting(
        None,
        help="Learn from a kept batch in several updates, of at most N samples each.",
        heading=STEP,
        metavar="N",
        unset="one update of the whole batch",
        pin=ASKED,
        fixed="",
        part="sizes",
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
    augment: str = setting(
        "none",
        help="Of kept samples alone: none, flip, shift, flip-shift; from their bytes again, some of "
        "random_resized_crop, flip, colour, randaugment, joined by - in this order, or (of your own kind) decode; or "
        "your module:function of (input_b, seed_b).",
        heading=STEP,
        metavar="NAME",
        imports=True,
        pin=ALWAYS,
        fixed="",
    )
    mixup: float = setting(
        0.0,
        help="Learn from kept inputs mixed with one another (Zhang et al. 2018): by shares of Beta(ALPHA, ALPHA), as "
        "0.2; 0 for none.",
        heading=STEP,
        metavar="ALPHA",
        pin=ASKED,
        fixed="",
    )
    label_smoothing: float = setting(
        0.0,
        help="Of the training loss of classes: this share of the target is spread evenly over all classes.",
        heading=STEP,
        metavar="SHARE",
        pin=ASKED,
        fixed="",
    )

    def check_step(self) -> None:
        """Raise UsageError, UnknownNameError for an optimizer, a schedule, ... that can't be."""
        for what, name, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if ":" not in name and name not in known:
                raise UnknownNameError.of(what, name, [*known, "package.module:function"])
        if self.update_size is not None and self.update_size < 1:
            raise UsageError(f"--update-size {self.update_size}: expected at least 1 sample an update")
        if self.clip_gradient is not None and not 0 < self.clip_gradient < math.inf:
            raise UsageError(f"--clip-gradient {self.clip_gradient:g}: expected a norm above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema {self.ema:g}: expected a decay between 0 and 1, as 0.999")
        if not 0 <= self.mixup < math.inf:
            raise UsageError(
                f"--mixup {self.mixup:g}: expected the alpha of a Beta distribution, as 0.2, or 0 for none"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"--label-smoothing {self.label_smoothing:g}: expected a share of 0 or more, and less than 1"
            )
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
