"""All images of a set of shards in memory, for the experiments whose training code is their own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import rhostream

AT_A_TIME = 100  # a stream gives whole buffers only: sets are multiples of it


def load_images(out: str, shards: str) -> tuple[Tensor, Tensor]:
    """(images (N, C, H, W) float32 normalised to -1..1, labels (N,) int64), in an order that never changes.

    Up to 99 samples at the end are left out. The index of the shards is kept below `out`.
    """
    index = str(Path(out, "index", Path(shards).name))
    rhostream.index([shards], index)
    stream = rhostream.open_stream([shards], index, buffer_size=AT_A_TIME, needs_il=False)
    kept = [(torch.as_tensor(candidates.input).clone(), candidates.label.clone()) for candidates in stream]
    return torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])
