"""A picture with several tags: a .jpg or .png, and `{"tags": ["sky", "dog"]}` in its .json. The target is a vector."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

import rhostream

TAGS = ("dog", "cat", "sky", "sea", "tree", "face")
SIDE = 32


class Tagged(rhostream.Kind):
    """A picture of 32 pixels and which of the tags it has. Train with `--loss binary_cross_entropy`."""

    members = {"picture": ("jpg", "jpeg", "png", "webp"), "facts": ("json",)}
    pictures = True
    target = "tags"

    def fields(self, view: Any = None) -> Mapping[str, rhostream.FieldSpec]:
        """The picture, and a 1 for each tag it has."""
        return {
            "pixels": rhostream.FieldSpec((SIDE, SIDE, 3), "uint8"),
            "tags": rhostream.FieldSpec((len(TAGS),), "uint8"),
        }

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        """The whole picture, squashed to a square."""
        if unknown := {*(tags := json.loads(members["facts"])["tags"])} - {*TAGS}:
            return f"unknown tags {sorted(unknown)}"
        with Image.open(io.BytesIO(members["picture"])) as picture:
            out["pixels"] = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        out["tags"] = np.array([tag in tags for tag in TAGS], np.uint8)
        return "ok"

    def inputs(self, fields: Any) -> Tensor:
        """(n, 3, 32, 32), -1 to 1."""
        pixels: Tensor = fields["pixels"]
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        """For `network`."""
        return {"outputs": len(TAGS)}


def network(*, outputs: int) -> nn.Module:
    """A small convolutional network: a logit a tag."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, outputs),
    )  # fmt: skip
