"""The runs of an experiment, several at a time, each in an rhostream run folder: what is finished is not done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import rhostream
from jobs.reproduce.prepare import (
    keep_freed_memory,
    make_shards,
    model_of,
    own_threads,
    quiet,
    shards_of,
    table_of,
    to_make,
)
from jobs.reproduce.settings import Arm, digest
from rhostream.errors import NonFiniteError, RhostreamError, UsageError

Say = Callable[[str], None]
DONE = "complete"


@dataclass(frozen=True)
class Training:
    """One arm with one seed; a value, so that another process can do it."""

    arm: Arm
    seed: int
    out: str
    workers: int = 0

    @property
    def folder(self) -> str:
        """The run's folder."""
        return str(Path(self.out, "runs", self.arm.folder(self.seed)))

    def __call__(self) -> tuple[str, float]:
        """Train it (again: resume it); returns (DONE or why it ended, seconds)."""
        quiet()
        start, arm = time.monotonic(), self.arm
        files: dict[str, Any] = {}
        if "il_model" in arm.needs:
            # The states on the way stay, for the accuracy of the IL model that learns along.
            every = max(1, arm.world.samples // arm.settings["buffer_size"], arm.steps // 20)
            files = {
                "il_model": model_of(self.out, arm.world, arm.il),
                "checkpoint_every": every,
                "keep_checkpoints": 1000,
            }
        if "svp" in arm.needs:
            files["keep_list"] = keep_list(self.out, arm)
        try:
            rhostream.train(
                [shards_of(self.out, arm.world.train)], table_of(self.out, arm.world, arm.il), self.folder,
                test_shards=[shards_of(self.out, arm.world.test)], seed=self.seed, steps=arm.steps,
                eval_every=arm.eval_every, workers=self.workers, threads=own_threads(),
                **files, **arm.settings)  # fmt: skip
        except NonFiniteError as exc:  # a result: this setting diverges
            return f"diverged: {exc}", time.monotonic() - start
        return DONE, time.monotonic() - start


def pool(jobs: int) -> ProcessPoolExecutor:
    """So many processes for runs. When this one is killed they stop as for a signal: with a checkpoint, soon."""
    # Not forked: a child of a process whose threads have computed waits for them for ever.
    return ProcessPoolExecutor(jobs, get_context("forkserver"), initializer=_begin)


def _begin() -> None:
    keep_freed_memory()
    _end_with_parent()


def _end_with_parent() -> None:
    # A worker of the pool holds both ends of its queue, so it would wait for ever for work of a parent that is gone.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        while True:  # the first asks a run to stop, the next one finds the process waiting for more work
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    threading.Thread(target=watch, daemon=True).start()


def keep_list(out: str, arm: Arm) -> str:
    """Where the keep-list of an arm's selection via proxy lies."""
    return str(Path(out, "svp", f"{arm.world.il_folder(arm.il)}-{digest(arm.settings['model'])}", "keep.parquet"))


def make_keep_list(out: str, arm: Arm) -> bool:
    """Run `jobs.svp` with the target's network as proxy, unless the list is there. Raises UsageError."""
    target = Path(keep_list(out, arm))
    if target.exists():
        return False
    threads = own_threads()
    made = subprocess.run(
        [sys.executable, "-m", "jobs.svp", "--shards", shards_of(out, arm.world.train), "--il",
         table_of(out, arm.world, arm.il), "--out", str(target.parent), "--model", arm.settings["model"],
         *(() if threads is None else ("--threads", str(threads)))],
        capture_output=True, text=True)  # fmt: skip
    if made.returncode:
        said = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"python -m jobs.svp failed: {said}")
    return True


def run_all(
    arms: Sequence[Arm], seeds: int, out: str, *, jobs: int, workers: int, sources: Mapping[str, str], say: Say
) -> dict[tuple[str, int], str]:
    """Make what the arms need and train each with every seed; returns (arm's label, seed) -> DONE or why it ended.

    Raises what shards.make, fit_il, compute_il and train raise, but for a run that diverges.
    """
    shards, tables = to_make(out, list(arms))
    for one in shards:
        if make_shards(out, one, sources):
            say(f"shards {' '.join(one.arguments)}")
    states: dict[tuple[str, int], str] = {}
    with pool(jobs) as processes:
        for made in _each(processes, tables):
            say(made.result())
        lists = {keep_list(out, arm): arm for arm in arms if "svp" in arm.needs}
        for made in _each(processes, [partial(make_keep_list, out, arm) for arm in lists.values()]):
            made.result()
        trainings = [Training(arm, seed, out, workers) for seed in range(seeds) for arm in arms]
        futures = {processes.submit(training): training for training in trainings}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                training, (state, seconds) = futures[future], future.result()
                states[training.arm.label, training.seed] = state
                say(f"{number}/{len(futures)} {training.arm.label}, seed {training.seed}: {state} ({seconds:.0f} s)")
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)  # what runs commits its checkpoint and ends
            raise
    return states


def complete(arms: Sequence[Arm], seeds: int, out: str) -> dict[tuple[str, int], str]:
    """(arm's label, seed) -> DONE, of the runs below `out` that have all their steps; nothing is made."""
    found = {}
    for arm in arms:
        for seed in range(seeds):
            folder = Training(arm, seed, out).folder
            if not Path(folder).is_dir():
                continue
            try:
                with rhostream.open_ledger(folder) as ledger:
                    (steps,) = ledger.sql("SELECT steps FROM runs").to_pydict()["steps"]
            except RhostreamError:  # it ended before it was a run
                continue
            if steps >= arm.steps:
                found[arm.label, seed] = DONE
    return found


def _each(processes: ProcessPoolExecutor, work: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    return [processes.submit(one) for one in work]
