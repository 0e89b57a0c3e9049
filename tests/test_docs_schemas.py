"""The page of columns says what the code writes: names, order and types, and the words of the column `reason`."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from rhostream.audit.run_rows import RUNS
from rhostream.audit.views import _CLASSES
from rhostream.reasons import Reason
from rhostream.tables import il, selections, shadow, steps

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "schemas.md").read_text(encoding="utf-8")
TABLES = {
    "IL table": il.SCHEMA,
    "Selection log": selections.WITH_SOURCE,
    "Steps": steps.SCHEMA,
    "Shadow log": shadow.schema_of(1),
    "Runs": RUNS,
    "Classes": _CLASSES,
}
NAMES = {"float": "float32", "double": "float64", "halffloat": "float16"}


def name(kind: pa.DataType) -> str:
    """A type as the page names it: what a reader of the column gets."""
    if pa.types.is_dictionary(kind):
        return name(kind.value_type)
    if pa.types.is_struct(kind):
        return f"{{{', '.join(field.name for field in kind)}}}"
    if pa.types.is_list(kind):
        return f"list of {name(kind.value_type)}"
    return NAMES.get(str(kind), str(kind))


def lines(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = re.split(r"^## ", PAGE.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]
    return [re.split(r" ?\| ?", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("heading", TABLES)
def test_the_page_has_every_column_with_its_type_in_order(heading: str) -> None:
    assert [(row[0], row[1]) for row in lines(heading)] == [(f"`{f.name}`", name(f.type)) for f in TABLES[heading]]


def test_the_page_has_every_reason_with_what_it_means() -> None:
    assert [row[0] for row in lines("Reasons")] == [f"`{reason.name}`" for reason in Reason]
    assert all(row[1] for row in lines("Reasons"))


def test_every_table_of_the_page_is_held() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [*list(TABLES)[:2], "Reasons", *list(TABLES)[2:]]
