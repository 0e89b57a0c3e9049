"""Buffers of losses made up, and what selection should make of them, written down again as simply as can be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from rhostream.candidates import CANDIDATE, Candidates
from rhostream.samples.fields import Fields
from rhostream.selection.adjust.shape import Adjust, Buffer
from rhostream.selection.choice import largest
from rhostream.selection.uniform import Draws


def buffer(n: int = 40, seed: int = 0, classes: int = 4, **changes: object) -> Candidates:
    rng = np.random.default_rng(seed)
    fields = {
        "pass_index": 0,
        "index": seed,
        "shard": np.zeros(n, np.int32),
        "ordinal": np.arange(n, dtype=np.int32),
        "key": pa.array([f"k{i}" for i in range(n)]),
        "label": torch.from_numpy(rng.integers(0, classes, n)),
        "il": torch.from_numpy(rng.exponential(1.0, n).astype(np.float32)),
        "reason": np.full(n, CANDIDATE, np.uint8),
        "fields": Fields({"pixels": torch.from_numpy(rng.integers(0, 255, (n, 16, 16, 1), dtype=np.uint8))}),
    }
    if "image" in changes:
        changes = {**changes, "fields": Fields({"pixels": changes["image"]})}  # type: ignore[dict-item]
        del changes["image"]
    return Candidates(**{**fields, **changes})


def scored(score: object, n: int, step: int = 0, **changes: object) -> Buffer:
    """A buffer of which every row reached its forward and has such a score."""
    score_B = np.asarray(score, np.float64)
    zeros, size = np.zeros(len(score_B), np.float32), len(score_B)
    fields = {
        "score_B": score_B,
        "loss_B": zeros,
        "il_B": zeros,
        "label_B": np.zeros(size, np.int64),
        "reached_B": np.ones(size, bool),
        "n": n,
        "draws": Draws(seed=0, step=step, pass_index=0, index=step, planned=size),
        "shadow_SB": np.zeros((0, size)),
    }
    return Buffer(**{**fields, **changes})


def kept_of(score: object, n: int, *adjusts: Adjust, **changes: object) -> list[int]:
    return largest(scored(score, n, **changes), adjusts).kept.tolist()


def oracle(loss: np.ndarray, il: np.ndarray, n: int) -> list[int]:
    """Algorithm 1, lines 7 and 8, written again with NumPy: stable, NaN-safe."""
    score = loss.astype(np.float32) - il.astype(np.float32)
    finite = np.flatnonzero(np.isfinite(score))
    return sorted(finite[np.lexsort((finite, -score[finite]))][:n].tolist())


Array = np.ndarray


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p: Array) -> Array:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
