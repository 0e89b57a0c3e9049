"""run.json: how a run began. Made once, create-only, and never written again."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rhostream import storage
from rhostream.errors import TableError
from rhostream.foreign import as_label, checked_run, is_class_name, read_object

VERSION = 1


def recorded(run: str) -> dict[str, Any]:
    """What run.json says, {} before the run's start."""
    url = storage.join(run, "run.json")
    try:
        return checked_run(read_object(storage.read_bytes(url))) if storage.exists(url) else {}
    except ValueError as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: metadata.version(name) for name in ("rhostream", "torch", "numpy", "pyarrow", "pillow")}


def class_names(record: Mapping[str, Any]) -> dict[int, str]:
    """{label: name} as run.json says it, {} where it says nothing; what can't be a label or a name is left out."""
    said = record.get("class_names") or {}
    pairs = enumerate(said) if isinstance(said, list) else said.items()
    named = ((as_label(key), name) for key, name in pairs if is_class_name(name))
    return {label: name for label, name in named if label is not None}
