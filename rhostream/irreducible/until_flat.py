"""A fit that ends by itself: what it judges is the average of its weights, and it is over when that gets no better.

    steps at a constant rate > average of the weights > looks at others, twice an epoch > no longer better: over

A rate that falls to 0 has to know the end; an average of the later weights is as good as the last state of such a fit,
and can be had at any step (measured: docs/results/cheap-il.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping, Sequence

import torch
from torch import Tensor, nn

RECENT = 8  # the average is over about the last 1/RECENT of the steps (polynomial decay, Shamir & Zhang 2013)
FALL = 0.002  # a look is better when the loss is lower by this part of it
PATIENCE = 2  # looks in a row that are not better end it


def over(losses: Sequence[float]) -> bool:
    """Whether the losses on others, of one look after the other, no longer fall; one that isn't finite never falls."""
    best, last = float("inf"), 0
    for number, loss in enumerate(losses, 1):
        if loss < best * (1 - FALL) or (best == float("inf") and loss < best):
            best, last = loss, number
    return len(losses) - last >= PATIENCE


@torch.no_grad()
def averaged(average: MutableMapping[str, Tensor], network: nn.Module, step: int) -> None:
    """Take the weights and statistics after the `step`-th step, from 1 on, into the average; counters as they are."""
    state = {name: value.detach() for name, value in network.state_dict().items()}
    if not average:
        average.update({name: value.clone() for name, value in state.items()})
        return
    weight = (RECENT + 1) / (step + RECENT)
    mean = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in mean], [state[name] for name in mean], min(1.0, weight))
    for name in state.keys() - set(mean):
        average[name].copy_(state[name])


@contextlib.contextmanager
def in_place(average: MutableMapping[str, Tensor], network: nn.Module) -> Iterator[None]:
    """The network with the average's weights, its own after that; nothing happens of an empty one."""
    if not average:
        yield
        return
    own = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(average)
    try:
        yield
    finally:
        network.load_state_dict(own)
