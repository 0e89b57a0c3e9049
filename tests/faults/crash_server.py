"""A process that has imported everything and computed nothing: it forks a child for every job, which may be killed.

One JSON line in ({"verb", "options", "crash_point"}), one out ({"code", "passings", "error"}). Importing torch takes
seconds; a fork takes milliseconds, and a process that never computed has no threads that a fork could lose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


class Rig:
    """As many servers as there are cores, each with one job at a time."""

    def __init__(self, servers: int = 2) -> None:
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._all = [self._start() for _ in range(servers)]
        for server in self._all:
            self._idle.put(server)
        self._pool = ThreadPoolExecutor(servers)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", __name__], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})

    def job(self, verb: str, options: dict[str, Any], crash_point: str = "") -> dict[str, Any]:
        """Run a job to its end, or until it dies at `NAME@N`."""
        server = self._idle.get()
        try:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(json.dumps({"verb": verb, "options": options, "crash_point": crash_point}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())
        finally:
            self._idle.put(server)

    def each(self, work: Any, items: list[Any]) -> list[Any]:
        """`work` of every item, as many at a time as there are servers."""
        return list(self._pool.map(work, items))

    def close(self) -> None:
        self._pool.shutdown()
        for server in self._all:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.close()
            server.wait(30)
            server.stdout.close()


def _child(request: dict[str, Any], out: int) -> int:
    import torch

    import rhostream
    from rhostream import crashpoints
    from rhostream.audit.verify import verify

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    crashpoints.arm(request["crash_point"])
    error = ""
    verbs = {"fit-il": rhostream.fit_il, "compute-il": rhostream.compute_il, "index": rhostream.index,
             "train": rhostream.train, "verify": verify}
    try:
        verbs[request["verb"]](**request["options"])
    except rhostream.RhostreamError as exc:
        error = f"{type(exc).__name__}: {exc}"
    os.write(out, json.dumps({"passings": crashpoints.passings(), "error": error}).encode())
    return 1 if error else 0


def _serve() -> None:
    import numpy.ma  # what the jobs would import by and by: seconds, in every child
    import torch._dynamo
    import torch.utils.flop_counter

    import rhostream.audit.verify
    import rhostream.irreducible
    import rhostream.training.start
    from rhostream.stream.decode import decoder

    decoder("auto")
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                os.close(read)
                code = _child(request, write)
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": code, "passings": {}, "error": "", **json.loads(said or b"{}")}), flush=True)


if __name__ == "__main__":
    _serve()
