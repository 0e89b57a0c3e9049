"""What one forward of a network costs, in multiply-adds; the account itself (`cost`) is read without torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rhostream.samples.fields import Input


def macs_per_sample(model: nn.Module, example: Input) -> int:
    """Multiply-adds of one sample's forward, counted on `example` (1, C, H, W); the model's modes are restored.

    Raises what the model raises on such an input.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
        return int(counter.get_total_flops() // 2)
    finally:
        for module, mode in modes.items():
            module.training = mode
