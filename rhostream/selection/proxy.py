"""A proxy: a small model that learns from the same kept batches and scores a buffer at a fraction of the cost.

Alone it selects worse than the target does; as the judge of a shortlist, of which the target's fresh scores choose, it
loses next to nothing (Evans et al. 2024, "Bad Students Make Great Teachers", score by a small model as well).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream.selection.forward import Forward


class Proxy:
    """A small model beside the target; `learn` takes one AdamW step on what was kept."""

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, weight_decay: float = 0.01,
                 autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.forward = Forward(model, autocast=autocast)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def learn(self, x: Tensor, label: Tensor) -> None:
        """One step on the mean loss of (n, C, H, W) inputs; a loss that isn't finite leaves the weights alone."""
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.model(x).float(), label)
        loss.backward()
        step_if_finite(self.optimizer, loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer, for a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def step_if_finite(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step, unless `loss` is NaN or infinite, without asking the device which it is.

    A fused optimizer takes the verdict as a tensor (it is how GradScaler skips a step); for another one the host has to
    look.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(loss)).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(torch.isfinite(loss)):
        optimizer.step()
