"""Whether a file of a commit can be loaded, proved without torch for all that a run writes.

    NAME.safetensors   the library's own reader: header, names, lengths
    NAME.pt            a zip of plain records: bytes of tensors, and a pickle of dicts, lists, plain values and tensors

A pickle is a program. This one is followed opcode by opcode: nothing is imported, called or set, and each tensor is
held against the record that has its bytes. What says anything else isn't proved here: whoever asks lets torch decide.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, deserialize

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_ITEM_BYTES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
_ORDERED, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What bytes that nobody expected make of the steps below.
_BROKEN = (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, AttributeError, EOFError,
           NotImplementedError, RuntimeError, zipfile.BadZipFile, SafetensorError)  # fmt: skip


class _Unproved(ValueError):
    """It may be all right: nobody here can tell."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that a pickle asks for; it is never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    items: int


class _Tensor:
    pass


def is_loadable(name: str, data: bytes) -> bool:
    """Whether the bytes of `NAME.safetensors` or `NAME.pt` surely load; False where that isn't proved."""
    try:
        if name.endswith(".safetensors"):
            return all(tensor["dtype"] in _DTYPES for _, tensor in deserialize(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {entry.filename: entry for entry in archive.infolist()}
            top = next(iter(records)).split("/", 1)[0]
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in records.values())
            if not plain or len(records) != len(archive.infolist()) or archive.testzip() is not None:
                return False
            if archive.read(f"{top}/byteorder") != b"little":
                return False
            sizes = {name: entry.file_size for name, entry in records.items()}
            return isinstance(_value(archive.read(f"{top}/data.pkl"), sizes, f"{top}/data/"), dict)
    except _BROKEN:
        return False


def _value(program: bytes, sizes: Mapping[str, int], folder: str) -> Any:
    """What a pickle makes, tensors as marks. Raises one of _BROKEN for a program that does anything else."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}
    for opcode, argument in _opcodes(program):
        step = opcode.name
        if step in _VALUES:
            stack.append(argument)
        elif step in _CONSTANTS:
            stack.append(_CONSTANTS[step])
        elif step == "BINPUT" or step == "LONG_BINPUT":
            memo[argument] = stack[-1]
        elif step == "BINGET" or step == "LONG_BINGET":
            stack.append(memo[argument])
        elif step == "MARK":
            below.append(stack)
            stack = []
        elif step == "EMPTY_DICT":
            stack.append({})
        elif step == "EMPTY_LIST":
            stack.append([])
        elif step in _TUPLES:
            count = _TUPLES[step]
            items = tuple(stack.pop() for _ in range(count))
            stack.append(items[::-1])
        elif step in ("TUPLE", "SETITEMS", "APPENDS"):
            items, stack = tuple(stack), below.pop()
            _fill(stack, step, items)
        elif step in ("SETITEM", "APPEND"):
            items = tuple(stack.pop() for _ in range(2 if step == "SETITEM" else 1))[::-1]
            _fill(stack, step + "S", items)
        elif step == "GLOBAL":
            stack.append(_Name(argument))
        elif step == "BINPERSID":
            stack.append(_storage(stack.pop(), sizes, folder))
        elif step == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        elif step != "STOP" and (step, argument) != ("PROTO", 2):
            raise _Unproved(step)
    (value,) = stack
    if below:
        raise _Unproved("an open mark")
    return value


def _opcodes(program: bytes) -> list[tuple[pickletools.OpcodeInfo, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickletools, about escapes in the strings of old protocols
        return [(opcode, argument) for opcode, argument, _ in pickletools.genops(program)]


def _fill(stack: list[Any], step: str, items: tuple[Any, ...]) -> None:
    if step == "TUPLE":
        stack.append(items)
    elif step == "APPENDS" and type(stack[-1]) is list:
        stack[-1].extend(items)
    elif step == "SETITEMS" and type(stack[-1]) is dict:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        raise _Unproved(step)


def _storage(asked: Any, sizes: Mapping[str, int], folder: str) -> _Storage:
    """The record that a tensor's bytes lie in: ("storage", class, record, device, items)."""
    kind, cls, record, device, items = asked
    if kind != "storage" or device != "cpu" or type(record) is not str or type(items) is not int:
        raise _Unproved("storage")
    if sizes[folder + record] != items * _ITEM_BYTES[cls.text]:
        raise _Unproved("bytes")
    return _Storage(items)


def _made(called: Any, arguments: Any) -> Any:
    """An empty OrderedDict, or a tensor whose every item lies in its storage."""
    if called == _Name(_ORDERED) and arguments == ():
        return {}
    if called != _Name(_TENSOR):
        raise _Unproved("call")
    storage, offset, shape, strides, gradient, hooks = arguments
    numbers = (offset, *shape, *strides)
    if type(storage) is not _Storage or type(gradient) is not bool or hooks != {} or len(shape) != len(strides):
        raise _Unproved("tensor")
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise _Unproved("numbers")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= storage.items if 0 not in shape else offset > storage.items:
        raise _Unproved("bounds")
    return _Tensor()
