"""Follows runs: loads what they have committed in the background, then every new commit, and reads nothing twice.

    newest commit > the links behind it as far as the one that is known > segments to add, to rename, to drop > columns

A segment that is damaged or gone is left out, and named for as long as the page is open; the rest is shown.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rhostream import storage
from rhostream.audit.runs import RunFolder, open_runs
from rhostream.audit.viewer.rows import RunRows, Shards, read_segment
from rhostream.errors import RhostreamError
from rhostream.runs import chain
from rhostream.runs.attempts import going_on
from rhostream.runs.link import Link

SECONDS, REMOTE_SECONDS = 0.25, 5.0  # between two looks for a commit
AT_WORK_SECONDS = 2.0  # between two looks at whether the run's process is there
AT_ONCE = 16  # segments between two looks at the next run
log = logging.getLogger(__name__)
Records = list[dict[str, Any]]


@dataclass
class Followed:
    """A run, its loaded rows, and what is known of it."""

    folder: RunFolder
    rows: RunRows
    link: Link | None = None
    segments: Records = field(default_factory=list)  # of the branch that counts, in order
    damaged: dict[str, str] = field(default_factory=dict)  # path -> why its rows are not shown
    problem: str = ""  # why it isn't followed any more, or not now
    running: bool | None = None  # whether its process is at work; None: that can't be seen from here

    @classmethod
    def of(cls, run: RunFolder, shards: Shards) -> Followed:
        """A run of which nothing is loaded yet."""
        return cls(run, RunRows(shards), run.checkpoint, list(run.checkpoint.log) if run.checkpoint else [])

    @property
    def waiting(self) -> Records:
        """Segments that are still to be loaded."""
        known = self.rows.loaded | self.damaged.keys()
        return [record for record in self.segments if record["path"] not in known]

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        rows = self.rows.snapshot().rows
        return {
            "name": self.folder.name,
            "where": storage.redact(self.folder.url),
            "rule": str(self.folder.settings.get("rule") or ""),
            "rows": rows,
            "committed": sum(int(record["rows"]) for record in self.segments),
            "step": self.link.step if self.link else 0,
            "last_step": self.folder.last_step,
            "complete": bool(self.link and self.link.complete),
            "running": self.running,
            "doubt": self.link.doubt if self.link else "",
            "problem": self.problem,
            "damaged": sorted(self.damaged.values()),
            "no_class": self.folder.no_class,
        }


class Follower:
    """Loads and follows runs in a thread of its own."""

    def __init__(self, folders: Sequence[str]) -> None:
        shards = Shards()
        self.shards = shards
        self.runs = [Followed.of(run, shards) for run in open_runs([storage.resolve(url) for url in folders])]
        self.version = 0  # another one whenever something is new
        self._changed = threading.Condition()
        self._ended = threading.Event()
        local = all(storage.is_local(run.folder.url) for run in self.runs)
        self._seconds = SECONDS if local else REMOTE_SECONDS
        self._thread = threading.Thread(target=self._follow, name="rhostream-view", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the segment that it reads."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(10)

    def wait(self, seen: int, seconds: float) -> int:
        """The version, as soon as it isn't `seen` or after so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != seen or self._ended.is_set(), seconds)
            return self.version

    def _follow(self) -> None:
        looked = asked = -1e9
        while not self._ended.is_set():
            if time.monotonic() - looked >= self._seconds:
                at_work = time.monotonic() - asked >= AT_WORK_SECONDS
                for run in self.runs:
                    self._look(run, at_work)
                looked = time.monotonic()
                asked = looked if at_work else asked
            if not any([self._load(run) for run in self.runs]):
                self._ended.wait(self._seconds)

    def _say(self) -> None:
        with self._changed:
            self.version += 1
            self._changed.notify_all()

    def _look(self, run: Followed, at_work: bool) -> None:
        before = (run.problem, run.running, run.link)
        try:
            find_commits(run)
            if at_work:
                newest = going_on(run.folder.url, run.link)
                run.running = newest[2] if newest else False
        except RhostreamError as exc:
            run.problem = str(exc)
        except Exception as exc:  # a page that stands still without a word is the worst of all
            run.problem = f"internal error: {type(exc).__name__}"
            log.exception("while following %s", run.folder.name)
        if run.problem and run.problem != before[0]:
            log.warning("run %s: %s", run.folder.name, run.problem)
        if before != (run.problem, run.running, run.link):
            self._say()

    def _load(self, run: Followed) -> bool:
        """Load a few segments; whether there were any."""
        waiting = run.waiting[:AT_ONCE]
        for record in waiting:
            if self._ended.is_set():
                return False
            try:
                run.rows.add(record["path"], read_segment(run.folder.url, record, self.shards))
            except RhostreamError as exc:
                with contextlib.suppress(RhostreamError):
                    find_commits(run)  # one that was merged meanwhile is gone, and not wanted any more
                if any(record["path"] == one["path"] for one in run.segments):
                    run.damaged[record["path"]] = f"{exc} ({int(record['rows']):,} rows are left out)"
                    log.warning("run %s: %s", run.folder.name, run.damaged[record["path"]])
        if waiting:
            self._say()
        return bool(waiting)


def find_commits(run: Followed) -> None:
    """Bring the list of segments up to the newest commit. Raises TableError, StorageError."""
    url, known = run.folder.url, run.link
    place = chain.newest_place(url)
    if place is None:
        run.problem = "" if known is None else f"{storage.redact(url)} is gone; what was loaded is still shown"
        return
    if known and (place.attempt, place.number) == (known.attempt, known.number) and not known.unconfirmed:
        run.problem = ""
        return
    link = chain.in_force(url, place)
    if known is None or link.digest != known.digest:
        _reconcile(run, *_segments_of(url, link, known, run.segments))
    run.link, run.folder, run.problem = link, replace(run.folder, checkpoint=link), ""


def _segments_of(
    url: str, link: Link, known: Link | None, before: Records
) -> tuple[Records, Sequence[Mapping[str, Any]]]:
    """All segments of the log up to a commit, and what was merged of what; no link that is known is read again."""
    links, base = [link], Records()
    if not link.whole and known is not None and link.previous is not None and link.previous.sha256 == known.digest:
        base = before
    elif not link.whole:
        for one in chain.behind(url, link):
            if known is not None and one.digest == known.digest:
                base = before
                break
            links.append(one)
            if one.whole:
                break
    merged = [each for one in reversed(links) for each in one.merged]
    return [*base, *(record for one in reversed(links) for record in one.log)], merged


def _reconcile(run: Followed, segments: Records, merged: Sequence[Mapping[str, Any]]) -> None:
    wanted = {record["path"] for record in segments}
    for each in merged:
        if each["path"] in wanted and {*each["of"]} <= run.rows.loaded:
            run.rows.rename(each["path"], each["of"])
    run.rows.drop(run.rows.loaded - wanted)
    run.damaged = {path: why for path, why in run.damaged.items() if path in wanted}
    run.segments = segments
