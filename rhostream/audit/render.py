"""Answers as a text table, JSON or CSV; a hostile key can't move the cursor, break a row or become a formula.

JSON is exact. In the text table and in CSV everything that isn't printable (control characters, line ends, NUL, text
direction) is written as an escape, and in CSV a text that a spreadsheet would run is quoted by a leading `'`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rhostream.errors import UnknownNameError
from rhostream.inert import csv_text, escape

__all__ = ["STYLES", "csv_lines", "escape", "printable", "render"]

STYLES = ("table", "json", "csv")
MAX_WIDTH = 80


def render(table: pa.Table, style: str = "table") -> str:
    """The table as text of that style: "table", "json" or "csv". Raises UnknownNameError for another."""
    if style not in STYLES:
        raise UnknownNameError.of("format", style, STYLES)
    return {"table": _text, "json": _json, "csv": _csv}[style](table)


def printable(value: Any, width: int = MAX_WIDTH) -> str:
    """One cell for a terminal or a page: one line, escaped, floats with six digits, cut at `width` characters."""
    text = escape(_plain(value))
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, (list, dict)):
        return json.dumps(_exact(value), ensure_ascii=False)
    return value if isinstance(value, str) else str(value)


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    # Not to_pylist: its dicts lose a column when two have the same name.
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


# -- the styles ------------------------------------------------------------------------------------------------------


def _text(table: pa.Table) -> str:
    rows = [[printable(value) for value in row] for row in _rows(table)]
    names = [printable(name) for name in table.column_names]
    widths = [max(map(_cells, (name, *(row[at] for row in rows)))) for at, name in enumerate(names)]
    numeric = [pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t) for t in table.schema.types]

    def line(cells: list[str]) -> str:
        padded = [" " * (w - _cells(c)) + c if right else c + " " * (w - _cells(c))
                  for c, w, right in zip(cells, widths, numeric, strict=True)]  # fmt: skip
        return "  ".join(padded).rstrip()

    foot = f"({len(rows):,} row{'' if len(rows) == 1 else 's'})"
    return "\n".join([line(names), "  ".join("-" * w for w in widths), *map(line, rows), foot])


def _cells(text: str) -> int:
    """How many cells of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _csv(table: pa.Table) -> str:
    return csv_lines(table).rstrip("\n")


def csv_lines(table: pa.Table, heading: bool = True) -> str:
    """The rows as lines of CSV, the columns' names before them with a `heading`."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    if heading:
        writer.writerow([_inert(name) for name in table.column_names])
    writer.writerows([[_inert(value) for value in row] for row in _rows(table)])
    return sink.getvalue()


def _inert(value: Any) -> Any:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return value
    return csv_text(_plain(value))


def _json(table: pa.Table) -> str:
    names: list[str] = []
    for name in table.column_names:  # a second `a` becomes `a_1`, as DuckDB names them itself
        again = sum(n == name for n in table.column_names[: len(names)])
        names.append(f"{name}_{again}" if again else name)
    rows = [json.dumps(dict(zip(names, map(_exact, row), strict=True))) for row in _rows(table)]
    return "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"


def _exact(value: Any) -> Any:
    """What JSON can hold without loss; NaN and infinities, which it can't, are the strings that protobuf uses."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value()
        return int(value) if whole else float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, dict):
        return {str(k): _exact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
