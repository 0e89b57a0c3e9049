"""What a library's model says its images have to be: their size, how they become squares, mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNSAID = "it doesn't say how its images are normalised: mean and deviation are taken as 0.5"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """As options say it. `doubts`: in what it differs from what they can say, as sentences without a subject."""

    image_size: int | None = None  # pixels of a side; None: any
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: str | None = None  # crop, squash or pad
    doubts: tuple[str, ...] = ()


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
    if side and cut and (scaled := size.get("shortest_edge") or size.get("height")) != side:
        doubts.append(f"it cuts {side} of {scaled} pixels out of the middle of a picture, here its edges are seen too")
    if share := getattr(processor, "crop_pct", None):
        doubts.append(f"it sees the middle {share:.0%} of a picture's sides, here its edges are seen too")
    if image_size and side and side != image_size:
        doubts.append(f"its processor makes {side} pixels, and its config says {image_size}")
    if getattr(processor, "resample", 2) == 3:
        doubts.append("it resamples pictures bicubic, here they are bilinear")
    mean, std = _numbers(0.0), _numbers(1.0)
    if getattr(processor, "do_normalize", False):
        mean, std = _numbers(processor.image_mean), _numbers(processor.image_std)
    squash = not size.get("shortest_edge") and bool(size.get("height"))
    return Preprocessing(
        image_size=image_size or side, mean=mean, std=std, resize="squash" if squash else "crop", doubts=tuple(doubts)
    )


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
