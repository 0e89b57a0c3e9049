"""A rule of the experiments' own, given to `train` by name."""

from __future__ import annotations

import torch
from torch import Tensor


def random_choice(loss_B: Tensor, il_B: Tensor, logits_BC: Tensor) -> Tensor:
    """Uniform, but after a forward, so that the log knows what was classified correctly already: (B,) float32.

    The trainer seeds torch's generator by (seed, step) before it asks, so a resumed run chooses the same.
    """
    return torch.rand(len(loss_B)).to(loss_B.device)
