"""An offline job: one pass over the shards that a table still lacks a part of, and a part for each of them.

    list > missing shards > an engine makes parts > budgets and accounts of what became of each shard

A part depends on its shard and its table alone: whichever shards a job reads beside it, it is the same.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rhostream import storage
from rhostream.config.offline import ComputeILConfig, IndexConfig
from rhostream.crashpoints import crash_point
from rhostream.errors import (
    BudgetError,
    NotFoundError,
    RhostreamError,
    StaleShardError,
    StorageError,
)
from rhostream.irreducible.accounts import Summary, store
from rhostream.irreducible.asked import named
from rhostream.irreducible.score import Scorer
from rhostream.irreducible.share import parse_index
from rhostream.irreducible.target import Target
from rhostream.irreducible.work import PRESENT, Engine, Outcome, Shard, ShardWork, Watch
from rhostream.progress import Progress
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.advice import gaps
from rhostream.stream.budget import SHOWN, Budget
from rhostream.stream.scan import ScanSettings
from rhostream.tables import il
from rhostream.tables.il import PartFacts

LOG = logging.getLogger("rhostream")


@dataclass(frozen=True)
class _Unmade:
    """Whether a shard still lacks a part; asked right before it is read, as other jobs may fill the same table."""

    table: str

    def __call__(self, name: str) -> bool:
        return not storage.exists(il.part_url(self.table, name))


class Job:
    """One run over a list of shards."""

    def __init__(
        self,
        shards: Sequence[str],
        target: Target,
        settings: ScanSettings,
        budget: Budget,
        config: ComputeILConfig | IndexConfig,
        engine: Engine,
        scorer: Scorer | None = None,
    ) -> None:
        """`shards`: URLs, patterns, folders."""
        self._started, self._retried = time.monotonic(), storage.retried()
        self.target, self._budget, self._config, self._engine = target, budget, config, engine
        index, machines = parse_index(config.index)
        self._part_of = config.index and f"{index}/{machines}"
        listed = named(shards, target.roots)
        self.urls, self.names = [url for url, _ in listed], [name for _, name in listed]  # of all machines
        mine = set(sorted(self.names)[index::machines])
        self._mine: list[Shard] = [shard for shard in listed if shard[1] in mine]
        if self._part_of:
            LOG.info("job %s: %s of %s shards", self._part_of, f"{len(mine):,}", f"{len(listed):,}")
        storage.probe_writable(target.out)
        target.open()
        target.summary.shards = len(self._mine)
        self._read = Counter[str]()  # samples of all parts so far, by status
        settings = replace(settings, wanted=_Unmade(target.out))
        threads = config.threads if isinstance(config, ComputeILConfig) else None
        self._work = ShardWork(
            table=target.out, info=target.info, settings=settings, budget=budget, scorer=scorer,
            threads=threads or engine.threads,
        )  # fmt: skip
        target.summary.threads = self._work.threads if scorer is not None else 0

    def run(self) -> Summary:
        """Make the missing parts."""
        target, summary = self.target, self.target.summary
        title = self._config.verb
        with StopRequest(title) as stop:
            self._look(stop)
            crash_point("compute-il: shards listed")
            if missing := [shard for shard in self._mine if shard[1] in target.missing]:
                self._make(missing, stop, title)
            crash_point("compute-il: all parts committed")
        il.write_catalogue(target.out, target.info, [n for n in self.names if n not in summary.bad_shards])
        summary.seconds, summary.retried = time.monotonic() - self._started, storage.retried_since(self._retried)
        summary.bad_shards = dict(sorted(summary.bad_shards.items()))
        for name, why in summary.bad_shards.items():
            LOG.error("no part for %s: %s", redact(name), why)
        summary.require_laws()
        if target.examine is not None:
            summary.doubts += target.examine(target.out, [name for _, name in self._mine], summary.quarantined)
        if not summary.present and self._part_of is None and self._work.settings.needs_labels:  # all labels were read
            summary.doubts += gaps(summary.labels, target.info.class_names)
        summary.doubts += summary.advice.sentences
        for doubt in summary.doubts:
            LOG.warning("%s: %s", redact(target.out), doubt)
        store(target.out, title, self._part_of, summary)
        LOG.info("%s: %s", title, summary.says())
        if summary.useless:
            LOG.error("%s: %s", redact(target.out), summary.says_useless())
        return summary

    def _make(self, missing: list[Shard], stop: StopRequest, title: str) -> None:
        target, summary = self.target, self.target.summary
        if not target.first:
            # Whoever made the table goes through the list. Others may be at work on it: in any other order two jobs
            # that begin together would stay together, each reading what the other one commits.
            random.Random(time.time_ns()).shuffle(missing)
        with Progress(title, len(missing)) as progress:
            watch = Watch(stop=stop, admit=self._admit, rows=progress.rows)
            with contextlib.closing(self._engine.outcomes(self._work, missing, watch)) as outcomes:
                for outcome in outcomes:
                    self._take(outcome)
                    progress.advance()
        stop.raise_if_asked(f"{summary.made + summary.present:,} of {summary.shards:,} parts are there")

    def _admit(self, outcome: Outcome) -> None:
        """A part is made, and by the local engine not yet committed. Raises BudgetError, MismatchError."""
        summary, facts, name = self.target.summary, outcome.facts, outcome.name
        assert facts is not None
        summary.advice.add(outcome.advice)
        try:
            self._budget.check_shard(name, facts.statuses, outcome.first_bad)
            summary.first_bad += [
                f"{redact(name)}: {words}" for words in outcome.first_bad[: SHOWN - len(summary.first_bad)]
            ]
            self._budget.check_total(
                f"all shards up to {redact(name)}", self._read + Counter(facts.statuses), summary.first_bad
            )
        except BudgetError as exc:
            exc.add_note(f"before this shard: {summary.says()}")
            summary.advice.onto(exc)
            raise
        self.target.require_classes(facts.class_names.items(), name)
        if not facts.samples:
            warnings.warn(f"shard {redact(name)} holds no sample; its part has no row", stacklevel=6)
        self._add(facts)
        summary.several_images += outcome.several_images
        summary.labels.update(outcome.labels)
        summary.made += 1

    def _take(self, outcome: Outcome) -> None:
        """A shard is over, and its part, where it has one, is there."""
        target, summary = self.target, self.target.summary
        summary.scored += outcome.scored
        if outcome.verdict == PRESENT:
            self._count(outcome.name, target.present((outcome.url, outcome.name)))
        elif outcome.error is not None:
            self._bad_shard(outcome.name, outcome.error)
        elif outcome.twice:
            summary.made, summary.present, summary.twice = summary.made - 1, summary.present + 1, summary.twice + 1

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
            self._add(found)
            target.summary.present += 1
        else:
            self._bad_shard(name, found or NotFoundError(f"the part of {redact(name)} vanished; run again"))

    def _add(self, facts: PartFacts) -> None:
        self.target.summary.add(facts)
        self._read.update(facts.statuses)

    def _bad_shard(self, name: str, error: RhostreamError) -> None:
        if self._config.fail_fast:
            raise error
        LOG.warning("%s", error)
        self.target.summary.bad_shards[name] = str(error)
        self._budget.check_shards(self.target.summary.bad_shards, len(self._mine))
