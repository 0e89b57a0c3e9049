"""What a sharded state says of itself: which file has which part of which tensor; JSON, and no torch.

    checkpoints/step=S/attempt=K/sharded.json                       made by rank 0, of what all ranks wrote
                                 shard-RRRRR-NNNNN.safetensors      of rank R, its N-th: parts of tensors by number

A tensor's name is its way through the states of the objects: ["optimizer", "state", 0, "exp_avg"]. What isn't
sharded, plain values with it, stands in the files of a whole state beside these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rhostream.foreign import checked_count, read_object, require_type

FILE = "sharded.json"
VERSION = 1
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
Way = tuple[str | int, ...]


@dataclass(frozen=True)
class Part:
    """A box of one tensor, stored under `name` in `file`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    name: str


@dataclass(frozen=True)
class Sharded:
    """A tensor that is stored in parts."""

    way: Way
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]


def is_shard(name: str) -> bool:
    """Whether a file of a commit belongs to its sharded tensors."""
    return name == FILE or (name.startswith("shard-") and name.endswith(".safetensors"))


def write_index(tensors: Iterable[Sharded]) -> bytes:
    """The bytes of `sharded.json`."""
    return json.dumps({"version": VERSION, "tensors": [asdict(one) for one in tensors]}, sort_keys=True).encode()


def read_index(data: bytes, files: Iterable[str]) -> list[Sharded]:
    """The inverse of `write_index`: every part inside its tensor and in one of `files`, every tensor whole.

    Raises ValueError in words for anything else.
    """
    record, known = read_object(data), set(files)
    if record.get("version") != VERSION:
        raise ValueError(f"version {record.get('version')!r}, expected {VERSION}; upgrade rhostream")
    require_type(record.get("tensors"), list, "tensors")
    found = [_sharded(one, known) for one in record["tensors"]]
    if len({one.way for one in found}) < len(found):
        raise ValueError("a tensor is listed twice")
    return found


def _sharded(record: Any, files: set[str]) -> Sharded:
    require_type(record, dict, "a tensor")
    for name in ("way", "shape", "parts"):
        require_type(record.get(name), list, name)
    way, dtype = record["way"], record.get("dtype")
    if len(way) < 2 or any(type(step) not in (str, int) for step in way) or type(way[0]) is not str:
        raise ValueError(f"{str(way)[:80]} names no tensor of a state")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {str(dtype)[:40]!r} of {way}, expected one of {', '.join(DTYPES)}")
    shape = _numbers(record["shape"], "a shape")
    parts = tuple(_part(one, shape, files) for one in record["parts"])
    # Boxes that don't overlap and lie inside fill a tensor when they hold as many elements.
    apart = all(not _overlap(a, b) for n, a in enumerate(parts) for b in parts[:n]) if len(shape) else len(parts) == 1
    if not apart or sum(math.prod(part.sizes) for part in parts) != math.prod(shape):
        raise ValueError(f"the parts of {way} don't make up a tensor of shape {shape}")
    return Sharded(tuple(way), shape, dtype, parts)


def _part(record: Any, shape: tuple[int, ...], files: set[str]) -> Part:
    require_type(record, dict, "a part")
    offsets, sizes = (_numbers(record.get(name), name) for name in ("offsets", "sizes"))
    inside = len(offsets) == len(sizes) == len(shape)
    if not inside or any(o + n > most for o, n, most in zip(offsets, sizes, shape, strict=True)):
        raise ValueError(f"a part at {offsets} of {sizes} isn't inside a tensor of shape {shape}")
    file, name = record.get("file"), record.get("name")
    if file not in files or type(name) is not str:
        raise ValueError(f"a part is in the file {str(file)[:80]!r}, which the commit doesn't list")
    return Part(offsets, sizes, file, name)


def _numbers(values: Any, what: str) -> tuple[int, ...]:
    require_type(values, list, what)
    for value in values:
        checked_count(value, what, 0, 2**62)
    return tuple(values)


def _overlap(a: Part, b: Part) -> bool:
    return all(
        x < y + n and y < x + m for x, m, y, n in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    ) and bool(math.prod(a.sizes) and math.prod(b.sizes))


def leaf_of(state: Any, way: Iterable[str | int]) -> Any:
    """What stands in a nested state at the end of a way, None for nothing."""
    for step in way:
        if not isinstance(state, Mapping) or step not in state:
            return None
        state = state[step]
    return state


def put(state: dict[Any, Any], way: Way, value: Any) -> None:
    """Enter a value into a nested state, and the dicts that lead to it."""
    for step in way[:-1]:
        state = state.setdefault(step, {})
    state[way[-1]] = value
