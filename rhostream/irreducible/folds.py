"""Which sample belongs to which fold: one pure function of names, used when fitting and again when scoring.

A leak is silent, so nothing here depends on an order, a count or a random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rhostream.errors import UsageError
from rhostream.randomness import fraction
from rhostream.stream.chunks import Chunk

T = TypeVar("T")
_RADIX = 128  # above the largest number of folds
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
