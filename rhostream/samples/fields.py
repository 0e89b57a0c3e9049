"""The decoded samples of a buffer, chunk or pool: one tensor a field, of as many rows each."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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

    @property
    def nbytes(self) -> int:
        """Bytes of all fields."""
        return sum(array.nbytes for array in self._arrays.values())

    def index_select(self, dim: int, index: Tensor) -> Fields:
        """Copies of the rows, in that order."""
        return Fields({name: array.index_select(dim, index) for name, array in self._arrays.items()})

    def to(self, device: torch.device, **how: Any) -> Fields:
        """On that device."""
        return Fields({name: array.to(device, **how) for name, array in self._arrays.items()})


def target_of(target: str | None, fields: Fields | None, label: Tensor, x: Tensor) -> Tensor:
    """What a loss is called with beside the model's output, (n, ...): the label (n,) where `Kind.target` is None, the
    field of that name, or, of samples without a target, the model's input."""
    if target is None:
        return label
    if not target:
        return x
    assert fields is not None
    return fields[target]
