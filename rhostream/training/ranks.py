"""Which rank this process is. Training runs on one rank; the plan, the log and the tables already know of more."""

from __future__ import annotations

import os

from rhostream.errors import UsageError


def require_single() -> None:
    """Raise UsageError when a launcher started several ranks: each would claim the run from the other."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world not in ("", "1"):
        raise UsageError(f"WORLD_SIZE is {world}, but `rhostream train` runs on one rank; in your own loop give "
                         "open_stream(rank=..., ranks=...) to split every buffer")
