"""Mixup (Zhang et al. 2018) of a kept batch: inputs mixed by pairs, and both targets' losses in the same shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rhostream.candidates import to_device
from rhostream.randomness import generator
from rhostream.selection.losses import LossFunction, per_sample


@dataclass(frozen=True)
class MixedLoss:
    """A loss of the output for mixed inputs (n, ...) and of the pairs of targets (n, 2, ...) that they were made of."""

    loss: LossFunction
    share: float  # of the first one of each pair

    def __call__(self, output: Tensor, target_n2: Tensor) -> Tensor:
        """(n,), as `loss` has them. Raises UsageError where that gives anything but one number a sample."""
        first, second = (per_sample(self.loss, output, target) for target in target_n2.unbind(1))
        return self.share * first + (1 - self.share) * second


def mixed(
    x: Tensor, target: Tensor, loss: LossFunction, alpha: float, *, seed: int, step: int, rank: int = 0, update: int = 0
) -> tuple[Tensor, Tensor, LossFunction]:
    """Inputs (n, ...) of a floating type, pairs of targets (n, 2, ...) and their loss, for those of one rank's batch.

    The share is drawn from Beta(alpha, alpha) by (seed, step), one for the batch of all ranks; partners are a
    permutation of the rank's own rows, drawn by (seed, step, rank). A sample may be its own partner. `update`: which of
    a step's it is for; each has draws of its own.
    """
    more = ("update", update) if update else ()
    share = float(generator(seed, "mixup", step, *more).beta(alpha, alpha))
    order = generator(seed, "mixup", step, rank, *more).permutation(len(x))
    partner = to_device(torch.from_numpy(order), x.device)
    return torch.lerp(x[partner], x, share), torch.stack((target, target[partner]), 1), MixedLoss(loss, share)
