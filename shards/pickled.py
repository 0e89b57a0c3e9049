"""Data out of a pickle, and nothing that runs: the sets of the field come as pickles of strings, lists and arrays.

A pickle is a program. Python's own reader runs it, so a file from anywhere can do anything. This one knows the
opcodes that build dicts, lists, tuples, strings, bytes, integers and None, and four names: numpy's three for an
array of integers, and the one that Python 3 writes bytes with. Those names are never looked up: what they would
make is made here. Every other opcode and every other name is refused, and nothing is imported, called or set.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError

ARRAY, NDARRAY, DTYPE, ENCODE = "numpy's _reconstruct", "numpy's ndarray", "numpy's dtype", "_codecs.encode"
NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): ARRAY,
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): DTYPE,
    ("_codecs", "encode"): ENCODE,
}
INTEGERS = frozenset({"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"})
TEXT_OPCODES = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
BYTES_OPCODES = frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"})
# Strings of Python 2, which are bytes; pickletools shows them as latin-1.
OLD_STRING_OPCODES = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
INTEGER_OPCODES = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What hostile bytes make of the steps below; the caller hears one sentence.
_BROKEN = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError)


class Refused(Exception):
    """What the pickle asks for that isn't data."""


@dataclass(frozen=True, slots=True)
class _Name:
    what: str


class _Mark:
    pass


@dataclass(slots=True)
class _DType:
    code: str
    order: str = "|"


@dataclass(slots=True)
class PickledArray:
    """An array of integers; None until the pickle has filled it."""

    values: npt.NDArray[Any] | None = None


def plain_data(data: bytes, where: str) -> Any:
    """What the pickle `data` holds; arrays of integers are `PickledArray`, strings of Python 2 are bytes.

    Raises UsageError, naming `where`, for bytes that end early or ask for anything but plain data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of escapes that Python 2 wrote otherwise
            return _Machine().run(data)
    except Refused as exc:
        raise UsageError(
            f"{where} is a pickle that asks for {exc}, expected plain data; it may run code, so it isn't read"
        ) from None
    except _BROKEN as exc:
        reason = str(exc)[:120] or type(exc).__name__
        raise UsageError(f"{where} can't be read as a pickle of plain data ({reason}); copy the file again") from None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            self.step(opcode.name, argument)
        (result,) = self.stack  # genops ends at STOP, or has raised
        return result

    def step(self, name: str, argument: Any) -> None:
        if name in INTEGER_OPCODES or name in TEXT_OPCODES or name in BYTES_OPCODES:
            self.stack.append(argument)
        elif name in OLD_STRING_OPCODES:
            self.stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in SHORT_TUPLES:
            self.stack.append(tuple(self.pop(SHORT_TUPLES[name])))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the opcode {name}")

    def pop(self, count: int) -> list[Any]:
        """The last `count` things; none of them may be a mark."""
        taken = self.stack[len(self.stack) - count :] if count <= len(self.stack) else None
        if taken is None or any(isinstance(thing, _Mark) for thing in taken):
            raise ValueError("it takes more than it has put down")
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def top(self, kind: type[Any]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"no {kind.__name__} to add to")
        return self.stack[-1]

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise Refused(f"a {type(key).__name__} as the key of a dict")
            target[key] = value

    def make_dict(self) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def name(self, module: Any, name: Any) -> None:
        # Text first: to show or to hash a thing of a hostile pickle can take for ever.
        wanted = (_text(module), _text(name))
        if wanted not in NAMES:
            raise Refused(".".join(wanted)[:120])
        self.stack.append(_Name(NAMES[wanted]))

    def reduce(self) -> None:
        what, arguments = self.pop(2)
        if not isinstance(what, _Name) or not isinstance(arguments, tuple):
            raise Refused("a call of what isn't a name")
        if what.what == ARRAY and arguments[:1] == (_Name(NDARRAY),):
            self.stack.append(PickledArray())
        elif what.what == DTYPE and _text(arguments[0]) in INTEGERS:
            self.stack.append(_DType(_text(arguments[0])))
        elif what.what == ENCODE and len(arguments) == 2 and _text(arguments[1]) in ("latin1", "latin-1"):
            self.stack.append(_text(arguments[0]).encode("latin-1"))
        else:
            raise Refused(f"a call of {what.what} with other arguments than an array of integers has")

    def build(self) -> None:
        target, state = self.pop(2)
        if not isinstance(state, tuple):
            raise Refused("the state of an object")
        if isinstance(target, _DType):
            order = _text(state[1])
            if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
                raise Refused("a dtype that isn't one of integers")
            target.order = order
        elif isinstance(target, PickledArray) and target.values is None:
            target.values = _array(*state)
        else:
            raise Refused(f"the state of a {type(target).__name__}")
        self.stack.append(target)


def _array(version: Any, shape: Any, dtype: Any, fortran: Any, raw: Any) -> npt.NDArray[Any]:
    if version != 1 or not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise Refused("an array that isn't one of integers")
    if not isinstance(raw, bytes) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise Refused("an array that isn't one of integers")
    form = np.dtype(dtype.order + dtype.code if dtype.order != "|" else dtype.code)
    if math.prod(shape) * form.itemsize != len(raw):
        raise ValueError(f"{len(raw):,} bytes for an array of shape {shape} and {dtype.code}")
    return np.frombuffer(raw, form).reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise Refused(f"a {type(value).__name__} where a string belongs")
    return value


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")  # as pickletools shows the two lines
    machine.name(module, name)


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.stack.append(_Mark()),
    "POP": lambda machine, _: machine.pop(1).clear(),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "DICT": lambda machine, _: machine.make_dict(),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda machine, key: machine.stack.append(machine.memo[int(key)]),
    "BINGET": lambda machine, key: machine.stack.append(machine.memo[key]),
    "LONG_BINGET": lambda machine, key: machine.stack.append(machine.memo[key]),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
