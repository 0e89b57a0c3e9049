"""Weights spread over the ranks: what one process keeps and learns, in commits that any number goes on from."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import RankLostError, TableError
from rhostream.runs import checkpoint
from rhostream.runs.shards import Part, Sharded, read_index, write_index
from rhostream.selection import gradient
from rhostream.selection.ranks import Ranks
from rhostream.training import loop
from rhostream.training.parallel import blocks_of
from tests.support import ranks
from tests.support.logs import weights_of

SLOW = pytest.mark.slow
FSDP: dict[str, Any] = {"parallel": "fsdp"}


@pytest.fixture
def settings(world: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "run"),
        "steps": 12,
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "checkpoint_every": 5,
        "test_shards": [str(world / "test")],
        "eval_every": 6,
    }


def close(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)


@SLOW
def test_two_ranks_with_half_of_the_weights_each_keep_and_learn_what_one_process_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    clipped = {"clip_gradient": 0.5, "accumulate": 3, "activation_checkpointing": True}
    kinds = {
        "plain": {},
        "clipped": clipped,
        "sgd": {"optimizer": "sgd", "lr": 0.05, "steps": 6},
        "compiled": {"compile": True, "activation_checkpointing": True, "steps": 6},
    }
    for name, kind in kinds.items():
        rhostream.train(**{**settings, **kind, "threads": 1, "run": str(tmp_path / f"one-{name}")})
    two = [{**settings, **FSDP, **kind, "run": str(tmp_path / f"two-{name}")} for name, kind in kinds.items()]
    ranks.together(tmp_path, ranks.train, 2, two)
    for name in kinds:
        one, other = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        assert ranks.assert_same_but_for_noise(one, other) == kinds[name].get("steps", 12)
        assert close(one, other) and verify(str(other))["problems"] == []


# -- commits ---


def shards_of(run: Path) -> dict[str, bytes]:
    """Of the newest commit: every rank's files."""
    latest = checkpoint.latest(str(run))
    assert latest is not None
    return {Path(path).name: (run / path).read_bytes() for path in latest.files if "/shard" in path}


def test_a_commit_of_two_ranks_is_one_act_of_files_that_each_rank_wrote(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    ranks.together(tmp_path, ranks.train, 2, [{**settings, **FSDP, "keep_checkpoints": 1}])
    run = Path(settings["run"])
    held = shards_of(run)
    assert {*held} == {"sharded.json", "shard-00000-00000.safetensors", "shard-00001-00000.safetensors"}
    assert len({f.parent for f in run.glob("checkpoints/*/*/*")}) == 1  # retention has removed the shards of the others
    whole = sum(t.numel() * t.element_size() for t in weights_of(run).values())
    for rank in (0, 1):  # weights and both moments of AdamW, one half each
        assert len(held[f"shard-0000{rank}-00000.safetensors"]) == pytest.approx(3 * whole / 2, rel=0.1)
    assert rhostream.train(**{**settings, "steps": 14}).steps == 14  # one process goes on
    assert not shards_of(run) and verify(str(run))["problems"] == []


def test_a_damaged_shard_and_an_index_that_lies_are_found(settings: dict[str, Any], tmp_path: Path) -> None:
    ranks.together(tmp_path, ranks.train, 2, [{**settings, **FSDP, "steps": 2}])
    (shard,) = Path(settings["run"]).glob("checkpoints/*/*/shard-00001-*")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert any("sha256" in said for said in verify(settings["run"])["problems"])
    with pytest.raises(TableError, match="shard-00001"):
        rhostream.train(**{**settings, "steps": 4})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_an_index_is_read_back_and_a_tensor_with_a_hole_is_refused(rows: list[int], width: int) -> None:
    starts = [sum(rows[:n]) for n in range(len(rows))]
    parts = tuple(Part((at, 0), (n, width), f"f{at}", "0") for at, n in zip(starts, rows, strict=True))
    tensor = Sharded(("optimizer", "state", 0, "exp_avg"), (sum(rows), width), "float32", parts)
    files = [part.file for part in parts]
    assert read_index(write_index([tensor]), files) == [tensor]
    lies = [replace(tensor, dtype="object"), replace(tensor, way=("model",)), replace(tensor, shape=(1, -1))]
    if width:
        lies += [replace(tensor, parts=parts[1:]), replace(tensor, parts=(*parts, parts[0]))]
    for lie in lies:
        with pytest.raises(ValueError):
            read_index(write_index([lie]), files)
    with pytest.raises(ValueError, match="doesn't list"):
        read_index(write_index([tensor]), files[1:])


@SLOW
def test_killed_and_resumed_on_two_ranks_it_ends_with_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    longer = {**settings, **FSDP, "steps": 20, "clip_gradient": 1.0, "accumulate": 2}
    ranks.together(tmp_path, ranks.train, 2, [{**longer, "run": str(tmp_path / "whole")}])
    for at in (7, 12):
        fallen = ranks.start(tmp_path, ranks.train, 2, [longer], at).join()
        assert fallen[0]["exit"] == -signal.SIGKILL and fallen[1]["exit"] == 3, fallen
        assert fallen[1]["error"].startswith("RankLostError"), fallen
    ranks.together(tmp_path, ranks.train, 2, [longer])
    assert ranks.decisions(tmp_path / "whole") == ranks.decisions(tmp_path / "run")
    assert shards_of(tmp_path / "whole") == shards_of(tmp_path / "run")
    assert verify(settings["run"])["problems"] == []


@SLOW
@pytest.mark.parametrize("optimizer", [{}, ranks.SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("kinds", [("fsdp-2", "ddp-1", "fsdp-2"), ("fsdp-4", "fsdp-2"), ("ddp-2", "fsdp-2", "ddp-2")])
def test_any_number_of_ranks_goes_on_from_any_other(
    settings: dict[str, Any], tmp_path: Path, kinds: tuple[str, ...], optimizer: dict[str, Any]
) -> None:
    settings = {**settings, **optimizer}
    rhostream.train(**{**settings, "threads": 1, "run": str(tmp_path / "one")})
    for step, kind in zip((4, 8, 12)[-len(kinds) :], kinds, strict=True):
        parallel, size = kind.split("-")
        ranks.together(tmp_path, ranks.train, int(size), [{**settings, "parallel": parallel, "steps": step}])
    assert ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "run") == 12
    assert close(tmp_path / "one", tmp_path / "run") and verify(settings["run"])["problems"] == []


# -- what isn't done, and what is no lost rank ---


def test_what_sharded_weights_do_not_do_is_refused_in_a_sentence(settings: dict[str, Any], tmp_path: Path) -> None:
    for option in ({"ema": 0.9}, {"optimizer": "adafactor"}, {"chunk": 8}):
        told = ranks.start(tmp_path, ranks.train, 2, [{**settings, **FSDP, **option}]).join()
        assert [one["exit"] for one in told] == [2, 2], told
        assert all(one["error"].startswith("UsageError: --parallel fsdp: ") for one in told)
        assert not Path(settings["run"]).exists()


def test_only_a_rank_that_is_gone_is_told_as_one() -> None:
    lost = (dist.DistBackendError("NCCL"), RuntimeError("[/gloo/tcp/pair.cc:547] Connection closed by peer"))
    own = (NotImplementedError("broadcast of a DTensor"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    for error in lost:
        with pytest.raises(RankLostError), Ranks().waiting():
            raise error
    for error in own:
        with pytest.raises(type(error)) as caught, Ranks().waiting():
            raise error
        assert caught.value is error


class Norms(nn.Module):
    """Two blocks with batch norm and dropout, between layers that are in no list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(256, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.last(x)  # type: ignore[no-any-return]


def test_activations_that_are_computed_again_change_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    assert len([*blocks_of(Norms())]) == 4  # a list in a list: what has weights in the inner ones
    for again in (False, True):
        rhostream.train(
            **{**settings, "run": str(tmp_path / str(again)), "steps": 4, "test_shards": (), "model": "norms"},
            make_model=Norms, activation_checkpointing=again, threads=1,
        )  # fmt: skip
    first, second = (weights_of(tmp_path / str(again)) for again in (False, True))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- memory ---


def wide() -> nn.Module:
    """33.9 million weights in nine blocks."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2048), nn.ReLU(), *layers, nn.Linear(2048, 4))


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]


def peak(rank: int, options: dict[str, Any]) -> list[int]:
    """Bytes at the most in the steps, and with the commit at the end, beyond those before the model was made."""
    import ctypes

    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
    before, seen = [], []

    def make() -> nn.Module:
        before.append(resident("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
        return wide()

    take_step = gradient.take_step

    def taken(*arguments: Any, **keywords: Any) -> Any:
        found = take_step(*arguments, **keywords)
        seen.append(resident("VmHWM"))
        return found

    loop.take_step = taken  # type: ignore[attr-defined]
    rhostream.train(
        **{**options, "test_shards": (), "model": "wide"}, make_model=make, threads=1, rank_timeout=120.0
    )  # fmt: skip
    return [seen[-1] - before[0], resident("VmHWM") - before[0]]


@SLOW
def test_each_of_two_ranks_needs_less_than_seven_tenths_of_the_memory_of_one_process(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    options = {**settings, "steps": 4, "checkpoint_every": 100}
    (one,) = ranks.together(tmp_path, peak, 1, {**options, "run": str(tmp_path / "one")})
    two = ranks.together(tmp_path, peak, 2, {**options, **FSDP, "run": str(tmp_path / "two")})
    print(f"MiB in the steps and with a commit: one process {[n >> 20 for n in one]}, each of two ranks "
          f"{[[n >> 20 for n in rank] for rank in two]}")  # fmt: skip
    assert all(used < 0.7 * alone for rank in two for used, alone in zip(rank, one, strict=True)), (one, two)
