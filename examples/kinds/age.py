"""A picture and a number, such as an age: a .png or .jpg, and `{"age": 31.5}` in its .json. The target is a float."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

import rhostream

SIDE, DECADE = 32, 10.0


class Aged(rhostream.Kind):
    """A grey picture of 32 pixels and an age, in decades: losses are near 1. Train with `--loss squared_error`."""

    members = {"picture": ("jpg", "jpeg", "png", "webp"), "facts": ("json",)}
    pictures = True
    target = "age"

    def fields(self, view: Any = None) -> Mapping[str, rhostream.FieldSpec]:
        """The picture and the age."""
        return {"pixels": rhostream.FieldSpec((SIDE, SIDE), "uint8"), "age": rhostream.FieldSpec((), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        """The whole picture, squashed to a square; an age that isn't finite is quarantined by the library."""
        out["age"] = np.float32(json.loads(members["facts"])["age"] / DECADE)
        with Image.open(io.BytesIO(members["picture"])) as picture:
            out["pixels"] = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return "ok"

    def inputs(self, fields: Any) -> Tensor:
        """(n, 1, 32, 32), -1 to 1."""
        pixels: Tensor = fields["pixels"]
        return pixels[:, None].float() / 127.5 - 1


def network() -> nn.Module:
    """A small convolutional network: one number a picture."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 1),
    )  # fmt: skip
