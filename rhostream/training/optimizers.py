"""What a step of `train` is made of beside the gradient: the optimizer, its schedule, an average of the weights.

    --optimizer adamw | sgd | adafactor | module:function(model, *, lr, weight_decay) -> torch.optim.Optimizer
    --schedule  constant | cosine | linear | module:function(optimizer, *, steps) -> what has step() and state_dict()

A schedule counts buffers, as everything else of a run does: the rate of a step goes by its number, whether or not the
steps before it made an update. So it is the same on every rank and after a resume, and ends where the run does.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rhostream.config.train import TrainConfig
from rhostream.errors import UsageError, users_code
from rhostream.own_code import own_function
from rhostream.selection.ranks import is_sharded

LOG = logging.getLogger("rhostream")


def make_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer of that name, over its parameters. Raises UsageError for what a user's function can't make."""
    lr, weight_decay = config.lr, config.weight_decay
    if ":" in config.optimizer:
        what, function = f"optimizer {config.optimizer!r}", own_function("optimizer", config.optimizer)
        with users_code(what):
            made = function(model, lr=lr, weight_decay=weight_decay)
        _require_optimizer(what, made, model)
        return made  # type: ignore[no-any-return]
    groups: Any = model.parameters()
    if config.no_decay:
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2]},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, fused=True)
    if config.optimizer == "sgd":
        momentum = 0.9 if config.momentum is None else config.momentum
        fused = not is_sharded(model)  # torch knows no fused SGD of DTensors
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    return torch.optim.Adafactor(groups, lr=lr, weight_decay=weight_decay)


def _require_optimizer(what: str, made: Any, model: nn.Module) -> None:
    """Raise UsageError for what can't step this model; warn of trainable parameters that it leaves alone."""
    if not isinstance(made, Optimizer):
        raise UsageError(f"{what} returned {_kind(made)}, expected a torch.optim.Optimizer")
    if not _callable_with_nothing(made.step):
        raise UsageError(
            f"{what} returned a {type(made).__name__}, whose step() needs an argument (a closure): "
            "expected an optimizer that steps on the gradients as they are"
        )
    held = [p for group in made.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters()}
    if strange := [p for p in held if id(p) not in names]:
        raise UsageError(
            f"{what} holds {len(strange)} of {len(held)} parameters that the model hasn't (first of shape "
            f"{tuple(strange[0].shape)}): expected parameters of the model that it is given"
        )
    ids = {id(p) for p in held}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in ids]
    if left:
        LOG.warning(
            "warning: %s leaves %d of the model's %d parameters alone, which stay as they are: first %s",
            what,
            len(left),
            len(names),
            left[0],
        )


def make_schedule(config: TrainConfig, optimizer: Optimizer, steps: int) -> Schedule:
    """The schedule of that name over `steps` buffers. Raises UsageError for what a user's function can't give."""
    warm_up, name = config.lr_warm_up, config.schedule
    if ":" in name:
        function = own_function("schedule", name)
        return Schedule(f"schedule {name!r}", optimizer, lambda: function(optimizer, steps=steps))
    if name != "constant" and warm_up >= steps:
        raise UsageError(f"--lr-warm-up {warm_up:,} of {steps:,} steps leaves none for --schedule {name}")
    if name == "constant" and not warm_up:
        return Schedule("a constant rate", optimizer, None)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        part = min((step - warm_up) / (steps - warm_up), 1.0) if name != "constant" else 0.0
        return (1 + math.cos(math.pi * part)) / 2 if name == "cosine" else 1 - part

    return Schedule(f"schedule {name!r}", optimizer, lambda: LambdaLR(optimizer, factor))


class Schedule:
    """Changes the rates of an optimizer: its scheduler's `step()` is called once for each buffer gone through.

    `make` makes the scheduler of the optimizer, where there is one. Raises UsageError for what is none.
    """

    def __init__(self, what: str, optimizer: Optimizer, make: Callable[[], Any] | None) -> None:
        self._what, self._optimizer, self._make = what, optimizer, make
        self._groups = [
            copy.deepcopy({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups
        ]  # as they were made
        self.steps = 0
        self.scheduler: Any = None if make is None else self._made(make)

    def _made(self, make: Callable[[], Any]) -> Any:
        with users_code(self._what):
            made = make()
        if not all(callable(getattr(made, name, None)) for name in ("step", "state_dict", "load_state_dict")):
            raise UsageError(
                f"{self._what} returned {_kind(made)}, expected a scheduler: anything with step(), "
                "state_dict() and load_state_dict(), as torch.optim.lr_scheduler has them"
            )
        if not _callable_with_nothing(made.step):
            raise UsageError(
                f"{self._what} returned a {type(made).__name__}, whose step() needs an argument: expected "
                "one that goes by the number of its calls"
            )
        return made

    def reach(self, step: int) -> None:
        """Set the rates of that step, counted from 0. Raises UsageError when a user's scheduler raises."""
        if self.scheduler is None or step == self.steps:
            return
        usual = self.steps > 0 and step == self.steps + 1
        with users_code(self._what), contextlib.nullcontext() if usual else warnings.catch_warnings():
            if not usual:  # torch takes it for a mistake when no update came before: there may have been none to make
                warnings.filterwarnings("ignore", "Detected call of")
            while self.steps < step:
                self.scheduler.step()
                self.steps += 1

    def begin_again(self, step: int) -> None:
        """The rates as they would be at that step, had the optimizer been as it was made from the beginning on."""
        for group, made in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.pop("initial_lr", None)
            group.update(copy.deepcopy(made))
        if self._make is not None:
            self.steps, self.scheduler = 0, self._made(self._make)
            self.reach(step)

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state and the number of its calls."""
        return {"steps": self.steps, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; the rates themselves are in the optimizer's state."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.steps = int(state["steps"])


class Average:
    """An exponential moving average of a model's weights, kept as `model`: what is evaluated, and never scores.

    After step s it moves to the weights by 1 - min(decay, (s + 1) / (s + 10)), so that it forgets the random beginning
    however short the run is. What batch norm tracks is averaged, too; counts are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        with users_code(f"--ema: copying the {type(model).__name__}"):
            self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()
        self._decay = decay
        # Parameters and buffers, each once though it may have several names.
        pairs = [
            *zip(self.model.parameters(), model.parameters(), strict=True),
            *zip(self.model.buffers(), model.buffers(), strict=True),
        ]
        self._averaged = [(own, theirs) for own, theirs in pairs if own.is_floating_point()]
        self._copied = [(own, theirs) for own, theirs in pairs if not own.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int, applied: Tensor) -> None:
        """Move on after a step that made an update: `applied`, a scalar on the device, says so, and nobody waits."""
        share = (1 - min(self._decay, (step + 1) / (step + 10))) * applied
        own, theirs = [pair[0] for pair in self._averaged], [pair[1] for pair in self._averaged]
        way = torch._foreach_sub(theirs, own)
        torch._foreach_mul_(way, share)
        torch._foreach_add_(own, way)
        for count, now in self._copied:
            count.copy_(now)


def _callable_with_nothing(step: Callable[..., Any]) -> bool:
    """Whether `step()` is a call without arguments, as far as can be seen."""
    try:
        inspect.signature(step).bind()
    except TypeError:
        return False
    except ValueError:  # of a builtin: it doesn't say
        pass
    return True


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"
