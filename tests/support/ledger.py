"""What the ledger of a run answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rhostream


def rows(folder: Path, question: str = "SELECT * EXCLUDE (run) FROM selections") -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(folder)) as ledger:
        return ledger.sql(question).to_pylist()


def as_text(folder: Path) -> list[str]:
    return [repr(row) for row in rows(folder)]


FROM_THE_LOG = """
WITH counts AS (SELECT step, label, count(*) AS n FROM selections WHERE kept GROUP BY ALL),
shares AS (SELECT step, n / sum(n) OVER (PARTITION BY step) AS p FROM counts)
SELECT step, exp(-sum(p * ln(p))) AS effective FROM shares GROUP BY step ORDER BY step
"""
