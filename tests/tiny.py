"""Models by name, as users have them: `package.module:function`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """One linear layer on the pixels: image_size^2 * channels * classes multiply-adds."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes, bias=False))


def pooled(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """A model for images of any size, without batch norm: pooled to 4 x 4 pixels, then two layers."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 32), nn.ReLU(),
                         nn.Linear(32, classes))


def middle(loss: Tensor, il: Tensor, logits: Tensor) -> Tensor:
    """A user's rule: the difference to il, but for what the model is sure of."""
    return (loss - il) * (1 - logits.softmax(1).max(1).values)


class Hungry(nn.Sequential):
    """A network that has memory for `room` samples at once while it scores, and no more."""

    room = 10_000

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, size, size) to (B, classes)."""
        if not self.training and len(x) > self.room:
            raise torch.OutOfMemoryError(f"out of memory for {len(x)} samples")
        return super().forward(x)  # type: ignore[no-any-return]


def hungry(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """One linear layer of that kind."""
    return Hungry(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
