"""The paper's small networks, for square images of 16 pixels and more with 1 or 3 channels.

`small_cnn` is sized by the paper's ratios to `resnet18_small` at 3x32x32 (App. B): 21 times fewer parameters, 29 times
fewer multiply-adds.
"""

from __future__ import annotations

from torch import Tensor, nn


def mlp(*, image_size: int, channels: int, classes: int, width: int = 512) -> nn.Module:
    """Two hidden layers of `width` units with ReLU (the paper's MLP of the QMNIST experiments)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * image_size**2, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def small_cnn(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Convolutions with batch norm in three stages, then one hidden layer on 2x2 pooled features."""
    return nn.Sequential(
        *_conv(channels, 32),
        *_conv(32, 32),
        nn.MaxPool2d(2),
        *_conv(32, 64),
        nn.MaxPool2d(2),
        *_conv(64, 96),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(96 * 16, 288),
        nn.ReLU(inplace=True),
        nn.Linear(288, classes),
    )


class _Block(nn.Module):
    """ResNet's basic block (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, stride), *_conv(outputs, outputs)[:2])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return self.activation(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


def resnet18_small(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """ResNet-18 for small images: a 3x3 stem of 64 without max-pool; features are pooled to 1x1 at the end.

    At 32x32 the last stage is 4x4; the pooling is part of the head, so other sizes work too.
    """
    stages: list[nn.Module] = []
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [_Block(width, outputs, stride), _Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*_conv(channels, 64), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
