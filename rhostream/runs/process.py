"""Which process an attempt is, so that one can say whether it still runs: by what the system knows, never by a clock.

A process id comes again; together with the moment that the process began, the boot of its machine and the namespace
that counts it, it means one process only. From another machine nobody can tell, and nobody claims to.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_BOOT = "/proc/sys/kernel/random/boot_id"
_STATE, _STARTED = 0, 19  # of the fields of /proc/PID/stat behind the name
_ENDED = "ZX"  # a process that is only waited for


def this_process() -> dict[str, Any]:
    """What an attempt notes of its process: {"host", "pid", "begun"}, and what tells it from others where that is
    known.
    """
    own = {"host": platform.node(), "pid": os.getpid(), "begun": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError, IndexError, ValueError):
        own |= {"started": int(_stat(os.getpid())[_STARTED]), "machine": _machine()}
    return own


def is_running(note: Mapping[str, Any]) -> bool | None:
    """Whether another process of this machine is the one of this note, and runs; None where that can't be seen from
    here. The process that asks is no other one: a loop of its own that it asks about isn't at work.
    """
    pid, started = note.get("pid"), note.get("started")
    try:
        if not isinstance(pid, int) or not isinstance(started, int) or note.get("machine") != _machine():
            return None
    except OSError:  # no Linux
        return None
    if pid == os.getpid():
        return False
    try:
        found = _stat(pid)
        return int(found[_STARTED]) == started and found[_STATE] not in _ENDED
    except (OSError, IndexError, ValueError, OverflowError):
        return False


def _machine() -> str:
    """This boot of this machine, and who counts its processes: containers count for themselves."""
    with open(_BOOT) as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
