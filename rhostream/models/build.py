"""From a name to a model: a built-in network, one of torchvision or timm, or a function of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.models.networks import lenet_cnn, mlp, small_cnn
from rhostream.models.resnet import resnet18_small
from rhostream.models.text import TEXT_MODELS, build_text, is_text
from rhostream.models.zoo import build_from_zoo, is_from_zoo
from rhostream.own_code import own_function
from rhostream.selection.tokens import LanguageLoss

_BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "mlp-64": partial(mlp, width=64),
    "mlp-256": partial(mlp, width=256),
    "mlp-512": partial(mlp, width=512),
    "mlp-512-dropout": partial(mlp, width=512, dropout=0.5),
    "small-cnn": small_cnn,
    "small-cnn-lenet": lenet_cnn,
    "small-cnn-dropout": partial(lenet_cnn, dropout=0.05),
    "resnet18-small": resnet18_small,
    "resnet18-small-unpooled": partial(resnet18_small, pooled=False),
}
# Once built in under these names and "-cifar"; a run folder or an IL model of then may still say so.
_OF_FIGURE_2 = ("densenet121", "googlenet", "inception_v3", "mobilenet_v2", "resnet34", "resnet50", "vgg11_bn")
_LEAST_SIZE = {"small-cnn-lenet": 18, "small-cnn-dropout": 18}  # pixels, where 16 are too few
NAMES = (*_BUILT_IN, *TEXT_MODELS)
OTHERS = ("torchvision:NAME", "timm:NAME", "hf:NAME", "package.module:function")


def build(
    name: str, *, classes: int, image_size: int = 0, channels: int = 0, initial: bool = True, **text: Any
) -> nn.Module:
    """Make the model of that name for (B, channels, image_size, image_size) inputs and (B, classes) logits.

    With `text` (vocabulary, length, padding, task) instead of an image's size it takes (B, length) int64 token ids; of
    the task `language` it is wrapped in a `LanguageLoss`. `torchvision:NAME` and `timm:NAME`, with @WEIGHTS for their
    pretrained ones; `initial=False` leaves those out, for who loads others. A user's function gets those of the
    keywords that it accepts. Raises UnknownNameError, UsageError, StorageError when weights can't be had.
    """
    model = _built(name, classes, image_size, channels, initial, text)
    if text.get("task") == "language":
        return LanguageLoss(model, text["vocabulary"], text["padding"])
    return model


def _built(name: str, classes: int, image_size: int, channels: int, initial: bool, text: dict[str, Any]) -> nn.Module:
    if is_text(name) != bool(text) and (name in NAMES or is_text(name) or is_from_zoo(name)):
        takes, held = ("text", "images") if is_text(name) else ("images", "text")
        raise UsageError(
            f"model {name!r} takes {takes}, and these samples are {held}; built in for {held}: "
            f"{', '.join(TEXT_MODELS if text else _BUILT_IN)}"
        )
    if is_text(name):
        return build_text(name, classes=classes, initial=initial, **text)
    if ":" not in name:
        if (net := name.removesuffix("-cifar").replace("-", "_")) in _OF_FIGURE_2 and name.endswith("-cifar"):
            raise UnknownNameError(
                f"model {name!r} is built in no more: it is jobs.reproduce.nets:{net} now, in a clone of rhostream's "
                "repository. What was made under the old name stays readable (sql, report, verify); begin anew to go on"
            )
        if name not in _BUILT_IN:
            raise UnknownNameError.of("model", name, [*NAMES, *OTHERS])
        if image_size < (least := _LEAST_SIZE.get(name, 16)):
            raise UsageError(f"model {name!r} takes images of {least} pixels and more, got {image_size}")
        return _BUILT_IN[name](image_size=image_size, channels=channels, classes=classes)
    if is_from_zoo(name):
        return build_from_zoo(name, image_size=image_size, channels=channels, classes=classes, initial=initial)
    maker = own_function("model", name)
    offered: dict[str, Any] = {"classes": classes, **(text or {"image_size": image_size, "channels": channels})}
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        offered = {k: v for k, v in offered.items() if k in parameters}
    with users_code(f"model {name!r}"):
        model = maker(**offered)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model
