"""A model whose weights are spread over the ranks (FSDP2), and one that computes its activations twice to save memory.

    blocks_of > compiled (each block) > recomputed (each block) > sharded (each block, then the rest)

A block is what stands in a list of modules, as the layers of a transformer or of a ResNet: its weights are gathered
when it is about to compute, and let go afterwards, so a rank holds its share of the model and one block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rhostream.config.train import TrainConfig
from rhostream.errors import UsageError
from rhostream.samples.kind import Kind
from rhostream.selection.ranks import Ranks

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def require_shardable(config: TrainConfig, kind: Kind, ranks: Ranks) -> None:
    """Raise UsageError for what a run of sharded weights doesn't do."""
    if config.parallel != "fsdp" or ranks.alone:
        return
    refusals = {
        "--ema averages whole weights, which no rank has": config.ema is not None,
        "--optimizer adafactor takes means over the rows and columns of whole weights, which no rank has": (
            config.optimizer == "adafactor"
        ),
        "the loss of pairs is over the batches of all ranks, whose gradients are summed whole": kind.task == "pairs",
        "--chunk would make another number of forwards on each rank, which wait for each other": (
            config.chunk is not None
        ),
    }
    for says, refused in refusals.items():
        if refused:
            raise UsageError(f"--parallel fsdp: {says}; leave it out, or take --parallel ddp")


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that stand in the model's lists, outermost first, without what has no parameters."""
    for child in model.children():
        if isinstance(child, _LISTS) or not isinstance(model, _LISTS):
            yield from blocks_of(child)
        elif next(child.parameters(), None) is not None:
            yield child


def compiled(model: nn.Module, backend: Any = "inductor") -> nn.Module:
    """The model, each block's forward through torch.compile: what gathers weights stays outside, so no graph breaks."""
    for block in list(dict.fromkeys(blocks_of(model))) or [model]:
        block.forward = torch.compile(block.forward, backend=backend)
    return model


def recomputed(model: nn.Module) -> nn.Module:
    """The model, each of its blocks run again in the backward. Raises UsageError where it has no blocks."""
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as torchs

    blocks = {id(block) for block in blocks_of(model)}
    if not blocks:
        raise UsageError(
            f"--activation-checkpointing: {type(model).__name__} has no blocks (modules in an nn.Sequential or an "
            "nn.ModuleList) whose activations could be computed again; leave it out"
        )

    def wrapped(module: nn.Module) -> nn.Module:
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        again: dict[str, Any] = (
            {"context_fn": lambda: (contextlib.nullcontext(), _counted_once(norms))} if norms else {}
        )
        return torchs.checkpoint_wrapper(module, **again)

    torchs.apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrapped, check_fn=lambda module: id(module) in blocks
    )
    return model


@contextlib.contextmanager
def _counted_once(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """The second forward of a batch doesn't count in the running statistics, though autograd sees them."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """The same model, its weights spread over all ranks, by block where it has blocks; every rank calls it alike."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Weights of two blocks' (tied ones) are gathered with the whole.
    held: dict[int, int] = {}
    blocks = list(dict.fromkeys(blocks_of(model)))
    for weight in (p for block in blocks for p in {id(p): p for p in block.parameters()}.values()):
        held[id(weight)] = held.get(id(weight), 0) + 1
    outside = {id(p) for module in _outside(model, {id(b) for b in blocks}) for p in module.parameters(recurse=False)}
    for block in blocks:
        if all(held[id(p)] == 1 and id(p) not in outside for p in block.parameters()):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # the model itself, its class another
    return model


def _outside(model: nn.Module, blocks: set[int]) -> Iterator[nn.Module]:
    yield model
    for child in model.children():
        if id(child) not in blocks:
            yield from _outside(child, blocks)
