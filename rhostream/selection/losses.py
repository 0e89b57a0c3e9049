"""Per-sample losses in float32 nats: what a rule scores by and what the gradient step averages.

A loss is a function of (logits, label) that gives one number a sample, (B,), and nothing else is asked of it. A user's
own is `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.selection.outputs import described

LossFunction = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(z)_y of each sample: logits (B, C), label (B,) int64 in [0, C) -> (B,) float32, nats.

    Labels are checked where the table is made: torch would give 0.0 for -100 and a device assert on a GPU.
    """
    return functional.cross_entropy(logits.float(), label, reduction="none")


def sequence_mean(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy of each sequence: logits (B, T, C), label (B, T) -> (B,) float32, nats.

    Positions with a negative label (padding) don't count; a sequence of nothing else is NaN, and so is never kept.
    """
    counts = label >= 0
    loss_BT = functional.cross_entropy(logits.float().movedim(-1, 1), label.clamp(min=0), reduction="none")
    return (loss_BT * counts).sum(1) / counts.sum(1)


LOSSES: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "sequence_mean": sequence_mean}


def find_loss(name: str) -> LossFunction:
    """A built-in loss, or the user's `package.module:function`. Raises UnknownNameError, UsageError."""
    if ":" not in name:
        if name not in LOSSES:
            raise UnknownNameError.of("loss", name, [*LOSSES, "package.module:function"])
        return LOSSES[name]
    return own_function("loss", name)


def per_sample(loss: LossFunction, logits: Tensor, label: Tensor) -> Tensor:
    """`loss` of a batch, (B,). Raises UsageError when the function gives anything but one number a sample."""
    name = getattr(loss, "__name__", type(loss).__name__)
    with users_code(f"the loss function {name}, of outputs {tuple(logits.shape)} and labels {tuple(label.shape)},"):
        loss_B = loss(logits, label)
    if not isinstance(loss_B, Tensor) or loss_B.shape != (len(label),) or not loss_B.is_floating_point():
        raise UsageError(
            f"the loss function {name} returned {described(loss_B)}, expected one loss for each sample, a "
            f"floating-point tensor of shape ({len(label)},): in torch's own losses, reduction='none'"
        )
    return loss_B


def is_correct(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) bool: the largest logit is the label's, of every position of a sequence. NaN logits are never correct."""
    right = (logits.argmax(-1) == label) & torch.isfinite(logits).all(-1)
    return right if right.ndim == 1 else (right | (label < 0)).all(1)


def require_known(bounds: tuple[int, int], logits: Tensor) -> None:
    """Raise UsageError when a label is beyond the model's classes, or negative: a GPU would die of it.

    `bounds`: the smallest and the largest label, known to the host; logits (B, C), others aren't looked at.
    """
    low, high = bounds
    if logits.ndim == 2 and low <= high and (low < 0 or high >= logits.shape[1]):
        raise UsageError(
            f"a sample has the label {low if low < 0 else high}, and the model gives {logits.shape[1]} "
            f"logits, which are labels 0 to {logits.shape[1] - 1}: make the model for more classes, or "
            "leave such samples out with --classes (open_stream(classes=))"
        )
