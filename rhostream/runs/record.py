"""run.json: how a run began. Made once, create-only, and never written again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rhostream import storage
from rhostream.errors import TableError
from rhostream.foreign import as_label, is_class_name, read_object
from rhostream.runs.claims import checked_run

VERSION = 1
FILE = "run.json"


def is_run(folder: str) -> bool:
    """Whether a run began in a (resolved) folder."""
    return storage.exists(storage.join(folder, FILE))


def write_record(run: str, body: Mapping[str, Any]) -> None:
    """Write run.json of a (resolved) folder; values that JSON has no word for as text. Raises AlreadyExistsError."""
    data = json.dumps({"version": VERSION, **body}, indent=1, sort_keys=True, default=str).encode()
    storage.create(storage.join(run, FILE), data)


def remove_record(run: str) -> None:
    """Undo `write_record` of a run that was refused before its first commit."""
    storage.delete(storage.join(run, FILE))


def recorded(run: str) -> dict[str, Any]:
    """What run.json of a (resolved) folder says, {} before the run's start. Raises TableError for a damaged one."""
    url = storage.join(run, FILE)
    try:
        return checked_run(read_object(storage.read_bytes(url))) if is_run(run) else {}
    except ValueError as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: metadata.version(name) for name in ("rhostream", "torch", "numpy", "pyarrow", "pillow")}


def gone_from(record: Mapping[str, Any]) -> str:
    """What a run of `train` was begun with that this version doesn't have, in words; "" where there is nothing."""
    pinned = record.get("fingerprints") or {}
    if pinned.get("selection", "global") != "global":
        return f"selection {pinned['selection']!r}"
    return "missing_il 'uniform'" if pinned.get("missing_il") == "uniform" else ""


def class_names(record: Mapping[str, Any]) -> dict[int, str]:
    """{label: name} as run.json says it, {} where it says nothing; what can't be a label or a name is left out."""
    said = record.get("class_names") or {}
    pairs = enumerate(said) if isinstance(said, list) else said.items()
    named = ((as_label(key), name) for key, name in pairs if is_class_name(name))
    return {label: name for label, name in named if label is not None}
