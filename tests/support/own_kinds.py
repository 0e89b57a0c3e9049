"""Kinds of samples as people bring them, by name: `tests.support.own_kinds:NAME`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from rhostream import FieldSpec, Kind

SIZE = 8


class Vectors(Kind):
    """Eight numbers in a .npy, and how loud they are in a .gain of text."""

    members = {"vector": ("npy",), "gain": ("gain",)}  # noqa: RUF012

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE,), "float32"), "gain": FieldSpec((), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        if (gain := float(members["gain"])) <= 0:
            return f"a gain of {gain:g}"
        out["vector"] = np.load(io.BytesIO(members["vector"]), allow_pickle=False)
        out["gain"] = np.float32(gain)
        return "ok"

    def inputs(self, fields: Any) -> Tensor:
        return fields["vector"] * fields["gain"][:, None]  # type: ignore[no-any-return]

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        return {"size": SIZE}


def net(*, size: int, classes: int) -> nn.Module:
    """A model for them."""
    return nn.Sequential(nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, classes))


class Wider(Vectors):
    """As `Vectors`, by now of another shape."""

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE + 1,), "float32"), "gain": FieldSpec((), "float32")}


class Flat(Kind):
    """One .npy, whose inputs are no tensor."""

    members = {"vector": ("npy",)}  # noqa: RUF012

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE,), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        out["vector"][:4] = 1.0
        return "ok"

    def inputs(self, fields: Any) -> Any:
        return [fields["vector"]]

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        return {"size": SIZE}


class Unnamed(Kind):
    """A kind that forgot its members."""

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE,), "float32")}


def broken() -> Kind:
    """A kind that can't be made."""
    raise FileNotFoundError("the file of mine is not there")


nothing = 5
