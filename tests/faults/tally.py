"""Lines that tests of this folder want to have at the end of a run."""

from __future__ import annotations

SAID: list[str] = []


def say(line: str) -> None:
    """Print `line` in the summary of this run."""
    SAID.append(line)
