"""A script of one's own with FSDP2 and DCP: ten more lines, killed, resumed, on other ranks."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError
from rhostream.integrations.dcp import RunState
from rhostream.runs import checkpoint
from tests.support import environments, ranks, scripts
from tests.support.logs import ask, log_of
from tests.support.own_loop import network
from tests.support.process import process as command

STEPS = 200  # eight passes of 25 buffers of 40
OPTIONS = ["--batch-size", "8", "--epochs", "8"]
KILLED = -signal.SIGKILL
SAVING = ("torch.distributed.checkpoint.filesystem", "_write_item")  # of each tensor, before the metadata
Script = Callable[..., str]


def slow(test: Any) -> Any:
    return pytest.mark.timeout(1200)(pytest.mark.slow(test))


def test_ten_lines_make_the_script_select() -> None:
    lines = scripts.changed("fsdp2")
    assert sum(line[0] == "+" for line in lines) == 10 and sum(line[0] == "-" for line in lines) == 5
    page = (environments.ROOT / "docs" / "fsdp.md").read_text(encoding="utf-8")
    block = page.partition("```diff\n")[2].partition("```")[0].splitlines()
    assert [line for line in block if line[:1] in "+-"] == lines


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_dcp_brings_a_run_back(world: Path, tmp_path: Path) -> None:
    def made(folder: str = "run") -> rhostream.Run:
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
        return rhostream.Run(str(tmp_path / folder), stream, rhostream.Selector(network(), "rho", 8))

    run = made()
    dcp.save({"run": RunState(run)}, checkpoint_id=tmp_path / "none")  # before the first batch: there is no state yet
    assert not (tmp_path / "run").exists()
    for _ in run:
        run.step(None)
        if run.steps == 2:
            dcp.save({"run": RunState(run)}, checkpoint_id=tmp_path / "three")
            run.confirm()
            break
    again = made()
    dcp.load({"run": RunState(again)}, checkpoint_id=tmp_path / "three")
    assert again.steps == 3
    anew = made()
    dcp.load({"run": RunState(anew)}, checkpoint_id=tmp_path / "none")
    assert anew.steps == 0
    for state in ({}, {"rhostream": 3}, {"rhostream": b"no state"}):
        with pytest.raises(MismatchError, match="this checkpoint"):
            RunState(made("other")).load_state_dict(state)


@pytest.fixture(scope="module")
def script(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs the patched example, or with `before` until the n-th call of a function, in the world's folder."""
    path = str(scripts.patched(tmp_path_factory.mktemp("fsdp2"), "fsdp2"))

    def run(out: Path, *more: str, before: tuple[str, str, int] | None = None, **variables: Any) -> str:
        arguments = [path] if before is None else ["-c", scripts.KILLED_BEFORE, path, *map(str, before)]
        return scripts.run(sys.executable, [*arguments, *OPTIONS, "--out", str(out), *more], world, **variables)

    return run


def saved(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of the application in a checkpoint, whole."""
    reader = dcp.FileSystemReader(out / f"step_{step:06d}")
    sizes = {name: found.size for name, found in reader.read_metadata().state_dict_metadata.items()
             if name.startswith("app.") and hasattr(found, "size")}  # fmt: skip
    state = {name: torch.empty(size) for name, size in sizes.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: what was saved at the end, and the rows of both ledgers."""
    first, second = saved(one), saved(other)
    assert len(first) > 20 and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log_of(one / "rho") == log_of(other / "rho") and verify(str(other / "rho"))["problems"] == []


def assert_whole(out: Path, steps: int = STEPS) -> None:
    latest = checkpoint.latest(str(out / "rho"))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == steps
    assert ask(out / "rho", "SELECT count(*) AS n FROM selections WHERE kept") == [{"n": 8 * (steps - steps % 2)}]
    assert "nothing is wrong" in command("verify", str(out / "rho"))[0]


def back(out: Path, step: int) -> None:
    for path in out.glob("step_*"):
        if int(path.name[5:11]) > step:
            shutil.rmtree(path)


@slow
@pytest.mark.parametrize("more", [("--bf16", "--checkpoint-activations"), ("--model", "cnn")], ids=["mlp-bf16", "cnn"])
def test_killed_three_times_and_rolled_back_it_ends_bit_for_bit_as_uninterrupted(
    script: Script, tmp_path: Path, more: tuple[str, ...]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    script(whole, *more)
    assert_whole(whole)
    command("report", str(whole / "rho"), "--out", str(tmp_path / "report.html"))
    script(out, *more, code=KILLED, RHOSTREAM_CRASH_POINT="train: step closed@37")
    script(out, *more, code=KILLED, before=(*SAVING, 60))
    torn = [path for path in out.glob("step_*") if not (path / ".metadata").exists()]
    assert len(torn) == 1 and any(torn[0].iterdir())
    script(out, *more, code=KILLED, RHOSTREAM_CRASH_POINT="train: buffer scored@112")
    script(out, *more)
    assert_whole(out)
    assert_same(whole, out)
    back(out, 120)
    script(out, *more)
    assert_same(whole, out)


@slow
def test_two_ranks_keep_what_one_keeps_and_go_on_bit_for_bit_and_with_another_number(
    script: Script, tmp_path: Path
) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    script(one)
    script(two, ranks=2)
    assert_whole(two)
    assert ranks.assert_same_but_for_noise(one / "rho", two / "rho") >= 20
    first, second = saved(one, 20), saved(two, 20)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)
    script(other, ranks=2, code=KILLED, RHOSTREAM_CRASH_POINT="train: step closed@131")
    script(other, ranks=2)
    assert_same(two, other)
    for count in (1, 2):  # what two saved, one goes on with, and what that saves, two
        back(other, 120)
        script(other, ranks=count)
        assert_whole(other)
        assert ranks.assert_same_but_for_noise(two / "rho", other / "rho") >= 20
        back(other, 160)


@slow
def test_compiled_blocks_and_an_end_inside_an_update(script: Script, tmp_path: Path) -> None:
    """25 steps: their loop drops the last batch's gradient, and the ledger says so."""
    out = tmp_path / "run"
    script(out, "--compile", "--epochs", "1")
    assert_whole(out, 25)
    assert ask(out / "rho", "SELECT count(*) AS n FROM selections WHERE reason = 'unapplied'") == [{"n": 8}]
