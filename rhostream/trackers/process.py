"""The trainer's end of a tracker: a queue that never blocks, and the process that empties it.

A tracker that fails is said once, and what it didn't take is counted and said at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from rhostream.inert import one_line
from rhostream.trackers.names import AskedTracker

LOG = logging.getLogger("rhostream")
WAITING = 10_000  # rows that wait for a tracker; of one that is slower than that, rows are lost
# The search path is the trainer's: by default it would begin with the current folder.
_CODE = "import json, sys; path, name = sys.argv[1:]; sys.path[:] = json.loads(path); " \
        "from rhostream.trackers.child import main; main(name)"  # fmt: skip


class TrackerProcess:
    """A tracker in a process of its own, which is in nobody's process group: it ends when its standard input does."""

    def __init__(self, asked: AskedTracker, about: Mapping[str, Any]) -> None:
        self.name = asked.name
        self._rows: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._given = self._taken = 0  # rows
        self._said = False
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._threads: list[threading.Thread] = []
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the thread that hears
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path), self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            self._say(f"could not be started ({exc})")
            return
        self._rows.put_nowait({**about, "target": asked.target})
        self._threads = [
            threading.Thread(target=run, name=f"rhostream-{self.name}", daemon=True) for run in (self._send, self._hear)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, row: dict[str, Any]) -> None:
        """A row for the tracker; lost where it is gone or too far behind."""
        self._given += 1
        try:
            if self._process is None:
                raise queue.Full
            self._rows.put_nowait(row)
        except queue.Full:
            if self._process is not None:
                self._say(f"is {WAITING:,} rows behind, and rows are lost")

    def close(self, last: dict[str, Any]) -> None:
        """Nothing more comes but this. Waits for nobody."""
        for item in ({"end": last}, None):
            with contextlib.suppress(queue.Full):
                self._rows.put_nowait(item)

    def wait(self, until: float) -> None:
        """Wait for it to end, until that moment of the monotonic clock; then say what it didn't take."""
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in self._threads):  # it goes on by itself, for a while
            LOG.info("tracker %s: still at work; nobody waits for it", self.name)
        elif lost := self._given - self._taken:
            LOG.warning(
                "warning: tracker %s lacks %s of %s rows; the ledger has them all",
                self.name, f"{lost:,}", f"{self._given:,}",
            )  # fmt: skip

    def _send(self) -> None:
        """Of a thread: from the queue into the process."""
        assert self._process is not None and self._process.stdin is not None
        pipe, gone = self._process.stdin, False
        while (row := self._rows.get()) is not None:
            try:
                if not gone:
                    pipe.write(json.dumps(row).encode() + b"\n")
                    pipe.flush()
            except OSError:
                gone = True
        with contextlib.suppress(OSError):
            pipe.close()

    def _hear(self) -> None:
        """Of a thread: what the process says of itself, until it ends."""
        assert self._process is not None and self._process.stdout is not None
        done = False
        with self._process.stdout as answers:
            for line in answers:
                told = json.loads(line)
                if "where" in told:
                    LOG.info("tracker %s: %s", self.name, one_line(str(told["where"]), 300))
                if "error" in told:
                    self._say(str(told["error"]))
                self._taken += told.get("taken", 0)
                done |= "done" in told
        code, words = self._process.wait(), self._last_words()
        if not done:
            self._say(f"ended with code {code}{words}")

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        assert self._errors is not None
        with contextlib.suppress(OSError), self._errors as file:
            file.seek(max(file.seek(0, 2) - 2000, 0))
            lines = file.read().decode(errors="replace").strip().splitlines()
            return f": {lines[-1]}" if lines else ""
        return ""

    def _say(self, what: str) -> None:
        """Once: that it failed, and how."""
        if not self._said:
            self._said = True
            LOG.warning("warning: tracker %s: %s; the run goes on without it", self.name, one_line(what, 300))
