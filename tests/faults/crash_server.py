"""A process that has imported everything and computed nothing: it forks a child for every job, which may be killed.

One JSON line in, {"verb", "options", "crash_point"} or {"argv", "log"}; out come {"pid"} and then {"code", "passings",
"error"}. Importing torch takes seconds; a fork takes milliseconds, and a process that never computed has no threads
that a fork could lose.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO, TypeVar

from tests.support.forks import IMPORTS

REPOSITORY = Path(__file__).resolve().parents[2]
HANGS = "RHOSTREAM_TEST_HANGS"
Server = tuple[TextIO, TextIO]  # where requests go, where answers come from
T, R = TypeVar("T"), TypeVar("R")


class Started:
    """A job in a process of its own, at the head of its own process group."""

    def __init__(self, rig: Rig, server: Server, log: Path | None) -> None:
        self._rig, self._server, self.log = rig, server, log
        self.pid = int(self._said()["pid"])
        rig.running.append(self)

    def _said(self) -> dict[str, Any]:
        line = self._server[1].readline()
        assert line, "the crash server is gone"
        said: dict[str, Any] = json.loads(line)
        return said

    def wait(self) -> dict[str, Any]:
        """Until it ends."""
        said = self._said()
        self._rig.running.remove(self)
        self._rig._idle.put(self._server)
        return said


class Rig:
    """As many servers as there are cores, each with one job at a time."""

    def __init__(self, servers: int = 2) -> None:
        self._idle: SimpleQueue[Server] = SimpleQueue()
        self.running: list[Started] = []
        asked, answers = [os.pipe() for _ in range(servers)], [os.pipe() for _ in range(servers)]
        theirs = [fd for (read, _), (_, write) in zip(asked, answers, strict=True) for fd in (read, write)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, theirs)],
            cwd=REPOSITORY,
            pass_fds=theirs,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        self._all: list[Server] = []
        for (_, write), (read, _) in zip(asked, answers, strict=True):
            self._all.append((os.fdopen(write, "w"), os.fdopen(read)))
            self._idle.put(self._all[-1])
        for fd in theirs:
            os.close(fd)
        self._pool = ThreadPoolExecutor(servers)

    def _begin(self, request: dict[str, Any], log: Path | None = None) -> Started:
        server = self._idle.get()
        server[0].write(json.dumps(request) + "\n")
        server[0].flush()
        return Started(self, server, log)

    def job(self, verb: str, options: dict[str, Any], crash_point: str = "") -> dict[str, Any]:
        """Run a job to its end, or until it dies at `NAME@N`."""
        return self._begin({"verb": verb, "options": options, "crash_point": crash_point}).wait()

    def cli(self, log: Path, *argv: object, errors: Path | None = None, hangs: Path | None = None) -> Started:
        """Start `rhostream ARGV`, its output in `log`, what goes to stderr in `errors` where that is given.

        `hangs`: a file that its disk doesn't give out as long as there is one of that name with `.hold` behind.
        """
        return self._begin(
            {
                "argv": [str(a) for a in argv],
                "log": str(log),
                "errors": str(errors or log),
                "hangs": hangs and str(hangs),
            },
            log,
        )

    def end_all(self) -> None:
        """Kill what a failed test left running."""
        for job in list(self.running):
            with contextlib.suppress(ProcessLookupError):  # it came to its end by itself
                os.kill(job.pid, signal.SIGKILL)
            job.wait()

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` of every item, as many at a time as there are servers."""
        return list(self._pool.map(work, items))

    def close(self) -> None:
        self._pool.shutdown()
        self.end_all()
        for asked, _ in self._all:
            asked.close()
        self._process.wait(30)
        for _, answers in self._all:
            answers.close()


@functools.cache
def shared() -> Rig:
    """The one of this test run."""
    rig = Rig()
    atexit.register(rig.close)
    return rig


def _job(request: dict[str, Any], out: int) -> int:
    import torch

    import rhostream
    from rhostream import crashpoints
    from rhostream.audit.export import export
    from rhostream.audit.verify import verify
    from rhostream.irreducible import unfinished
    from rhostream.runs import chain
    from tests.support.own_loop import demanding, run_readme

    torch.set_num_threads(1)
    os.sched_getaffinity = lambda pid: {0}  # of two jobs at once each computes as on a machine of one core
    warnings.simplefilter("ignore")
    crashpoints.arm(request["crash_point"])
    os.environ["RHOSTREAM_CRASH_POINT"] = request["crash_point"]  # its loader workers are armed by this
    verbs = {
        "fit-il": rhostream.fit_il,
        "compute-il": rhostream.compute_il,
        "index": rhostream.index,
        "keep": rhostream.keep_fields,
        "train": rhostream.train,
        "verify": verify,
        "export": export,
        "README's loop": run_readme,
        "loop": demanding,
    }
    error = ""
    chain.WHOLE_EVERY = request["options"].pop("whole_every", chain.WHOLE_EVERY)
    unfinished.SHARE = request["options"].pop("keep_share", unfinished.SHARE)
    try:
        verbs[request["verb"]](**request["options"])
    except rhostream.RhostreamError as exc:
        error = f"{type(exc).__name__}: {exc}"
    os.write(out, json.dumps({"passings": crashpoints.passings(), "error": error}).encode())
    return 1 if error else 0


def _command(argv: Sequence[str], *logs: str) -> None:
    """The command line, down to what the interpreter waits for at its end; only its long tidying up is left out."""
    import torch

    from rhostream.cli import main

    torch.set_num_threads(1)
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["rhostream", *argv]
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _hang(path: str) -> None:
    """From now on opening that file takes as long as it is held."""
    real = os.open

    def slow(name: Any, *args: Any, **options: Any) -> int:
        while os.fspath(name) == path and os.path.exists(path + ".hold"):
            time.sleep(0.01)
        return real(name, *args, **options)

    os.open = slow


def _child(request: dict[str, Any], out: int) -> None:
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "argv" in request:
        if request["hangs"]:
            os.environ[HANGS] = request["hangs"]
            _hang(request["hangs"])
        _command(request["argv"], request["log"], request["errors"])
    code = 70
    try:
        code = _job(request, out)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(asked: int, answers: int, number: int) -> None:
    # A core for each server: two jobs whose threads spin on the same cores take many times as long.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    with open(asked) as lines, open(answers, "w") as out:
        for line in lines:
            _answer(json.loads(line), out)


def _answer(request: dict[str, Any], out: TextIO) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _child(request, write)
    os.close(write)
    print(json.dumps({"pid": pid}), file=out, flush=True)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"code": code, "passings": {}, "error": "", **json.loads(said or b"{}")}), file=out, flush=True)


if HANGS in os.environ:  # in a worker process, which imports this file by another name
    _hang(os.environ[HANGS])

if __name__ == "__main__":
    for name in IMPORTS:
        importlib.import_module(name)
    fds = [int(fd) for fd in sys.argv[1:]]
    others = []
    for at in range(2, len(fds), 2):
        if not (pid := os.fork()):
            for fd in fds[:at] + fds[at + 2 :]:
                os.close(fd)
            _serve(fds[at], fds[at + 1], at // 2)
            os._exit(0)
        others.append(pid)
    for fd in fds[2:]:
        os.close(fd)
    _serve(fds[0], fds[1], 0)
    for pid in others:
        os.waitpid(pid, 0)
