"""Models of torchvision and timm by name, when a user has them: `torchvision:resnet50`, `timm:resnet50@a1_in1k`.

Weights are downloaded only when they are asked for after an @, and by the library's own means. Neither library is a
dependency: their wheels choose the torch beside them.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rhostream.errors import MissingExtraError, StorageError, UnknownNameError, UsageError
from rhostream.models.stored import Stored, named_classes, of_timm, of_torchvision
from rhostream.models.weights import classes_in, read_weights, start_from

LIBRARIES = ("torchvision", "timm")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?\Z")  # so that no name is a place: timm takes hf-hub:... too
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def is_from_zoo(name: str) -> bool:
    """Whether a model's name is one of those libraries'."""
    return name.partition(":")[0] in LIBRARIES


def build_from_zoo(name: str, *, image_size: int, channels: int, classes: int, initial: bool = True) -> nn.Module:
    """Make `library:NAME` or `library:NAME@WEIGHTS`, its stem for `channels`, its head for `classes`, logits only.

    With `initial=False` the weights after the @ are left out, for who loads others. Raises MissingExtraError,
    UnknownNameError, UsageError, StorageError when weights can't be had.
    """
    library, _, rest = name.partition(":")
    architecture, _, weights = rest.partition("@")
    if not _NAME.match(architecture) or (weights and not _NAME.match(weights)) or rest.endswith("@"):
        raise UsageError(f"model {name!r}: expected {library}:NAME or {library}:NAME@WEIGHTS")
    make = _torchvision if library == "torchvision" else _timm
    try:
        return make(name, architecture, weights, image_size, channels, classes, initial)
    except (AssertionError, TypeError, ValueError, RuntimeError) as exc:
        raise UsageError(
            f"model {name!r} can't be made for images of {image_size} pixels and {channels} channels: "
            f"{' '.join(str(exc).split())[:300]}"
        ) from exc


def stored_from_zoo(name: str) -> Stored:
    """The classifier `library:NAME[@WEIGHTS]` as it is stored: for its own classes, channels and size.

    Without WEIGHTS those that the library takes itself; WEIGHTS may be a .safetensors file. Raises as
    `build_from_zoo`, MismatchError for a file of another network.
    """
    library, _, rest = name.partition(":")
    architecture, at, weights = rest.partition("@")
    file = weights if weights.endswith(".safetensors") else ""
    if not _NAME.match(architecture) or (at and not file and not _NAME.match(weights)):
        raise UsageError(f"model {name!r}: expected {library}:NAME, {library}:NAME@WEIGHTS or a .safetensors file")
    make = _stored_torchvision if library == "torchvision" else _stored_timm
    try:
        return make(name, architecture, "" if file else weights, file)
    except (AssertionError, TypeError, ValueError, RuntimeError) as exc:
        raise UsageError(f"model {name!r} can't be had as stored: {' '.join(str(exc).split())[:300]}") from exc


def _stored_torchvision(name: str, architecture: str, weights: str, file: str) -> Stored:
    zoo = _library("torchvision", "torchvision.models", name)
    _known(name, architecture, zoo.list_models(module=zoo), "torchvision.models.list_models()")
    chosen = None
    if not file:
        chosen = _torchvision_weights(zoo, name, architecture, weights or "DEFAULT")
        state = _fetched(name, lambda: chosen.get_state_dict(progress=True, check_hash=True, weights_only=True))
    else:
        state = read_weights(file)
    options: dict[str, Any] = {}
    if architecture in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": True, "transform_input": chosen is not None}
    model = zoo.get_model(architecture, weights=None, **options)
    if (classes := classes_in(state, model, name)) != classes_in(model.state_dict(), model, name):
        model = zoo.get_model(architecture, weights=None, num_classes=classes, **options)
    start_from(model, state, file or name)
    labels = {} if chosen is None else dict(enumerate(chosen.meta.get("categories") or ()))
    seen = of_torchvision(None if chosen is None else chosen.transforms())
    return Stored(name=name, model=model, gives="classes", pictures=True, classes=classes, labels=labels, seen=seen)


def _stored_timm(name: str, architecture: str, weights: str, file: str) -> Stored:
    timm = _library("timm", "timm", name)
    full = _timm_name(timm, name, architecture, weights)
    if not file:
        if not timm.is_model_pretrained(full):  # some are left at random then, with a warning
            raise UsageError(
                f"model {name!r}: timm has no stored weights of it; name a file, {name}@weights.safetensors"
            )
        model = _fetched(name, lambda: timm.create_model(full, pretrained=True))
        config, classes = dict(model.pretrained_cfg), int(model.num_classes)
    else:
        state, config = read_weights(file), {}
        model = timm.create_model(full, pretrained=False)
        if (classes := classes_in(state, model, name)) != classes_in(model.state_dict(), model, name):
            model = timm.create_model(full, pretrained=False, num_classes=classes)
        start_from(model, state, file)
    if not classes:
        raise UsageError(f"model {name!r} is stored without a classifier: it gives features, and no logits of classes")
    return Stored(
        name=name, model=model, gives="classes", pictures=True, classes=classes, seen=of_timm(config),
        labels=named_classes(dict(enumerate(config.get("label_names") or ()))),
        channels=int((config.get("input_size") or (3,))[0]),
    )  # fmt: skip


def _torchvision(
    name: str, architecture: str, weights: str, image_size: int, channels: int, classes: int, initial: bool
) -> nn.Module:
    zoo = _library("torchvision", "torchvision.models", name)
    _known(name, architecture, zoo.list_models(module=zoo), "torchvision.models.list_models()")
    chosen = _torchvision_weights(zoo, name, architecture, weights) if weights else None
    options: dict[str, Any] = {}
    if architecture in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": True}
        if chosen is not None and channels == 3:
            options["transform_input"] = True  # as torchvision: these weights know another normalisation
    elif architecture.startswith("vit_"):
        options = {"image_size": image_size}
    model = zoo.get_model(architecture, weights=None, num_classes=classes, **options)
    if channels != 3:
        _replace_stem(model, channels, name)
    if chosen is not None and initial:
        state = _fetched(name, lambda: chosen.get_state_dict(progress=True, check_hash=True, weights_only=True))
        start_from(model, state, name)
    return model  # type: ignore[no-any-return]


def _torchvision_weights(zoo: ModuleType, name: str, architecture: str, weights: str) -> Any:
    known = zoo.get_model_weights(architecture)
    if weights not in known.__members__:
        raise UnknownNameError.of(f"weights of {name.partition('@')[0]}", weights, known.__members__)
    return known[weights]


def _replace_stem(model: nn.Module, channels: int, name: str) -> None:
    """Make the first convolution one on `channels` instead of 3."""
    where = next((place for place, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")
    old = model.get_submodule(where)
    if not isinstance(old, nn.Conv2d) or not where or old.in_channels != 3:
        raise UsageError(f"model {name!r} doesn't begin with a convolution of 3 channels that could take {channels}")
    parent, _, last = where.rpartition(".")
    same: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "dilation": old.dilation}
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, bias=old.bias is not None, **same)  # type: ignore[arg-type]
    setattr(model.get_submodule(parent), last, new)


def _timm(
    name: str, architecture: str, weights: str, image_size: int, channels: int, classes: int, initial: bool
) -> nn.Module:
    timm = _library("timm", "timm", name)
    full = _timm_name(timm, name, architecture, weights)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    config = timm.get_pretrained_cfg(full, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    fetch = bool(weights) and initial
    return _fetched(name, lambda: timm.create_model(full, pretrained=fetch, **options))  # type: ignore[no-any-return]


def _timm_name(timm: ModuleType, name: str, architecture: str, weights: str) -> str:
    """As timm has it, its weights behind a point."""
    base, _, tag = architecture.partition(".")
    _known(name, base, timm.list_models(), "timm.list_models()")
    if tag:
        raise UsageError(f"model {name!r}: weights of timm stand after an @, timm:{base}@{tag}")
    if weights:
        known = [pretrained.partition(".")[2] for pretrained in timm.list_pretrained(f"{base}.*")]
        if weights not in known:
            raise UnknownNameError.of(f"weights of timm:{base}", weights, known)
    return f"{base}.{weights}" if weights else base


def _library(library: str, module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name != library:
            raise UsageError(
                f"model {name!r}: {library} is installed without {exc.name}: pip install {exc.name}"
            ) from exc
        fitting = f"the {library} that fits torch {torch.__version__.partition('+')[0]}"
        raise MissingExtraError(f"model {name!r}: {library} is not installed: pip install {fitting}") from exc
    except (ImportError, OSError, RuntimeError) as exc:
        raise UsageError(
            f"model {name!r}: {library} is installed, but doesn't load beside torch {torch.__version__} "
            f"({' '.join(str(exc).split())[:200]}); install the one of the same release and build"
        ) from exc


def _known(name: str, architecture: str, known: Iterable[str], where: str) -> None:
    names = list(known)
    if architecture not in names:
        near = difflib.get_close_matches(architecture, names, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UnknownNameError(f"unknown model {name!r}{hint} ({where} has them all)")


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """What `fetch` gives; errors of its network as ours."""
    try:
        return fetch()
    except OSError as exc:  # urllib's, requests' and the hub's are of this kind
        raise StorageError(
            f"weights of model {name!r} can't be had: {' '.join(str(exc).split())[:300]}; "
            "where there is no network, give a safetensors file: with --init, or of a reference behind the @"
        ) from exc
