"""Transforms of kept inputs as people bring them, by name: `tests.support.own_augments:NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.own_kinds import Vectors


def noise(input_b: Tensor, seed_b: Tensor) -> Tensor:
    """Each input with noise of its own seed; in place, as careless code does it."""
    for x, seed in zip(input_b, seed_b.tolist(), strict=True):
        x += 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return input_b


def told(input_b: Tensor, seed_b: Tensor) -> Tensor:
    """The seeds themselves, as far as float32 holds them."""
    return torch.zeros_like(input_b) + (seed_b % (1 << 20)).float().view(-1, *[1] * (input_b.ndim - 1))


def fewer(input_b: Tensor, seed_b: Tensor) -> Tensor:
    return input_b[1:]


def listed(input_b: Tensor, seed_b: Tensor) -> Any:
    return [input_b]


def raising(input_b: Tensor, seed_b: Tensor) -> Tensor:
    raise KeyError("colour")


class Louder(Vectors):
    """Vectors whose gain is drawn again where they are learned from."""

    augments = True

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        status = super().decode(members, out, view)
        if rng is not None:
            out["gain"] += rng.uniform(1, 2)
        return status
