"""Room for decoded samples: one array a field, made once and filled again and again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rhostream.errors import UsageError
from rhostream.samples.kind import FieldSpec


def slots(count: int, rows: int, fields: Mapping[str, FieldSpec], *, shared: bool) -> dict[str, Tensor]:
    """(count, rows, ...) of each field, in shared memory where workers fill it. Raises UsageError when that is too
    small."""
    made = {name: torch.empty((count, rows, *spec.shape), dtype=getattr(torch, spec.dtype))
            for name, spec in fields.items()}  # fmt: skip
    total = sum(array.nbytes for array in made.values())
    if shared:
        try:
            for array in made.values():
                array.share_memory_()
        except RuntimeError as exc:
            raise UsageError(
                f"no room for {total >> 20:,} MiB of samples in shared memory (/dev/shm), which the "
                "workers need: make it larger (docker: --shm-size), or use --workers 0"
            ) from exc
    return made
