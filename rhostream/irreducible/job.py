"""An offline job: one pass over the shards that a table still lacks a part of, and a part for each of them.

    list > missing shards > scan > score > check the budget > commit a part

A part depends on its shard and its table alone: whichever shards a job reads beside it, it is the same.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import (
    BudgetError,
    NotFoundError,
    RhostreamError,
    StaleShardError,
    StorageError,
    UsageError,
)
from rhostream.irreducible.accounts import Summary, store
from rhostream.irreducible.asked import named
from rhostream.irreducible.parts import Commits, PartBuilder
from rhostream.irreducible.target import Shard, Target
from rhostream.selection.hardware import spare_cores, threads
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.advice import gaps
from rhostream.stream.budget import SHOWN, Budget
from rhostream.stream.progress import Progress
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.tables import il
from rhostream.tables.il import OK, PartFacts

LOG = logging.getLogger("rhostream")


def parse_index(text: str | None) -> tuple[int, int]:
    """ "I/N" as (I, N). Raises UsageError."""
    if text is None:
        return 0, 1
    first, slash, of = text.partition("/")
    if not (slash and first.isdecimal() and of.isdecimal() and int(first) < int(of)):
        raise UsageError(f"--index {text!r}: expected I/N with 0 <= I < N, for the I-th of N machines")
    return int(first), int(of)


def _ahead(messages: Iterator[Chunk | End]) -> Generator[Chunk | End]:
    """The same messages, the next one read and decoded in a thread while the caller scores this one.

    A daemon: a job that stops, and the process that ends with it, don't wait for a read that hangs.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    came: SimpleQueue[Chunk | End | BaseException | None] = SimpleQueue()

    def read() -> None:
        try:
            while wanted.get():
                came.put(next(messages, None))
        except BaseException as exc:
            came.put(exc)

    threading.Thread(target=read, name="rhostream-read", daemon=True).start()
    wanted.put(True)
    try:
        while (message := came.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            wanted.put(True)
            yield message
    finally:
        wanted.put(False)


@dataclass(frozen=True)
class _Unmade:
    """Whether a shard still lacks a part; asked right before it is read, as other jobs may fill the same table."""

    table: str

    def __call__(self, name: str) -> bool:
        return not storage.exists(il.part_url(self.table, name))


@dataclass
class Job:
    """One run over a list of shards."""

    shards: Sequence[str]  # URLs, patterns, folders
    target: Target
    settings: ScanSettings
    budget: Budget
    fail_fast: bool = False
    part_of: str | None = None
    names: list[str] = field(default_factory=list)  # of all machines
    urls: list[str] = field(default_factory=list)  # the same shards

    def __post_init__(self) -> None:
        self._started, self._retried = time.monotonic(), storage.retried()
        own, machines = parse_index(self.part_of)
        listed = named(self.shards, self.target.roots)
        self.urls, self.names = [url for url, _ in listed], [name for _, name in listed]
        mine = set(sorted(self.names)[own::machines])
        self._mine: list[Shard] = [shard for shard in listed if shard[1] in mine]
        self._settings = replace(self.settings, wanted=_Unmade(self.target.out))
        storage.probe_writable(self.target.out)
        self.target.open()
        self.target.summary.shards = len(self._mine)

    def run(self, workers: int) -> Summary:
        """Make the missing parts, with the cores that the workers leave for the model."""
        with threads(spare_cores(workers)):
            return self._run(workers)

    def _run(self, workers: int) -> Summary:
        target, summary = self.target, self.target.summary
        title = "index" if target.score is None else "compute-il"
        with StopRequest(title) as stop:
            self._look(stop)
            crash_point("compute-il: shards listed")
            if missing := [shard for shard in self._mine if shard[1] in target.missing]:
                self._make(missing, workers, stop, title)
            crash_point("compute-il: all parts committed")
            il.write_catalogue(target.out, target.info, [n for n in self.names if n not in summary.bad_shards])
        summary.seconds, summary.retried = time.monotonic() - self._started, storage.retried_since(self._retried)
        summary.bad_shards = dict(sorted(summary.bad_shards.items()))
        for name, why in summary.bad_shards.items():
            LOG.error("no part for %s: %s", redact(name), why)
        summary.require_laws()
        if target.examine is not None:
            summary.doubts += target.examine(target.out, [name for _, name in self._mine], summary.quarantined)
        if not summary.present and self.part_of is None and self.settings.needs_labels:  # all labels were read
            summary.doubts += gaps(summary.labels, target.info.class_names)
        summary.doubts += summary.advice.sentences
        for doubt in summary.doubts:
            LOG.warning("%s: %s", redact(target.out), doubt)
        store(target.out, title, self.part_of, summary)
        LOG.info("%s: %s", title, summary.says())
        if summary.useless:
            LOG.error("%s: %s", redact(target.out), summary.says_useless())
        return summary

    def _make(self, missing: list[Shard], workers: int, stop: StopRequest, title: str) -> None:
        target, summary = self.target, self.target.summary
        if not target.first:
            # Whoever made the table goes through the list. Others may be at work on it: in any other order two jobs
            # that begin together would stay together, each reading what the other one commits.
            random.Random(time.time_ns()).shuffle(missing)
        messages = scan(missing, self._settings, workers=workers)
        source = _ahead(messages) if target.score is not None and not workers else messages
        with Progress(title, len(missing)) as progress, Commits() as commits, contextlib.closing(source):
            for message in stop.while_waiting(source):
                shard = missing[message.shard]
                if isinstance(message, Chunk):
                    progress.rows(len(message), target.add(message, *shard))
                else:
                    progress.shard()
                    self._end(commits, message, shard)
        summary.twice = commits.lost
        summary.made, summary.present = summary.made - commits.lost, summary.present + commits.lost
        stop.raise_if_asked(f"{summary.made + summary.present:,} of {summary.shards:,} parts are there")

    def _end(self, commits: Commits, message: End, shard: Shard) -> None:
        """A shard is over."""
        target, summary, name = self.target, self.target.summary, shard[1]
        builder = target.ended(message.shard, *shard)
        if message.skipped:
            self._count(name, target.present(shard))
            return
        if message.error is not None:
            self._bad_shard(name, message.error)
            return
        summary.advice.add(message.advice)
        self._check(builder, name, summary)
        if not message.samples_seen:
            warnings.warn(f"shard {redact(name)} holds no sample; its part has no row", stacklevel=5)
        facts = builder.facts(message)
        commits.begin(builder, facts)
        summary.add(facts)
        summary.several_images += message.several_images
        summary.labels.update(builder.labels)
        summary.made += 1

    def _check(self, builder: PartBuilder, name: str, summary: Summary) -> None:
        """The budgets, with one more shard. Raises BudgetError; the shard gets no part."""
        try:
            self.budget.check_shard(name, builder.statuses, builder.first_bad)
            summary.first_bad += [
                f"{redact(name)}: {one}" for one in builder.first_bad[: SHOWN - len(summary.first_bad)]
            ]
            so_far = Counter({**summary.quarantined, OK: summary.ok}) + builder.statuses
            self.budget.check_total(f"all shards up to {redact(name)}", so_far, summary.first_bad)
        except BudgetError as exc:
            exc.add_note(f"before this shard: {summary.says()}")
            summary.advice.onto(exc)
            raise

    def _look(self, stop: StopRequest) -> None:
        """Which shards have no part; parts that are there are checked against the table and their shard."""
        target = self.target
        with ThreadPoolExecutor(16) as pool:
            found = list(stop.while_waiting(pool.map(lambda look: look(), target.looks(self._mine))))
            if stop.signal:
                pool.shutdown(wait=False, cancel_futures=True)
        stop.raise_if_asked()
        stale = [one for one in found if isinstance(one, StaleShardError)]
        if len(stale) > 1:
            stale[0].add_note(f"{len(stale):,} of the {len(self._mine):,} shards changed after they were indexed")
        if stale:
            raise stale[0]
        if target.copies:
            LOG.warning(
                "%s shards have a new time or ETag since %s was made and the same bytes (or size, where no "
                "more is known): they are taken for copies, first %s",
                f"{len(target.copies):,}",
                redact(target.out),
                min(target.copies),
            )
        target.missing = frozenset(name for (_, name), facts in zip(self._mine, found, strict=True) if facts is None)
        for (_, name), facts in zip(self._mine, found, strict=True):
            if facts is not None:
                self._count(name, facts)
        if target.summary.present:
            LOG.info("%d of %d parts are there already", target.summary.present, target.summary.shards)

    def _count(self, name: str, found: PartFacts | StorageError | StaleShardError | None) -> None:
        """A part that is there, or why it can't be counted."""
        target = self.target
        if isinstance(found, PartFacts):
            target.require_classes(found.class_names.items(), name)
            target.summary.add(found)
            target.summary.present += 1
        else:
            self._bad_shard(name, found or NotFoundError(f"the part of {redact(name)} vanished; run again"))

    def _bad_shard(self, name: str, error: RhostreamError) -> None:
        if self.fail_fast:
            raise error
        LOG.warning("%s", error)
        self.target.summary.bad_shards[name] = str(error)
        self.budget.check_shards(self.target.summary.bad_shards, len(self._mine))
