"""One gradient step on what was kept, over any number of ranks: forward, backward, mean gradient, optimizer or nothing.

The gradient is that of the mean loss over the kept samples of all ranks, however they are spread: each rank's losses
are divided by the number that all kept, and gradients are summed. A mean that isn't finite changes no weight anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from rhostream.crashpoints import crash_point
from rhostream.selection.losses import LossFunction, per_sample
from rhostream.selection.ranks import Ranks, in_lockstep


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, label: Tensor, loss: LossFunction, *,
              forward: Callable[[Tensor], Tensor] | None = None, accumulate: int = 1,
              autocast: torch.dtype | None = None, ranks: Ranks | None = None, total: int = 0,
              weight: Tensor | None = None, mode: bool = True) -> tuple[Tensor, Tensor]:
    """Step on the mean of `loss`; returns the own losses (n,) and the mean over all ranks, both on the device.

    `total` is the number of samples that all ranks kept, at least one; a rank may have none of them. Collective where
    `ranks` are several. `accumulate`: forwards that the own samples are split into. `weight` (n,): factors of the own
    losses, whose sum is then divided by `total`, the number of draws. `mode`: whether the model is in train mode.
    Raises UsageError when `loss` gives anything but one number a sample.
    """
    ranks = ranks or Ranks()
    count = len(x) if ranks.alone and weight is None else total
    if model.training != mode:
        model.train(mode)
    optimizer.zero_grad(set_to_none=True)
    losses = []
    rows = (x, label) if weight is None else (x, label, weight)
    for part, labels, *factors in _parts(rows, accumulate, in_lockstep(model)):
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            logits = (forward or model)(part)
        loss_b = per_sample(loss, logits.float(), labels)
        ((loss_b * factors[0] if factors else loss_b).sum() / count).backward()
        losses.append(loss_b.detach())
    crash_point("train: loss computed")
    loss_b = torch.cat(losses) if len(losses) > 1 else losses[0] if losses else torch.zeros(0, device=x.device)
    weighted = loss_b if weight is None else loss_b * weight
    if ranks.alone:
        mean = weighted.sum() / count if weight is not None else loss_b.mean()
    else:
        mean = ranks.add_gradients(model.parameters(), weighted.sum() / count)
        ranks.average_norms(model)
    step_if_finite(optimizer, mean)
    return loss_b, mean


def _parts(rows: tuple[Tensor, ...], accumulate: int, lockstep: bool) -> Iterator[tuple[Tensor, ...]]:
    """The samples in `accumulate` forwards; in lockstep exactly so many, as other ranks make them, even of nothing."""
    if lockstep:
        yield from zip(*(tensor.tensor_split(accumulate) for tensor in rows), strict=True)
    elif len(rows[0]):
        size = -(-len(rows[0]) // accumulate)
        yield from zip(*(tensor.split(size) for tensor in rows), strict=True)


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
