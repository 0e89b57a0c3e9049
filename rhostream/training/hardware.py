"""How a run computes: its precisions and its threads, each proved usable before any work."""

from __future__ import annotations

import torch

from rhostream.errors import UsageError
from rhostream.selection.hardware import bf16_supported, cores
from rhostream.training.ranks import ranks_here

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def autocast(option: str, precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of that precision, None for float32. Raises UsageError where it would be slower than float32."""
    if precision not in PRECISIONS:
        raise UsageError(f"{option} {precision!r}: expected one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    if dtype is not None and not bf16_supported(device):
        raise UsageError(
            f"{option} {precision}: this {device.type} has no bfloat16 arithmetic, and emulating it is "
            "slower than float32; leave it out"
        )
    return dtype


def threads_of(asked: int | None, workers: int, recorded: int | None) -> int:
    """Threads of the model's arithmetic: as asked, else as the run began, else the cores that are left.

    Left are the cores that this machine's ranks share, without those of the workers.

    They are part of a run, because bfloat16 and backward passes round differently with another number.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"--threads {asked}: expected at least 1")
    return asked or recorded or max(1, cores() // ranks_here() - workers)
