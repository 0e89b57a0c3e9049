"""Kept samples augmented, they alone: decoded again from their bytes, or changed on the device by a user's function.

What is drawn is a function of (seed, pass, shard, ordinal): of the sample and how often it was gone through, not of the
step, the rank, the worker or the place in a buffer. What is scored stays the plain sample, of which the il was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Candidates
from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.randomness import generator, torch_seed
from rhostream.samples.fields import Fields, Input
from rhostream.samples.image import PARTS
from rhostream.samples.kind import DECODE, Kind
from rhostream.samples.registry import IMAGES

NONE = "none"
AGAIN = (*IMAGES.augmentations, DECODE)


@dataclass(frozen=True)
class Transform:
    """A user's `function(input_b, seed_b)` of the kept inputs (n, ...) and of a seed (n,) int64 for each."""

    name: str
    function: Callable[[Tensor, Tensor], Any]
    seed: int

    def seeds(self, candidates: Candidates, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) of the rows, in [0, 2**62): whoever reads a row knows its name, so seeds travel with the rows."""
        assert candidates.shard_names is not None
        shards, ordinals = candidates.shard[rows].tolist(), candidates.ordinal[rows].tolist()
        drawn = [
            torch_seed(*words_of(self.seed, candidates.pass_index, candidates.shard_names[shard].as_py(), ordinal))
            for shard, ordinal in zip(shards, ordinals, strict=True)
        ]
        return np.array(drawn, np.int64)

    def __call__(self, x: Input, seed_b: Tensor) -> Tensor:
        """The inputs to learn from; `x` stays as it is. Raises UsageError for what is no input of as many samples."""
        if isinstance(x, Fields):
            raise UsageError(f"augment {self.name!r} is of one input, and these samples have {', '.join(x.names)}")
        if not len(x):
            return x
        with torch.no_grad(), users_code(f"augment {self.name!r}, of inputs {tuple(x.shape)},"):
            changed: object = self.function(x.clone(), seed_b)
        expected = f"expected a tensor of {len(x):,} rows on {x.device}, an input for each seed"
        if not isinstance(changed, Tensor):
            raise UsageError(f"augment {self.name!r} returned a {type(changed).__name__}, {expected}")
        if changed.ndim < 1 or len(changed) != len(x) or changed.device != x.device:
            raise UsageError(
                f"augment {self.name!r} returned shape {tuple(changed.shape)} on {changed.device}, {expected}"
            )
        return changed.detach()


def words_of(seed: int, pass_index: int, shard: str, ordinal: int) -> tuple[object, ...]:
    """What the draws of a kept sample are a function of."""
    return seed, "augment", pass_index, shard, ordinal


def drawing(seed: int, pass_index: int) -> Callable[[str, int], np.random.Generator]:
    """The generator of a sample of (shard, ordinal) in a pass, by which it is decoded again."""
    return lambda shard, ordinal: generator(*words_of(seed, pass_index, shard, ordinal))


def check_name(name: str, others: tuple[str, ...] = (NONE,)) -> None:
    """Raise UnknownNameError for no augmentation, UsageError where a user's function can't be had."""
    if ":" in name:
        own_function("augment", name)
    elif name not in (*others, *AGAIN):
        parts = name.replace("+", "-").split("-")
        ordered = "-".join(part for part in PARTS if part in parts)
        if set(parts) <= set(PARTS) and ordered in (*others, *AGAIN):  # one spelling, as runs are compared by it
            raise UnknownNameError(
                f"unknown augmentation {name!r}; did you mean {ordered!r}? Parts are joined by '-' in the order "
                f"{', '.join(PARTS)}"
            )
        raise UnknownNameError.of("augmentation", name, (*others, *AGAIN, "package.module:function"))


def augment_of(name: str, kind: Kind, seed: int) -> Kind | Transform | None:
    """The kind that decodes again, or the transform of the inputs; None for none. Raises UsageError."""
    check_name(name)
    if name == NONE:
        return None
    return Transform(name, own_function("augment", name), seed) if ":" in name else kind.augmented(name)
