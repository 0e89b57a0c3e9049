"""CIFAR100-Relevance (paper, section 4.3): 20 random classes whole and 6 % of the other 80, so 80 % from 20 %."""

from __future__ import annotations

import os

import numpy as np

from rhostream.errors import UsageError
from shards.cifar_files import read_cifar
from shards.recipes.cifar100 import CLASS_NAMES, LAYOUT, of_rows
from shards.sample import Ints, SampleSet, generator, seeded_rows


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    relevant_classes: int = 20,
    others_share: float = 0.06,
    require_checksums: bool = False,
) -> SampleSet:
    """CIFAR-100 with few samples of most classes; the facts say `relevant: bool`.

    The relevant classes hang on the seed alone, so holdout (`skip`, or the other split) and test are alike. Of each
    other class a share `others_share` stays, at least one sample, drawn by the seed.
    Raises UsageError for a number of classes or a share out of range, and as the recipe cifar100.
    """
    if not 1 <= relevant_classes < len(CLASS_NAMES):
        raise UsageError(f"{relevant_classes} relevant classes, expected 1 to {len(CLASS_NAMES) - 1}")
    if not 0 < others_share <= 1:  # NaN fails as well
        raise UsageError(f"others' share is {others_share}, expected more than 0 and at most 1")
    chosen = relevant(seed, relevant_classes)
    cifar = read_cifar(LAYOUT, source, split, require_checksums=require_checksums)
    shuffled = generator(seed, "relevance").permutation(len(cifar.labels))
    kept: list[Ints] = []
    for label in range(len(CLASS_NAMES)):
        own = shuffled[cifar.labels[shuffled] == label]
        kept.append(own if label in chosen else own[: max(round(others_share * len(own)), 1)])
    candidates = np.sort(np.concatenate(kept))
    rows = candidates[seeded_rows(len(candidates), limit=limit, skip=skip, seed=seed)]
    return of_rows(cifar, rows, split, {label: {"relevant": label in chosen} for label in range(len(CLASS_NAMES))})


def relevant(seed: int, classes: int) -> frozenset[int]:
    """The classes that are kept whole."""
    return frozenset(generator(seed, "relevant classes").permutation(len(CLASS_NAMES))[:classes].tolist())
