"""An IL model, proved: the weights that model.json names, by their sha256, and those of its checkpoints."""

from __future__ import annotations

import json
from typing import Any

from rhostream import storage
from rhostream.errors import NotFoundError, TableError, UsageError
from rhostream.foreign import checked_path


def is_il_model(folder: str) -> bool:
    """Whether what fit-il writes stands there."""
    return storage.exists(storage.join(folder, "model.json"))


def read_model(folder: str) -> dict[str, Any]:
    """model.json as it stands. Raises TableError when it can't be understood."""
    url = storage.join(folder, "model.json")
    try:
        record = json.loads(storage.read_bytes(url))
        if not isinstance(record, dict) or not isinstance(record["folds"], list):
            raise ValueError("expected an object with folds")
        for fold in record["folds"]:
            checked_path(fold["weights"]), str(fold["sha256"])
        for listed in record.get("checkpoints") or ():
            if "/" in checked_path(listed["folder"]):
                raise ValueError(f"checkpoint {listed['folder']!r} is no folder of this one")
        return record
    except (ValueError, TypeError, KeyError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def prove_il_model(folder: str) -> dict[str, Any]:
    """{"kind": "il-model", "files", "rows": 0, "problems", "warnings", "next"} of a (resolved) folder."""
    record = read_model(folder)
    problems, files = _problems(folder, record), len(record["folds"])
    for listed in record.get("checkpoints") or ():
        place = storage.join(folder, listed["folder"])
        try:
            found = read_model(place)
        except (NotFoundError, TableError, UsageError) as exc:
            problems.append(f"checkpoint {listed['folder']}: {exc}")
            continue
        problems += _problems(place, found)
        files += len(found["folds"])
    return {
        "kind": "il-model",
        "files": files,
        "rows": 0,
        "problems": problems,
        "warnings": [],
        "next": "run the same `rhostream fit-il` again, into another --out" if problems else "nothing: all is well",
    }


def _problems(folder: str, record: dict[str, Any]) -> list[str]:
    problems = []
    for fold in record["folds"]:
        url = storage.join(folder, fold["weights"])
        try:
            if storage.digest_of(url)[1] != fold["sha256"]:
                problems.append(f"{storage.redact(url)} isn't the file that model.json names (sha256 differs)")
        except NotFoundError:
            problems.append(f"{storage.redact(url)} is named by model.json but is gone")
    return problems
