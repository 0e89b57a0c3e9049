"""VGG11 with batch norm (Simonyan & Zisserman 2015, configuration A) in Phan's CIFAR form: features pooled to 1x1."""

from __future__ import annotations

from torch import nn

from jobs.reproduce.nets.layers import small_linears
from rhostream.models.layers import he_normal

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # channels of the 3x3 convolutions between the pools
HIDDEN = 4096


def vgg11_bn(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Eight convolutions with bias and batch norm, five max-pools, three linear layers with dropout 0.5.

    Odd sizes are rounded up where they are halved, so that 28 pixels survive five pools; 32 pixels don't notice.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage in STAGES:
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for inputs in (512, HIDDEN):
        layers += [nn.Linear(inputs, HIDDEN), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return small_linears(he_normal(nn.Sequential(*layers, nn.Linear(HIDDEN, classes))))
