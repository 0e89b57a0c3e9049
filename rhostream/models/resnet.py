"""The paper's variant of ResNet-18 for small images.

The paper (App. B) replaces the strided 7x7 stem and its max-pool by one 3x3 convolution of 64 filters. It also says
that the final average pool was removed, while its code pools the last 4x4 features to one: both are here, as
`resnet18_small` (the code) and with `pooled=False` (the text).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rhostream.models.layers import Residual, convolution, he_normal, pooled_head

Block = Callable[[int, int, int], Residual]


def basic(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions: `inputs` to `width` channels."""
    return residual(inputs, width, stride, [*convolution(inputs, width, stride=stride), *convolution(width, width)])


def residual(inputs: int, outputs: int, stride: int, body: list[nn.Module]) -> Residual:
    """`body` without its last activation, plus the input (through a 1x1 convolution where shapes differ), then ReLU."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)[:2])
    return Residual(nn.Sequential(*body[:-1]), shortcut, nn.ReLU(inplace=True))


def stages(block: Block, blocks: tuple[int, ...], expansion: int) -> list[nn.Module]:
    """Four stages of 64, 128, 256 and 512 times `expansion` channels; all but the first halve the picture."""
    layers: list[nn.Module] = []
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for number in range(count):
            layers.append(block(inputs, width, 2 if stage and not number else 1))
            inputs = width * expansion
    return layers


def resnet18_small(*, image_size: int, channels: int, classes: int, pooled: bool = True) -> nn.Module:
    """ResNet-18 for small images: a 3x3 stem of 64 without max-pool.

    At 32x32 the last features are 4x4; `pooled=False` gives the head all 16 of them instead of their mean.
    """
    side = -(-image_size // 8)
    head = pooled_head(512, classes) if pooled else [nn.Flatten(), nn.Linear(512 * side**2, classes)]
    return he_normal(nn.Sequential(*convolution(channels, 64), *stages(basic, (2, 2, 2, 2), 1), *head))
