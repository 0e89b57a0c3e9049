"""MobileNet-v2 (Sandler et al. 2018) in Phan's CIFAR form: stem and second stage don't halve the picture."""

from __future__ import annotations

from functools import partial

from torch import nn

from jobs.reproduce.nets.layers import small_linears
from rhostream.models.layers import Residual, convolution, he_normal, pooled_head

_conv = partial(convolution, activation=nn.ReLU6)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # expansion, channels, blocks, stride of the first


def _inverted(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """1x1 up, a depthwise 3x3, 1x1 down without activation; a residual where shapes allow."""
    width = inputs * expansion
    up = _conv(inputs, width, 1) if expansion > 1 else []
    body = nn.Sequential(*up, *_conv(width, width, 3, stride, groups=width), *_conv(width, outputs, 1)[:2])
    return Residual(body) if stride == 1 and inputs == outputs else body


def mobilenet_v2(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Seventeen inverted residuals; dropout 0.2 before the head."""
    layers, inputs = [*_conv(channels, 32)], 32
    for expansion, outputs, blocks, stride in STAGES:
        for number in range(blocks):
            layers.append(_inverted(inputs, outputs, 1 if number else stride, expansion))
            inputs = outputs
    head = [*_conv(inputs, 1280, 1), *pooled_head(1280, classes, dropout=0.2)]
    return small_linears(he_normal(nn.Sequential(*layers, *head)))
