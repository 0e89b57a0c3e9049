"""Streams opened on the shared world, and what a buffer of theirs holds."""

from __future__ import annotations

from pathlib import Path

import rhostream
from rhostream.candidates import Candidates


def open_world(world: Path, **options: object) -> object:
    il = options.pop("il", str(world / "il"))
    return rhostream.open_stream(str(world / "shards"), il, **{"buffer_size": 40, **options})


def content(candidates: Candidates) -> tuple[object, ...]:
    rows = candidates.candidate_rows
    return (
        candidates.pass_index,
        candidates.index,
        candidates.shard.tolist(),
        candidates.ordinal.tolist(),
        candidates.key.to_pylist(),
        candidates.label.tolist(),
        candidates.il.numpy().tobytes(),
        candidates.reason.tolist(),
        candidates.image.numpy()[rows].tobytes(),
    )
