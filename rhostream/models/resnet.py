"""ResNets for small images: the paper's variant of ResNet-18, and the CIFAR forms of ResNet-34 and ResNet-50.

The paper (App. B) replaces the strided 7x7 stem and its max-pool by one 3x3 convolution of 64 filters. It also says
that the final average pool was removed, while its code pools the last 4x4 features to one: both are here, as
`resnet18_small` (the code) and with `pooled=False` (the text). The other two are the forms that it names for Fig. 2,
Phan's (huyvnphan/PyTorch_CIFAR10): a 3x3 stem of stride 1 that keeps the max-pool behind it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rhostream.models.layers import Residual, convolution, he_normal, pooled_head

Block = Callable[[int, int, int], Residual]


def basic(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions: `inputs` to `width` channels."""
    return _residual(inputs, width, stride, [*convolution(inputs, width, stride=stride), *convolution(width, width)])


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """1x1, 3x3, 1x1: `inputs` to 4 * `width` channels; the 3x3 convolution strides (as in torchvision)."""
    return _residual(
        inputs,
        4 * width,
        stride,
        [*convolution(inputs, width, 1), *convolution(width, width, 3, stride), *convolution(width, 4 * width, 1)],
    )


def _residual(inputs: int, outputs: int, stride: int, body: list[nn.Module]) -> Residual:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)[:2])
    return Residual(nn.Sequential(*body[:-1]), shortcut, nn.ReLU(inplace=True))


def _stages(block: Block, blocks: tuple[int, ...], expansion: int) -> list[nn.Module]:
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
    return he_normal(nn.Sequential(*convolution(channels, 64), *_stages(basic, (2, 2, 2, 2), 1), *head))


def resnet34_cifar(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """ResNet-34 in its CIFAR form."""
    return _cifar(basic, 1, channels, classes)


def resnet50_cifar(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """ResNet-50 in its CIFAR form."""
    return _cifar(bottleneck, 4, channels, classes)


def _cifar(block: Block, expansion: int, channels: int, classes: int) -> nn.Module:
    return he_normal(
        nn.Sequential(
            *convolution(channels, 64),
            nn.MaxPool2d(3, 2, 1),
            *_stages(block, (3, 4, 6, 3), expansion),
            *pooled_head(512 * expansion, classes),
        )
    )
