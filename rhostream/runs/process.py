"""Whether a loop is at work on a run, by what the system knows of its process: no file, no lock, no clock.

While a loop goes on, its process holds an unnamed file in memory open whose label stands in the attempt's note. Others
on that machine see it among the open files of the process, and it is gone the moment that the loop ends or the process
dies, however it does. From another machine nobody can tell, and nobody claims to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

_BOOT = "/proc/sys/kernel/random/boot_id"


def this_process(run: str) -> dict[str, Any]:
    """What an attempt at a run notes of its process: {"host", "pid", "begun"}; and, where the system shows open files,
    {"machine", "label"}.
    """
    own = {"host": platform.node(), "pid": os.getpid(), "begun": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):
        words = (run, os.getpid(), _machine(), time.monotonic_ns())  # no two attempts have these in common
        label = hashlib.sha256(repr(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        own |= {"machine": _machine(), "label": f"rhostream-{label}"}
    return own


@contextlib.contextmanager
def at_work(note: Mapping[str, Any]) -> Iterator[None]:
    """Show in here that the loop of the attempt of this note is at work, where the system can."""
    with contextlib.ExitStack() as stack:
        if "label" in note and hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                stack.callback(os.close, os.memfd_create(str(note["label"])))
        yield


def is_at_work(note: Mapping[str, Any]) -> bool | None:
    """Whether the loop of an attempt is at work on this machine; None where that can't be seen from here."""
    pid, label = note.get("pid"), note.get("label")
    try:
        if not isinstance(pid, int) or not isinstance(label, str) or note.get("machine") != _machine():
            return None
        folder = f"/proc/{pid}/fd"
        return any(_target(f"{folder}/{number}").startswith(f"/memfd:{label} ") for number in os.listdir(folder))
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # another user's process, or one that ended and that nobody has waited for yet
        return False if _ended(pid) else None


def _ended(pid: Any) -> bool:
    """Whether all that is left of a process is its exit status: the system then shows its files to root alone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("Z", "X")  # behind its name, which may hold anything
    except OSError:
        return False


def _machine() -> str:
    """This boot of this machine, and who counts its processes: containers count for themselves."""
    with open(_BOOT) as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed meanwhile
        return ""
