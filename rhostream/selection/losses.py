"""Per-sample losses in float32: what a rule scores by and what the gradient step averages.

A loss is a function of (output, target) that gives one number a sample, (B,), and nothing else is asked of it: of
(logits, label) where the target is a class. A user's own is `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.samples.fields import Target, shape_in_words, target_of
from rhostream.samples.kind import Kind
from rhostream.selection.contrastive import CONTRASTIVE
from rhostream.selection.outputs import EXPECTED, described
from rhostream.selection.pairs import LOSSES_OF_PAIRS

LossFunction = Callable[[Tensor, Any], Tensor]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(z)_y of each sample: logits (B, C), label (B,) int64 in [0, C) -> (B,) float32, nats.

    Labels are checked where the table is made: torch would give 0.0 for -100 and a device assert on a GPU.
    """
    return functional.cross_entropy(logits.float(), label, reduction="none")


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """Cross-entropy with a target of which a `share` in [0, 1) is spread evenly over all C classes: logits (B, C),
    label (B,) int64 -> (B,) float32, nats.
    """

    share: float

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), label, reduction="none", label_smoothing=self.share)


def sequence_mean(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy of each sequence: logits (B, T, C), label (B, T) -> (B,) float32, nats.

    Positions with a negative label (padding) don't count; a sequence of nothing else is NaN, and so is never kept.
    """
    counts = label >= 0
    loss_BT = functional.cross_entropy(logits.float().movedim(-1, 1), label.clamp(min=0), reduction="none")
    return (loss_BT * counts).sum(1) / counts.sum(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The mean of (output - target)^2 over all but the first dimension: (B, ...) each -> (B,) float32.

    Raises UsageError for shapes that differ, which would be stretched to (B, B); (B, 1) stands for (B,).
    """
    output, target = _alike("squared_error", output, target)
    return (output - target).square().flatten(1).mean(1)


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """-log of the probability of each of several yes or no, their mean: logits and targets in [0, 1] (B, ...) ->
    (B,) float32, nats. Raises UsageError for shapes that differ; (B, 1) stands for (B,).
    """
    output, target = _alike("binary_cross_entropy", output, target)
    return functional.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(1).mean(1)


def _alike(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, ...) of one shape, at least (B, 1), float32."""
    one = [tensor if tensor.ndim > 1 else tensor.unsqueeze(1) for tensor in (output, target)]
    if one[0].shape != one[1].shape:
        raise UsageError(
            f"the loss {name} takes an output and a target of one shape, and the model gives "
            f"{tensor_in_words(output)}, the target is {tensor_in_words(target)}"
        )
    return one[0].float(), one[1].float()


TARGET_LOSSES: dict[str, LossFunction] = {"squared_error": squared_error, "binary_cross_entropy": binary_cross_entropy}
LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "sequence_mean": sequence_mean,
    **TARGET_LOSSES,
    **LOSSES_OF_PAIRS,
}


def loss_name(kind: Kind, asked: str) -> str:
    """The loss of samples of a kind by name, as il and run compare it; `asked`: as `--loss` says, "cross_entropy" by
    default. Raises UsageError for one that such samples can't have.
    """
    if kind.task == "language":
        if asked != "cross_entropy":
            raise UsageError(f"--loss {asked}: the loss of language is the mean over a sequence's tokens")
        return "next_token"
    if (kind.task == "pairs") != (asked in CONTRASTIVE):
        others = f"expected one of {', '.join(CONTRASTIVE)}" if kind.task == "pairs" else f"these are {kind.holds}"
        raise UsageError(f"--loss {asked}: contrastive losses are those of pairs of image and caption alone; {others}")
    if kind.target is not None and asked == "cross_entropy":
        raise UsageError(
            f"{kind.target_in_words} and no class, which cross_entropy is of: name its loss with "
            f"--loss {', '.join(TARGET_LOSSES)} or package.module:function of (output, target)"
        )
    return asked


def require_target_loss(loss: LossFunction, what: str) -> None:
    """Raise UsageError for the default loss, of classes, where the target is none; `what` it is, in words."""
    if loss is cross_entropy:
        raise UsageError(
            f"{what} and no class, which cross_entropy is of: give the selector its loss, Selector(loss=) of "
            f"{', '.join(TARGET_LOSSES)} by name or a function of (output, target)"
        )


def find_loss(name: str) -> LossFunction:
    """A built-in loss, or the user's `package.module:function`. Raises UnknownNameError, UsageError."""
    if ":" not in name:
        if name not in LOSSES:
            raise UnknownNameError.of("loss", name, [*LOSSES, "package.module:function"])
        return LOSSES[name]
    return own_function("loss", name)


def require_loss_of_samples(name: str) -> None:
    """Raise UsageError for a loss that takes a label for each token, which no sample of a shard has."""
    if find_loss(name) is sequence_mean:
        raise UsageError(
            "--loss sequence_mean takes a label for each token (B, T), and a sample of a shard has "
            "one label: a model of language (text-lm, --task language) has the mean over a sequence's "
            "tokens by itself; in a loop of your own it goes with Selector(loss=)"
        )


def per_sample(loss: LossFunction, logits: Tensor, label: Target) -> Tensor:
    """`loss` of a batch, (B,), of the model's output (B, ...) and the target (B, ...).

    Raises UsageError when the function gives anything but one number a sample.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    target = f"targets {shape_in_words(label)}"
    if isinstance(label, Tensor):
        classes = label.ndim == 1 and not label.is_floating_point()
        target = f"labels {tuple(label.shape)}" if classes else f"targets {tensor_in_words(label)}"
    with users_code(f"the loss function {name}, of outputs {tuple(logits.shape)} and {target},"):
        loss_B = loss(logits, label)
    if not isinstance(loss_B, Tensor) or loss_B.shape != (len(label),) or not loss_B.is_floating_point():
        raise UsageError(
            f"the loss function {name} returned {described(loss_B)}, expected one loss for each sample, a "
            f"floating-point tensor of shape ({len(label)},): in torch's own losses, reduction='none'"
        )
    return loss_B


def require_taken(loss: str, kind: Kind, output: Tensor) -> None:
    """Raise UsageError for an output (1, ...) of a model that the loss can't take beside the target of the kind."""
    blank = kind.blank()
    x = kind.inputs(blank).to(output.device)
    target = target_of(kind.target, blank.to(output.device), torch.zeros(1, dtype=torch.int64), x)
    per_sample(find_loss(loss), output.float(), target)


def tensor_in_words(tensor: Tensor) -> str:
    """Shape and type: `(32, 3) of float32`."""
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def is_correct(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) bool: the largest logit is the label's, of every position of a sequence. NaN logits are never correct."""
    right = (logits.argmax(-1) == label) & torch.isfinite(logits).all(-1)
    return right if right.ndim == 1 else (right | (label < 0)).all(1)


def require_known(bounds: tuple[int, int], logits: Tensor) -> None:
    """Raise UsageError when a label is beyond the model's classes, or negative: a GPU would die of it.

    `bounds`: the smallest and the largest label, known to the host; logits (B, C), others aren't looked at.
    """
    low, high = bounds
    if low <= high and logits.ndim < 2:
        raise UsageError(f"the model returned {described(logits)}; {EXPECTED}")
    if logits.ndim == 2 and low <= high and (low < 0 or high >= logits.shape[1]):
        raise UsageError(
            f"a sample has the label {low if low < 0 else high}, and the model gives {logits.shape[1]} "
            f"logits, which are labels 0 to {logits.shape[1] - 1}: make the model for more classes, or "
            "leave such samples out with --classes (open_stream(classes=))"
        )
