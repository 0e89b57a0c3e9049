"""The paper's small networks: MLPs and CNNs for square images with 1 or 3 channels.

Both CNNs have the paper's ratios to ResNet-18 for small images at 3x32x32 (section 4.2): 21 times fewer parameters, 29
times fewer multiply-adds. `small_cnn` is ours, with batch norm; `lenet_cnn` is the one of the paper's own code.
"""

from __future__ import annotations

from torch import nn

from rhostream.models.layers import convolution


def mlp(*, image_size: int, channels: int, classes: int, width: int = 512, dropout: float = 0.0) -> nn.Module:
    """Two hidden layers of `width` units with ReLU (App. B: QMNIST), each followed by dropout where there is any."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (channels * image_size**2, width):
        layers += [nn.Linear(inputs, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def small_cnn(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """Convolutions with batch norm in three stages, then one hidden layer on features pooled to 4x4."""
    return nn.Sequential(
        *convolution(channels, 32),
        *convolution(32, 32),
        nn.MaxPool2d(2),
        *convolution(32, 64),
        nn.MaxPool2d(2),
        *convolution(64, 96),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(96 * 16, 288),
        nn.ReLU(inplace=True),
        nn.Linear(288, classes),
    )


def lenet_cnn(*, image_size: int, channels: int, classes: int, dropout: float = 0.0) -> nn.Module:
    """The paper's small CNN, "similar to LeNet": three unpadded convolutions without batch norm, two hidden layers.

    `dropout` drops whole channels after a convolution and units after a hidden layer, as the paper's code does (App. G:
    0.05). Takes images of 18 pixels and more; at 32 the last pooling, which gives 2x2 at any size, is a plain one.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, pool in (
        (channels, 64, nn.MaxPool2d(2)),
        (64, 128, nn.MaxPool2d(2)),
        (128, 256, nn.AdaptiveMaxPool2d(2)),
    ):
        drop = [nn.Dropout2d(dropout)] if dropout else []
        layers += [nn.Conv2d(inputs, outputs, 3), *drop, pool, nn.ReLU(inplace=True)]
    layers.append(nn.Flatten())
    for inputs, outputs in ((256 * 4, 128), (128, 256)):
        layers += [nn.Linear(inputs, outputs), *([nn.Dropout(dropout)] if dropout else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(256, classes))
