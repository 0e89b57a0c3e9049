"""The table of faults is whole: every line has a test that promises something, and the page says what they promise."""

from __future__ import annotations

import re

from tests.faults.lines import LINES
from tests.faults.page import PAGE, page, promises


def test_every_line_has_a_test_with_a_promise() -> None:
    promised = promises()
    assert [line for line in LINES if not any(doc for doc, *_ in promised.get(line, []))] == [] and len(LINES) > 80


def test_no_test_names_a_line_that_is_not_in_the_table() -> None:
    assert set(promises()) <= set(LINES)


def test_the_page_of_guarantees_is_that_of_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.faults.page`"


def test_every_guarantee_names_lines_of_the_table() -> None:
    text = (PAGE.parent / "guarantees.md").read_text(encoding="utf-8")
    promised = re.split(
        r"^- ", text.partition("## What is promised")[2].partition("## What isn't")[0], flags=re.MULTILINE
    )[1:]
    named = [re.findall(r"\b[A-F]\d+\b", promise) for promise in promised]
    assert len(named) >= 8 and all(named) and {line for lines in named for line in lines} <= set(LINES)
