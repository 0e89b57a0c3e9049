"""What several of the networks need beside the library's layers: branches side by side, small linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Several modules on the same input; their channels stand one after the other in the output."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, sum of the branches' channels, H', W')."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def small_linears(model: nn.Module) -> nn.Module:
    """The same model, its linear layers drawn from a normal distribution of deviation 0.01, their biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
    return model
