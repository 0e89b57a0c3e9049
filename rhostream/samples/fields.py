"""The decoded samples of a buffer, chunk or pool: one tensor a field, of as many rows each."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One array of a sample: its shape, the same for all samples, and numpy's name of its type."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes of a sample's row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


class Fields:
    """Tensors (n, ...) by the names of a kind's fields: `fields["pixels"]` is one, `fields[rows]` some rows of all."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self._arrays = dict(arrays)

    @overload
    def __getitem__(self, key: str) -> Tensor: ...

    @overload
    def __getitem__(self, key: Tensor | slice) -> Fields: ...

    def __getitem__(self, key: str | Tensor | slice) -> Tensor | Fields:
        if isinstance(key, str):
            return self._arrays[key]
        return Fields({name: array[key] for name, array in self._arrays.items()})

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __repr__(self) -> str:
        return f"<{len(self):,} samples of {', '.join(f'{name} {tuple(a.shape[1:])}' for name, a in self.items())}>"

    def items(self) -> ItemsView[str, Tensor]:
        """(name, tensor) of each field."""
        return self._arrays.items()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the fields, in their order."""
        return tuple(self._arrays)

    @property
    def only(self) -> Tensor:
        """The tensor of a kind that has one field. Raises ValueError for a kind that has several."""
        if len(self._arrays) > 1:
            raise ValueError(f"these samples have several fields: name one of {', '.join(self._arrays)}")
        return next(iter(self._arrays.values()))

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return next(iter(self._arrays.values())).device

    def is_floating_point(self) -> bool:
        """Whether all of them are numbers in between."""
        return all(array.is_floating_point() for _, array in self.items())

    @property
    def nbytes(self) -> int:
        """Bytes of all fields."""
        return sum(array.nbytes for array in self._arrays.values())

    def split(self, size: int) -> tuple[Fields, ...]:
        """The rows in pieces of `size`, the last one of what is left."""
        return self._pieces(lambda array: array.split(size))

    def tensor_split(self, pieces: int) -> tuple[Fields, ...]:
        """The rows in so many pieces, some of them perhaps empty."""
        return self._pieces(lambda array: array.tensor_split(pieces))

    def _pieces(self, cut: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Fields, ...]:
        cut_up = {name: cut(array) for name, array in self.items()}
        return tuple(Fields(dict(zip(cut_up, rows, strict=True))) for rows in zip(*cut_up.values(), strict=True))

    def index_select(self, dim: int, index: Tensor) -> Fields:
        """Copies of the rows, in that order."""
        return Fields({name: array.index_select(dim, index) for name, array in self._arrays.items()})

    def to(self, device: torch.device, **how: Any) -> Fields:
        """On that device."""
        return Fields({name: array.to(device, **how) for name, array in self._arrays.items()})


def shape_in_words(x: Input) -> str:
    """Of what a model is called with: `(32, 3, 28, 28)`, of several fields `pixels (32, 3, 8, 8), tokens (32, 64)`."""
    if not isinstance(x, Fields):
        return str(tuple(x.shape))
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in x.items())


def target_of(target: str | None, fields: Fields | None, label: Tensor, x: Input) -> Target:
    """What a loss is called with beside the model's output, (n, ...): the label (n,) where `Kind.target` is None, the
    field of that name, or, of samples without a target, the model's input."""
    if target is None:
        return label
    if not target:
        return x
    assert fields is not None
    return fields[target]


# What a model is called with: a tensor (n, ...), or of a kind with several inputs one a field.
Input = Union["Tensor", Fields]
# What a loss is called with beside the model's output; of a kind without a target the input.
Target = Any
