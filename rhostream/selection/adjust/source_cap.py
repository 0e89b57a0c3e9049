"""`source_cap`: at most a share of a batch is of a source."""

from __future__ import annotations

from rhostream.selection.adjust.source_floor import SourceBounds
from rhostream.selection.source_quota import Shares, SourceQuota


def make(value: Shares) -> SourceBounds:
    """Of {source: share}."""
    return SourceBounds(SourceQuota(caps=value))
