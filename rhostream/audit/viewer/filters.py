"""What is selected: a range of il, loss, score or step, and a set of labels or of reasons; all of them hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rhostream.audit.viewer.rows import NONE, REASONS, VALUES, Array, Block
from rhostream.errors import UsageError

RANGES = (*VALUES, "step")
SETS = ("label", "reason")
MOST = 1000  # members of a set
Filters = Mapping[str, Any]  # name -> (low, high), both in, or the sorted members of a set


def checked_filters(given: Any) -> Filters:
    """Filters of JSON: {"il": [low, high], "label": [3, 7], "reason": ["kept"]}; null for an open end.

    Raises UsageError.
    """
    if not isinstance(given, Mapping):
        raise UsageError("filters are an object: {name: [low, high] or [members]}")
    filters: dict[str, Any] = {}
    for name, value in given.items():
        if name not in (*RANGES, *SETS) or not isinstance(value, list) or len(value) > MOST:
            raise UsageError(f"a filter is a list for one of {', '.join((*RANGES, *SETS))}")
        filters[name] = _range(name, value) if name in RANGES else _members(name, value)
    return filters


def _range(name: str, value: list[Any]) -> tuple[float, float]:
    if len(value) != 2 or not all(one is None or _is_number(one) for one in value):
        raise UsageError(f"the filter of {name} is [low, high], each a number or null")
    low, high = (-math.inf if value[0] is None else value[0], math.inf if value[1] is None else value[1])
    with np.errstate(over="ignore"):
        return (float(low), float(high)) if name == "step" else (float(np.float32(low)), float(np.float32(high)))


def _members(name: str, value: list[Any]) -> tuple[int, ...]:
    if name == "reason":
        if unknown := [one for one in value if one not in REASONS]:
            raise UsageError(f"unknown reason {str(unknown[0])[:40]!r} (known: {', '.join(REASONS)})")
        return tuple(sorted(REASONS.index(one) for one in value))
    if not all(isinstance(one, int) and not isinstance(one, bool) and NONE <= one < 1 << 31 for one in value):
        raise UsageError("labels are whole numbers, -1 for none")
    return tuple(sorted(value))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and abs(value) < 1e300
    )


def mask_of(block: Block, first: int, end: int, name: str, value: Any) -> Array:
    """Which of a block's rows `first` to `end` a filter lets through, (end - first,) bool."""
    column: Array = block.columns[name][first:end]
    if name == "reason":
        through = np.zeros(256, np.bool_)
        through[list(value)] = True
        taken: Array = through[column]
        return taken
    if name == "label":
        return np.isin(column, np.array(value, np.int32))
    low, high = (max(value[0], 0), value[1]) if name == "step" else map(np.float32, value)  # a tail has no step
    within: Array = (column >= low) & (column <= high)
    return within


def selected(block: Block, first: int, end: int, filters: Iterable[tuple[str, Any]]) -> Array:
    """Which of a block's rows `first` to `end` all filters, (name, value), let through: (end - first,) bool."""
    through = np.ones(end - first, np.bool_)
    for name, value in filters:
        through &= mask_of(block, first, end, name, value)
    return through


def places_of(block: Block, first: int, end: int, filters: Iterable[tuple[str, Any]]) -> Any:
    """What takes the selected rows out of a column's rows `first` to `end`: their places, or all of it."""
    through = selected(block, first, end, filters)
    return slice(None) if through.all() else np.flatnonzero(through)
