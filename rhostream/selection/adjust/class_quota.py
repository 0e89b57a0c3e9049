"""`class_quota`: no class has more than its share of a batch, or each has a weight (`class_weights`)."""

from __future__ import annotations

import numpy as np

from rhostream.selection.adjust.class_weights import ClassWeights
from rhostream.selection.adjust.shape import Adjust, Buffer, Turn
from rhostream.selection.quota import ClassQuota, limited, parse_quota
from rhostream.selection.uniform import Floats


class Quota(Adjust):
    turn = Turn.quota

    def __init__(self, quota: ClassQuota) -> None:
        self.quota = quota

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        rows = limited(buffer.order(score_B), buffer.label_B, buffer.n, self.quota)
        within_B = np.full_like(score_B, np.nan)
        within_B[rows] = score_B[rows]
        return within_B


def make(value: str | float) -> Adjust:
    """Of what `parse_quota` reads. Raises UsageError."""
    quota = parse_quota(value)
    assert quota is not None
    return ClassWeights(quota.value) if quota.kind == "reducr" else Quota(quota)
