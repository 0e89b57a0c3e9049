"""The marks that a scan puts on rows: which rows a fit reads at all, and the folds of several models in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from rhostream.errors import UsageError
from rhostream.il_model.folds import FoldRule
from rhostream.randomness import fraction
from rhostream.stream.chunks import Chunk

T = TypeVar("T")
_RADIX = 128  # above the largest number of folds


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


@dataclass(frozen=True)
class Marks:
    """The marks of several rules in one number, so that one pass over the shards serves several models.

    Equal rules share a digit; a rule of mode holdout marks nothing. Picklable, as it goes to the workers.
    """

    rules: tuple[FoldRule, ...]  # those that differ, in the order of their digits
    digit: tuple[int, ...]  # of each model; -1: none

    @classmethod
    def of(cls, rules: Sequence[FoldRule]) -> Marks:
        """For the rules of some models. Raises UsageError when so many differ that their marks don't fit."""
        distinct = tuple(dict.fromkeys(rule for rule in rules if rule.mode != "holdout"))
        if _RADIX ** len(distinct) > 2**62:
            raise UsageError(f"{len(distinct)} different splits in one pass: at most 8 fit, score them in two jobs")
        return cls(distinct, tuple(distinct.index(r) if r in distinct else -1 for r in rules))

    @property
    def mark(self) -> Marks | FoldRule | None:
        """What the scan is to mark rows with: nothing where every mark would be 0."""
        return self if len(self.rules) > 1 else self.rules[0] if self.rules else None

    def __call__(self, shard: str, key: str, group: str | None) -> int:
        """All marks of a sample."""
        return sum(rule(shard, key, group) * _RADIX**at for at, rule in enumerate(self.rules))

    def own(self, model: int, score: Callable[[Chunk, str], T]) -> Callable[[Chunk, str], T]:
        """`score` of one model, given chunks with that model's own marks."""
        if len(self.rules) < 2:
            return score
        digit = self.digit[model]

        def scored(chunk: Chunk, name: str) -> T:
            mark = chunk.mark // _RADIX**digit % _RADIX if digit >= 0 else np.zeros_like(chunk.mark)
            return score(replace(chunk, mark=mark), name)

        return scored
