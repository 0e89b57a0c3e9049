"""`python -m benchmarks.peers.side SIDE TASK`: one loader in a process of its own, its rate as a line of JSON.

The first buffers are not counted, so the start of processes isn't; CPU time is user and system, all processes below.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from itertools import islice

import click

from benchmarks.measure import cpu_seconds
from benchmarks.peers import environment
from benchmarks.peers.sides import OWN, SIDES, Task, prepare

SKIP, TAKE, SECONDS = 4, 32, 300  # of the 37 buffers that a pass of 12,000 photographs has
Rate = tuple[float, float]  # samples a second, CPU milliseconds a sample


class Absent(Exception):
    """A peer that can't be measured here; the text says why."""


def measure(name: str, task: Task, *, skip: int = SKIP, take: int = TAKE, only_prepare: bool = False) -> Rate:
    """Run a side in the environment it lives in. Raises Absent for a peer that fails, RuntimeError for our own."""
    python = sys.executable if name in OWN else str(environment.PYTHON)
    command = [python, "-m", "benchmarks.peers.side", name, json.dumps(asdict(task)), str(skip), str(take)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    env = os.environ | quiet | {"PYTHONPATH": str(environment.REPOSITORY)}
    process = subprocess.Popen([*command, *(["--only-prepare"] if only_prepare else [])], env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        out, err = "", f"no answer within {SECONDS} s"
    if process.returncode or not out.strip():
        said = (err.strip().splitlines() or ["no message"])[-1]
        if name in OWN:
            raise RuntimeError(f"{name} failed: {said}")
        raise Absent(said)
    rate, cpu = json.loads(out.splitlines()[-1])
    return rate, cpu


@click.command()
@click.argument("side")
@click.argument("task")
@click.argument("skip", type=int)
@click.argument("take", type=int)
@click.option("--only-prepare", is_flag=True)
def main(side: str, task: str, skip: int, take: int, only_prepare: bool) -> None:
    """Print [samples a second, CPU milliseconds a sample]."""
    given = Task(**json.loads(task))
    warnings.simplefilter("ignore")
    if only_prepare:
        prepare(side, given)
        click.echo("[0, 0]")
        return
    buffers = SIDES[side](given)
    for _ in islice(buffers, skip):
        pass
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in islice(buffers, take):
        pass
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    counted = take * given.buffer_size
    print(json.dumps([counted / wall, 1000 * cpu / counted]), flush=True)
    for child in multiprocessing.active_children():
        child.terminate()
    # Some peers' threads outlive their iterators and would hold the process.
    os._exit(0)


if __name__ == "__main__":
    main()
