"""Many strings as one Arrow array: a table of a million shards would hold a hundred megabytes of Python strings."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

_CHUNK = 1024


class Strings(Sequence[str]):
    """A sequence of str that is stored as an Arrow array, and that Arrow takes for one without a copy.

    Paths whose bytes are no UTF-8 are stored as those bytes, and are lone surrogates in a str, as Python has them.
    """

    __slots__ = ("_array",)

    def __init__(self, array: pa.StringArray | pa.BinaryArray | None = None) -> None:
        self._array = pa.array([], pa.string()) if array is None else array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found: Any = self._array[index if isinstance(index, slice) else int(index)]
        return _texts(found) if isinstance(index, slice) else _text(found.as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from _texts(self._array[start : start + _CHUNK])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return bool(self._array.equals(other._array))
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({self[:3]!r}, {len(self)} in all)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self._array if type is None or type == self._array.type else self._array.cast(type)


def _texts(array: Any) -> list[str]:
    values: list[str | bytes] = array.to_pylist()
    return [_text(value) for value in values] if pa.types.is_binary(array.type) else values  # type: ignore[return-value]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


class StringsBuilder:
    """Collects strings for a `Strings` in two growing buffers: nothing else is left in memory behind it."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array("i", [0])

    def extend(self, strings: Iterable[str]) -> None:
        """Add strings at the end."""
        for text in strings:
            self._data += text.encode("utf-8", "surrogateescape")
            self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def build(self) -> Strings:
        """What was collected."""
        ends, data = pa.py_buffer(self._ends.tobytes()), pa.py_buffer(bytes(self._data))
        strings = pa.StringArray.from_buffers(len(self), ends, data)
        try:
            strings.validate(full=True)
        except pa.ArrowInvalid:  # not UTF-8
            return Strings(pa.BinaryArray.from_buffers(pa.binary(), len(self), [None, ends, data]))
        return Strings(strings)
