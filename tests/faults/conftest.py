"""The tally of the fault table: printed after every run that touched a line of it."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from tests.faults import tally
from tests.faults.crash_server import Rig, shared
from tests.faults.lines import LINES
from tests.faults.rig.s3 import faulty, proxy  # noqa: F401  # fixtures

NAME = re.compile(r"::test_([A-F]\d+)_")
ORDER = ("failed", "error", "passed", "skipped")  # what a line counts as, worst first


@pytest.fixture(scope="session")
def rig() -> Rig:
    """Processes that fork a child for a job in milliseconds; see `crash_server`."""
    return shared()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: how many lines of the table were tried, and which were not; before it, what tests had to say."""
    for line in tally.SAID:
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
    terminalreporter.write_line(f"fault table: {len(found)} of {len(LINES)} lines tried: {says}"
                                + (f"; not in this run: {', '.join(untried)}" if 0 < len(untried) < 20 else ""))
