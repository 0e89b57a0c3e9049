"""Which sample belongs to which fold: one pure function of names, used when fitting and again when scoring.

A leak is silent, so nothing here depends on an order, a count or a random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from rhostream.errors import UsageError

MODES = ("folds", "fraction", "holdout")


def position_of(seed: int, shard: str, key: str, group: str | None = None) -> int:
    """A sample's place on a line of 2^64: a hash of (seed, shard, key), or of (seed, group) where there is a group."""
    words = f"{seed}\0{shard}\0{key}" if group is None else f"{seed}\0\0{group}"
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def fold_of(seed: int, folds: int, shard: str, key: str, group: str | None = None) -> int:
    """The fold of a sample, 0 to folds - 1; with a group, whole groups share a fold whatever their shards."""
    return position_of(seed, shard, key, group) % folds


@dataclass(frozen=True, kw_only=True)
class FoldRule:
    """How D is split; part of every fingerprint.

    folds: model i learns from the samples of the other folds and scores fold i. fraction: one model learns from the
    samples whose hash lies below `fraction`. holdout: one model learns from shards of its own.
    """

    mode: str = "folds"
    folds: int = 2
    seed: int = 0
    group_by: str | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.mode == "folds" and not 2 <= self.folds <= 100:
            raise UsageError(f"--folds {self.folds}: expected 2 to 100")
        if self.mode == "fraction" and not 0 < (self.fraction or 0) < 1:
            raise UsageError(f"--holdout-fraction {self.fraction}: expected a number between 0 and 1")

    @property
    def models(self) -> int:
        """How many models there are."""
        return self.folds if self.mode == "folds" else 1

    def __call__(self, shard: str, key: str, group: str | None) -> int:
        """The fold (folds), 1 in the holdout and 0 outside (fraction), or 0 (holdout)."""
        if self.mode == "folds":
            return fold_of(self.seed, self.folds, shard, key, group)
        if self.mode == "fraction":
            return int(position_of(self.seed, shard, key, group) < (self.fraction or 0.0) * 2**64)
        return 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for model.json and the fingerprint."""
        return asdict(self)
