"""The process of a tracker: rows come as lines of JSON and go to its package in bunches; failures are told and counted.

    in   {"id", "name", "folder", "step", "config", "target"}, then {"step", "numbers"}..., then {"end": {...}}
    out  {"where": text}; {"taken": rows}; {"error": text}; {"done": true}

It ends when its input does, also where the trainer was killed or its package hangs. What the package prints goes to
standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any, Protocol

BUNCH = 50  # rows
LAST_SECONDS = 60.0  # that a package may take for its next rows or its end, once nobody waits for it any more
Row = tuple[int, dict[str, float]]  # step, numbers by name


class Tracker(Protocol):
    """What a file of this folder has, as `Tracker`. Errors of its package are told by who calls it."""

    where: str  # for people: where to look
    first: int  # steps before this one are in the tracker's run already

    def __init__(self, about: dict[str, Any]) -> None:
        """Begin the tracker's run, or go on with it where its id is there."""

    def write(self, rows: list[Row]) -> None:
        """Rows of ascending steps."""

    def end(self, complete: bool, summary: dict[str, Any]) -> None:
        """The training came to its end, or (not `complete`) was stopped and may go on later."""


def main(name: str) -> None:
    """Run the tracker of that name until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the trainer's business, whose end ends the input
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
    moved = threading.Event()  # set by each answer
    threading.Thread(target=_read, args=(lines, moved), daemon=True).start()

    def say(**told: Any) -> None:
        moved.set()
        with contextlib.suppress(OSError):  # the trainer is gone
            answers.write(json.dumps(told) + "\n")

    about = lines.get()
    if about is None:
        return
    tracker: Tracker | None = None
    held = _alone(f"rhostream-{name}-{about['id']}")
    try:
        tracker = importlib.import_module(f"rhostream.trackers.{name}").Tracker(about)
        say(where=tracker.where)
    except BaseException as exc:  # also what ends a process: a package may ask for a password and give up so
        say(error=_text(exc))
    last = _forward(tracker, lines, say)
    if tracker is not None:
        try:
            tracker.end(last.get("complete", False), last.get("summary", {}))
        except BaseException as exc:
            say(error=_text(exc))
    say(done=True)
    with contextlib.suppress(OSError):
        answers.close()
    held.close()


def _forward(tracker: Tracker | None, lines: queue.Queue[dict[str, Any] | None], say: Any) -> dict[str, Any]:
    """Rows in bunches, as many as have come; returns what came last."""
    while True:
        told = [lines.get()]
        while len(told) < BUNCH and not lines.empty():
            told.append(lines.get())
        rows = [(row["step"], row["numbers"]) for row in told if row is not None and "numbers" in row]
        if tracker is not None and rows:
            try:
                if fresh := [row for row in rows if row[0] >= tracker.first]:
                    tracker.write(fresh)
                    tracker.first = fresh[-1][0] + 1
                say(taken=len(rows))
            except Exception as exc:
                say(error=_text(exc))
        for row in told:
            if row is None:
                return {}
            if "end" in row:
                return dict(row["end"])


def _read(lines: queue.Queue[dict[str, Any] | None], moved: threading.Event) -> None:
    """Of a thread: the input into the queue; behind its end, end this process when nothing moves in it any more."""
    for line in sys.stdin.buffer:
        try:
            lines.put(json.loads(line))
        except ValueError:  # cut: the trainer was killed while it wrote
            break
    lines.put(None)
    while moved.wait(LAST_SECONDS):
        moved.clear()
    os._exit(1)


def _alone(name: str) -> socket.socket:
    """Wait for the tracker of the attempt before, which may still be sending: this one begins behind what that one has.

    Held until this process ends, however it does. Where the system has no such names, nobody waits.
    """
    held, until = socket.socket(socket.AF_UNIX), time.monotonic() + LAST_SECONDS
    while sys.platform == "linux" and time.monotonic() < until:
        with contextlib.suppress(OSError):
            held.bind(f"\0{name}")
            break
        time.sleep(0.1)
    return held


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if text else ''}{text}"
