"""Images moved and mirrored on their device. Who calls draws the numbers, and says in which order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rhostream.candidates import to_device


def mirrored(x: Tensor, flip_B: Tensor) -> Tensor:
    """(B, C, H, W) -> same shape: left and right exchanged where `flip_B` (B,) bool, on the host, says so."""
    return torch.where(to_device(flip_B, x.device)[:, None, None, None], x.flip(3), x)


def shifted(x: Tensor, reach: int, place_2B: Tensor) -> Tensor:
    """(B, C, H, W) -> same shape, each image cut out of itself with `reach` pixels of repeated edge around it.

    `place_2B` (2, B) int64, on the host: the row and column of each cut, 0 to 2 * reach; `reach` leaves an image alone.
    """
    height, width = x.shape[2:]
    top_B, left_B = to_device(place_2B, x.device)
    padded = functional.pad(x, (reach,) * 4, mode="replicate")
    row = top_B[:, None] + torch.arange(height, device=x.device)
    column = left_B[:, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
