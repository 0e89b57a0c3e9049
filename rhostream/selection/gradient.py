"""One gradient step on what was kept, over any number of ranks: forward, backward, mean gradient, optimizer or nothing.

The gradient is that of the mean loss over the kept samples of all ranks, however they are spread: each rank's losses
are divided by the number that all kept, and gradients are summed. A mean or a gradient that isn't finite changes
nothing anywhere: no weight, no running statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError, users_code
from rhostream.samples.fields import Input, Target
from rhostream.selection.losses import LossFunction, per_sample
from rhostream.selection.outputs import called
from rhostream.selection.ranks import Ranks, in_lockstep, is_sharded, local


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Input,
    label: Target,
    loss: LossFunction,
    *,
    forward: Callable[[Any], Tensor] | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
    total: int = 0,
    weight: Tensor | None = None,
    mode: bool = True,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Step on the mean of `loss`; returns the own losses (n,) and the mean over all ranks, both on the device.

    The mean is NaN where no step was made: it isn't finite, or the gradient isn't.

    `total` is the number of samples that all ranks kept, at least one; a rank may have none of them. Collective where
    `ranks` are several. `accumulate`: forwards that the own samples are split into. `weight` (n,): factors of the own
    losses, whose sum is then divided by `total`, the number of draws. `mode`: whether the model is in train mode.
    `clip`: the largest norm of the gradient, that of all ranks, over all parameters.
    Raises UsageError when `loss` gives anything but one number a sample, or a user's optimizer raises.
    """
    ranks = ranks or Ranks()
    count = len(x) if ranks.alone and weight is None else total
    if model.training != mode:
        model.train(mode)
    optimizer.zero_grad(set_to_none=True)
    statistics = running_statistics(model)
    before = torch._foreach_clone(statistics) if statistics else []
    losses = []
    rows = (x, label) if weight is None else (x, label, weight)
    # FSDP reduces gradients itself, in the backward of the last part, to their mean over the ranks.
    sharded = is_sharded(model)
    reduced_by = ranks.size if sharded else 1
    parts = list(_parts(rows, accumulate, in_lockstep(model)))
    for number, (part, labels, *factors) in enumerate(parts, 1):
        if sharded:
            model.set_requires_gradient_sync(number == len(parts))  # type: ignore[operator]
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            logits = called(model, part, forward)
        loss_b = per_sample(loss, logits.float(), labels)
        ((loss_b * factors[0] if factors else loss_b).sum() * reduced_by / count).backward()
        losses.append(loss_b.detach())
    crash_point("train: loss computed")
    loss_b = torch.cat(losses) if len(losses) > 1 else losses[0] if losses else torch.zeros(0, device=x.device)
    weighted = loss_b if weight is None else loss_b * weight
    if ranks.alone:
        mean = weighted.sum() / count if weight is not None else loss_b.mean()
    elif not sharded:
        mean = ranks.add_gradients(model.parameters(), weighted.sum() / count)
        ranks.average_norms(model)
    else:
        mean = weighted.sum() / count
    gradients = gradients_of(model)
    mean = finite_or_nan(gradients, mean)
    if sharded:  # each rank has looked at its own shards: one NaN makes the sum NaN everywhere
        ranks.add_up([mean])
        ranks.average_norms(model)
    if clip is not None:
        mean = clip_gradient(gradients, clip, mean, ranks if sharded else Ranks())
    step_if_finite(optimizer, mean)
    if statistics:
        with torch.no_grad():
            fine = torch.isfinite(mean)
            torch._foreach_copy_(
                statistics, [torch.where(fine, now, was) for now, was in zip(statistics, before, strict=True)]
            )
    return loss_b, mean


def _parts(rows: tuple[Input, ...], accumulate: int, lockstep: bool) -> Iterator[tuple[Any, ...]]:
    """The samples in `accumulate` forwards; in lockstep exactly so many, as other ranks make them, even of nothing."""
    if lockstep:
        yield from zip(*(tensor.tensor_split(accumulate) for tensor in rows), strict=True)
    elif len(rows[0]):
        size = -(-len(rows[0]) // accumulate)
        yield from zip(*(tensor.split(size) for tensor in rows), strict=True)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Those that a forward in train mode changes: means, variances and counts of batch norm."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [
        t
        for norm in norms
        if norm.training
        for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        if t is not None
    ]


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of its parameters; of sharded ones what this rank holds of them."""
    return [local(p.grad) for p in model.parameters() if p.grad is not None]


def finite_or_nan(gradients: Sequence[Tensor], loss: Tensor) -> Tensor:
    """The scalar `loss`, but NaN where a gradient isn't finite; on its device, and nobody waits for it."""
    held = [g for g in gradients if g.numel()]
    if not held:
        return loss
    largest = nn.utils.get_total_norm(held, math.inf)
    return torch.where(torch.isfinite(largest).to(loss.device), loss, torch.nan)


def clip_gradient(gradients: Sequence[Tensor], most: float, loss: Tensor, ranks: Ranks) -> Tensor:
    """Scale the gradients down to a norm of `most` over all parameters; returns the scalar `loss`.

    It is NaN where the norm isn't finite, though each number may be: such a gradient can't be scaled. Nobody waits.
    `ranks`: those that hold the shards of one gradient, each its own. Collective over them.
    """
    if not gradients:
        return loss
    norm = nn.utils.get_total_norm(list(gradients))
    if not ranks.alone:
        squared = norm.double().square()
        ranks.add_up([squared])
        norm = squared.sqrt().to(norm.dtype)
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(list(gradients), factor)
    return torch.where(torch.isfinite(norm).to(loss.device), loss, torch.nan)


def step_if_finite(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step, unless `loss` is NaN or infinite, without asking the device which it is.

    A fused optimizer takes the verdict as a tensor (it is how GradScaler skips a step); for another one the host has to
    look.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(loss)).float()  # type: ignore[attr-defined]
        _step(optimizer)
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(torch.isfinite(loss)):
        _step(optimizer)


def _step(optimizer: torch.optim.Optimizer) -> None:
    with users_code(f"the optimizer {type(optimizer).__name__}"):
        optimizer.step()


def require_finite(models: Mapping[str, nn.Module | None], step: int, ranks: Ranks | None = None) -> None:
    """Raise NonFiniteError for a model whose weights, or statistics of batch norm, aren't finite. One wait for each.

    `ranks`: those that hold the shards of a sharded model; they raise together.
    """
    for name, model in models.items():
        if model is None:
            continue
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
        tensors = [t for t in (*(local(p.detach()) for p in model.parameters()), *kept) if t.numel()]
        sound = not tensors or bool(torch.isfinite(nn.utils.get_total_norm(tensors, math.inf)))
        if sound and (ranks is None or not is_sharded(model)):
            continue
        state = {} if sound else {n: local(t) for n, t in model.state_dict().items()}
        where = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if ranks is not None and is_sharded(model):
            where = [n for names in ranks.gather_json(where[:1]) for n in names]
        if where:
            raise NonFiniteError(
                f"{name} holds weights that are NaN or infinite before step {step} (first {where[0]}), so "
                "nothing since the last checkpoint is committed; lower --lr, or use float32 or bfloat16"
            )
