"""Asked to stop: every job ends soon, with its exit code, and the same command goes on; no process outlives its job."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rhostream.runs import checkpoint
from rhostream.tables.unfinished import unfinished_in
from tests.faults import tally
from tests.faults.crash_server import Rig, Started
from tests.support.shards import make_shards
from tests.support.waits import alive, eventually

SLOWEST_SECONDS = 60.0  # what a test waits at most, for a machine under load


@pytest.fixture(autouse=True)
def nothing_goes_on(rig: Rig) -> Iterator[None]:
    yield
    rig.end_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> Path:
    """shards/, and il-model/ and il/ of them."""
    root = tmp_path_factory.mktemp("signals")
    shards, model = [str(p) for p in make_shards(root / "shards", [40, 30, 37])], str(root / "il-model")
    for verb, options in (
        ("fit-il", {"shards": shards, "model": "mlp-64", "epochs": 1, "out": model}),
        ("compute-il", {"shards": shards, "il_model": model, "out": str(root / "il")}),
    ):
        assert rig.job(verb, options)["code"] == 0
    return root


def parts(table: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (table / "parts").rglob("*.parquet")}


def end(job: Started, number: int, *, title: str) -> int:
    """Send a signal and wait; returns the exit code."""
    begun = time.monotonic()
    os.kill(job.pid, number)
    code = int(job.wait()["code"])
    tally.say(f"{title}: exit {code}, {time.monotonic() - begun:.1f} s after the signal")
    assert job.log is not None and "Traceback" not in job.log.read_text()
    return code


def workers_of(pid: int) -> set[int]:
    """The loader workers of `pid`, by /proc: the processes below those that it started itself."""
    parent = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {pid}
    while more := {child for child, above in parent.items() if above in found} - found:
        found |= more
    return {p for p in found - {pid} if parent[p] != pid}


def hung(data: Path, folder: Path) -> list[Path]:
    """The shards, the last one on a disk that doesn't answer: opening it takes as long as it is held."""
    folder.mkdir()
    shards = []
    for shard in sorted((data / "shards").iterdir()):
        os.link(shard, folder / shard.name)
        shards.append(folder / shard.name)
    shards[-1].unlink()
    shards[-1].touch()
    shards[-1].with_name(shards[-1].name + ".hold").touch()
    return shards


def finish(rig: Rig, job: tuple[object, ...], data: Path, shards: list[Path], table: Path, tmp_path: Path) -> None:
    """The slow shard has come: the same command goes on and makes what was missing."""
    before = parts(table)
    shards[-1].unlink()
    os.link(data / "shards" / shards[-1].name, shards[-1])
    assert rig.cli(tmp_path / "again.log", *job).wait()["code"] == 0
    after = parts(table)
    assert len(after) == len(shards) and before.items() <= after.items()


@pytest.mark.parametrize("verb", ["index", "compute-il"])
def test_E2_sigterm_during_a_read_that_hangs_ends_the_job(rig: Rig, data: Path, tmp_path: Path, verb: str) -> None:
    """SIGTERM ends a job within five seconds with exit code 143, even while it waits for a read that never comes back;
    what was finished is there, and the same command goes on."""
    shards = hung(data, tmp_path / "shards")
    job = (verb, "--shards", *shards, "--out", tmp_path / "t", "--root", f"r={tmp_path}/shards")
    job += ("--il-model", data / "il-model") if verb == "compute-il" else ("--content", "image", "--resize", "crop")
    running = rig.cli(tmp_path / "log", *job, hangs=shards[-1])
    eventually(lambda: len(parts(tmp_path / "t")) == 2)
    assert end(running, signal.SIGTERM, title=f"{verb} in a read that hangs") == 143
    assert "same command resumes" in running.log.read_text()
    finish(rig, job, data, shards, tmp_path / "t", tmp_path)


class Asleep(nn.Module):
    """A network whose gradient step takes longer than anybody waits."""

    def __init__(self, pixels: int, classes: int, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(pixels, classes), seconds

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            print("in a step", flush=True)
            time.sleep(self.seconds)
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def asleep(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """For --model."""
    return Asleep(channels * image_size**2, classes, 600)


def awake(*, image_size: int, channels: int, classes: int) -> nn.Module:
    """The same that takes no time."""
    return Asleep(channels * image_size**2, classes, 0)


def steps_begun(running: Started) -> int:
    """How many steps a trainer of one of these models has begun."""
    return running.log.read_text().count("in a step") if running.log.exists() else 0


def test_E3_a_second_ctrl_c_ends_a_job_at_once(rig: Rig, data: Path, tmp_path: Path) -> None:
    """A trainer in a long step ends it after one Ctrl-C; a second one ends the trainer at once, with exit code 130."""
    running = rig.cli(tmp_path / "log", "train", "--shards", data / "shards", "--il", data / "il", "--buffer-size", 20,
                      "--batch-size", 4, "--run", tmp_path / "run", "--model",
                      "tests.faults.test_e_signals:asleep")  # fmt: skip
    eventually(lambda: steps_begun(running) > 0)
    os.kill(running.pid, signal.SIGINT)
    time.sleep(0.3)
    assert alive({running.pid})
    assert end(running, signal.SIGINT, title="a second Ctrl-C in a long step") == 130
    assert checkpoint.latest(str(tmp_path / "run")) is None


def test_E3_ctrl_c_is_130_and_leaves_a_job_that_goes_on(rig: Rig, data: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a job cleanly; the exit code is 130, never 0, and the same command goes on."""
    shards = hung(data, tmp_path / "shards")
    job = ("compute-il", "--shards", *shards, "--out", tmp_path / "t", "--il-model", data / "il-model")
    running = rig.cli(tmp_path / "log", *job, hangs=shards[-1])
    eventually(lambda: len(parts(tmp_path / "t")) == 2)
    assert end(running, signal.SIGINT, title="compute-il, Ctrl-C") == 130
    finish(rig, job, data, shards, tmp_path / "t", tmp_path)


def test_E2_sigterm_in_the_middle_of_an_epoch_of_fit_il(rig: Rig, data: Path, tmp_path: Path) -> None:
    """SIGTERM ends fit-il in the middle of an epoch; no half model is left that looks like one."""
    job = ("fit-il", "--shards", data / "shards", "--model", "mlp-64", "--out", tmp_path / "m", "--epochs")
    running = rig.cli(tmp_path / "log", *job, 10**6)
    time.sleep(1.0)  # well inside its million epochs
    assert end(running, signal.SIGTERM, title="fit-il in an epoch") == 143
    assert not (tmp_path / "m" / "model.json").exists()
    assert rig.cli(tmp_path / "again.log", *job, 1).wait()["code"] == 0


def test_E3_ctrl_c_in_fit_il_says_what_is_kept_and_the_same_command_goes_on_there(
    rig: Rig, data: Path, tmp_path: Path
) -> None:
    """Ctrl-C ends fit-il with exit code 130 and a sentence that says how many epochs are kept. `status` says it, and
    the same command goes on behind them."""
    job = ("fit-il", "--shards", data / "shards", "--model", "mlp-64", "--out", tmp_path / "m", "--epochs", 10**4)
    running = rig.cli(tmp_path / "log", *job)
    eventually(lambda: bool(unfinished_in(str(tmp_path / "m"))))
    assert end(running, signal.SIGINT, title="fit-il, Ctrl-C") == 130
    (kept,) = unfinished_in(str(tmp_path / "m")).values()
    assert f"model 1 of 2, {kept.epochs:,} of 10,000 epochs are kept" in running.log.read_text()
    assert "reads the samples again and goes on" in running.log.read_text()
    status = rig.cli(tmp_path / "status", "status", tmp_path / "m")
    assert status.wait()["code"] == 0 and f"1 of 2: {kept.epochs:,} of 10,000 epochs" in status.log.read_text()
    again = rig.cli(tmp_path / "again", *job)
    eventually(lambda: max(one.epochs for one in unfinished_in(str(tmp_path / "m")).values()) > kept.epochs)
    assert end(again, signal.SIGINT, title="fit-il again, Ctrl-C") == 130


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
])  # fmt: skip
def test_E2_a_stopped_trainer_commits_its_step_and_goes_on(
    rig: Rig, data: Path, tmp_path: Path, number: int, code: int
) -> None:
    """A trainer that is asked to stop ends the step at hand, commits it and exits with 143 (SIGTERM) or 130 (Ctrl-C);
    the same command goes on at the next step."""
    job = ("train", "--shards", data / "shards", "--il", data / "il", "--model", "tests.faults.test_e_signals:awake",
           "--buffer-size", 20, "--batch-size", 4, "--run", tmp_path / "run", "--steps")  # fmt: skip
    running = rig.cli(tmp_path / "log", *job, 10**6)
    eventually(lambda: steps_begun(running) > 1)  # the first is over, and none is committed
    assert end(running, number, title=f"train, {signal.Signals(number).name}") == code
    stopped = checkpoint.latest(str(tmp_path / "run"))
    assert stopped is not None and sum(s["rows"] for s in stopped.log) >= 20 * stopped.step
    assert rig.cli(tmp_path / "again.log", *job, stopped.step + 3).wait()["code"] == 0
    done = checkpoint.latest(str(tmp_path / "run"))
    assert done is not None and done.step == stopped.step + 3 and done.complete


WORKERS = {
    "compute-il": ("--il-model", "il-model", "--out", "t"),
    "train": ("--il", "il", "--run", "run", "--model", "mlp-64", "--buffer-size", "20", "--batch-size", "4", "--steps",
              "1000000", "--checkpoint-every", "5"),
}  # fmt: skip


def begin_with_workers(rig: Rig, data: Path, tmp_path: Path, verb: str) -> tuple[Started, set[int]]:
    """A job whose two workers are at work: one of compute-il's hangs in a read, the trainer's are busy for ever."""
    shards = hung(data, tmp_path / "shards") if verb == "compute-il" else [data / "shards"]
    options = [str(data / o) if o in ("il", "il-model") else str(tmp_path / o) if o in ("t", "run") else o
               for o in WORKERS[verb]]  # fmt: skip
    running = rig.cli(
        tmp_path / "log",
        verb,
        "--shards",
        *shards,
        "--workers",
        2,
        *options,
        hangs=shards[-1] if verb == "compute-il" else None,
    )
    eventually(lambda: any((tmp_path / "run" / "commits").rglob("*.json"))
               or len(parts(tmp_path / "t")) == 2)  # fmt: skip
    workers = workers_of(running.pid)
    assert workers
    return running, workers


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORKERS)
def test_E3_ctrl_c_at_a_terminal_reaches_the_workers_and_they_print_nothing(
    rig: Rig, data: Path, tmp_path: Path, verb: str
) -> None:
    """Ctrl-C goes to the worker processes too: they print no traceback, and none is left."""
    running, below = begin_with_workers(rig, data, tmp_path, verb)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait()["code"] == 130
    said = running.log.read_text()
    assert "Traceback" not in said and "KeyboardInterrupt" not in said and "same command resumes" in said
    eventually(lambda: not alive(below))


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORKERS)
def test_E2_sigterm_while_the_workers_hang_ends_the_job_and_them(
    rig: Rig, data: Path, tmp_path: Path, verb: str
) -> None:
    """SIGTERM ends a job whose worker processes do not move at all, and ends them too."""
    running, below = begin_with_workers(rig, data, tmp_path, verb)
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    assert end(running, signal.SIGTERM, title=f"{verb}, its workers stopped") == 143
    eventually(lambda: not alive(below))


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORKERS)
def test_E1_no_worker_outlives_a_killed_job(rig: Rig, data: Path, tmp_path: Path, verb: str) -> None:
    """When a job is killed, its worker processes end by themselves, whatever they are at."""
    running, below = begin_with_workers(rig, data, tmp_path, verb)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait()["code"] == -signal.SIGKILL
    eventually(lambda: not alive(below))
