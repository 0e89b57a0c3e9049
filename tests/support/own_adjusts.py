"""What users give `--adjust` by name: good ones and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rhostream.selection.adjust.shape import Buffer

Floats = npt.NDArray[np.float64]


def unchanged(score_B: Floats, buffer: Buffer) -> Floats:
    return score_B


def easy_at_half(score_B: Floats, buffer: Buffer) -> Floats:
    """Nothing of class 0, and what the IL model finds hard counts half."""
    score_B = np.where(buffer.il_B > 1, score_B / 2, score_B)
    score_B[buffer.label_B == 0] = np.nan
    return score_B


def any_of_them(score_B: Floats, buffer: Buffer) -> npt.NDArray[np.float32]:
    noise = buffer.rng("any of them").random(len(score_B)).astype(np.float32)
    return np.where(np.isnan(score_B), np.float32(np.nan), noise)


class RarelyKept:
    """A class counts less the more of it was wanted so far."""

    def __init__(self) -> None:
        self.wanted = np.zeros(4)

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        adjusted_B = score_B - 0.05 * self.wanted[buffer.label_B]
        best = buffer.order(adjusted_B)[: buffer.n]
        self.wanted += np.bincount(buffer.label_B[best], minlength=4)
        return adjusted_B

    def state_dict(self) -> dict[str, Any]:
        return {"wanted": self.wanted.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wanted = np.array(state["wanted"])


class KeepsAnArray(RarelyKept):
    def state_dict(self) -> dict[str, Any]:
        return {"wanted": self.wanted}


class NeedsSomething:
    def __init__(self, something: int) -> None:
        self.something = something


def too_many(score_B: Floats, buffer: Buffer) -> Floats:
    return np.nan_to_num(score_B)


def none(score_B: Floats, buffer: Buffer) -> Floats:
    return np.full(len(score_B), np.nan)


def shorter(score_B: Floats, buffer: Buffer) -> Floats:
    return score_B[np.isfinite(score_B)]


def rows(score_B: Floats, buffer: Buffer) -> npt.NDArray[np.int64]:
    return np.arange(len(score_B))


def tensor(score_B: Floats, buffer: Buffer) -> torch.Tensor:
    return torch.from_numpy(score_B)


def nothing(score_B: Floats, buffer: Buffer) -> None:
    score_B[:] = 0


def infinite(score_B: Floats, buffer: Buffer) -> Floats:
    score_B[7] = np.inf
    return score_B


def raises(score_B: Floats, buffer: Buffer) -> Floats:
    return score_B / {}["temperature"]
