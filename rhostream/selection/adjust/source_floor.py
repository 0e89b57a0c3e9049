"""`source_floor`: at least a share of a batch is of a source, as far as the buffer has scored samples of it."""

from __future__ import annotations

import numpy as np

from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.source_quota import Shares, SourceQuota
from rhostream.selection.uniform import Floats


class SourceBounds(Adjust):
    """Ranks first what floors ask for, and leaves out what is beyond a cap. The scores it gives are places."""

    turn = Turn.sources

    def __init__(self, quota: SourceQuota) -> None:
        self.quota = quota

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        assert buffer.source_B is not None
        rows = self.quota.admit(buffer.order(score_B), buffer.source_B, buffer.source_names, buffer.n)
        ranked_B = np.full_like(score_B, np.nan)
        ranked_B[rows] = -np.arange(len(rows))
        return ranked_B


def make(value: Shares) -> SourceBounds:
    """Of {source: share}."""
    return SourceBounds(SourceQuota(floors=value))
