"""What a reader of a run asks: the state in force, with every segment that counts; no torch.

    chain > head (its newest segments) > latest (all of them)

The links themselves are `link` and `chain`, the tensors `tensors`, what older versions wrote `old`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhostream.errors import MismatchError
from rhostream.runs import chain
from rhostream.runs.attempts import claim_attempt, newest_attempt, require_newest
from rhostream.runs.chain import head
from rhostream.runs.link import Link

__all__ = ["Checkpoint", "claim_attempt", "head", "latest", "newest_attempt", "require_newest", "require_same"]
Checkpoint = Link


def latest(run: str) -> Link | None:
    """The state in force with all segments of its branch, None before the first commit.

    Raises TableError when it, or a link that it builds on, can't be understood.
    """
    link = head(run)
    return None if link is None else chain.with_segments(run, link)


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> None:
    """Raise MismatchError naming the first fields that differ, with both values."""
    differ = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if differ:
        detail = "; ".join(f"{k}: was {old.get(k)!r}, now {new.get(k)!r}" for k in differ)
        raise MismatchError(
            f"{what} was started with other settings ({detail}); use the old ones to resume it, or another --run"
        )
