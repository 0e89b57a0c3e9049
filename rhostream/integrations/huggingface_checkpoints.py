"""The run's part of the folders `checkpoint-N` of transformers' Trainer, and which of them were saved whole.

The Trainer writes into the folder itself, so one that was killed there leaves a folder that looks like a checkpoint.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from rhostream.errors import MismatchError, UsageError

STATE = "rhostream.pt"  # in a checkpoint's folder
LAST = "trainer_state.json"  # what the Trainer writes last there


def write(state: dict[str, Any], folder: Path) -> None:
    """Write the run's state; a folder that is written over is no checkpoint until the Trainer's last file is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LAST).unlink(missing_ok=True)
    torch.save(state, folder / f"{STATE}.part")
    os.replace(folder / f"{STATE}.part", folder / STATE)


def newest_whole(folder: str) -> str:
    """The newest checkpoint that was saved whole. Raises UsageError where there is none."""
    found = {}
    for path in Path(folder).glob("checkpoint-*"):
        if (number := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found[int(number[1])] = path
    for _, path in sorted(found.items(), reverse=True):
        if (path / STATE).exists() and (path / LAST).exists():
            return str(path)
    raise UsageError(
        f"resume_from_checkpoint=True: {folder} holds no checkpoint of a run that was saved whole"
        + (f", {len(found)} without {STATE} or {LAST}" if found else "")
    )


def require_whole(folder: str) -> None:
    """Raise MismatchError for a folder without a run's state, and one that the Trainer didn't come to the end of."""
    if not Path(folder, STATE).exists():
        raise MismatchError(
            f"{folder} holds no state of a run ({STATE}): it was saved without SelectionTrainer, or the model only; "
            "begin with its weights, from_pretrained, and without resume_from_checkpoint"
        )
    if not Path(folder, LAST).exists():
        raise MismatchError(f"{folder} was not saved whole ({LAST} is missing): go on from the checkpoint before it")


def read(folder: str) -> Any:
    """The run's state; nothing in it is run. Raises MismatchError for a file that holds none."""
    try:
        return torch.load(Path(folder, STATE), map_location="cpu", weights_only=True)
    except Exception as exc:  # whatever a broken file makes the reader raise
        raise MismatchError(f"{STATE} of {folder} can't be read ({type(exc).__name__})") from exc
