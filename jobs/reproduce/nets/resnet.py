"""ResNet-34 and ResNet-50 (He et al. 2016) in Phan's CIFAR form: a 3x3 stem of stride 1 and its max-pool."""

from __future__ import annotations

from torch import nn

from rhostream.models.layers import Residual, convolution, he_normal, pooled_head
from rhostream.models.resnet import Block, basic, residual, stages


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """1x1, 3x3, 1x1: `inputs` to 4 * `width` channels; the 3x3 convolution strides (as in torchvision)."""
    return residual(
        inputs,
        4 * width,
        stride,
        [*convolution(inputs, width, 1), *convolution(width, width, 3, stride), *convolution(width, 4 * width, 1)],
    )


def resnet34(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Blocks of two 3x3 convolutions, 16 of them."""
    return _cifar(basic, 1, channels, classes)


def resnet50(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Bottlenecks, 16 of them."""
    return _cifar(bottleneck, 4, channels, classes)


def _cifar(block: Block, expansion: int, channels: int, classes: int) -> nn.Module:
    return he_normal(
        nn.Sequential(
            *convolution(channels, 64),
            nn.MaxPool2d(3, 2, 1),
            *stages(block, (3, 4, 6, 3), expansion),
            *pooled_head(512 * expansion, classes),
        )
    )
