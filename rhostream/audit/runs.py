"""What a run folder says of itself: run.json, and the newest checkpoint, which alone decides what counts.

Nothing here reads a segment. Fields that an older or foreign run.json lacks are None or empty, never an error.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhostream import storage
from rhostream.errors import TableError, UsageError
from rhostream.inert import escape, one_line
from rhostream.runs import checkpoint
from rhostream.runs.cost import Cost
from rhostream.runs.link import Link
from rhostream.runs.plans import RunPlan, plans_of, settings_now
from rhostream.runs.record import FILE, class_names, is_run, recorded
from rhostream.tables.classes import no_class
from rhostream.tables.places import url_below

NEAR = 3  # names that a mistyped one is answered with
_MARKS = (FILE, "_table.json")  # what makes a folder a run, or a table


@dataclass(frozen=True)
class RunFolder:
    """A run as it stands: its folder, the name that views and pages give it, run.json and the newest checkpoint."""

    url: str
    name: str
    record: dict[str, Any]
    checkpoint: Link | None

    def __repr__(self) -> str:
        at = "nothing committed" if self.checkpoint is None else f"step {self.checkpoint.step:,}"
        return f"<run {one_line(storage.redact(self.url), 120)}: {at}>"

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings."""
        return dict(self.record.get("settings") or {})

    @property
    def il_url(self) -> str | None:
        """The IL table (or index) that the run was trained with."""
        url = self.record.get("il")
        return storage.resolve(url) if url else None

    @property
    def il_model(self) -> dict[str, Any]:
        """The IL model's own figures, {} for a run that used none."""
        return dict(self.record.get("il_model") or {})

    @property
    def cost(self) -> dict[str, Any]:
        """The cost account at the newest checkpoint: what the committed steps spent, not what a crash undid."""
        spent = dict(self.checkpoint.cost) if self.checkpoint else {}
        if spent and not {"forward_units", "il_units"} <= set(spent):
            spent = Cost.from_json(spent).as_json()
        return spent

    @property
    def no_class(self) -> str:
        """Why there are no classes, a sentence; "" where there are."""
        return no_class(self.settings.get("preprocess_target"))

    @functools.cached_property
    def class_names(self) -> dict[int, str]:
        """{label: name}, as far as the shards it was trained on said it."""
        return class_names(self.record)

    @functools.cached_property
    def plans(self) -> list[RunPlan]:
        """The lists of shards that it goes by, oldest first: that of run.json, and those it grew to."""
        return plans_of(self.url, self.record, self.checkpoint.changes if self.checkpoint else ())

    @property
    def shards(self) -> Sequence[str]:
        """The names of all shards that it goes by."""
        return self.plans[-1].names if self.plans else ()

    @property
    def last_step(self) -> Any:
        """Where it was to end: as the newest commit's attempt was asked, else as it began."""
        try:
            asked = settings_now(self.url, self.checkpoint, self.settings)
        except TableError:  # `verify` says so
            return None
        return asked.get("last_step") if isinstance(asked, dict) else None

    @functools.cached_property
    def _urls(self) -> dict[str, str]:
        """{name: URL} of its shards, as its newest list has them."""
        return next((dict(zip(plan.names, plan.urls, strict=False)) for plan in reversed(self.plans)), {})

    @property
    def caution(self) -> str:
        """What to know before its log is asked anything, a sentence: it is empty, or its state is doubtful; else ""."""
        if self.checkpoint is None or not self.checkpoint.log:
            return f"run {escape(self.name)} has no committed step yet: its log is empty"
        return f"run {escape(self.name)}: {self.checkpoint.doubt}" if self.checkpoint.doubt else ""

    @property
    def steps(self) -> int:
        """Gradient steps that were committed."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def complete(self) -> bool:
        """Whether the run reached its last step."""
        return bool(self.checkpoint and self.checkpoint.complete)

    def shard_url(self, shard: str, roots: Mapping[str, str] | None = None) -> str:
        """Where a shard of that name lies today: as `roots` say, else where the run read it, else as its name says."""
        moved = url_below(shard, roots or {}, folders=True)
        if moved:
            return moved
        return self._urls.get(shard) or url_below(shard, self.record.get("roots") or {}, folders=True) or shard


def is_table(folder: str) -> bool:
    """Whether an IL table (or index) stands there."""
    return storage.exists(storage.join(folder, "_table.json"))


def open_runs(folders: Iterable[str]) -> list[RunFolder]:
    """The runs in these (resolved) folders. Raises UsageError for a folder that is none or is named twice."""
    urls = list(folders)
    if repeated := sorted({url for url in urls if urls.count(url) > 1}):
        raise UsageError(f"run {storage.redact(repeated[0])} is named twice")
    return [RunFolder(url, name, read_record(url), checkpoint.latest(url))
            for url, name in zip(urls, _names(urls), strict=True)]  # fmt: skip


def _names(urls: Sequence[str]) -> list[str]:
    """The folders' basenames, or as much more of their paths as tells them apart."""
    split = [storage.redact(url).rstrip("/").split("/") for url in urls]
    for depth in range(1, max(map(len, split), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in split]
        if len(set(names)) == len(names):
            return names
    return list(urls)


def read_record(run: str) -> dict[str, Any]:
    """run.json of a run folder. Raises UsageError when it is none, TableError when it can't be understood."""
    run = storage.resolve(run)
    record = recorded(run)
    if not record and not is_run(run):
        raise UsageError(f"{storage.redact(run)} is neither a run folder (no {FILE}) nor a table (no _table.json)"
                         f"{_near(run)}")  # fmt: skip
    return record


def _near(run: str) -> str:
    folder = os.path.dirname(run)
    if not storage.is_local(run) or not os.path.isdir(folder):
        return ""
    there = [entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.path != run]
    made = [name for name in sorted(there) if any(os.path.exists(os.path.join(folder, name, mark)) for mark in _MARKS)]
    begun = os.path.basename(run)
    # A name that was begun and not ended comes before one that is merely alike.
    names = [name for name in made if name.startswith(begun)] or difflib.get_close_matches(begun, made, n=NEAR)
    more = f" or {len(names) - NEAR} more" if len(names) > NEAR else ""
    return f"; did you mean {', '.join(names[:NEAR])}{more}?" if names else ""
