"""What a job says while it works, as events: a message for people, and the same as named values for programs.

    events.emit("progress", "train: step 20 of 90", done=20, total=90)

They go through the logger "rhostream"; the command line makes lines of text of them, or with `--log-format json` lines
of JSON (docs/trackers.md has the fields).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("rhostream")
as_json = False  # whether the command line was asked for lines of JSON: then nothing else may be written, no bar either
verb = ""  # of the command line


def emit(event: str, message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event; fields that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    LOG.log(level, "%s", message, extra={"event": event, "fields": known})


def line(event: str, message: str, level: int = logging.INFO, **fields: Any) -> str:
    """An event as a line of JSON."""
    rank = os.environ.get("RANK", "")
    told = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
        "verb": verb,
        **({"rank": int(rank)} if rank.isdigit() else {}),
        "event": event,
        "message": message,
    }
    return json.dumps({**told, **{name: value for name, value in fields.items() if name not in told}}, default=str)


class JsonLines(logging.Formatter):
    """A log record as a line of JSON; `cleaned` is what each text goes through."""

    def __init__(self, cleaned: Callable[[str], str]) -> None:
        super().__init__()
        self._cleaned = cleaned

    def format(self, record: logging.LogRecord) -> str:
        """One line, whoever logged it."""
        event = getattr(record, "event", "warning" if record.levelno >= logging.WARNING else "log")
        fields = {
            name: self._cleaned(value) if isinstance(value, str) else value
            for name, value in getattr(record, "fields", {}).items()
        }
        message = self._cleaned(record.getMessage()).removeprefix("warning: ")
        if record.name != LOG.name:
            fields["logger"] = record.name
        return line(event, message, record.levelno, **fields)
