"""A network that is far smaller than any target: three convolutions that stride, as LeNet's two and their pooling."""

from __future__ import annotations

from functools import partial

from torch import nn

from rhostream.models.layers import convolution


def tiny_cnn(*, image_size: int, channels: int, classes: int, width: int = 16) -> nn.Module:
    """Convolutions of `width`, twice and four times as many channels, each halving the picture, one linear layer."""
    return nn.Sequential(
        *convolution(channels, width, stride=2),
        *convolution(width, 2 * width, stride=2),
        *convolution(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(4 * width * 16, classes),
    )


tiny_cnn_12 = partial(tiny_cnn, width=12)
tiny_cnn_24 = partial(tiny_cnn, width=24)
