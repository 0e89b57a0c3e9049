"""A run as its trackers see it: every k-th step's numbers, each evaluation, at the end its cost and what is doubtful.

Only the first rank has trackers. Nothing here waits for a tracker but the end of a run, and that not for long.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rhostream.trackers.names import AskedTracker
from rhostream.trackers.process import TrackerProcess

LOG = logging.getLogger("rhostream")
END_SECONDS = 30.0  # that a run which came to its end waits for its trackers, all together
STOP_SECONDS = 1.0  # the same of one that was stopped: whoever stopped it may not wait for much longer
_TEXT = 500  # letters of a setting; a list of shards may have millions


class Tracking:
    """The trackers of one attempt; to be used as a context manager.

    `about`: what a tracker is told at the beginning: {"id", "name", "folder", "step", "config"}: the id of its own
    run, which stays the same however often the run is resumed; a name for people; the run's folder; the step that
    this attempt begins at; and the settings.
    """

    def __init__(self, asked: tuple[AskedTracker, ...], every: int, about: Mapping[str, Any]) -> None:
        self._every = every
        told = {**about, "config": dict(flat(about.get("config") or {}))}
        self._processes = [TrackerProcess(one, told) for one in asked]
        self._samples, self._since = 0, time.monotonic()
        self.complete = False  # whether the run came to its end
        self.summary: dict[str, Any] = {}  # what is told at the end

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the trackers that it is over, and wait for them a little."""
        until = time.monotonic() + (END_SECONDS if self.complete else STOP_SECONDS)
        for one in self._processes:
            one.close({"complete": self.complete, "summary": dict(flat(self.summary))})
        for one in self._processes:
            one.wait(until)

    def step(self, numbers: Mapping[str, Any]) -> None:
        """The numbers of a step, by name; its `planned` samples make a rate."""
        self._samples += numbers["planned"]
        evaluated = any(name.startswith("test_") and value is not None for name, value in numbers.items())
        if numbers["step"] % self._every and not evaluated:
            return
        now = time.monotonic()
        rate = {"samples_per_second": self._samples / max(now - self._since, 1e-9)}
        self._samples, self._since = 0, now
        known = {
            name: value for name, value in {**numbers, **rate}.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }  # fmt: skip
        for one in self._processes:
            one.put({"step": numbers["step"], "numbers": known})


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A tree of values as (path, plain value): numbers and texts, what is neither as text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif (
            value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
        ):
            yield f"{prefix}{name}", value[:_TEXT] if isinstance(value, str) else value
        else:
            yield f"{prefix}{name}", str(list(value)[:20] if isinstance(value, list | tuple) else value)[:_TEXT]
