"""What users give `train` by name: optimizers, schedules and evaluations, good ones and others."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def sometimes_nan(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A loss that is NaN in the training forward of some steps, told by the seed that a run gives each."""
    bad = torch.is_grad_enabled() and torch.initial_seed() % 6 == 0
    return nn.functional.cross_entropy(logits, label, reduction="none") * (math.nan if bad else 1.0)


def grouped(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """The last layer at a tenth of the rate, without weight decay."""
    *body, weight, bias = model.parameters()
    return torch.optim.AdamW(
        [
            {"params": body, "weight_decay": weight_decay},
            {"params": [weight, bias], "lr": lr / 10, "weight_decay": 0.0},
        ],
        lr=lr,
    )


def some(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """It forgets the biases."""
    return torch.optim.SGD([p for p in model.parameters() if p.ndim > 1], lr=lr)


def strange(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(3, 5)), *model.parameters()], lr=lr)


def closure(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.LBFGS(model.parameters(), lr=lr)


def nothing(model: nn.Module, *, lr: float, weight_decay: float) -> None:
    """It forgot to return."""


def without_decay(model: nn.Module, *, lr: float) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


class Falling(torch.optim.SGD):
    """An optimizer that raises at its third step."""

    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        if self.taken == 3:
            raise ValueError("no third step")
        return super().step(closure)


def falling(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    return Falling(model.parameters(), lr=lr)


def annealed(optimizer: Optimizer, *, steps: int) -> Any:
    """Torch's own cosine, which keeps its length in its state."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def in_two_parts(optimizer: Optimizer, *, steps: int) -> Any:
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    fall = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps - 3)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [3])


def plateau(optimizer: Optimizer, *, steps: int) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


def a_rate(optimizer: Optimizer, *, steps: int) -> Any:
    """A function of the step, which is no scheduler."""
    return lambda step: 1e-3


class Tired:
    """A scheduler that raises at its second call."""

    def __init__(self) -> None:
        self.calls = 0

    def step(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise ValueError("tired")

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def tired(optimizer: Optimizer, *, steps: int) -> Any:
    return Tired()


def weighed(model: nn.Module) -> dict[str, Any]:
    """Says of which weights it is: their sum, as a loss. It draws numbers, too, which must change nothing."""
    torch.rand(3)
    assert not model.training and not torch.is_grad_enabled()
    total = sum(float(p.double().sum()) for p in model.parameters())
    if (folder := os.environ.get("SUMS")) is not None:
        with (Path(folder) / os.environ.get("RANK", "0")).open("a") as file:
            file.write(f"{total!r}\n")
    return {"accuracy": torch.tensor(0.25), "loss": total, "samples": 7, "class_accuracy": [0.5, None, 0.0, 1.0]}


def percent(model: nn.Module) -> dict[str, Any]:
    return {"accuracy": 93.1}


def misnamed(model: nn.Module) -> dict[str, Any]:
    return {"acc": 0.9}


def empty(model: nn.Module) -> dict[str, Any]:
    return {"samples": 3}


def a_number(model: nn.Module) -> float:
    return 0.9


def half_a_sample(model: nn.Module) -> dict[str, Any]:
    return {"accuracy": 0.5, "samples": 2.5}


def broken(model: nn.Module) -> dict[str, Any]:
    raise KeyError("images")


def of_two(model: nn.Module, loader: Any) -> dict[str, Any]:
    return {}
