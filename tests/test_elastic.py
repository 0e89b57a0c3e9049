"""Torchrun as it is: a rank that dies, a node less and a node more, and the ledger is that of a run without them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from tests.support import ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 1500


class Node:
    """A torchrun of one rank, as on a machine of its own; `host`: where they all meet, which stays."""

    def __init__(self, port: int, options: list[str], output: Path, *, host: bool) -> None:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "elastic", "--rdzv-endpoint", f"127.0.0.1:{port}",
                   "--rdzv-conf", f"last_call_timeout=3,is_host={str(host).lower()}"]  # fmt: skip
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
                    "--max-restarts", "5", *meeting, "--no-python", "--"]  # fmt: skip
        command = [*launcher, str(Path(sys.executable).parent / "rhostream"), "train", *options]
        self._output = output.open("w")
        # Else an agent that stays tells a new round nothing of where ranks meet, and one that joins waits 60 s for it.
        alone = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self._agent = subprocess.Popen(command, stdout=self._output, stderr=self._output, env={**os.environ, **alone})

    def worker(self) -> int:
        """The process that trains."""
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        return int(children[-1])

    def fall(self) -> None:
        """The machine is gone, launcher and rank."""
        worker = self.worker()
        self._agent.kill()
        os.kill(worker, signal.SIGKILL)
        self._agent.wait()

    def end(self, seconds: float = 150.0) -> int:
        return self._agent.wait(seconds)

    def close(self) -> None:
        if self._agent.poll() is None:
            self.fall()
        self._output.close()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    found: list[Node] = []
    yield found
    for node in found:
        node.close()


def until(true: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def committed(run: Path) -> tuple[int, int, int]:
    """(attempt, its ranks, step) of the newest commit."""
    found = checkpoint.head(str(run))
    if found is None:
        return -1, 0, 0
    note = json.loads((run / "attempts" / f"{found.attempt}.json").read_text())
    return found.attempt, note["ranks"], found.step


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_dead_rank_a_node_less_and_a_node_more_leave_the_ledger_of_a_run_without_them(
    world: Path, tmp_path: Path, nodes: list[Node], parallel: str
) -> None:
    run, port = tmp_path / "run", ranks.free_port()
    options = ["--shards", str(world / "shards"), "--il", str(world / "il"), "--run", str(run), "--steps", str(STEPS),
               "--buffer-size", "40", "--batch-size", "8", "--model", "mlp-64", "--checkpoint-every", "10",
               "--threads", "1", "--parallel", parallel, "--optimizer", "sgd", "--lr", "0.02"]  # fmt: skip

    def started() -> Node:
        nodes.append(Node(port, options, tmp_path / f"node-{len(nodes)}.txt", host=not nodes))
        return nodes[-1]

    def goes_on(after: int, size: int) -> int:
        until(lambda: committed(run)[0] > after and committed(run)[1] == size, f"no commit of {size} ranks")
        return committed(run)[0]

    first, second = started(), started()
    attempt = goes_on(-1, 2)
    os.kill(second.worker(), signal.SIGKILL)  # a rank dies, its launcher lives
    attempt = goes_on(attempt, 2)
    second.fall()
    attempt = goes_on(attempt, 1)
    third = started()
    goes_on(attempt, 2)
    assert first.end() == third.end() == 0
    rhostream.train(
        shards=[str(world / "shards")], il=str(world / "il"), run=str(tmp_path / "whole"), steps=STEPS, threads=1,
        buffer_size=40, batch_size=8, model="mlp-64", checkpoint_every=500, **ranks.SGD,
    )  # fmt: skip
    assert verify(str(run))["problems"] == []
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and latest.step == STEPS and latest.attempt >= 3
    assert ranks.assert_same_but_for_noise(tmp_path / "whole", run) > 100
