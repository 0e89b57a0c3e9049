"""Augmentation of the kept samples only, on their device: cheap, because n_b is a tenth of n_B."""

from __future__ import annotations

import torch
from torch import Tensor

from rhostream.compute.images import mirrored, shifted
from rhostream.errors import UnknownNameError

KINDS = ("none", "flip", "shift", "flip-shift")


def augment(
    x: Tensor, kind: str, seed: int, pixels: int = 2, *, rows: Tensor | None = None, planned: int | None = None
) -> Tensor:
    """Random horizontal flips and shifts of each image, a function of `seed`: (B, C, H, W) -> same shape.

    Shifts are up to `pixels` in each direction; what comes in at the border repeats the edge. With `rows`, the images'
    places (B,) in a buffer of `planned`, an image's draw is that of its place, whichever rank holds it.
    """
    if kind not in KINDS:
        raise UnknownNameError.of("augmentation", kind, KINDS)
    rng = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(x)) if rows is None else rows
    planned = len(x) if planned is None else planned
    if "flip" in kind:
        x = mirrored(x, torch.rand(planned, generator=rng).lt(0.5)[rows])
    if "shift" in kind:
        x = shifted(x, pixels, torch.randint(0, 2 * pixels + 1, (2, planned), generator=rng)[:, rows])
    return x
