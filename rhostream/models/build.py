"""From a name to a model: a built-in network, one of torchvision or timm, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.models.networks import lenet_cnn, mlp, small_cnn
from rhostream.models.pairs import PAIR_MODELS, TwoTowers
from rhostream.models.resnet import resnet18_small
from rhostream.models.text import TEXT_MODELS, build_text, is_text
from rhostream.models.towers import find_towers, is_towers
from rhostream.models.zoo import build_from_zoo, is_from_zoo
from rhostream.own_code import accepted, own_function
from rhostream.selection.tokens import LanguageLoss, is_language

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
NAMES = (*_BUILT_IN, *TEXT_MODELS, *PAIR_MODELS)
OTHERS = ("torchvision:NAME", "timm:NAME", "hf:NAME", "package.module:function")


# What a model that is built in has to be told of the samples, by what it takes.
_MADE_FOR = {"images": {"image_size", "channels"}, "text": {"vocabulary", "length", "padding", "task"}}
_MADE_FOR["pairs"] = _MADE_FOR["images"] | _MADE_FOR["text"]


def build(name: str, *, classes: int | None, initial: bool = True, **made_for: Any) -> nn.Module:
    """Make the model of that name, with (B, classes) logits; `classes` is None where the target is no class, and then
    only a user's own function makes one, called without it.

    `made_for`: what the samples' kind says of them (`Kind.model_arguments`). `image_size` and `channels`: the model
    takes (B, channels, image_size, image_size). `vocabulary`, `length`, `padding` and `task`: it takes (B, length)
    int64 token ids, and of the task `language` it is wrapped in a `LanguageLoss`. `torchvision:NAME` and `timm:NAME`,
    with @WEIGHTS for their pretrained ones; `initial=False` leaves those out, for who loads others. A user's function
    gets those of the keywords that it accepts. Raises UnknownNameError, UsageError, StorageError when weights can't be
    had.
    """
    return of_task(_built(name, classes, initial, made_for), made_for)


def of_task(model: nn.Module, made_for: Mapping[str, Any]) -> nn.Module:
    """The model as what learns its task calls it: of language in a `LanguageLoss`, of pairs as `TwoTowers`."""
    if made_for.get("task") == "language" and not is_language(model):
        return LanguageLoss(model, made_for["vocabulary"], made_for["padding"], made_for.get("end_of_text"))
    if made_for.get("task") == "pairs" and not isinstance(model, TwoTowers):
        return TwoTowers(model)
    return model


def _built(name: str, classes: int | None, initial: bool, made_for: dict[str, Any]) -> nn.Module:
    if made_for.get("task") == "pairs" and is_towers(name):
        towers = find_towers(name, initial)
        towers.require_made_for(made_for)
        return towers.model
    if name in NAMES or is_text(name) or is_from_zoo(name):
        takes = "pairs" if name in PAIR_MODELS else "text" if is_text(name) else "images"
        if not _MADE_FOR[takes] <= {*made_for} or (made_for.get("task") == "pairs") != (takes == "pairs"):
            held = next(
                (what for what in reversed(_MADE_FOR) if _MADE_FOR[what] <= {*made_for}), "of a kind of their own"
            )
            named: Any = {"images": _BUILT_IN, "text": TEXT_MODELS, "pairs": PAIR_MODELS}.get(held)
            built_in = f"built in for {held}: {', '.join(named)}" if named else "expected package.module:function"
            raise UsageError(f"model {name!r} takes {takes}, and these samples are {held}; {built_in}")
    if ":" in name and not is_text(name) and not is_from_zoo(name):
        return _of_ones_own(name, made_for if classes is None else {"classes": classes, **made_for})
    if name in PAIR_MODELS:
        return PAIR_MODELS[name](**{key: value for key, value in made_for.items() if key != "task"})
    if classes is None:
        raise UsageError(
            f"model {name!r} gives logits of classes, and the target of these samples is no class; expected "
            "package.module:function"
        )
    if is_text(name):
        told = {argument: made_for[argument] for argument in _MADE_FOR["text"]}
        return build_text(name, classes=classes, initial=initial, **told)
    if not is_from_zoo(name):
        if (net := name.removesuffix("-cifar").replace("-", "_")) in _OF_FIGURE_2 and name.endswith("-cifar"):
            raise UnknownNameError(
                f"model {name!r} is built in no more: it is jobs.reproduce.nets:{net} now, in a clone of rhostream's "
                "repository. What was made under the old name stays readable (sql, report, verify); begin anew to go on"
            )
        if name not in _BUILT_IN:
            raise UnknownNameError.of("model", name, [*NAMES, *OTHERS])
        image_size = made_for["image_size"]
        if image_size < (least := _LEAST_SIZE.get(name, 16)):
            raise UsageError(f"model {name!r} takes images of {least} pixels and more, got {image_size}")
        return _BUILT_IN[name](classes=classes, **made_for)
    return build_from_zoo(name, classes=classes, initial=initial, **made_for)


def _of_ones_own(name: str, offered: dict[str, Any]) -> nn.Module:
    maker = own_function("model", name)
    with users_code(f"model {name!r}"):
        model = maker(**accepted(maker, offered))
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model
