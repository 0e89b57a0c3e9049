"""A proxy: a small model that learns from the same kept batches and scores a buffer at a fraction of the cost.

Alone it selects worse than the target does; as the judge of a shortlist, of which the target's fresh scores choose, it
loses next to nothing (Evans et al. 2024, "Bad Students Make Great Teachers", score by a small model as well).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rhostream.samples.fields import Input, Target
from rhostream.selection.forward import Forward
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import LossFunction
from rhostream.selection.ranks import Ranks
from rhostream.selection.tokens import loss_of


class Proxy:
    """A small model beside the target; `learn` takes one AdamW step on what was kept."""

    learns = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        autocast: torch.dtype | None = None,
        loss: LossFunction | None = None,
    ) -> None:
        self.model, self.loss = model, loss or loss_of(model)
        self.forward = Forward(model, autocast=autocast)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def learn(self, x: Input, label: Target, ranks: Ranks | None = None, total: int = 0) -> None:
        """One step on the mean loss of (n, C, H, W) inputs; a loss that isn't finite leaves the weights alone.

        Over several `ranks` the mean is that of the `total` inputs of all; each calls it, even with none of its own.
        """
        take_step(self.model, self.optimizer, x, label, self.loss, ranks=ranks, total=total)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer, for a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
