"""The same run in other surroundings: workers started in other ways, several passes, wrapped and compiled models."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import rhostream
from rhostream.models import build
from rhostream.stream.loader import Loader
from tests.support import ranks
from tests.support.logs import same

# -- E21 ---


def buffers(rank: int, shards: str, il: str) -> list[list[str]]:
    """One hash of everything for each way to start workers; two loops over one loader are two passes."""
    import hashlib

    found = []
    for context, workers in ((None, 0), ("fork", 2), ("forkserver", 2), ("spawn", 1)):
        stream = rhostream.open_stream(shards, il=il, buffer_size=40, seed=3).stream
        loader = Loader(stream, workers, context)
        told = []
        for _ in range(2):
            for candidates in loader:
                hashed = hashlib.sha256(candidates.image.numpy().tobytes())
                for column in (candidates.shard, candidates.ordinal, candidates.reason, candidates.il.numpy()):
                    hashed.update(column.tobytes())
                told.append(hashed.hexdigest())
        found.append(told)
    return found


def test_E21_workers_started_in_any_way_give_the_same_stream(world: Path, tmp_path: Path) -> None:
    """Workers started by fork, forkserver or spawn, or none at all, give the same stream, byte for byte; a second loop over a loader is the next pass."""  # noqa: E501
    inline, *others = ranks.together(tmp_path, buffers, 1, str(world / "shards"), str(world / "il"))[0]
    assert len({*inline}) == 50 and others == [inline] * 3


# -- E22 ---


def test_E22_the_log_keeps_passes_apart(trained: Callable[..., Path], world: Path, tmp_path: Path) -> None:
    """The log of a second pass over the shards stands apart from that of the first by its column `pass`: each pass has every sample exactly once, in an order of its own."""  # noqa: E501
    run = trained(passes=2, steps=None, threads=1)
    with rhostream.open_ledger(str(run)) as ledger:
        table = ledger.sql(
            "SELECT pass, count(*) AS n, count(DISTINCT (shard, ordinal)) AS each, min(step) AS first, "
            "max(step) AS last FROM selections GROUP BY pass ORDER BY pass"
        )
        orders = [ledger.sql(f"SELECT shard, ordinal FROM selections WHERE step = {s}").to_pylist() for s in (0, 25)]
    assert table.to_pylist() == [
        {"pass": 0, "n": 1003, "each": 1003, "first": 0, "last": 24},
        {"pass": 1, "n": 1003, "each": 1003, "first": 25, "last": 49},
    ]
    assert orders[0] != orders[1]


# -- E23 ---


def own_loop(rank: int, shards: str, il: str, wrap: str) -> list[Any]:
    """Docs/distributed.md's loop: what was kept in each step, and the weights' sum at the end."""
    from torch.nn.parallel import DistributedDataParallel

    group, size = ranks.join_group(), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    wrapped: nn.Module = model
    if wrap == "ddp":
        wrapped = DistributedDataParallel(model)
    elif wrap == "fsdp":
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    stream = rhostream.open_stream(shards, il=il, buffer_size=40, rank=rank, ranks=size)
    selector = rhostream.Selector(wrapped, "rho", 8, group=group)
    found: list[Any] = []
    for candidates in stream:
        kept = selector(candidates)
        if kept.input is not None:
            loss = functional.cross_entropy(wrapped(kept.input), kept.label, reduction="sum") * size / kept.total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append([candidates.key.to_pylist()[row] for row in kept.rows])
        assert kept.total == 8
    total = sum(float(getattr(p, "full_tensor", lambda p=p: p)().detach().double().sum()) for p in model.parameters())
    ranks.leave_group()
    return [found, total]


def test_E23_bf16_and_accumulation_train_and_resume(trained: Callable[..., Path], tmp_path: Path) -> None:
    """Scoring and training in bfloat16 and accumulated gradients work in `train`, and resume bit for bit; DDP and FSDP work in a loop of one's own (docs/distributed.md)."""  # noqa: E501
    from rhostream.selection.hardware import bf16_supported

    precisions = {"precision": "bfloat16", "train_precision": "bfloat16"} if bf16_supported(torch.device("cpu")) else {}
    settings = {"model": "small-cnn", "accumulate": 3, "threads": 1, **precisions}
    trained("whole", steps=10, **settings)
    trained("pieces", steps=4, **settings)
    trained("pieces", steps=10, **settings)
    assert same(tmp_path / "whole", tmp_path / "pieces")


@pytest.mark.slow
def test_E23_a_compiled_model_keeps_what_the_plain_one_keeps(trained: Callable[..., Path], tmp_path: Path) -> None:
    """A model run through torch.compile keeps what the plain one keeps, but where scores differ by less than float noise."""  # noqa: E501
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        trained("compiled", compile=True, threads=1)
    trained("plain", threads=1)
    assert ranks.assert_same_but_for_noise(tmp_path / "plain", tmp_path / "compiled") == 30


def selects_like_one_process(world: Path, folder: Path, wrap: str) -> None:
    """Two processes with the wrapped model keep what one keeps with the plain model."""
    here = (str(world / "shards"), str(world / "il"))
    two = ranks.together(folder, own_loop, 2, *here, wrap)
    alone, total = own_loop(0, *here, "")
    assert [a + b for a, b in zip(two[0][0], two[1][0], strict=True)] == alone
    assert two[0][1] == pytest.approx(total, abs=1e-2)


def test_E23_a_model_in_ddp_selects_in_a_loop_of_ones_own(world: Path, tmp_path: Path) -> None:
    """A model wrapped in DDP or FSDP selects in a loop of one's own, over all ranks at once."""
    selects_like_one_process(world, tmp_path, "ddp")


@pytest.mark.slow
def test_E23_a_model_sharded_by_fsdp_selects_in_a_loop_of_ones_own(world: Path, tmp_path: Path) -> None:
    """A model wrapped in DDP or FSDP selects in a loop of one's own, over all ranks at once."""
    selects_like_one_process(world, tmp_path, "fsdp")
