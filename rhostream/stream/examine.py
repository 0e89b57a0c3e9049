"""What a sample's small members say, before an image is touched: its label, its json fields, or the status against it.

    dup | size | json | label:missing | label:invalid | label:range

`.cls` is read at most 64 bytes and `.json` at most 1 MiB long; a longer one is never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from rhostream.samples.json_member import MAX_JSON, BadSample

MAX_LABEL = 2**31 - 1  # the table's column is int32
_INTEGER = re.compile(rb"-?[0-9]{1,40}\Z")
_CLASS_OF: Mapping[str, type[Any]] = {"bool": bool, "int": int, "float": float, "str": str}


class Readable(Protocol):
    """Bytes by offset."""

    def pread(self, n: int, offset: int) -> bytes: ...


def read_json(size: int, offset: int, source: Readable) -> bytes:
    """The bytes of a .json member. Raises BadSample (size)."""
    if size > MAX_JSON:
        raise BadSample("size", f".json of {size:,} bytes at offset {offset:,}, at most {MAX_JSON:,} are read")
    return source.pread(size, offset)


def parse_cls(text: bytes, member: str = ".cls") -> int:
    """The integer that a .cls member (or another one) holds. Raises BadSample (label:invalid)."""
    text = text.strip()
    if not _INTEGER.match(text):
        named = "" if text[:1].isdigit() or not text else "; --class-names FILE gives names their numbers"
        raise BadSample("label:invalid", f"{member} holds {text!r}, expected an integer{named}")
    return int(text)


def too_long_label(member: str, size: int, offset: int, most: int) -> BadSample:
    """What a label's member of more than `most` bytes is."""
    return BadSample("size", f".{member} of {size:,} bytes at offset {offset:,}, at most {most} are read")


def check_range(label: int, classes: int | None) -> int:
    """The label itself. Raises BadSample (label:range): torch's loss is 0.0 for -100, so no such label may pass."""
    end = MAX_LABEL + 1 if classes is None else classes
    if not 0 <= label < end:
        raise BadSample("label:range", f"label {str(label)[:40]}, expected 0 to {end - 1}")
    return label


def fit_value(value: Any, kind: str) -> tuple[Any, bool]:
    """(the value as a column of that kind holds it or None, whether there was a value that didn't fit)."""
    if value is None:
        return None, False
    expected = _CLASS_OF[kind]
    result: Any = value
    if kind == "float" and type(value) is int and abs(value) < 2**1023:
        return float(result), False
    if type(value) is not expected or (kind == "int" and not -(2**63) <= result < 2**63):
        return None, True  # bool is an int to Python, not to us
    if kind == "str":
        try:
            result.encode()
        except UnicodeEncodeError:  # a lone surrogate
            return None, True
    return result, False


def fit_column(values: list[Any], kind: str) -> tuple[list[Any], int]:
    """`fit_value` of each value, and how many didn't fit; a column whose values all fit is returned as it is."""
    found = set(map(type, values))
    if found <= {_CLASS_OF[kind], type(None)}:
        there = [v for v in values if v is not None] if kind in ("int", "str") else []
        if not there or (kind == "int" and min(there) >= -(2**63) and max(there) < 2**63):
            return values, 0
        if kind == "str" and "".join(there).isascii():
            return values, 0
    fitted = [fit_value(value, kind) for value in values]
    return [value for value, _ in fitted], sum(misfit for _, misfit in fitted)


def group_of(fields: Mapping[str, Any], field: str, key: str) -> str:
    """The value that keeps near-duplicates together: the field's, or the sample's own key where it is null."""
    value = fields.get(field)
    if value is None:
        return key
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
