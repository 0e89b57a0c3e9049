"""Shadow scoring: what each other rule would have kept from the same forward; it decides and costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rhostream.selection.choice import Choice, Draws, Floats, Whole, by_importance, largest, the_best
from rhostream.selection.rules import Evidence, Rule


def shadow_scores(rules: Sequence[Rule], evidence: Evidence, live: Evidence | None) -> Tensor:
    """(rules, m) on the device; `evidence` has the table's il, `live` that of a model that learns along, if any."""
    scores = [
        torch.full_like(evidence.loss_B, torch.nan)
        if rule.score is None
        else rule(live if rule.live and live is not None else evidence)
        for rule in rules
    ]
    return torch.stack(scores) if scores else evidence.loss_B.new_zeros(0, len(evidence.loss_B))


def plain_choice(rule: Rule, whole: Whole, score: Floats, n: int, draws: Draws) -> Choice:
    """What the rule keeps without any option: a random n, the n largest, or n draws."""
    if rule.score is None:
        return the_best(draws.uniform(whole.place, whole.label, n))
    if rule.sampled:
        return sampled(score, n, draws)
    chance = whole.chance if rule.needs_il and not rule.live else np.zeros(len(score), bool)
    return largest(replace(whole, chance=chance), score, n, draws.among_missing("batch"))


def sampled(score: Floats, n: int, draws: Draws) -> Choice:
    """Importance sampling; of n candidates and fewer each is taken once, which is their mean without any variance."""
    finite = np.flatnonzero(np.isfinite(score))
    return the_best(finite) if len(finite) <= n else by_importance(score, n, draws.by_step("importance"))
