"""How good an IL model is, from its logits on samples that it didn't learn from: calibration and classes.

An il is used as a number of nats, so a model that is right but too sure of itself is a bad one: the reliability diagram
(Guo et al. 2017) is made when the model is, because a table holds p(label) and no confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.candidates import Prepare
from rhostream.irreducible.learn import EVAL_CHUNK
from rhostream.samples.fields import Fields
from rhostream.selection.outputs import called
from rhostream.signals import stop_if_asked

BINS = 15  # of confidence, equally wide
MAX_LOGITS = 1 << 24  # held at once, by network: with more than 1,677 classes fewer than 10,000 samples are looked at
LISTED_CLASSES = 1000
FEW = 10  # samples of a class below which its accuracy says little
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Logits:
    """What one network says of N samples."""

    logit: Floats  # (N, C)
    label: npt.NDArray[np.int64]  # (N,)

    def log_probability(self) -> Floats:
        """(N, C), nats."""
        shifted: Floats = self.logit - self.logit.max(1, keepdims=True)
        normal: Floats = np.log(np.exp(shifted).sum(1, keepdims=True))
        return shifted - normal

    def loss(self) -> Floats:
        """(N,) cross-entropy, nats."""
        given: Floats = self.log_probability()[np.arange(len(self.label)), self.label]
        return -given


@torch.no_grad()
def logits_of(
    network: nn.Module,
    image: Fields,
    label: Tensor,
    rows: Tensor,
    normalize: Prepare,
    device: torch.device,
    classes: int,
) -> Logits:
    """Of the rows of image (N, ...), in eval mode; evenly fewer where they wouldn't fit."""
    network.eval()
    rows = rows[:: -(-len(rows) // max(1, MAX_LOGITS // classes))]
    found = []
    for some in torch.split(rows, EVAL_CHUNK):
        stop_if_asked()
        found.append(called(network, normalize(image[some].to(device))).float().cpu())
    return Logits(torch.cat(found).double().numpy(), label[rows].numpy())


def reliability(folds: Sequence[Logits]) -> dict[str, Any]:
    """{"ece", "count", "confidence", "accuracy"}: of all networks together, the last three (BINS,), null where empty.

    Bin b holds confidences (largest probability) in (b/15, (b+1)/15]. The expected calibration error is the mean of
    |accuracy - confidence| over the bins, each weighted with its samples.
    """
    p = [np.exp(found.log_probability()) for found in folds]
    confidence = np.concatenate([one.max(1) for one in p])
    right = np.concatenate([one.argmax(1) == found.label for one, found in zip(p, folds, strict=True)])
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(number, minlength=BINS)
    sums = [np.bincount(number, weights=values, minlength=BINS) for values in (confidence, right.astype(float))]
    ece = float(np.abs(sums[1] - sums[0]).sum() / max(1, len(right)))
    means = [[round(float(s / n), 6) if n else None for s, n in zip(one, count, strict=True)] for one in sums]
    return {"ece": round(ece, 6), "count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def measured(check: Sequence[Logits], train: Sequence[Logits], classes: int) -> dict[str, Any]:
    """What model.json says of the model's quality; `check`, `train`: of each network, on samples that it didn't learn
    from (those that chose its checkpoint) and on some that it did.

    Labels are those of the shards, wrong ones included.
    """
    loss, label = np.concatenate([one.loss() for one in check]), np.concatenate([one.label for one in check])
    right = np.concatenate([one.logit.argmax(1) == one.label for one in check])
    n = np.bincount(label, minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy_C, loss_C = (np.bincount(label, weights=v, minlength=classes) / n for v in (right.astype(float), loss))
    counted = np.flatnonzero(n >= FEW) if (n >= FEW).any() else np.flatnonzero(n)
    worst, largest = int(counted[accuracy_C[counted].argmin()]), int(n.argmax())
    seen = np.concatenate([one.loss() for one in train])
    return {
        "samples": len(label), "accuracy": float(right.mean()), "loss": _mean(loss),
        "loss_error": _mean(loss - _mean(loss), 2) ** 0.5 / len(label) ** 0.5, "train_loss": _mean(seen),
        "balanced_accuracy": float(np.nanmean(accuracy_C)),
        "largest_class": {"class": largest, "share": float(n[largest] / len(label))},
        "worst_class": {"class": worst, "accuracy": float(accuracy_C[worst]), "samples": int(n[worst])},
        "reliability": reliability(check),
        "classes": {"samples": n.tolist(), "accuracy": _known(accuracy_C), "loss": _known(loss_C)}
                   if classes <= LISTED_CLASSES else {},
    }  # fmt: skip


def _mean(values: Floats, power: int = 1) -> float:
    """The mean of their powers; something that JSON has a number for where one of them is infinite."""
    return float((np.nan_to_num(values, nan=1e30, posinf=1e30) ** power).mean())


def _known(values: Floats) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]
