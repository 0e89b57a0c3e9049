"""The page's SQL box: the ledger's own `sql`, with a limit of rows, of seconds and of memory.

The ledger is opened at the first question and again when a run has been committed to since: so an answer is of one
commit, each byte of it proved, and a ledger that is damaged is refused, as `rhostream sql` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rhostream.audit.questions import QUESTIONS, run_question
from rhostream.audit.render import printable
from rhostream.audit.views import Ledger
from rhostream.errors import UsageError

SECONDS = 30.0  # of a question
MEMORY = "1GB"
ROWS = 1000  # shown
CELL = 300  # characters


class _Limited(Ledger):
    """A ledger whose questions take little memory, and may be stopped."""

    def __init__(self, folders: Sequence[str], roots: Mapping[str, str]) -> None:
        super().__init__(folders, roots, memory_limit=MEMORY, max_temp_directory_size=MEMORY)

    def stop(self) -> None:
        """Make the question that another thread asks fail."""
        self._con.interrupt()


class Questions:
    """Asks the ledger of these runs; a question at a time."""

    def __init__(self, folders: Sequence[str], roots: Mapping[str, str]) -> None:
        self._folders, self._roots = list(folders), roots
        self._ledger: _Limited | None = None
        self._of: Any = None  # the commits that it was opened for
        self._lock = threading.Lock()

    def ask(self, text: str, commits: Any) -> dict[str, Any]:
        """JSON of an answer: columns, rows of texts, and whether there are more. `commits`: what is newest now.

        Raises UsageError for what is no SELECT and for a question that takes too long, TableError.
        """
        if not self._lock.acquire(timeout=SECONDS):
            raise UsageError("another question is still being answered")
        try:
            began = time.monotonic()
            ledger = self._opened(commits)
            late = threading.Event()
            timer = threading.Timer(SECONDS, _stop, (ledger, late))
            timer.daemon = True
            timer.start()
            try:
                table = _answer(ledger, text.strip())
            except UsageError as exc:
                if late.is_set():
                    raise UsageError(f"no answer within {SECONDS:g} s: ask for less") from exc
                raise
            finally:
                timer.cancel()
            return _json(table) | {"seconds": round(time.monotonic() - began, 3)}
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the ledger, if it was opened."""
        if self._ledger is not None:
            self._ledger.stop()
            self._ledger.close()
            self._ledger = None

    def _opened(self, commits: Any) -> _Limited:
        if self._ledger is None or self._of != commits:
            fresh = _Limited(self._folders, self._roots)
            if self._ledger is not None:
                self._ledger.close()
            self._ledger, self._of = fresh, commits
        return self._ledger


def _stop(ledger: _Limited, late: threading.Event) -> None:
    late.set()
    ledger.stop()


def _answer(ledger: Ledger, text: str) -> pa.Table:
    if text.startswith("@"):
        return run_question(ledger, text[1:])
    return ledger.read(text, lambda answer: answer.limit(ROWS + 1).to_arrow_table())


def _json(table: pa.Table) -> dict[str, Any]:
    shown = table.slice(0, ROWS)
    columns = [[printable(value, CELL) for value in column.to_pylist()] for column in shown.columns]
    numeric = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in table.schema.types]
    return {
        "columns": [printable(name, CELL) for name in table.column_names],
        "numeric": numeric,
        "rows": [list(row) for row in zip(*columns, strict=True)],
        "more": table.num_rows > ROWS,
    }


def named_questions() -> list[dict[str, str]]:
    """The named questions, for the page."""
    return [{"name": f"@{name}", "says": question.says} for name, question in QUESTIONS.items()]
