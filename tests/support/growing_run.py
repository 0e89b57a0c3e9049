"""A run that goes on: its steps are committed one after another by whoever holds it, and others take it over."""

from __future__ import annotations

from typing import Any

from rhostream.runs import chain, checkpoint
from rhostream.runs.cost import Cost
from rhostream.runs.link import Link
from rhostream.tables.selections import LogWriter
from rhostream.tables.steps import StepsWriter
from tests.support.audit_fixtures import World, log_rows, make_run


class GrowingRun:
    """A run folder without a commit; `add` logs rows and commits them."""

    def __init__(self, world: World, url: str, **record: Any) -> None:
        self.url = make_run(world, url, [], **record)
        self.attempt = checkpoint.newest_attempt(self.url)

    def take_over(self, start: Any = None) -> None:
        """A new attempt, which goes on from a commit (None: from the beginning)."""
        note = {"from": None if start is None else vars(start.place)}
        self.attempt = checkpoint.claim_attempt(self.url, note)

    def add(self, rows: list[dict[str, Any]]) -> Any:
        """Commit the rows of some steps; gives the commit."""
        log, curve = LogWriter(self.url, self.attempt), StepsWriter(self.url, self.attempt)
        last = max(row["step"] for row in rows)
        for step in range(min(row["step"] for row in rows), last + 1):
            log_rows(log, [row for row in rows if row["step"] == step], step)
            curve.append({"step": step, "pass": 0})
        before = chain.head(self.url)
        number = 0 if before is None else before.number + 1
        first = number if before is None or before.attempt != self.attempt else before.first
        link = Link(
            step=last + 1,
            pass_index=0,
            buffer=last + 1,
            attempt=self.attempt,
            complete=False,
            number=number,
            first=first,
            previous=None if before is None else before.place,
            whole=before is None,
            log=log.flush(),
            steps=curve.flush(),
            cost=Cost(macs=20).as_json(),
        )
        return chain.commit(self.url, link)
