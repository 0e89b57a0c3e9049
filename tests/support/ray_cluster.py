"""A real Ray cluster of several raylets on this machine, of one core each, in processes of their own.

with Cluster() as cluster:            nodes: what each raylet's processes have in their environment
    cluster.run("compute-il", ...)    the command line, as a driver of it
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support import environments

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 240  # that a driver may take on a machine under load
MARK = "RHOSTREAM_TEST_CLUSTER"  # in the environment of every process of a cluster
STORE = 100 << 20


class Driver:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.pid = process.pid

    def wait(self) -> tuple[int, str]:
        """(exit code, output) at its end."""
        try:
            return self._process.wait(SECONDS), self._log.read_text()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"a driver took more than {SECONDS} s:\n{self._log.read_text()[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


class Cluster:
    """Of one raylet for each of `nodes`."""

    def __init__(self, folder: Path, nodes: Sequence[Mapping[str, str]] = ({}, {})) -> None:
        self._folder, self._nodes, self._mark = folder, nodes, uuid.uuid4().hex
        self._environment = {
            **os.environ, MARK: self._mark, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }  # fmt: skip

    def __enter__(self) -> Self:
        self._log = (self._folder / "cluster.log").open("w")
        self._process = subprocess.Popen(
            [environments.python("ray"), "-m", "tests.support.ray_cluster", json.dumps(self._nodes)],
            cwd=REPOSITORY, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                told = json.loads(line)
                self.address, self.raylets = str(told["address"]), [int(pid) for pid in told["raylets"]]
                return self
        raise AssertionError(f"no cluster: {(self._folder / 'cluster.log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        deadline = time.monotonic() + 20
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        assert not left, f"left behind: {left}"

    def processes(self) -> dict[int, str]:
        """Every process of the cluster and its drivers that runs: id -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def actors(self) -> list[int]:
        """The processes of actors."""
        return [pid for pid, title in self.processes().items() if "ray::_Actor" in title]

    def start(self, *argv: object, **more: str) -> Driver:
        """`rhostream ARGV` as a driver."""
        log = self._folder / f"{uuid.uuid4().hex}.log"
        program = "from rhostream.cli import main; main()"
        with log.open("w") as out:
            process = subprocess.Popen(
                [environments.python("ray"), "-c", program, *map(str, argv)],
                cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                env={**self._environment, "RAY_ADDRESS": self.address, **more},
            )  # fmt: skip
        return Driver(process, log)

    def run(self, *argv: object) -> tuple[int, str]:
        """(exit code, output) of `rhostream ARGV`."""
        return self.start(*argv).wait()


def _serve(nodes: list[dict[str, str]]) -> None:
    from ray.cluster_utils import Cluster as Raylets

    cluster: Any = Raylets()
    made = [
        cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars=node or None, include_dashboard=False)
        for node in nodes
    ]
    pids = [node.all_processes["raylet"][0].process.pid for node in made]
    print(json.dumps({"address": cluster.address, "raylets": pids}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
