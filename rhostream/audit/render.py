"""Answers as a text table, JSON or CSV; hostile keys can't move the cursor or become a formula."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa

from rhostream.errors import UnknownNameError

MAX_WIDTH = 60


def render(table: pa.Table, style: str) -> str:
    """The table as text of that style: "table", "json" or "csv"."""
    if style == "json":
        return json.dumps(table.to_pylist(), indent=1, default=str)
    if style == "csv":
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([[_inert(v) for v in row.values()] for row in table.to_pylist()])
        return sink.getvalue().rstrip("\n")
    if style != "table":
        raise UnknownNameError.of("format", style, ["table", "json", "csv"])
    return _text(table)


def printable(value: Any) -> str:
    """One line for a terminal: control characters escaped, long values cut."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= MAX_WIDTH else safe[: MAX_WIDTH - 1] + "…"


def _inert(value: Any) -> Any:
    # A spreadsheet runs what starts like a formula.
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _text(table: pa.Table) -> str:
    rows = [[printable(v) for v in row.values()] for row in table.to_pylist()]
    names = [printable(name) for name in table.column_names]
    widths = [max(len(name), *(len(row[i]) for row in rows), 0) if rows else len(name) for i, name in enumerate(names)]
    numeric = [pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t) for t in table.schema.types]

    def line(cells: list[str]) -> str:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    foot = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return "\n".join([line(names), "  ".join("-" * w for w in widths), *map(line, rows), foot])
