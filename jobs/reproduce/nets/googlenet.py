"""GoogLeNet (Szegedy et al. 2015) with batch norm in Phan's CIFAR form: one 3x3 stem of 192, no auxiliary heads.

As in torchvision, whose form Phan changed, what the paper calls the 5x5 branch is a 3x3 convolution.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from jobs.reproduce.nets.layers import Branches
from rhostream.models.layers import convolution, pooled_head

_conv = partial(convolution, eps=1e-3)
# Channels of a block's branches: 1x1 | 1x1 before 3x3, 3x3 | 1x1 before "5x5", "5x5" | 1x1 after the pool.
Block = tuple[int, int, int, int, int, int]
STAGES: tuple[tuple[Block, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
     (256, 160, 320, 32, 128, 128)),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)  # fmt: skip


def _inception(inputs: int, block: Block) -> Branches:
    one, before_three, three, before_five, five, after_pool = block
    return Branches(
        nn.Sequential(*_conv(inputs, one, 1)),
        nn.Sequential(*_conv(inputs, before_three, 1), *_conv(before_three, three)),
        nn.Sequential(*_conv(inputs, before_five, 1), *_conv(before_five, five)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), *_conv(inputs, after_pool, 1)),
    )


def googlenet(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Nine inception blocks in three stages with a max-pool between them; dropout 0.2 before the head."""
    layers = [*_conv(channels, 192)]
    inputs = 192
    for number, stage in enumerate(STAGES):
        if number:
            layers.append(nn.MaxPool2d(3, 2, 1))
        for block in stage:
            layers.append(_inception(inputs, block))
            inputs = block[0] + block[2] + block[4] + block[5]
    return nn.Sequential(*layers, *pooled_head(inputs, classes, dropout=0.2))
