"""The tally of the fault table, printed after every run that touched a line of it, and what tests have to say.

The hooks are those of tests/conftest.py: when several processes share a run, the one that reports loads no other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest

from tests.faults.lines import LINES

SAID: list[str] = []
NAME = re.compile(r"::test_([A-F]\d+)_")
ORDER = ("failed", "error", "passed", "skipped")  # what a line counts as, worst first


def say(line: str) -> None:
    """Print `line` in the summary of this run."""
    SAID.append(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands its lines over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["said"] = SAID


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    SAID.extend(getattr(node, "workeroutput", {}).get("said", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: how many lines of the table were tried, and which were not; before it, what tests had to say."""
    for line in SAID:
        terminalreporter.write_line(line)
    found: dict[str, set[str]] = defaultdict(set)
    for outcome in ORDER:
        for report in terminalreporter.getreports(outcome):
            if match := NAME.search(report.nodeid):
                found[match[1]].add(outcome)
    if not found:
        return
    worst = {line: next(o for o in ORDER if o in seen) for line, seen in found.items()}
    counts = {outcome: sum(w == outcome for w in worst.values()) for outcome in ORDER}
    untried = [line for line in LINES if line not in found]
    says = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    terminalreporter.write_line(
        f"fault table: {len(found)} of {len(LINES)} lines tried: {says}"
        + (f"; not in this run: {', '.join(untried)}" if 0 < len(untried) < 20 else "")
    )
