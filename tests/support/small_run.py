"""A run of few steps on the shared world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rhostream
from rhostream.training.start import train


def go(world: Path, folder: Path, steps: int = 6, **more: Any) -> rhostream.training.start.Summary:  # type: ignore[name-defined]
    settings: dict[str, Any] = {
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "checkpoint_every": 6,
        "threads": 1,
        "steps": steps,
        **more,
    }
    return train(str(world / "shards"), str(world / "il"), str(folder), **settings)
