"""Shadow scoring: what each other rule would have kept from the same forward; it decides and costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rhostream.selection.adjust.shape import Bools, Buffer, Float32
from rhostream.selection.choice import Choice, largest, once_each, sampled
from rhostream.selection.rules import Evidence, Rule
from rhostream.selection.uniform import Ints


@dataclass(frozen=True)
class ShadowScores:
    """What each shadow rule made of the rows that reached the target: rules in the order of the selector's."""

    rows: Ints  # (m,) of the buffer, ascending
    score: Float32  # (rules, m); NaN where a rule had nothing to rank by
    kept: Bools  # (rules, m)


def shadow_scores(rules: Sequence[Rule], evidence: Evidence, live: Evidence | None) -> Tensor:
    """(rules, m) on the device; `evidence` has the table's il, `live` that of a model that learns along, if any."""
    scores = [
        torch.full_like(evidence.loss_B, torch.nan)
        if rule.score is None
        else rule(live if rule.live and live is not None else evidence)
        for rule in rules
    ]
    return torch.stack(scores) if scores else evidence.loss_B.new_zeros(0, len(evidence.loss_B))


def shadow_kept(rules: Sequence[Rule], buffer: Buffer, own: slice) -> ShadowScores | None:
    """What each rule keeps without any option, of a rank's `own` slice of the buffer; None without rules."""
    if not rules:
        return None
    kept_SB = np.zeros(buffer.shadow_SB.shape, bool)
    for kept_B, rule, score_B in zip(kept_SB, rules, buffer.shadow_SB, strict=True):
        kept_B[_plain(rule, replace(buffer, score_B=score_B)).kept] = True
    rows = np.flatnonzero(buffer.reached_B[own])
    return ShadowScores(rows, buffer.shadow_SB[:, own][:, rows].astype(np.float32), kept_SB[:, own][:, rows])


def _plain(rule: Rule, buffer: Buffer) -> Choice:
    if rule.score is None:
        rows = np.flatnonzero(buffer.reached_B)
        return once_each(buffer.draws.uniform(rows, buffer.label_B[rows], buffer.n), len(buffer.score_B))
    if rule.sampled:
        return sampled(buffer)
    return largest(buffer)
