"""Inception-v3 (Szegedy et al. 2016) in Phan's CIFAR form: one 3x3 stem of 192, no auxiliary head."""

from __future__ import annotations

from functools import partial

from torch import nn

from jobs.reproduce.nets.layers import Branches
from rhostream.models.layers import Kernel, convolution, pooled_head

_conv = partial(convolution, eps=1e-3)


def _chain(inputs: int, *steps: tuple[int, Kernel]) -> list[nn.Module]:
    """Convolutions one after the other, each (channels, kernel)."""
    layers: list[nn.Module] = []
    for outputs, kernel in steps:
        layers += _conv(inputs, outputs, kernel)
        inputs = outputs
    return layers


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return _conv(inputs, outputs, 3, 2, padding=0)


def _after_pool(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), *_conv(inputs, outputs, 1))


def _a(inputs: int, after_pool: int) -> Branches:
    """The block for fine grids (figure 5 of its paper): 224 + `after_pool` channels."""
    return Branches(
        nn.Sequential(*_chain(inputs, (64, 1))),
        nn.Sequential(*_chain(inputs, (48, 1), (64, 5))),
        nn.Sequential(*_chain(inputs, (64, 1), (96, 3), (96, 3))),
        _after_pool(inputs, after_pool),
    )


def _b(inputs: int) -> Branches:
    """Halves the grid: 480 + `inputs` channels."""
    return Branches(
        nn.Sequential(*_down(inputs, 384)),
        nn.Sequential(*_chain(inputs, (64, 1), (96, 3)), *_down(96, 96)),
        nn.MaxPool2d(3, 2),
    )


def _c(inputs: int, width: int) -> Branches:
    """The block with 7x7 convolutions taken apart (figure 6): 768 channels."""
    row, column = (1, 7), (7, 1)
    return Branches(
        nn.Sequential(*_chain(inputs, (192, 1))),
        nn.Sequential(*_chain(inputs, (width, 1), (width, row), (192, column))),
        nn.Sequential(*_chain(inputs, (width, 1), (width, column), (width, row), (width, column), (192, row))),
        _after_pool(inputs, 192),
    )


def _d(inputs: int) -> Branches:
    """Halves the grid again: 512 + `inputs` channels."""
    return Branches(
        nn.Sequential(*_chain(inputs, (192, 1)), *_down(192, 320)),
        nn.Sequential(*_chain(inputs, (192, 1), (192, (1, 7)), (192, (7, 1))), *_down(192, 192)),
        nn.MaxPool2d(3, 2),
    )


def _e(inputs: int) -> Branches:
    """The block for the coarsest grid, whose branches fork (figure 7): 2048 channels."""

    def fork() -> Branches:
        return Branches(nn.Sequential(*_conv(384, 384, (1, 3))), nn.Sequential(*_conv(384, 384, (3, 1))))

    return Branches(
        nn.Sequential(*_chain(inputs, (320, 1))),
        nn.Sequential(*_chain(inputs, (384, 1)), fork()),
        nn.Sequential(*_chain(inputs, (448, 1), (384, 3)), fork()),
        _after_pool(inputs, 192),
    )


def inception_v3(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Eleven blocks on three grids (32, 15 and 7 at 32x32), dropout 0.5 before the head."""
    return nn.Sequential(
        *_conv(channels, 192),
        _a(192, 32), _a(256, 64), _a(288, 64),
        _b(288), _c(768, 128), _c(768, 160), _c(768, 160), _c(768, 192),
        _d(768), _e(1280), _e(2048),
        *pooled_head(2048, classes, dropout=0.5),
    )  # fmt: skip
