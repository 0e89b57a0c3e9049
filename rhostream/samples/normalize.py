"""How uint8 pixels become a model's input, on the device where they lie."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who reads a table does without torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Normalize:
    """How uint8 pixels become the model's input: (x / 255 - mean) / std for each channel."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W), on the device of `image`, channels-last in memory for C > 1."""
        mean, scale = _a_row(self.mean, self.std, image.shape[3], image.shape[2], image.device)
        # A whole row of pixels at a time: broadcasting over an innermost dimension of 3 costs forty times as much.
        rows = image.float().flatten(2).sub_(mean).mul_(scale)
        return rows.view(image.shape).permute(0, 3, 1, 2)


@functools.lru_cache(64)
def _a_row(means: tuple[float, ...], stds: tuple[float, ...], channels: int, width: int,
           device: torch.device) -> tuple[Tensor, Tensor]:  # fmt: skip
    """255 mean and 1 / (255 std) for each value of a row of pixels; kept, because making one on a GPU waits for it."""
    import torch

    mean, scale = torch.tensor(means) * 255, 1 / (torch.tensor(stds) * 255)
    if len(means) != channels:
        mean, scale = mean[:1].expand(channels), scale[:1].expand(channels)
    return mean.repeat(width).to(device), scale.repeat(width).to(device)
