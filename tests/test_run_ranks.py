"""A loop of one's own on several ranks: torch.distributed's default group, one commit for all, exact resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from tests.support import ranks
from tests.support.own_loop import network

SLOW = pytest.mark.slow


def own_run(
    rank: int,
    world: str,
    run: str,
    until: int | None = None,
    wrap: str = "ddp",
    states: str = "",
    buffer_size: int = 40,
) -> list[Any]:
    """The loop; `wrap`: ddp, fsdp or none. With `states` the loop keeps run.state_dict() itself. Left after `until`."""
    from torch.nn.parallel import DistributedDataParallel

    ranks.join_group()
    model: nn.Module = network(dropout=0.0)
    if wrap == "ddp":
        model = DistributedDataParallel(model)
    elif wrap == "fsdp":
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = rhostream.open_stream(f"{world}/shards", il=f"{world}/il", buffer_size=buffer_size)
    selector = rhostream.Selector(model, "rho", 8)
    objects = {"model": model, "optimizer": optimizer}
    made = rhostream.Run(run, stream, selector, state=None if states else objects, config={"lr": 1e-2}, commit_every=4)
    if states and Path(states).exists():
        saved = torch.load(states, weights_only=True)
        for name, thing in objects.items():
            thing.load_state_dict(saved[name])
        made.load_state_dict(saved["run"])
    for kept in made:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
        made.step(loss_b)
        if states and (made.steps + 1) % 5 == 0:
            state = {**{name: thing.state_dict() for name, thing in objects.items()}, "run": made.state_dict()}
            if rank == 0:
                torch.save(state, states)
        if made.steps == until:
            break
    total = sum(float(getattr(p, "full_tensor", lambda p=p: p)().detach().double().sum()) for p in model.parameters())
    ranks.leave_group()
    return [made.steps, total]


def alone(world: Path, run: Path) -> float:
    return float(own_run(0, str(world), str(run), None, "none")[1])


def test_two_ranks_in_ddp_keep_what_one_keeps_and_go_on_after_their_death(world: Path, tmp_path: Path) -> None:
    for until in (11, None):
        told = ranks.together(tmp_path / "answers", own_run, 2, str(world), str(tmp_path / "two"), until)
        assert told[0] == told[1]
    weights = alone(world, tmp_path / "one")
    assert told[0] == [25, pytest.approx(weights, abs=2e-2)]
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two")
    assert verify(str(tmp_path / "two"))["problems"] == []
    latest = checkpoint.latest(str(tmp_path / "two"))
    assert latest is not None and latest.complete and latest.counts["kept"] == 200


@SLOW
def test_states_that_two_ranks_save_bring_both_back(world: Path, tmp_path: Path) -> None:
    run, states = str(tmp_path / "run"), str(tmp_path / "mine.pt")
    assert ranks.together(tmp_path / "a", own_run, 2, str(world), run, 13, "ddp", states)[0][0] == 13
    latest = checkpoint.latest(run)
    assert latest is not None and latest.step == 10 and sum(s["rows"] for s in latest.log) == 400
    assert ranks.together(tmp_path / "a", own_run, 2, str(world), run, None, "ddp", states)[0][0] == 25
    latest = checkpoint.latest(run)
    assert latest is not None and latest.complete and verify(run)["problems"] == []


@SLOW
def test_a_run_of_two_ranks_goes_on_with_one_and_keeps_its_lanes(world: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")  # 70 in 14 lanes over two ranks, and 35 over one
    assert ranks.together(tmp_path / "a", own_run, 2, str(world), run, 6, "ddp", "", 70)[0][0] == 6
    assert own_run(0, str(world), run, None, "none", "", 70)[0] == 14
    latest = checkpoint.latest(run)
    assert latest is not None and latest.complete and verify(run)["problems"] == []
    assert sum(segment["rows"] for segment in latest.log) == 1003


@SLOW
def test_a_sharded_model_is_committed_whole_and_restored(world: Path, tmp_path: Path) -> None:
    for until in (11, None):
        told = ranks.together(tmp_path / "answers", own_run, 2, str(world), str(tmp_path / "two"), until, "fsdp")
    assert told[0] == [25, pytest.approx(alone(world, tmp_path / "one"), abs=2e-2)]
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two")


def one_rank_alone(rank: int, world: str, run: str) -> list[Any]:
    """Rank 0 alone asks for a state; what it is told, and after how many seconds."""
    from torch.nn.parallel import DistributedDataParallel

    from rhostream.runs import run as module

    ranks.join_group()
    module._ABSENT_SECONDS = 1.0
    model = DistributedDataParallel(network())
    stream = rhostream.open_stream(f"{world}/shards", il=f"{world}/il", buffer_size=40)
    made = rhostream.Run(run, stream, rhostream.Selector(model, "rho", 8))
    said, begun = "", time.monotonic()
    if rank == 0:
        try:
            made.state_dict()
        except rhostream.RhostreamError as exc:
            said = str(exc)
    else:
        time.sleep(2)
    ranks.leave_group()
    return [said, time.monotonic() - begun]


def test_a_state_that_one_rank_asks_for_alone_says_so(world: Path, tmp_path: Path) -> None:
    (said, seconds), _ = ranks.together(tmp_path, one_rank_alone, 2, str(world), str(tmp_path / "run"))
    assert "by rank 0 and not, within 1 s, by rank 1" in said and seconds < 30


def strangers(rank: int, world: str, run: str) -> list[str]:
    """What a run says of a stream, a selector or gradients that don't fit its ranks."""
    ranks.join_group()
    model, said = network(), []
    for stream_of, group, gradients in (({"ranks": 1}, "default", "mean"), ({}, None, "mean"), ({}, "default", None)):
        stream = rhostream.open_stream(f"{world}/shards", il=f"{world}/il", buffer_size=40, **stream_of)
        try:
            rhostream.Run(run, stream, rhostream.Selector(model, "rho", 8, group=group), gradients=gradients)
        except rhostream.RhostreamError as exc:
            said.append(str(exc))
    ranks.leave_group()
    return said


def test_a_stream_a_selector_and_a_run_of_different_ranks_are_refused(world: Path, tmp_path: Path) -> None:
    (said, other) = ranks.together(tmp_path, strangers, 2, str(world), str(tmp_path / "run"))
    assert said == other and len(said) == 3
    assert "the stream has 1" in said[0] and "the selector has 1" in said[1] and "gradients" in said[2]
    assert not (tmp_path / "run").exists()
