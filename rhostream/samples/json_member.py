"""The .json member of a sample: its fields, read strictly, and the status of one that can't be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_JSON = 1 << 20  # bytes: a larger one is never read
_decoded = json.JSONDecoder().decode


class BadSample(Exception):
    """A status and why: the sample becomes a row that says so."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


def parse_json(raw: bytes) -> dict[str, Any]:
    """The fields of a .json member; {} where there is none. Raises BadSample (json)."""
    if not raw:
        return {}
    try:
        fields = _loaded(raw)
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, ValueError) else "nested too deep"
        raise BadSample("json", f".json can't be parsed: {reason[:200]}") from exc
    if not isinstance(fields, dict):
        raise BadSample("json", f".json holds a {type(fields).__name__}, expected an object")
    return fields


def _loaded(raw: bytes) -> Any:
    # An object in UTF-8 spares json.loads its look for another encoding; every error is json.loads' own.
    if raw[:1] == b"{" and raw[1:2] != b"\0":
        try:
            return _decoded(raw.decode())
        except (ValueError, RecursionError):
            pass
    return json.loads(raw)


def value_of(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field; of `a.b`, where there is none of that name, field b of the object a. None where it isn't
    there."""
    if name in fields or "." not in name:
        return fields.get(name)
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
