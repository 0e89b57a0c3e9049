"""Kinds of samples as people bring them, by name: `tests.support.own_kinds:NAME`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from rhostream import FieldSpec, Kind

SIZE, TAGS = 8, 5


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


class Heights(Kind):
    """Eight numbers in a .npy and the float in a .json that they are to give."""

    members = {"vector": ("npy",), "facts": ("json",)}  # noqa: RUF012
    target: str | None = "height"

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE,), "float32"), "height": FieldSpec((), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        out["vector"] = np.load(io.BytesIO(members["vector"]), allow_pickle=False)
        out["height"] = np.asarray(json.loads(members["facts"])["height"], np.float32)
        return "ok"

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        return {"size": SIZE}


class Tags(Kind):
    """Eight numbers in a .npy and the tags in a .json: which of `TAGS` there are."""

    members = {"vector": ("npy",), "facts": ("json",)}  # noqa: RUF012
    target: str | None = "tags"

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"tags": FieldSpec((TAGS,), "uint8"), "vector": FieldSpec((SIZE,), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        out["vector"] = np.load(io.BytesIO(members["vector"]), allow_pickle=False)
        out["tags"][json.loads(members["facts"])["tags"]] = 1
        return "ok"

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        return {"size": SIZE, "outputs": TAGS}


class Untargeted(Heights):
    """The numbers alone, which a model is to give again."""

    members = {"vector": ("npy",)}  # noqa: RUF012
    target = ""

    def fields(self, view: Any = None) -> Mapping[str, FieldSpec]:
        return {"vector": FieldSpec((SIZE,), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        out["vector"] = np.load(io.BytesIO(members["vector"]), allow_pickle=False)
        return "ok"

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        return {"size": SIZE, "outputs": SIZE}


class Strayed(Heights):
    """A target that is no field."""

    target = "weight"


def regressor(*, size: int, outputs: int = 1) -> nn.Module:
    """A model of no classes."""
    return nn.Sequential(nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, outputs))


def absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """A user's loss of a float."""
    return (output[:, 0] - target).abs()


def wide(*, size: int) -> nn.Module:
    """A model of three outputs, which is the shape of no target."""
    return nn.Linear(size, 3)
