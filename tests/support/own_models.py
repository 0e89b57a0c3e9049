"""Models, losses and rules as people bring them, by name: `tests.support.own_models:NAME`."""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's: a dict whose entries are attributes too, the loss first."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]  # type: ignore[no-any-return]


Named = collections.namedtuple("Named", ("logits", "aux"))  # as torchvision's GoogLeNet gives

TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda z: z,
    "pair": lambda z: (z, z.mean()),
    "listed": lambda z: [z],
    "mapping": lambda z: {"logits": z, "hidden": z[:1]},
    "named": lambda z: Named(z, None),
    "output": lambda z: ModelOutput(loss=None, logits=z),
    "attribute": lambda z: SimpleNamespace(logits=z),
}
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nothing": (lambda z: None, "returned nothing"),
    "text": (lambda z: "logits", "a str"),
    "scalar": (lambda z: z.mean(), r"a scalar"),
    "flat": (lambda z: z[:, 0], r"shape \(\d+,\)"),
    "whole": (lambda z: z.argmax(1, keepdim=True), "int64"),
    "rows": (lambda z: z[:0], r"shape \(0, \d\)"),
    "other": (lambda z: {"out": z}, "a dict of out"),
    "empty": (lambda z: (), "a tuple of 0"),
    "array": (lambda z: z.detach().numpy(), "a ndarray"),
    "inner": (lambda z: ({"logits": z},), "the first a dict"),
}


class Own(nn.Module):
    """A linear layer that gives its logits in some form."""

    def __init__(self, form: Callable[[Tensor], Any], classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(256, classes), form

    def forward(self, x: Tensor) -> Any:
        """(B, 1, 16, 16) to what the form makes of (B, classes)."""
        return self.form(self.layer(x.flatten(1)))


def few() -> nn.Module:
    """A model for fewer classes than there are."""
    return Own(lambda z: z, 2)


def missing() -> nn.Module:
    """A constructor that fails."""
    raise FileNotFoundError("the weights of mine are not there")


def failing() -> nn.Module:
    """A forward that fails."""
    return Own(lambda z: {}["absent"])


def __getattr__(name: str) -> Any:
    """`tests.support.own_models:make_FORM`, a model of that form."""
    forms = {**TAKEN, **{key: form for key, (form, _) in REFUSED.items()}}
    if name.removeprefix("make_") in forms:
        return lambda classes: Own(forms[name.removeprefix("make_")], classes)
    raise AttributeError(name)


def raising(*_: Any) -> Tensor:
    """A function of the user's that fails."""
    raise KeyError("mine")


def raising_rule(loss: Tensor) -> Tensor:
    """A rule that fails."""
    raise KeyError("mine")


def whole_loss(logits: Tensor, label: Tensor) -> Tensor:
    """A loss of whole numbers, through which no gradient goes."""
    return logits.argmax(1)


class Poison(torch.autograd.Function):
    """The identity, whose gradient is NaN for some rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bad: Tensor) -> Tensor:
        ctx.save_for_backward(bad)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (bad,) = ctx.saved_tensors
        return torch.where(bad[:, None], Poisoned.value, gradient), None


class Poisoned(nn.Module):
    """A model whose loss is finite and whose gradient isn't, for samples that `every` picks by a pixel."""

    value, every = torch.nan, 37

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.BatchNorm2d(1), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        byte = ((x.flatten(1)[:, 5] + 1) * 127.5).round()  # exact: no rounding may move who is poisoned
        bad = byte.remainder(self.every) == 0
        return Poison.apply(self.layer(self.norm(x).flatten(1)), bad)  # type: ignore[no-any-return]


class SometimesPoisoned(Poisoned):
    """The gradient of every `often`th batch isn't finite."""

    often, steps = 5, 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        self.steps += self.training
        bad = torch.full((len(x),), self.training and self.steps % self.often == 0)
        return Poison.apply(self.layer(self.norm(x).flatten(1)), bad)  # type: ignore[no-any-return]


def make_poisoned(classes: int) -> nn.Module:
    """For fit-il."""
    return SometimesPoisoned()


def with_norm(classes: int) -> nn.Module:
    """Batch norm of one value a channel."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
