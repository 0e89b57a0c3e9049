"""`rhostream init`: look, judge, plan; then print, or write.

The same data, the same seed, the same answer, but for what is measured in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rhostream.config.init import InitConfig
from rhostream.guide.facts import Facts
from rhostream.guide.figures import advice, warnings
from rhostream.guide.files import folder_of, write_files
from rhostream.guide.look import look_at
from rhostream.guide.places import place_of
from rhostream.guide.plan import Plan, plan
from rhostream.guide.text import command_line, report_of, steps
from rhostream.inert import escape
from rhostream.signals import StopRequest


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What was found, and what to run on it."""

    facts: Facts
    plan: Plan
    written: list[str]

    def text(self) -> str:
        """For people."""
        if not self.written:
            return f"{report_of(self.facts, self.plan)}\n\n{steps(self.plan)}"
        script = escape(next(path for path in self.written if path.endswith("run.sh")))
        return f"{report_of(self.facts, self.plan)}\n\nWritten: {script} and {len(self.written) - 1} config files"

    def as_json(self) -> dict[str, Any]:
        """Plain values: facts, advice, plan, files."""
        judged = self.facts.judged
        chosen, why = (None, self.facts.not_judged) if judged is None else advice(judged.figures)
        commands = [asdict(command) | {"line": command_line(command)} for command in self.plan.commands]
        return {
            "facts": asdict(self.facts),
            "advice": {"rule": chosen, "why": why, "warnings": [] if judged is None else warnings(judged.figures)},
            "plan": asdict(self.plan) | {"commands": commands},
            "written": self.written,
        }


def guide(config: InitConfig) -> Guide:
    """Look at the data and say what to do with it. Raises UsageError and its kin, Interrupted after a signal."""
    folder = folder_of(config.out) if config.out is not None else None
    with StopRequest("init", again="the same command begins again"), _quiet():
        place = place_of(config.data, config.labels)
        seen = look_at(place, config)
        planned = plan(place, seen, config)
    written = write_files(folder, seen.facts, planned) if folder is not None else []
    return Guide(facts=seen.facts, plan=planned, written=written)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of verbs whose code is used: what they chose is in the answer."""
    log = logging.getLogger("rhostream")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
