"""Named places where a test kills the process with SIGKILL, as a bad night would; off, each costs one `if`.

    RHOSTREAM_CRASH_POINT="checkpoint: tensors written@3" rhostream train ...

dies at the third passing of that point, counted in each process for itself. `tests/faults/test_e_crashes.py` finds the
points in the source and tries every one, so a new one needs no other entry than its call.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

_LOCK = threading.Lock()
_passings: Counter[str] | None = None  # None: off
_target: tuple[str, int] = ("", 0)


def crash_point(name: str) -> None:
    """Die here if this passing of `name` was asked for. The name is a literal: tests read it from the source."""
    if _passings is not None:
        _pass(name)


def arm(spec: str) -> None:
    """Count passings from now on, and die at `NAME@N`; with "" only count."""
    global _passings, _target
    name, _, number = spec.rpartition("@")
    _passings, _target = Counter(), (name, int(number or 0))


def passings() -> dict[str, int]:
    """How often each point was passed since `arm`."""
    return dict(_passings or {})


def _pass(name: str) -> None:
    assert _passings is not None
    with _LOCK:  # commits pass theirs in threads of their own
        _passings[name] += 1
        if (name, _passings[name]) == _target:
            os.kill(os.getpid(), signal.SIGKILL)


if "RHOSTREAM_CRASH_POINT" in os.environ:
    arm(os.environ["RHOSTREAM_CRASH_POINT"])
