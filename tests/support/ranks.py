"""Two gloo processes on this machine, as a launcher would start them: real processes, real sockets, one thread each."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from rhostream.runs import checkpoint
from rhostream.tables import selections
from tests.support.forks import CONTEXT


@dataclass
class Started:
    """Processes that were started together, and the files that they answer in."""

    processes: list[BaseProcess]
    answers: list[Path]

    def join(self, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Wait for all; what each answered: {"exit": code, "value" or "error": ...}."""
        deadline = time.monotonic() + seconds
        found = []
        for process, answer in zip(self.processes, self.answers, strict=True):
            process.join(max(deadline - time.monotonic(), 0.1))
            if process.is_alive():
                self.kill()
                raise AssertionError(f"a process was still there after {seconds:g} s")
            told = json.loads(answer.read_text()) if answer.exists() else {}
            found.append({**told, "exit": process.exitcode})
        return found

    def kill(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join(10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(folder: Path, target: Callable[..., Any], ranks: int, *arguments: Any, **environment: str) -> Started:
    """Start `target(rank, *arguments)` as each of `ranks` processes; their answers lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(free_port()), **environment}  # fmt: skip
    name = f"answer-{time.monotonic_ns()}"
    answers = [folder / f"{name}-{rank}.json" for rank in range(ranks)]
    processes: list[BaseProcess] = []
    for rank, answer in enumerate(answers):
        own = {**there, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 or environment else {}
        process = CONTEXT.Process(target=_run, args=(own, answer, target, rank, arguments))
        process.start()
        processes.append(process)
    return Started(processes, answers)


def together(folder: Path, target: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """What `target` returned on each rank; an error of one is an error here."""
    told = start(folder, target, ranks, *arguments).join()
    assert all(one["exit"] == 0 for one in told), told
    return [one["value"] for one in told]


def _run(
    environment: dict[str, str], answer: Path, target: Callable[..., Any], rank: int, arguments: Sequence[Any]
) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        answer.write_text(json.dumps({"value": target(rank, *arguments)}))
    except BaseException as exc:
        answer.write_text(json.dumps({"error": f"{type(exc).__name__}: {exc}", "trace": traceback.format_exc()}))
        raise SystemExit(getattr(exc, "exit_code", 1)) from None


# -- what they do ---


def train(
    rank: int, options: Sequence[dict[str, Any]], die_at: int | None = None, linger_from: int | None = None
) -> list[dict[str, Any]]:
    """`rhostream.train` with each of the options in turn; with `die_at`, rank 0 is killed once it has logged that step.

    Rank 0 leaves the number of its newest step beside the run, in `<run>.step`; with `linger_from` it takes its time
    from that step on, for whoever wants to interfere.
    """
    import rhostream

    found = []
    for one in options:

        def note(row: dict[str, Any], run: str = one["run"]) -> None:
            Path(run + ".step").write_text(str(row["step"]))
            if die_at is not None and row["step"] >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if linger_from is not None and row["step"] >= linger_from:
                time.sleep(0.2)

        summary = rhostream.train(**{"threads": 1, "rank_timeout": 60.0, **one}, metrics=note)
        found.append(
            {
                "steps": summary.steps,
                "planned": summary.planned,
                "reasons": summary.reasons,
                "cost": summary.cost,
                "accuracy": summary.test_accuracy,
            }
        )
    return found


def train_killed_at(step: int, options: dict[str, Any]) -> None:
    """`rhostream.train` in a process of its own that is killed from outside, by SIGKILL, once it has taken the step."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_train_and_wait_at, args=(step, options, sender))
    process.start()
    sender.close()  # so that a process that ends by itself ends the wait, by EOFError
    try:
        while receiver.recv() < step:
            pass
    finally:
        process.kill()
        process.join(60)
        receiver.close()
    assert process.exitcode == -signal.SIGKILL


def _train_and_wait_at(step: int, options: dict[str, Any], sender: Connection) -> None:
    import rhostream

    def note(row: dict[str, Any]) -> None:
        sender.send(row["step"])
        while row["step"] >= step:  # or a busy machine lets the run end before it is killed
            signal.pause()

    rhostream.train(**options, metrics=note)


def wait_for_step(run: Path, step: int, seconds: float = 60.0) -> None:
    """Until rank 0 has logged that step."""
    mark, deadline = Path(str(run) + ".step"), time.monotonic() + seconds
    while not (mark.exists() and (mark.read_text() or "-1") and int(mark.read_text() or -1) >= step):
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.005)


def join_group() -> Any:
    """The process group of a script of one's own, None for a process alone."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    dist.init_process_group("gloo")
    return dist.group.WORLD


def leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


# -- what they leave ---


def decisions(run: Path) -> dict[int, dict[tuple[str, int], tuple[bool, float, str]]]:
    """step -> {(shard, ordinal): (kept, score, reason)}; -1 - pass for the tail of a pass."""
    found: dict[int, dict[tuple[str, int], tuple[bool, float, str]]] = {}
    latest = checkpoint.latest(str(run))
    assert latest is not None
    for row in selections.read(str(run), latest.log).to_pylist():
        step = -1 - row["pass"] if row["step"] is None else row["step"]
        own = found.setdefault(step, {})
        assert (row["shard"], row["ordinal"]) not in own
        score = np.nan if row["score"] is None else row["score"]
        own[row["shard"], row["ordinal"]] = (row["kept"], score, row["reason"])
    return found


# Where weights are compared: rounding stays rounding, of which AdamW makes whole steps where a gradient is no more.
SGD = {"optimizer": "sgd", "lr": 0.02}


def assert_same_but_for_noise(one: Path, other: Path, noise: float = 1e-4) -> int:
    """The same buffers in every step and the same kept keys, but where scores are nearer than `noise` to the boundary.

    From such a step on the weights differ, so scores and kept keys aren't compared any more: returns how many steps
    were equal.
    """
    first, second = decisions(one), decisions(other)
    assert {s: set(rows) for s, rows in first.items()} == {s: set(rows) for s, rows in second.items()}
    for step in sorted(s for s in first if s >= 0):
        a, b = first[step], second[step]
        np.testing.assert_allclose([a[k][1] for k in a], [b[k][1] for k in a], atol=noise, rtol=noise)
        differ = [k for k in a if a[k][0] != b[k][0]]
        if differ:
            boundary = min(score for kept, score, _ in a.values() if kept)
            assert all(abs(a[k][1] - boundary) <= 2 * noise for k in differ), (step, differ)
            return step
        assert {k: v[2] for k, v in a.items()} == {k: v[2] for k, v in b.items()}
    return len([s for s in first if s >= 0])
