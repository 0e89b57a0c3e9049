"""`adjust`: a user's own function that re-ranks, by `package.module:name`; what it gives back is looked at.

    def adjust(score_B, buffer):                # NumPy float64 (B,) with NaN for a row that isn't in; a `Buffer`
        return score_B - 0.1 * buffer.il_B      # (B,), NaN for a row that is to be left out

A class is made once for a run and called like that. One with `state_dict` and `load_state_dict` is kept in checkpoints.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from rhostream.errors import MismatchError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.selection.adjust.shape import Adjust, Buffer
from rhostream.selection.uniform import Floats


class Own(Adjust):
    """A function of (scores (B,), buffer), named in its errors: UsageError for what it raises and gives back."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        with users_code(f"{name}: making it"):
            self.function: Any = function() if isinstance(function, type) else function
        learns = hasattr(self.function, "state_dict") and hasattr(self.function, "load_state_dict")
        self.state_name = "adjust" if learns else None

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        given_B = np.where(np.isfinite(score_B), score_B, np.nan)
        with users_code(self.name):
            adjusted_B = self.function(given_B.copy(), buffer)
        return self._checked(adjusted_B, given_B)

    def _checked(self, adjusted_B: Any, given_B: Floats) -> Floats:
        rows = len(given_B)
        if not isinstance(adjusted_B, np.ndarray) or adjusted_B.shape != (rows,) or adjusted_B.dtype.kind != "f":
            raise UsageError(
                f"{self.name} returned {_described(adjusted_B)}, expected the scores to go on with, a NumPy array of "
                f"floats of shape ({rows},), NaN for a row that isn't in"
            )
        in_B, finite_B = ~np.isnan(given_B), np.isfinite(adjusted_B)
        if (infinite := np.flatnonzero(np.isinf(adjusted_B))).size:
            raise UsageError(f"{self.name} gave row {infinite[0]} of a buffer an infinite score")
        if (strangers := np.flatnonzero(finite_B & ~in_B)).size:
            raise UsageError(
                f"{self.name} keeps too many: it gave a score to {strangers.size} of the {rows} rows of a buffer that "
                f"came with NaN and aren't to be had (the first is row {strangers[0]})"
            )
        if in_B.any() and not finite_B.any():
            raise UsageError(
                f"{self.name} keeps none: it left out all {in_B.sum()} rows that a buffer has to choose from"
            )
        return adjusted_B.astype(np.float64)

    def state_dict(self) -> Any:
        with users_code(f"{self.name}: its state_dict"):
            state = self.function.state_dict()
        try:
            return json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError) as exc:
            raise UsageError(f"{self.name}: its state_dict is no plain values (numbers, text, lists): {exc}") from exc

    def load_state_dict(self, state: Any) -> None:
        if state is None:
            raise MismatchError(f"the checkpoint holds no state of {self.name}")
        with users_code(f"{self.name}: its load_state_dict"):
            self.function.load_state_dict(state)


def make(value: str) -> Own:
    """Of `package.module:name`. Raises UsageError."""
    if ":" not in value:
        raise UsageError(f"--adjust {value}: expected package.module:name, a function of (scores, buffer)")
    return Own(f"--adjust {value}", own_function("--adjust", value))


def made(option: str, how: str | Callable[[Any], Any], value: Any) -> Adjust:
    """What re-ranks for an option of this value: by the file `how` of this folder, or by that function."""
    maker = importlib.import_module(f"rhostream.selection.adjust.{how}").make if isinstance(how, str) else how
    adjust = maker(value)
    return adjust if isinstance(adjust, Adjust) else Own(f"--{option.replace('_', '-')} {value}", adjust)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
