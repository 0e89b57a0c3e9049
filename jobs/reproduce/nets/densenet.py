"""DenseNet121 (Huang et al. 2017) in Phan's CIFAR form: a 3x3 stem of stride 1, the max-pool behind it kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rhostream.models.layers import convolution, he_normal, pooled_head

GROWTH = 32
LAYERS = (6, 12, 24, 16)  # of the four dense blocks


class Dense(nn.Sequential):
    """Norm and ReLU before each of two convolutions; what they make is appended to the input."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, 4 * GROWTH, 1, bias=False),
            nn.BatchNorm2d(4 * GROWTH), nn.ReLU(inplace=True), nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, inputs + GROWTH, H, W)."""
        return torch.cat([x, super().forward(x)], 1)


def densenet121(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Four dense blocks; a 1x1 convolution halves the channels and a mean the picture between them."""
    width = 2 * GROWTH
    layers = [*convolution(channels, width), nn.MaxPool2d(3, 2, 1)]
    for number, count in enumerate(LAYERS):
        if number:
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            width //= 2
        layers += [Dense(width + i * GROWTH) for i in range(count)]
        width += count * GROWTH
    model = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pooled_head(width, classes))
    return he_normal(model, "fan_in")
