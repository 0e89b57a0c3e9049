"""The samples of a fit: what is learned from, the fold or slice that judges included, and some of D."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from rhostream.il_model.folds import FoldRule
from rhostream.irreducible.crossfit import (
    CHECK_SAMPLES,
)
from rhostream.irreducible.marks import Only, Outside, Places
from rhostream.irreducible.pool import Pool, fill
from rhostream.stream.scan import ScanSettings


def drawn(
    rule: FoldRule,
    data: list[tuple[str, str]],
    own: list[tuple[str, str]],
    settings: ScanSettings,
    samples: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[Pool, Pool | None]:
    """What is learned from, the fold or slice that judges included; and samples of D that are in no holdout."""
    if rule.mode == "fraction":
        settings = replace(settings, mark=Only(rule, 1))
    elif rule.mode == "holdout":
        settings = replace(settings, mark=Places(seed))
    pool = fill(own, settings, samples=samples, seed=seed, title="fit-il: reading", **options)
    if pool.watched:
        warnings.warn(
            f"{pool.watched:,} samples are marked as duplicates (duplicate_of), and copies of one image can "
            "fall into different folds, which leaks; keep them together with --group-by duplicate_of",
            stacklevel=3,
        )
    if rule.mode == "folds":
        return pool, None
    outside = Outside(frozenset(name for _, name in own)) if rule.mode == "holdout" else Only(rule, 0)
    of_d = fill(
        data,
        replace(settings, mark=outside, watch=None),
        samples=min(CHECK_SAMPLES, samples),
        seed=seed + 1,
        title="fit-il: reading a sample of D",
        may_be_empty=rule.mode == "holdout",
        **options,
    )
    return pool, of_d
