"""A library's model with its stored weights: the classes that it knows, and what it says its samples have to be.

transformers' image processors, timm's pretrained_cfg and torchvision's transforms are read here, into what options say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

UNSAID = "it doesn't say how its images are normalised: mean and deviation are taken as 0.5"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """As options say it. `doubts`: in what it differs from what they can say, as sentences without a subject."""

    image_size: int | None = None  # pixels of a side; None: any
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: str | None = None  # crop, squash or pad
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Stored:
    """A model by name, every weight as it is stored; it gives logits of classes, or of the next token."""

    name: str
    model: nn.Module
    gives: str  # "classes" or "language"
    pictures: bool  # it takes these, (n, C, H, W) float32; else ids of texts (n, L) int64
    classes: int | None = None  # as many as it has logits; None of language
    labels: Mapping[int, str] = field(default_factory=dict)  # what it calls its classes, where it says so
    channels: int = 3
    seen: Preprocessing = Preprocessing()  # of images
    tokenizer: str | None = None  # of text, by the name that --tokenizer takes
    vocabulary: int = 0
    text_length: int = 0  # tokens at most; 0: any
    begin: int = 0  # of language: the id that the first token is predicted from

    def __repr__(self) -> str:
        return f"<stored model {self.name} of {self.holds}, {self.classes or 'no'} classes>"

    @property
    def holds(self) -> str:
        """What it takes, in words."""
        return "images" if self.pictures else "text"


def named_classes(names: Mapping[int, str]) -> dict[int, str]:
    """The names of classes; {} where they are what transformers makes up, LABEL_0 and so on."""
    named = {int(label): str(name) for label, name in names.items() if name}
    return {} if all(name == f"LABEL_{label}" for label, name in named.items()) else named


def of_transformers(processor: Any, image_size: int | None = None) -> Preprocessing:
    """Of an image processor of transformers', None where there is none; `image_size`: what the model's config says."""
    if processor is None:
        return Preprocessing(image_size=image_size, doubts=(UNSAID,))
    size, cut, doubts = _sizes(processor, "size"), {}, list[str]()
    if getattr(processor, "do_center_crop", False):
        cut = _sizes(processor, "crop_size")
    side = cut.get("height") or size.get("shortest_edge") or size.get("height")
    if not getattr(processor, "do_resize", True):
        side = None
    if side and cut and (scaled := size.get("shortest_edge") or size.get("height") or side) != side:
        doubts.append(_middle(side / scaled))
    if share := getattr(processor, "crop_pct", None):
        doubts.append(_middle(share))
    if image_size and side and side != image_size:
        doubts.append(f"its processor makes {side} pixels, and its config says {image_size}")
    if getattr(processor, "resample", 2) == 3:
        doubts.append(_resampled("bicubic"))
    mean, std = _numbers(0.0), _numbers(1.0)
    if getattr(processor, "do_normalize", False):
        mean, std = _numbers(processor.image_mean), _numbers(processor.image_std)
    squash = not size.get("shortest_edge") and bool(size.get("height"))
    return Preprocessing(
        image_size=image_size or side, mean=mean, std=std, resize="squash" if squash else "crop", doubts=tuple(doubts)
    )


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Of a model's pretrained_cfg; {} where its weights are somebody's own."""
    if "mean" not in config:
        return Preprocessing(doubts=(UNSAID,))
    doubts = list[str]()
    if (share := float(config.get("crop_pct") or 1)) < 1:
        doubts.append(_middle(share))
    if config.get("interpolation", "bilinear") != "bilinear":
        doubts.append(_resampled(str(config["interpolation"])))
    return Preprocessing(
        image_size=int(config["input_size"][1]), mean=_numbers(config["mean"]), std=_numbers(config["std"]),
        resize="squash" if config.get("crop_mode") == "squash" else "crop", doubts=tuple(doubts),
    )  # fmt: skip


def of_torchvision(transforms: Any) -> Preprocessing:
    """Of the transforms of some weights, None where they are somebody's own."""
    if transforms is None:
        return Preprocessing(doubts=(UNSAID,))
    side, scaled, doubts = int(transforms.crop_size[0]), int(transforms.resize_size[0]), list[str]()
    if scaled != side:
        doubts.append(_middle(side / scaled))
    if (kind := str(getattr(transforms.interpolation, "value", transforms.interpolation))) != "bilinear":
        doubts.append(_resampled(kind))
    return Preprocessing(image_size=side, mean=_numbers(transforms.mean), std=_numbers(transforms.std), resize="crop",
                         doubts=tuple(doubts))  # fmt: skip


def _middle(share: float) -> str:
    return f"it sees the middle {share:.0%} of a picture's sides, here its edges are seen too"


def _resampled(how: str) -> str:
    return f"it resamples pictures {how}, here they are bilinear"


def _sizes(processor: Any, name: str) -> dict[str, int]:
    """{"shortest_edge" | "height" | "width": pixels}, as each release has them."""
    size = getattr(processor, name, None) or {}
    if isinstance(size, int):
        return {"shortest_edge" if name == "size" else "height": size}
    named = ("shortest_edge", "height", "width")
    held = {key: size.get(key) if isinstance(size, Mapping) else getattr(size, key, None) for key in named}
    return {key: int(value) for key, value in held.items() if value}


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),)
