"""Work in a child process under limits, and what it cost: peak memory over the preloaded baseline, CPU seconds.

Children are forked by multiprocessing's server, which has imported torch and the library already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.forks import CONTEXT


@dataclass(frozen=True)
class Told:
    """What a child said and cost."""

    result: Any
    peak_bytes: int  # above what the child had when it began
    base_bytes: int
    seconds: float  # of CPU


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of commits, each with its fsyncs, cost a disk a minute."""
    shm = Path("/dev/shm")
    roomy = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 1 << 30
    with tempfile.TemporaryDirectory(prefix="rhostream-test-", dir=shm if roomy else None) as folder:
        yield Path(folder)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> int:
    """Forget the highest resident size so far; returns the present one."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return resident()


def peak() -> int:
    """The highest resident size since `reset_peak`, bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) << 10


def cpu() -> float:
    """Seconds of CPU so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _run(
    pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...], cpu_limit: int, file_limit: int | None
) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu()) + cpu_limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    logging.getLogger("rhostream").setLevel(logging.CRITICAL)
    base, began = reset_peak(), cpu()
    try:
        result: Any = function(*args)
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))
        return
    pipe.send(Told(result, peak() - base, base, cpu() - began))


def in_child(function: Callable[..., Any], *args: Any, limit: int = 20, file_limit: int | None = None) -> Told:
    """Run a module's function in a child that is killed after `limit` seconds of CPU; `file_limit` in bytes.

    Raises AssertionError with the child's traceback, or its signal.
    """
    here, there = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_run, args=(there, function, args, limit, file_limit))
    child.start()
    there.close()
    try:
        told = here.recv() if here.poll(150) else None
    except EOFError:
        told = None
    child.join(5)
    if child.is_alive():
        child.kill()
        child.join()
    if isinstance(told, RuntimeError):
        raise AssertionError(f"in the child: {told}")
    assert told is not None, f"the child ended with {child.exitcode} (-24: more than {limit} s of CPU, -9: hung)"
    assert isinstance(told, Told)
    return told
