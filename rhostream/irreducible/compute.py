"""Score every shard once: model > table > missing shards > scan > forward by fold > one part a shard.

The same command again computes only what is missing. A part depends on its shard and the model alone: chunks are cut
by ordinal, never by workers or by what else is in the list, so parts are byte-equal however often a job was killed.
Several jobs may fill one table: split by `index` ("0/4", "1/4", ...), or each at whatever is missing.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import (
    BudgetError,
    MismatchError,
    NotFoundError,
    RhostreamError,
    ShardError,
    StorageError,
    UsageError,
)
from rhostream.irreducible.accounts import SHOWN, Budget, Summary, store
from rhostream.irreducible.fit import named
from rhostream.irreducible.model import load_il_model
from rhostream.irreducible.parts import Commits, PartBuilder, Scored
from rhostream.irreducible.score import Scorer
from rhostream.selection.hardware import spare_cores, threads
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.inputs import checked_content, probe_shards
from rhostream.stream.progress import Progress
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.tables import il
from rhostream.tables.il import OK, PartFacts, TableInfo

LOG = logging.getLogger("rhostream")
Score = Callable[[Chunk, str], Scored]
PROBED = 16  # shards looked into for what the samples are


def compute_il(shards: Iterable[str], il_model: str, out: str, *, workers: int = 0,
               keep: Mapping[str, str] | None = None, roots: Mapping[str, str] | None = None,
               index: str | None = None, max_bad_fraction: float = 0.01, max_bad_samples: int | None = None,
               max_bad_shards: float = 0.1, fail_fast: bool = False, device: str | None = None,
               model: str | None = None, allow_compressed: bool = False, accept_missing_eof: bool = False) -> Summary:
    """Write the irreducible loss of every sample of `shards` into the table `out`, one part a shard.

    `keep`: {field of the json: bool | int | float | str} columns to keep. `index` "I/N": only every N-th shard by
    name, from the I-th on (from 0), so that N machines share the work without talking. A bad sample is a row with a
    status, a bad shard is named in `Summary.bad_shards` and the others go on, unless `fail_fast`; what the job bears
    of both is in `Budget`. `model`: the name of the IL model's code, where that is your own
    (`package.module:function`). `allow_compressed`: gzip shards are inflated into the spool (a table of those can be
    asked, not streamed from); `accept_missing_eof`: a tar without its end marker counts as whole. Raises UsageError
    (settings, unwritable place, code that wasn't named), MismatchError (a table of another model), BudgetError (too
    much is bad), Interrupted after a signal.
    """
    budget = Budget(fraction=max_bad_fraction, samples=max_bad_samples, shards=max_bad_shards)
    loaded = load_il_model(il_model, model)
    info = loaded.info
    table_info = TableInfo(kind="il", ingredients=info.ingredients(), classes=info.classes,
                           preprocess=info.preprocess, keep=dict(keep or {}), roots=dict(roots or {}),
                           model=info.figures(), places=il.places_of(shards, il_model),
                           content=loaded.preprocess.content)
    rule = info.rule
    settings = ScanSettings(preprocess=loaded.preprocess, decoder_name=info.decoder, classes=info.classes,
                            keep=table_info.keep, group_by=rule.group_by, allow_compressed=allow_compressed,
                            accept_missing_eof=accept_missing_eof,
                            mark=None if rule.mode == "holdout" else rule)  # its mark is 0 for all
    scorer = Scorer(loaded, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    job = _Job(shards, out, table_info, settings, budget, fail_fast, index)
    if rule.mode == "folds" and not rule.group_by and not scorer.knows(job.names):
        warnings.warn("none of these shards was seen by fit-il, whose folds depend on the shards' names; if they are "
                      "the same data in another place, name it with --root as it was then", stacklevel=2)
    return job.run(workers, scorer)


def index(shards: Iterable[str], out: str, *, workers: int = 0, keep: Mapping[str, str] | None = None,
          roots: Mapping[str, str] | None = None, index: str | None = None, max_bad_fraction: float = 0.01,
          max_bad_samples: int | None = None, max_bad_shards: float = 0.1, fail_fast: bool = False,
          allow_compressed: bool = False, accept_missing_eof: bool = False, content: str | None = None) -> Summary:
    """The same table without il, predicted and fold, and without decoding an image; for runs that need no il.

    `content`: image, text (.txt) or tokens (.npy); by default what the first usable sample is. A damaged image is found
    by the trainer only. Raises as `compute_il`.
    """
    budget = Budget(fraction=max_bad_fraction, samples=max_bad_samples, shards=max_bad_shards)
    shards = [shards] if isinstance(shards, str) else list(shards)
    lenient: dict[str, Any] = {"allow_compressed": allow_compressed, "accept_missing_eof": accept_missing_eof}
    content = checked_content(content) or _content_of(shards, out, lenient)
    info = TableInfo(kind="index", keep=dict(keep or {}), roots=dict(roots or {}), places=il.places_of(shards),
                     content=content)
    settings = ScanSettings(keep=info.keep, content=content, **lenient)
    return _Job(shards, out, info, settings, budget, fail_fast, index).run(workers, None)


def _content_of(shards: Iterable[str], out: str, lenient: dict[str, Any]) -> str:
    """What the samples are: as the table that is there says, else as the first that can be used; image where none can.

    A shard that can't be read is no reason to stop: the job itself says so.
    """
    if storage.exists(storage.join(out := storage.resolve(out), "_table.json")):
        return il.open_info(out).content
    for shard in named(shards, None)[:PROBED]:
        with contextlib.suppress(ShardError, StorageError):
            found = probe_shards([shard], decode=False, **lenient)
            if found is not None:
                return found.content
    return "image"


def parse_index(text: str | None) -> tuple[int, int]:
    """"I/N" as (I, N). Raises UsageError."""
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
    """Whether a shard still has no part; asked right before it is read, as other jobs may fill the same table."""

    table: str

    def __call__(self, name: str) -> bool:
        return not storage.exists(il.part_url(self.table, name))


class _Job:
    """One run over a list of shards, for both kinds of table."""

    def __init__(self, shards: Iterable[str], out: str, info: TableInfo, settings: ScanSettings, budget: Budget,
                 fail_fast: bool, part_of: str | None) -> None:
        self._out, self._budget, self._fail_fast = storage.resolve(out), budget, fail_fast
        self._settings = replace(settings, wanted=_Unmade(self._out))
        self._started, self._part_of, self._retried = time.monotonic(), part_of, storage.retried()
        own, machines = parse_index(part_of)
        there = il.open_info(self._out) if storage.exists(storage.join(self._out, "_table.json")) else None
        if there is not None and set(info.roots) <= set(there.roots):
            # The table keeps the roots it was made with; data that moved is still the same shards.
            todays, info = {**there.roots, **info.roots}, replace(info, roots=there.roots)
        else:
            todays = info.roots
        listed = named(shards, todays)
        self.names = [name for _, name in listed]  # of all machines
        mine = set(sorted(self.names)[own::machines])
        self.shards = [shard for shard in listed if shard[1] in mine]
        storage.probe_writable(self._out)
        self._info = il.make_or_match(self._out, info)
        self._first = self._info is info  # this job made the table

    def run(self, workers: int, score: Score | None) -> Summary:
        """Make the missing parts, with the cores that the workers leave for the model."""
        with threads(spare_cores(workers)):
            return self._run(workers, score)

    def _run(self, workers: int, score: Score | None) -> Summary:
        summary, title = Summary(shards=len(self.shards)), "compute-il" if score else "index"
        with StopRequest(title) as stop:
            missing = self._missing(summary, stop)
            crash_point("compute-il: shards listed")
            if missing:
                self._make(missing, workers, score, summary, stop, title)
            crash_point("compute-il: all parts committed")
        summary.seconds, summary.retried = time.monotonic() - self._started, storage.retried_since(self._retried)
        summary.bad_shards = dict(sorted(summary.bad_shards.items()))
        for name, why in summary.bad_shards.items():
            LOG.error("no part for %s: %s", redact(name), why)
        summary.require_laws()
        store(self._out, title, self._part_of, summary)
        LOG.info("%s: %s", title, summary.says())
        return summary

    def _make(self, missing: list[tuple[str, str]], workers: int, score: Score | None, summary: Summary,
              stop: StopRequest, title: str) -> None:
        if not self._first:
            # Whoever made the table goes through the list. Others may be at work on it: in any other order two jobs
            # that begin together would stay together, each reading what the other one commits.
            random.Random(time.time_ns()).shuffle(missing)
        builders: dict[int, PartBuilder] = {}
        messages = scan(missing, self._settings, workers=workers)
        source = _ahead(messages) if score and not workers else messages
        with Progress(title, len(missing)) as progress, Commits() as commits, contextlib.closing(source):
            for message in stop.while_waiting(source):
                url, name = missing[message.shard]
                builder = builders.setdefault(message.shard, PartBuilder(self._info, self._out, name, url))
                if isinstance(message, Chunk):
                    rows = builder.add(message, score(message, name) if score else None)
                    summary.scored += int(message.ok.sum()) if score else 0
                    progress.rows(len(message), rows)
                    continue
                del builders[message.shard]
                progress.shard()
                if message.skipped:
                    self._count(summary, name, self._present((url, name)))
                    continue
                if message.error is not None:
                    self._bad_shard(summary, name, message.error)
                    continue
                self._check(builder, name, summary)
                if not message.samples_seen:
                    warnings.warn(f"shard {redact(name)} holds no sample; its part has no row", stacklevel=4)
                facts = builder.facts(message)
                commits.begin(builder, facts)
                summary.add(facts)
                summary.made += 1
        summary.twice = commits.lost
        summary.made, summary.present = summary.made - commits.lost, summary.present + commits.lost
        stop.raise_if_asked(f"{summary.made + summary.present:,} of {summary.shards:,} parts are there")

    def _check(self, builder: PartBuilder, name: str, summary: Summary) -> None:
        """The budgets, with one more shard. Raises BudgetError; the shard gets no part."""
        try:
            self._budget.check_shard(name, builder.statuses, builder.first_bad)
            summary.first_bad += [f"{redact(name)}: {one}"
                                  for one in builder.first_bad[: SHOWN - len(summary.first_bad)]]
            so_far = Counter({**summary.quarantined, OK: summary.ok}) + builder.statuses
            self._budget.check_total(f"all shards up to {redact(name)}", so_far, summary.first_bad)
        except BudgetError as exc:
            exc.add_note(f"before this shard: {summary.says()}")
            raise

    def _missing(self, summary: Summary, stop: StopRequest) -> list[tuple[str, str]]:
        """The shards without a part; parts that are there are checked against the table and their shard."""
        with ThreadPoolExecutor(16) as pool:
            found = list(stop.while_waiting(pool.map(self._present, self.shards)))
            if stop.signal:
                pool.shutdown(wait=False, cancel_futures=True)
        stop.raise_if_asked()
        missing = []
        for shard, facts in zip(self.shards, found, strict=True):
            if facts is None:
                missing.append(shard)
            else:
                self._count(summary, shard[1], facts)
        if summary.present:
            LOG.info("%d of %d parts are there already", summary.present, summary.shards)
        return missing

    def _count(self, summary: Summary, name: str, found: PartFacts | StorageError | None) -> None:
        """A part that is there, or why it can't be counted."""
        if isinstance(found, PartFacts):
            summary.add(found)
            summary.present += 1
        else:
            self._bad_shard(summary, name, found or NotFoundError(f"the part of {redact(name)} vanished; run again"))

    def _present(self, shard: tuple[str, str]) -> PartFacts | StorageError | None:
        url, name = shard
        part = il.part_url(self._out, name)
        try:
            facts = il.read_part_facts(part)
        except NotFoundError:
            return None
        if facts.fingerprint != self._info.fingerprint:
            raise MismatchError(f"{redact(part)} has fingerprint {facts.fingerprint}, its table has "
                                f"{self._info.fingerprint}: `rhostream verify --repair` makes it again")
        try:
            il.require_unchanged(url, name, facts)
        except StorageError as exc:
            return exc
        return facts

    def _bad_shard(self, summary: Summary, name: str, error: RhostreamError) -> None:
        if self._fail_fast:
            raise error
        LOG.warning("%s", error)
        summary.bad_shards[name] = str(error)
        self._budget.check_shards(summary.bad_shards, len(self.shards))
