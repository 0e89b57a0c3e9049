"""The named questions: one .sql file each, its first comment says what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import pyarrow as pa

from rhostream.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from rhostream.audit.views import Ledger


@dataclass(frozen=True)
class Question:
    """A question's text, what it says, and the fields of the samples' json that it needs."""

    says: str
    sql: str
    needs: tuple[str, ...] = ()


def _load() -> dict[str, Question]:
    found = {}
    for file in sorted((resources.files("rhostream.audit") / "queries").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            text = file.read_text(encoding="utf-8")
            comments = [line[2:].strip() for line in text.splitlines() if line.startswith("--")]
            needs = [c.removeprefix("needs:").split(",") for c in comments if c.startswith("needs:")]
            found[file.name[:-4]] = Question(comments[0], text, tuple(n.strip() for row in needs for n in row))
    return found


QUESTIONS = _load()


def run_question(ledger: Ledger, name: str) -> pa.Table:
    """The answer to a named question. Raises UnknownNameError, UsageError when a field it needs was not kept."""
    if name not in QUESTIONS:
        raise UnknownNameError.of("question", name, QUESTIONS)
    question, kept = QUESTIONS[name], ledger.kept_fields()
    for need in question.needs:
        if need.split(":")[0] not in kept:
            raise UsageError(f"@{name} needs the field {need.split(':')[0]!r} of the samples' json: run compute-il "
                             f"with --keep {need}")
    return ledger.sql(question.sql)
