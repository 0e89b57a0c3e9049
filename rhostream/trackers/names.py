"""The trackers by name, and whether what was asked for can be had: `wandb`, `mlflow:my-experiment`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from rhostream.errors import MissingExtraError, UnknownNameError, UsageError

# name, which is that of its package, its extra and its file here: what may stand behind its colon
TRACKERS = {"tensorboard": "FOLDER", "wandb": "PROJECT", "mlflow": "EXPERIMENT", "trackio": "PROJECT"}
PROJECT = "rhostream"  # where none is named


@dataclass(frozen=True)
class AskedTracker:
    """A tracker that was asked for."""

    name: str
    target: str  # the project, the experiment or the folder; "" for the default


def checked_trackers(track: str | Iterable[str]) -> tuple[AskedTracker, ...]:
    """The trackers of `track`, a name or several. Imports none of them.

    Raises UnknownNameError, UsageError for one that is named twice, MissingExtraError naming the pip line.
    """
    asked: list[AskedTracker] = []
    for given in (track,) if isinstance(track, str) else track:
        name, colon, target = str(given).partition(":")
        if name not in TRACKERS:
            raise UnknownNameError.of("tracker", name, TRACKERS)
        if colon and not target.strip():
            raise UsageError(f"--track {given}: expected {name}:{TRACKERS[name]}, or {name} alone")
        if any(one.name == name for one in asked):
            raise UsageError(f"--track {given}: {name} was asked for twice")
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError.of(name, name)
        asked.append(AskedTracker(name, target.strip()))
    return tuple(asked)
