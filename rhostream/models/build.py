"""From a name to a model: a built-in network, or `package.module:function` of the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from rhostream import storage
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models.networks import mlp, resnet18_small, small_cnn
from rhostream.models.text import TEXT_MODELS, build_text, is_text
from rhostream.selection.tokens import LanguageLoss

_BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "mlp-64": partial(mlp, width=64),
    "mlp-256": partial(mlp, width=256),
    "mlp-512": partial(mlp, width=512),
    "small-cnn": small_cnn,
    "resnet18-small": resnet18_small,
}
NAMES = (*_BUILT_IN, *TEXT_MODELS)


def build(name: str, *, classes: int, image_size: int = 0, channels: int = 0, initial: bool = True,
          **text: Any) -> nn.Module:  # fmt: skip
    """Make the model of that name for (B, channels, image_size, image_size) inputs and (B, classes) logits.

    With `text` (vocabulary, length, padding, task) instead of an image's size it takes (B, length) int64 token ids; of
    the task `language` it is wrapped in a `LanguageLoss`. `initial=False` leaves pretrained weights out, for who loads
    others. A user's function gets those of the keywords that it accepts. Raises UnknownNameError, UsageError.
    """
    model = _built(name, classes, image_size, channels, initial, text)
    if text.get("task") == "language":
        return LanguageLoss(model, text["vocabulary"], text["padding"])
    return model


def _built(name: str, classes: int, image_size: int, channels: int, initial: bool, text: dict[str, Any]) -> nn.Module:
    if is_text(name) != bool(text) and (name in NAMES or is_text(name)):
        takes, held = ("text", "images") if is_text(name) else ("images", "text")
        raise UsageError(f"model {name!r} takes {takes}, and these samples are {held}; built in for {held}: "
                         f"{', '.join(TEXT_MODELS if text else _BUILT_IN)}")
    if is_text(name):
        return build_text(name, classes=classes, initial=initial, **text)
    if ":" not in name:
        if name not in _BUILT_IN:
            raise UnknownNameError.of("model", name, [*NAMES, "hf:NAME", "package.module:function"])
        if image_size < 16:
            raise UsageError(f"model {name!r} takes images of 16 pixels and more, got {image_size}")
        return _BUILT_IN[name](image_size=image_size, channels=channels, classes=classes)
    module, _, function = name.partition(":")
    try:
        maker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise UsageError(f"model {name!r}: {exc}; expected package.module:function on the Python path") from exc
    offered: dict[str, Any] = {"classes": classes, **(text or {"image_size": image_size, "channels": channels})}
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        offered = {k: v for k, v in offered.items() if k in parameters}
    model = maker(**offered)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def load_weights(model: nn.Module, url: str) -> None:
    """Load safetensors weights into the model, all names and shapes equal. Raises MismatchError, UsageError."""
    try:
        state = load_safetensors(storage.read_bytes(storage.resolve(url)))
    except SafetensorError as exc:
        raise UsageError(f"{storage.redact(url)} is no safetensors file ({exc}); pickles are never loaded") from exc
    try:
        model.load_state_dict(state)
    except RuntimeError as exc:
        raise MismatchError(f"{storage.redact(url)} doesn't fit the model: {' '.join(str(exc).split())}") from exc
