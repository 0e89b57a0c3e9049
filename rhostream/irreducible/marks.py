"""The marks that a scan puts on rows for a fit: which rows are read at all, and which are kept back."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.il_model.folds import FoldRule
from rhostream.randomness import fraction


@dataclass(frozen=True)
class Only:
    """A mark that lets one value of a rule through and makes all others negative, so that they are not read."""

    rule: FoldRule
    value: int

    def __call__(self, shard: str, key: str, group: str | None) -> int:
        mark = self.rule(shard, key, group)
        return mark if mark == self.value else -1


@dataclass(frozen=True)
class Outside:
    """A mark that is negative, so that nothing is read, in some shards (those of a holdout), and 0 in all others."""

    shards: frozenset[str]

    def __call__(self, shard: str, key: str, group: str | None) -> int:
        return -1 if shard in self.shards else 0


@dataclass(frozen=True)
class Places:
    """A mark by which a slice of the holdout is kept back: a sample's place on a line of 2^53.

    With a group it is the group's place, so near-duplicates are kept back, or learned from, together.
    """

    seed: int

    def __call__(self, shard: str, key: str, group: str | None) -> int:
        words = (shard, key) if group is None else (group,)
        return int(fraction("kept back", self.seed, *words) * 2**53)
