"""References as users have them: networks and functions that give il, and those that go wrong in each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream.models.text import TextLM
from rhostream.samples.fields import Fields

CALLS: list[dict[str, Any]] = []
weights = "v1"  # what `bright` says that its weights are


def network(*, image_size: int, channels: int, classes: int = 4) -> nn.Module:
    """Logits that are the brightness of each quarter of a picture, so that it knows the classes of the test shards."""
    CALLS.append({"image_size": image_size, "channels": channels, "classes": classes})
    layer = nn.Linear(4 * channels, classes)
    with torch.no_grad():
        layer.weight.zero_().fill_diagonal_(8.0)
        layer.bias.zero_()
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), layer)


def four_classes(*, image_size: int, channels: int) -> nn.Module:
    """One that knows four classes, whatever the shards say."""
    return network(image_size=image_size, channels=channels, classes=4)


class Bright:
    """One loss a sample, from the fields as they are decoded: the cross-entropy of each quarter's mean."""

    def __init__(self, scale: float = 8.0) -> None:
        self.scale = scale

    def __call__(self, fields: Fields, label: Tensor) -> Tensor:
        pixels = fields["pixels"].float()[..., :1].permute(0, 3, 1, 2) / 255
        return functional.cross_entropy(
            self.scale * functional.avg_pool2d(pixels, 8).flatten(1), label, reduction="none"
        )

    def identity(self) -> str:
        return f"bright {weights} {self.scale}"


def bright(**_: Any) -> Bright:
    return Bright()


def silent() -> Callable[[Fields, Tensor], Tensor]:
    """A function that doesn't say which one it is."""
    return Bright().__call__


def nan_for_class_three() -> Callable[[Fields, Tensor], Tensor]:
    return lambda fields, label: torch.where(label == 3, torch.nan, Bright()(fields, label))


def heights() -> Callable[[Fields, Tensor], Tensor]:
    """Of a target that is a number."""
    return lambda fields, target: (target - fields["vector"].mean(1)).square()


def raising() -> Callable[[Fields, Tensor], Tensor]:
    def loss(fields: Fields, label: Tensor) -> Tensor:
        raise KeyError("no such text")

    return loss


def scalar() -> Callable[[Fields, Tensor], Tensor]:
    return lambda fields, label: Bright()(fields, label).mean()


def double() -> Callable[[Fields, Tensor], Tensor]:
    return lambda fields, label: Bright()(fields, label).double()


def elsewhere() -> Callable[[Fields, Tensor], Tensor]:
    return lambda fields, label: Bright()(fields, label).to("meta")


def listed() -> Callable[[Fields, Tensor], Any]:
    return lambda fields, label: Bright()(fields, label).tolist()


def unmade() -> Any:
    raise OSError("no checkpoint there")


def nothing() -> None:
    """Forgot to return it."""


def numbered() -> Any:
    made = Bright()
    made.identity = lambda: 7  # type: ignore[method-assign,assignment]
    return made


def asking(*, classes: int) -> nn.Module:
    return network(image_size=16, channels=1, classes=classes)


def empty() -> nn.Module:
    """A network without weights, of which a digest would say nothing."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def of_language(*, vocabulary: int, length: int, padding: int) -> nn.Module:
    """A model of language: logits (B, T, V), those at t for the token at t."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextLM(classes=1, vocabulary=vocabulary, length=length, padding=padding, width=16, layers=1, heads=2)
