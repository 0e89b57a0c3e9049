"""Per-sample losses in float32 nats: what a rule scores by and what the gradient step averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(z)_y of each sample: logits (B, C), label (B,) int64 in [0, C) -> (B,) float32, nats.

    Labels are checked where the table is made: torch would give 0.0 for -100 and a device assert on a GPU.
    """
    return functional.cross_entropy(logits.float(), label, reduction="none")


def is_correct(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) bool: the largest logit is the label's. NaN logits are never correct."""
    return (logits.argmax(1) == label) & torch.isfinite(logits).all(1)
