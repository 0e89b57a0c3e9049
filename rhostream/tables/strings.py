"""Many strings as one Arrow array: a table of a million shards would hold a hundred megabytes of Python strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

_CHUNK = 1024


class Strings(Sequence[str]):
    """A sequence of str that is stored as an Arrow array, and that Arrow takes for one without a copy."""

    __slots__ = ("_array",)

    def __init__(self, array: pa.StringArray | None = None) -> None:
        self._array = pa.array([], pa.string()) if array is None else array

    @classmethod
    def of(cls, chunks: Sequence[pa.StringArray]) -> Strings:
        """The strings of several arrays, in one."""
        return cls(pa.concat_arrays(chunks) if chunks else None)

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found: Any = self._array[index if isinstance(index, slice) else int(index)]
        return found.to_pylist() if isinstance(index, slice) else found.as_py()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self._array[start : start + _CHUNK].to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return bool(self._array.equals(other._array))
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({self[:3]!r}, {len(self)} in all)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self._array if type is None or type == self._array.type else self._array.cast(type)
