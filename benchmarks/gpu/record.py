"""What was measured, as one JSON file a day and device: <date>-<device>.json, written after every part.

    {date, device, torch, command, commit, toy, data, ..., parts: {name: {state, says, seconds, figures}}}

A part's state is "done", "stopped" (its time was over: what it had by then is there), "skipped" or "failed"; `says` is
a sentence for people. The same command on the same day goes on: what is done stays.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import results

FOLDER = results.FOLDER / "gpu"
STATES = ("done", "stopped", "skipped", "failed")
Record = dict[str, Any]


def begin(folder: Path, command: str, *, toy: bool, data: str, minutes: float) -> tuple[Path, Record]:
    """Today's record of this device and where it lies, with the parts that an earlier command left there."""
    now = datetime.datetime.now(datetime.UTC)
    path = folder / f"{now:%Y-%m-%d}-{results.slug(results.device())}{'-toy' if toy else ''}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    return path, {
        "date": f"{now:%Y-%m-%d}",
        "time": f"{now:%H:%M:%S}",
        "device": results.device(),
        "gpu": torch.cuda.is_available(),
        "cpu": results.cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": results.commit(),
        "command": command,
        "toy": toy,
        "data": data,
        "minutes": minutes,
        "parts": before.get("parts", {}),
    }


def save(path: Path, record: Record) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def newest(folder: Path = FOLDER) -> Record | None:
    """The last one that was made on a GPU, not at toy size; None where there is none."""
    for path in sorted(folder.glob("*.json"), reverse=True):
        record: Record = json.loads(path.read_text())
        if record["gpu"] and not record["toy"]:
            return record
    return None
