"""What is exported, as one SELECT: rows of the log as they are, or one row a sample, in the order of shards.

Of a sample that was looked at several times (in several passes, in several runs) the last look counts: the highest
pass, then the highest step. `looks` says how many rows of the selection are of it, `times_kept` how many of these were
kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.audit.questions import question_sql
from rhostream.audit.views import Ledger
from rhostream.errors import UsageError
from rhostream.inert import one_line

KEPT, USABLE = "kept", "status = 'ok'"  # what is meant where nobody says what: of runs, of a table


@dataclass(frozen=True)
class Selection:
    """A SELECT over the ledger, and the columns of its answer with their types."""

    ledger: Ledger
    sql: str
    columns: dict[str, str]
    once: bool = False  # whether no sample has two rows in it: those of a table

    def samples(self, more: str = "", join: str = "", least: bool = False) -> str:
        """One row a sample, by shard and ordinal: the columns with `looks` and `times_kept`, and `more` of a `join`.

        With `least` only what names the sample. Raises UsageError for an answer that names no samples.
        """
        named = self._named()
        if least:
            key = ", any_value(key) AS key" if "key" in self.columns else ""
            return f"SELECT shard, ordinal{key} FROM ({named}) GROUP BY shard, ordinal ORDER BY shard, ordinal"
        if self.once:
            return f"SELECT looked.*{more} FROM ({self.sql}) AS looked {join} ORDER BY looked.shard, looked.ordinal"
        last = [f"{name} DESC NULLS LAST" for name in ("pass", "step") if name in self.columns]
        last += ["run"] if "run" in self.columns else []
        last += [] if "step" in self.columns else [_quoted(name) for name in self.columns if name != "run"]
        counted = "count(*) OVER sample AS looks, " if "looks" not in self.columns else ""
        if self.columns.get("kept") == "BOOLEAN" and "times_kept" not in self.columns:
            counted += "count(*) FILTER (kept) OVER sample AS times_kept, "
        return (
            f"SELECT looked.* EXCLUDE (turn_of_sample){more} FROM (SELECT *, {counted}row_number() OVER (PARTITION BY "
            f"shard, ordinal ORDER BY {', '.join(last)}) AS turn_of_sample FROM ({named}) WINDOW sample AS (PARTITION "
            f"BY shard, ordinal)) AS looked {join} WHERE turn_of_sample = 1 ORDER BY looked.shard, looked.ordinal"
        )

    def strangers(self) -> tuple[int, str]:
        """How many rows name no sample, and the first of them in words; no row of the log does."""
        if self.once or {"ordinal", "pass", "step", "run", "reason"} <= self.columns.keys():
            return 0, ""
        rows = self.ledger.sql(f"SELECT count(*) AS n, {self._first()} FROM ({self._resolved()}) WHERE {_NAMELESS}")
        row = rows.to_pylist()[0]
        return row["n"], one_line(", ".join(f"{name} {row[name]!r}" for name in row if name != "n"), 300)

    def _first(self) -> str:
        names = ["shard", "key" if "key" in self.columns else "ordinal"]
        return ", ".join(f"first({name}) AS {name}" for name in names)

    def _named(self) -> str:
        return f"SELECT * FROM ({self._resolved()}) WHERE NOT ({_NAMELESS})"

    def _resolved(self) -> str:
        """The answer with an ordinal: of a key the usable sample that has it, else the first."""
        if "shard" not in self.columns or not {"ordinal", "key"} & self.columns.keys():
            shown = one_line(", ".join(self.columns), 300)
            raise UsageError(
                f"the answer has the columns {shown}; samples are named by shard and ordinal, or by shard and key: "
                "SELECT these too"
            )
        if "ordinal" in self.columns:
            return self.sql
        return (
            f"SELECT answer.*, named.ordinal FROM ({self.sql}) AS answer LEFT JOIN (SELECT shard, key, min_by(ordinal, "
            "(CASE WHEN status = 'ok' THEN 0 ELSE 1 END, ordinal)) AS ordinal FROM il GROUP BY shard, key) AS named "
            "USING (shard, key)"
        )


_NAMELESS = "shard IS NULL OR ordinal IS NULL"


def selection(ledger: Ledger, where: str | None = None, sql: str | None = None) -> Selection:
    """What `where` (a condition on the rows of the log; of a table on its rows) or `sql` (a SELECT, or `@question`)
    asks for; the kept rows (of a table: the usable ones) where neither is given.

    Raises UsageError for what is no such text, or an answer with two columns of one name.
    """
    if where is not None and sql is not None:
        raise UsageError("--where and --sql are two selections: give one of them")
    if sql is None:
        view, all_of = ("selections", KEPT) if ledger.runs else ("il", USABLE)
        text = f"SELECT * FROM {view} WHERE (\n{all_of if where is None else where}\n)"
    elif sql.startswith("@"):
        text = question_sql(ledger, sql[1:])
    else:
        text = sql
    text = f"\n{text.strip().rstrip(';')}\n"
    columns, types = ledger.read(text, lambda answer: (list(answer.columns), [str(kind) for kind in answer.types]))
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UsageError(f"the answer has two columns {one_line(twice[0])!r}: give one another name with AS")
    return Selection(ledger, text, dict(zip(columns, types, strict=True)), sql is None and not ledger.runs)


def _quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
