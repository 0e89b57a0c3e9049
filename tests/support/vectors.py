"""Pairs made up, and their logits one number at a time, written from the formulas and from nothing of the library."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.models.pairs import TwoTowers

Array = npt.NDArray[np.float64]


def packed(rng: np.random.Generator, rows: int, width: int, scale: float, bias: float) -> Tensor:
    """What a model of pairs gives, float64."""
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((2, rows, width))]
    return torch.from_numpy(np.concatenate([*unit, np.full((rows, 1), scale), np.full((rows, 1), bias)], axis=1))


def sp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def lme(values: list[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values) / len(values))


class Literal:
    """L_ij between the images of some rows and the captions of others, one number at a time."""

    def __init__(self, output: Tensor, others: Tensor | None = None) -> None:
        def split(rows: Array) -> tuple[Array, Array]:
            return rows[:, : rows.shape[1] // 2 - 1], rows[:, rows.shape[1] // 2 - 1 : -2]

        self.rows, self.others = output.numpy(), output.numpy() if others is None else others.numpy()
        (self.z, self.t), (self.bank_z, self.bank_t) = split(self.rows), split(self.others)
        self.a, self.b = self.rows[0, -2], self.rows[0, -1]

    def to(self, i: int, k: int) -> float:
        """L of image i and caption k of the others."""
        return self.a * sum(x * y for x, y in zip(self.z[i], self.bank_t[k], strict=True)) + self.b

    def of(self, i: int, k: int) -> float:
        """L of image k of the others and caption i."""
        return self.a * sum(x * y for x, y in zip(self.t[i], self.bank_z[k], strict=True)) + self.b

    def own(self, i: int) -> float:
        return self.a * sum(x * y for x, y in zip(self.z[i], self.t[i], strict=True)) + self.b

    def terms(self, i: int, loss: str, among: list[int]) -> tuple[float, float, float]:
        if loss == "siglip":
            image = sum(sp(self.to(i, k)) for k in among) / max(len(among), 1)
            return sp(-self.own(i)), image, sum(sp(self.of(i, k)) for k in among) / max(len(among), 1)
        rest = [lme([L(i, k) for k in among]) - self.own(i) for L in (self.to, self.of)]
        return 0.0, rest[0], rest[1]


def towers() -> nn.Module:
    """A reference of pairs, as `compute-il --reference` takes it."""
    return TwoTowers(Towers())


class Towers(nn.Module):
    """The two halves of a sample's numbers as its vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(8, 6), nn.Linear(8, 6)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.image(pixels.flatten(1)[:, :8])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens[:, :8].float())
