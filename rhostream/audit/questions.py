"""The named questions: one .sql file each, whose first comment says what it answers and `needs:` what it must know."""

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
    """A question's text, what it says, and the fields of the samples' json (FIELD:TYPE) that it needs."""

    says: str
    sql: str
    needs: tuple[str, ...] = ()


def _read(text: str) -> Question:
    comments = [line[2:].strip() for line in text.splitlines() if line.startswith("--")]
    needs = [field.strip() for c in comments if c.startswith("needs:") for field in c[6:].split(",")]
    return Question(comments[0], text, tuple(needs))


QUESTIONS: dict[str, Question] = {
    file.name.removesuffix(".sql"): _read(file.read_text(encoding="utf-8"))
    for file in sorted((resources.files("rhostream.audit") / "queries").iterdir(), key=lambda f: f.name)
    if file.name.endswith(".sql")
}


def run_question(ledger: Ledger, name: str) -> pa.Table:
    """The answer to a named question. Raises as `question_sql`."""
    return ledger.sql(question_sql(ledger, name))


def question_sql(ledger: Ledger, name: str) -> str:
    """The SELECT of a named question. Raises UnknownNameError, UsageError when a field it needs was not kept."""
    if name not in QUESTIONS:
        raise UnknownNameError.of("question", name, QUESTIONS)
    question = QUESTIONS[name]
    kept = ledger.kept_fields() if question.needs else {}
    missing = [need for need in question.needs if kept.get(need.partition(":")[0]) != need.partition(":")[2]]
    if missing:
        fields = " and ".join(need.partition(":")[0] for need in missing)
        raise UsageError(f"@{name} needs {fields} of the samples' json, which the IL table didn't keep: run compute-il "
                         f"with --keep {','.join(missing)} into another --out")  # fmt: skip
    return question.sql
