"""Hugging Face Accelerate itself: an ordinary script with ten lines more, killed, resumed, rolled back, on two ranks.

In an environment of its own (tests/support/environments.py).
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from tests.support import environments, ranks, scripts
from tests.support.logs import ask, log_of
from tests.support.process import process as command


def slow(test: Any) -> Any:
    return pytest.mark.timeout(1200)(pytest.mark.slow(test))


STEPS = 200  # eight passes of 25 buffers of 40
OPTIONS = ["--batch-size", "8", "--epochs", "8"]
KILLED = -signal.SIGKILL
Script = Callable[..., str]


def test_ten_lines_make_the_script_select() -> None:
    lines = scripts.changed("accelerate")
    assert sum(line[0] == "+" for line in lines) == 10 and sum(line[0] == "-" for line in lines) == 5
    page = (environments.ROOT / "docs" / "accelerate.md").read_text(encoding="utf-8")
    block = page.partition("```diff\n")[2].partition("```")[0].splitlines()
    assert [line for line in block if line[:1] in "+-"] == lines


def test_without_the_package_the_extra_is_named() -> None:
    with pytest.raises(rhostream.RhostreamError, match=r"rhostream\[accelerate\]"):
        importlib.import_module("rhostream.integrations.accelerate")


@pytest.fixture(scope="module")
def script(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs the patched example, or with `before` until the n-th call of a function, in the world's folder."""
    begun = time.monotonic()
    if why := environments.make("accelerate"):
        pytest.skip(f"Accelerate's environment can't be made here: {why}")
    print(f"the environment took {time.monotonic() - begun:.0f} s")
    path = str(scripts.patched(tmp_path_factory.mktemp("accelerate"), "accelerate"))

    def run(out: Path, *more: str, before: tuple[str, str, int] | None = None, **variables: Any) -> str:
        arguments = [path] if before is None else ["-c", scripts.KILLED_BEFORE, path, *map(str, before)]
        python = environments.python("accelerate")
        variables = {"ACCELERATE_USE_CPU": "true", **variables}
        return scripts.run(python, [*arguments, *OPTIONS, "--out", str(out), *more], world, **variables)

    return run


def saved(out: Path, step: int = STEPS) -> dict[str, Any]:
    """Weights, moments, schedule and average of a checkpoint."""
    folder, state = out / f"step_{step:06d}", dict[str, Any](load_file(out / f"step_{step:06d}" / "model.safetensors"))
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    state |= {f"{at} {name}": value for at, of in optimizer.items() for name, value in of.items()}
    state |= {f"average {n}": v for n, v in torch.load(folder / "custom_checkpoint_1.pkl", weights_only=True).items()}
    return {**state, "rate": torch.tensor(torch.load(folder / "scheduler.bin", weights_only=True)["_last_lr"])}


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: what was saved at the end, and the rows of both ledgers."""
    first, second = saved(one), saved(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert log_of(one / "rho") == log_of(other / "rho")
    told = "SELECT step, kept, loss_kept, test_accuracy FROM steps ORDER BY step"
    assert ask(one / "rho", told) == ask(other / "rho", told)
    assert verify(str(other / "rho"))["problems"] == []


def assert_whole(out: Path, kept: int = 8 * STEPS) -> None:
    latest = checkpoint.latest(str(out / "rho"))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == STEPS
    assert ask(out / "rho", "SELECT count(*) AS n FROM selections WHERE kept") == [{"n": kept}]
    assert "nothing is wrong" in command("verify", str(out / "rho"))[0]


@slow
@pytest.mark.parametrize("more", [(), ("--model", "cnn", "--precision", "bf16")], ids=["mlp", "cnn-bf16"])
def test_killed_three_times_and_rolled_back_it_ends_bit_for_bit_as_uninterrupted(
    script: Script, tmp_path: Path, more: tuple[str, ...]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    script(whole, *more)
    assert_whole(whole)
    assert ask(whole / "rho", "SELECT count(test_accuracy) AS n FROM steps") == [{"n": STEPS // 20}]
    command("report", str(whole / "rho"), "--out", str(tmp_path / "report.html"))
    script(out, *more, code=KILLED, RHOSTREAM_CRASH_POINT="train: step closed@37")
    # Inside the save of step 100, the fourth of this process: the weights are on disk, and the run isn't.
    script(out, *more, code=KILLED, before=("accelerate.accelerator", "save_custom_state", 7))
    assert (out / "step_000100.part" / "model.safetensors").exists() and not (out / "step_000100").exists()
    script(out, *more, code=KILLED, RHOSTREAM_CRASH_POINT="train: buffer scored@92")
    assert sorted(path.name for path in out.glob("step_*0"))[-1] == "step_000160"
    script(out, *more)
    assert_whole(out)
    assert_same(whole, out)
    for path in out.glob("step_*"):  # back from the end, as after a spike
        if int(path.name[5:11]) > 120:
            shutil.rmtree(path)
    script(out, *more)
    assert_same(whole, out)


@slow
def test_two_ranks_keep_what_one_keeps_and_go_on_after_their_death(script: Script, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    script(one)
    script(two, ranks=2, code=KILLED, RHOSTREAM_CRASH_POINT="train: step closed@131")
    script(two, ranks=2)
    assert_whole(two)
    # Until two scores are nearer than float noise, the same rows; the weights of the first 20 steps within it.
    assert ranks.assert_same_but_for_noise(one / "rho", two / "rho") >= 20
    first, second = saved(one, 20), saved(two, 20)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)
    script(two, "--out", str(two))  # of a finished run nothing is left to do, by one rank either
    assert_whole(two)


MISUSE = """
import json, os, shutil, signal, sys
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
import rhostream
from rhostream.integrations.accelerate import AcceleratedRun

folder = sys.argv[1]
accelerator = Accelerator(gradient_accumulation_steps=2)
plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
assert accelerator._models and accelerator._schedulers == []

def made(name, model=model, **options):
    accelerator._custom_objects.clear(); accelerator._save_model_state_pre_hook.clear()
    accelerator.step = 0
    stream = rhostream.open_stream("shards", il="il", buffer_size=40)
    return AcceleratedRun(accelerator, f"{folder}/{name}", stream, rhostream.Selector(model, "rho", 8), **options)

def go(run, until=None, outside=(), save=()):
    for kept in run:
        def body():
            loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
            accelerator.backward(kept.mean(loss_b))
            optimizer.step()
            run.step(loss_b)
            optimizer.zero_grad()
        if run.steps in outside:
            body()
        else:
            with accelerator.accumulate(model):
                body()
        if run.steps + 1 in save:
            accelerator.save_state(f"{folder}/saved")
        if run.steps == until:
            break

said = {}
def told(name, call):
    try:
        call()
        said[name] = ""
    except rhostream.RhostreamError as exc:
        said[name] = str(exc)

told("unprepared", lambda: made("a", plain))
told("state", lambda: made("a", state={"model": model}))
told("accumulate", lambda: made("a", accumulate=2))
told("prepared", lambda: next(iter(accelerator.prepare(DataLoader(made("a"), batch_size=8)))))
stream = rhostream.open_stream("shards", il="il", buffer_size=40)
told("stream", lambda: AcceleratedRun(accelerator, folder + "/a", accelerator.prepare(DataLoader(stream)), None))
told("outside", lambda: go(made("b"), 5, outside=(1,)))
told("inside an update", lambda: go(made("c"), 5, save=(2, 3)))
assert os.path.exists(folder + "/saved/custom_checkpoint_0.pkl")  # that of step 2, untouched
again = made("c")
accelerator.load_state(folder + "/saved")
said["step"] = again.steps
odd = made("odd", steps=7)
go(odd, save=(7,))
said["odd"] = [odd.steps, len(odd)]
print(json.dumps(said), flush=True)

import accelerate.accelerator
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
run = made("over")
go(run, 9, save=(4,))
accelerate.accelerator.save_custom_state = killed
accelerator.save_state(folder + "/saved")
"""
LATE = """
import sys, torch
from accelerate import Accelerator
import rhostream
from rhostream.integrations.accelerate import AcceleratedRun
accelerator = Accelerator()
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
model, optimizer = accelerator.prepare(model, optimizer)
if accelerator.num_processes > 1:
    scheduler = accelerator.prepare(scheduler)
stream = rhostream.open_stream("shards", il="il", buffer_size=40)
run = AcceleratedRun(accelerator, sys.argv[1] + "/over", stream, rhostream.Selector(model, "rho", 8))
accelerator.load_state(sys.argv[1] + "/saved")
"""


@slow
def test_what_accelerate_would_do_twice_and_updates_that_do_not_close_together_are_refused(
    script: Script, world: Path, tmp_path: Path
) -> None:
    python = environments.python("accelerate")
    more = {"ACCELERATE_USE_CPU": "true"}
    lines = scripts.run(python, ["-c", MISUSE, str(tmp_path)], world, code=KILLED, **more).splitlines()
    said = json.loads(next(line for line in lines if line.startswith("{")))
    for name, words in {
        "unprepared": "hasn't prepared", "state": "state", "accumulate": "accumulate", "prepared": "neither wrap nor",
        "stream": "takes the stream of open_stream", "outside": "accelerator.accumulate", "inside an update": "update",
    }.items():  # fmt: skip
        assert words in said[name], (name, said[name])
    assert said["step"] == 2 and said["odd"] == [7, 0]
    # The last batch closes its update, though it is alone in it.
    assert ask(tmp_path / "odd", "SELECT count(*) AS n FROM selections WHERE kept") == [{"n": 56}]
    # Written over by a save that was killed: the weights are those of step 10, and no run of step 4 is beside them.
    assert (tmp_path / "saved" / "model.safetensors").exists()
    loaded = scripts.run(python, ["-c", LATE, str(tmp_path)], world, code=1, **more)
    assert "Number of custom checkpoints" in loaded
    loaded = scripts.run(python, ["-c", LATE, str(tmp_path)], world, ranks=2, code=1, **more)
    assert "split_batches=True" in loaded
