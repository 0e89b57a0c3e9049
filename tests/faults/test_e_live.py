"""A run that another process is at: it is said, and nobody takes it over unawares."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rhostream
from rhostream.audit.status import status_of
from rhostream.errors import Interrupted, UsageError
from rhostream.runs import checkpoint, process
from rhostream.runs.process import at_work, is_at_work, this_process
from rhostream.tables import steps
from tests.faults.crash_server import Rig
from tests.support.shards import make_shards
from tests.support.waits import eventually

SECONDS = 0.05  # of a gradient step of `slow`


class Slow(nn.Module):
    """A network whose gradient steps take their time."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            time.sleep(SECONDS)
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def slow(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """For --model."""
    steps.SEEN_SECONDS = 4 * SECONDS  # what is told of a run after 15 s, while a test waits
    return Slow(channels * image_size**2, classes)


@pytest.fixture(autouse=True)
def nothing_goes_on(rig: Rig) -> Iterator[None]:
    yield
    rig.end_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> Path:
    """shards/ and the index of them."""
    root = tmp_path_factory.mktemp("live")
    make_shards(root / "shards", [40, 30, 37])
    assert rig.job("index", {"shards": [str(root / "shards")], "out": str(root / "index")})["code"] == 0
    return root


def job(data: Path, run: Path) -> list[object]:
    return ["train", "--shards", data / "shards", "--il", data / "index", "--rule", "loss", "--buffer-size", 20,
            "--batch-size", 4, "--steps", 10**5, "--passes", 10**5, "--run", run,
            "--model", "tests.faults.test_e_live:slow"]  # fmt: skip


def test_E17_a_run_that_is_going_on_is_said_and_not_taken_over_unawares(rig: Rig, data: Path, tmp_path: Path) -> None:
    """While a trainer runs, `status` says since when, in which process and how far, committed or not, and advises
    nothing that would undo its steps. A second trainer on this machine is refused before any work, naming the process;
    with `--take-over` it goes on from the newest commit, and the first one stops without a commit. Once the process is
    gone, the same command goes on by itself."""
    run = tmp_path / "run"
    first = rig.cli(tmp_path / "first", *job(data, run))
    eventually(lambda: (run / "attempts" / "0.json").exists() and steps.steps_seen(str(run), 0) is not None)
    found = status_of(str(run))
    assert found["step"] == 0 and found["job"]["step"] > 0 and found["job"]["seconds_ago"] < 60
    assert (found["job"]["running"], found["job"]["pid"], found["job"]["attempt"]) == (True, first.pid, 0)
    assert f"kill {first.pid}" in found["next"] and "rhostream train" not in found["next"]
    said = rig.cli(tmp_path / "status", "status", run)
    assert said.wait()["code"] == 0
    assert re.search(rf"running +attempt 0 since 20.*process {first.pid}.*step \d+", said.log.read_text())

    second = rig.cli(tmp_path / "second", *job(data, run))
    assert second.wait()["code"] == 2
    assert f"process {first.pid}" in second.log.read_text() and "--take-over" in second.log.read_text()
    assert [p.name for p in (run / "attempts").iterdir()] == ["0.json"]

    third = rig.cli(tmp_path / "third", *job(data, run), "--take-over")
    eventually(lambda: (run / "attempts" / "1.json").exists())
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait()["code"] == 3 and "taken over" in first.log.read_text()
    os.kill(third.pid, signal.SIGKILL)
    assert third.wait()["code"] == -signal.SIGKILL
    assert status_of(str(run))["job"]["running"] is False

    again = rig.cli(tmp_path / "again", *job(data, run))
    eventually(lambda: (run / "attempts" / "2.json").exists())
    assert "take_over" not in json.dumps(json.loads((run / "run.json").read_text())["arguments"])
    eventually(lambda: steps.steps_seen(str(run), 2) is not None)
    os.kill(again.pid, signal.SIGTERM)
    assert again.wait()["code"] == 143
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.attempt == 2
    assert rhostream.open_ledger(str(run)).sql("SELECT step FROM steps")["step"].to_pylist() == [*range(latest.step)]


def test_E17_of_an_attempt_on_another_machine_it_is_said_that_nobody_can_see_it(
    rig: Rig, data: Path, tmp_path: Path
) -> None:
    """Of an attempt that another machine (or an older version) began, `status` says where and when, and that nobody can
    see from here whether it still runs; a trainer goes on as ever."""
    run = tmp_path / "run"
    first = rig.cli(tmp_path / "first", *job(data, run))
    eventually(lambda: (run / "attempts" / "0.json").exists())
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait()["code"] == 143
    note = json.loads((run / "attempts" / "0.json").read_text())
    (run / "attempts" / "0.json").write_text(json.dumps({**note, "host": "elsewhere", "machine": "another boot"}))
    found = status_of(str(run))
    assert found["job"]["running"] is None and found["job"]["host"] == "elsewhere"
    assert "rhostream train" in found["next"] and "attempt 0" in found["next"]
    older = {name: note[name] for name in note if name not in ("machine", "label", "begun")}
    (run / "attempts" / "0.json").write_text(json.dumps(older))
    assert status_of(str(run))["job"]["running"] is None


def test_a_loop_is_seen_while_it_is_at_work_and_at_no_other_time() -> None:
    own, other = this_process("run"), this_process("run")
    assert is_at_work(own) is False
    with at_work(own):
        assert is_at_work(own) is True and is_at_work(other) is False
        assert is_at_work({**own, "pid": os.getppid()}) is False and is_at_work({**own, "pid": 2**40}) is False
        assert is_at_work({**own, "machine": "another"}) is None and is_at_work({"pid": os.getpid()}) is None
        assert is_at_work({**own, "label": 7}) is None and is_at_work({**own, "pid": "1"}) is None
    assert is_at_work(own) is False
    with pytest.raises(ZeroDivisionError), at_work(own):
        raise ZeroDivisionError
    assert is_at_work(own) is False


def test_a_process_that_ended_and_was_not_waited_for_is_at_no_work() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert process._ended(pid) and not process._ended(os.getpid()) and not process._ended(2**40)
        assert is_at_work({**this_process("run"), "pid": pid}) is False
    finally:
        os.waitpid(pid, 0)


def test_a_loop_that_ended_in_a_process_that_lives_on_holds_nothing(rig: Rig, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop(row: dict[str, object]) -> None:
        assert status_of(str(run))["job"]["running"] is True
        os.kill(os.getpid(), signal.SIGTERM)

    settings = {"rule": "loss", "model": "mlp-64", "buffer_size": 20, "batch_size": 4, "steps": 4}
    with pytest.raises(Interrupted):
        rhostream.train(str(data / "shards"), str(data / "index"), str(run), **settings, metrics=stop)
    found = status_of(str(run))["job"]
    assert (found["pid"], found["running"]) == (os.getpid(), False)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    again = rig.cli(
        tmp_path / "log", "train", "--shards", data / "shards", "--il", data / "index", "--run", run, *options
    )
    assert again.wait()["code"] == 0


def test_a_loop_of_ones_own_is_refused_too(rig: Rig, data: Path, tmp_path: Path) -> None:
    first = rig.cli(tmp_path / "first", *job(data, tmp_path / "run"))
    eventually(lambda: status_of_begun(tmp_path / "run") is True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    stream = rhostream.open_stream(str(data / "shards"), str(data / "index"), buffer_size=20, needs_il=False)
    run = rhostream.Run(str(tmp_path / "run"), stream, rhostream.Selector(model, "loss", 4), state={"model": model})
    with pytest.raises(UsageError, match=f"process {first.pid}"):
        next(iter(run))


def status_of_begun(run: Path) -> bool | None:
    """Whether it is at work, None before its first attempt."""
    return status_of(str(run))["job"]["running"] if (run / "attempts" / "0.json").exists() else None
