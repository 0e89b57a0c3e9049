"""`prune`: what only states before a step need is removed: their tensors, and segments that were merged since.

    every link of every attempt > what states from STEP on count > the rest of checkpoints/, log/, steps/ and shadow/

The one act that takes from states that were handed out to another trainer: nobody but who saved them knows which are
still wanted. Links stay, and the state in force stays whole, whatever its step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.runs import chain, retention
from rhostream.runs.attempts import newest_attempt
from rhostream.runs.link import KINDS, NAME, Link, read_link
from rhostream.runs.old import old_commits, read_old
from rhostream.storage import delete as delete_file

_ATTEMPT = re.compile(r"/(?:log|steps|shadow)/attempt=(\d+)/")


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be: steps of states, and files of segments with their size."""

    run: str
    before: int
    states: list[int]
    segments: int
    bytes: int
    deleted: bool

    def __str__(self) -> str:
        steps = ", ".join(f"{step:,}" for step in self.states[:8]) + (", ..." if len(self.states) > 8 else "")
        what = [f"{len(self.states):,} states (of step {steps})"] if self.states else []
        what += [f"{self.segments:,} segments that were merged or never committed"] if self.segments else []
        if not what:
            return f"nothing to remove: no file is needed by states before step {self.before:,} alone"
        done = "removed" if self.deleted else "would remove (--delete does it):"
        return f"{done} {' and '.join(what)}, {self.bytes / 2**20:,.1f} MiB"


def prune(run: str, *, before: int, delete: bool = False) -> Pruned:
    """Remove what only states before step `before` need; without `delete` only say what that is.

    States before it can't be loaded any more, whoever keeps them. Raises UsageError for a folder without a commit,
    TableError where a link is damaged: then nothing is removed.
    """
    run = storage.resolve(run)
    newest = chain.head(run)
    if newest is None:
        raise UsageError(f"{storage.redact(run)} has no commit, so there is nothing to prune")
    needed, named = _paths(chain.with_segments(run, newest)), set[str]()
    for links in _attempts(run):
        _sort_out(run, links, before, needed, named)
    own = retention.Kept(newest.attempt, newest.step)
    states = {state: files for state, files in retention.states(run).items() if state.step < before and state != own}
    gone = [url for files in states.values() for url in sorted(files, key=lambda url: not url.endswith(".json"))]
    segments = [
        url
        for url in _segments(run)
        if (path := url[len(run) :].lstrip("/")) not in needed
        and (path in named or _of_attempt(url) < newest_attempt(run))
    ]
    with ThreadPoolExecutor(chain.THREADS) as pool:
        size = sum(found.size for found in pool.map(storage.identity, [*gone, *segments]))
        if delete:
            for url in gone:  # in their order: what makes an old checkpoint count goes before its tensors
                delete_file(url)
            list(pool.map(delete_file, segments))
    return Pruned(run, before, sorted(state.step for state in states), len(segments), size, delete)


def _attempts(run: str) -> Iterator[list[Link]]:
    """The links of each attempt in order, and each checkpoint.json of an older version for itself."""
    numbers: dict[int, list[int]] = {}
    for match in map(NAME.search, storage.list_files(storage.join(run, "commits"), ".json")):
        if match:
            numbers.setdefault(int(match[1]), []).append(int(match[2]))
    with ThreadPoolExecutor(chain.THREADS) as pool:
        for attempt, own in numbers.items():
            yield list(pool.map(partial(read_link, run, attempt), sorted(own)))
    for url in old_commits(run):
        yield [read_old(url)]


def _sort_out(run: str, links: list[Link], before: int, needed: set[str], named: set[str]) -> None:
    """Add what states from the step on count to `needed`, what older links name to `named`."""
    first = True
    for link in links:
        named |= {path for one in link.merged for path in one["of"]}
        if link.step < before:
            named |= _paths(link)
            continue
        needed |= _paths(chain.with_segments(run, link) if first else link)
        first = False


def _paths(link: Link) -> set[str]:
    return {segment["path"] for kind in KINDS for segment in getattr(link, kind)}


def _segments(run: str) -> list[str]:
    return [url for kind in KINDS for url in storage.list_files(storage.join(run, kind), ".parquet")]


def _of_attempt(url: str) -> int:
    match: Any = _ATTEMPT.search(url)
    return int(match[1]) if match else -1
