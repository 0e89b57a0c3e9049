"""An IL model, proved: the weights that model.json names, by their sha256, and those of its checkpoints."""

from __future__ import annotations

from typing import Any

from rhostream import storage
from rhostream.errors import NotFoundError, TableError, UsageError
from rhostream.il_model.info import ModelInfo, require_info


def prove_il_model(folder: str) -> dict[str, Any]:
    """{"kind": "il-model", "files", "rows": 0, "problems", "warnings", "next"} of a (resolved) folder."""
    info = require_info(folder)
    problems, files = _problems(folder, info), len(info.files)
    for listed in info.checkpoints:
        place = storage.join(folder, listed["folder"])
        try:
            earlier = require_info(place)
        except (TableError, UsageError) as exc:
            problems.append(f"checkpoint {listed['folder']}: {exc}")
            continue
        problems += _problems(place, earlier)
        files += len(earlier.folds)
    return {
        "kind": "il-model",
        "files": files,
        "rows": 0,
        "problems": problems,
        "warnings": [],
        "next": "run the same `rhostream fit-il` again, into another --out" if problems else "nothing: all is well",
    }


def _problems(folder: str, info: ModelInfo) -> list[str]:
    problems = []
    for name, digest in info.files:
        url = storage.join(folder, name)
        try:
            if storage.digest_of(url)[1] != digest:
                problems.append(f"{storage.redact(url)} isn't the file that model.json names (sha256 differs)")
        except NotFoundError:
            problems.append(f"{storage.redact(url)} is named by model.json but is gone")
    return problems
