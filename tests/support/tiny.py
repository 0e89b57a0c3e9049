"""Models by name, as users have them: `package.module:function`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """One linear layer on the pixels: image_size^2 * channels * classes multiply-adds."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes, bias=False))


def pooled(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """A model for images of any size, without batch norm: pooled to 4 x 4 pixels, then two layers."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 32), nn.ReLU(), nn.Linear(32, classes)
    )


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


def dropping(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """An MLP with dropout, for rules that compare forwards with it."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, classes)
    )


def confident(label: Tensor, logits: Tensor) -> Tensor:
    """A user's rule without il: the probability of the label."""
    return logits.softmax(1).gather(1, label[:, None])[:, 0]


def one_number(loss: Tensor) -> Tensor:
    """A rule that forgot that it ranks samples."""
    return loss.mean()


def astray(losses: Tensor) -> Tensor:
    """A rule that asks for what no forward gives."""
    return losses


def mean_loss(logits: Tensor, label: Tensor) -> Tensor:
    """A loss that forgot reduction='none'."""
    return nn.functional.cross_entropy(logits, label)


def smooth_loss(logits: Tensor, label: Tensor) -> Tensor:
    """A user's loss: cross-entropy with smoothed labels."""
    return nn.functional.cross_entropy(logits, label, reduction="none", label_smoothing=0.1)


def narrow(*, image_size: int, channels: int) -> nn.Module:
    """A model for fewer classes than there are."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 2))


def one_class_first(label: Tensor, loss: Tensor) -> Tensor:
    """A user's rule that keeps whole classes, the lowest first."""
    return loss.sigmoid() - label
