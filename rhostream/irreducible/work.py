"""The unit of an offline job: what makes the part of a shard, as a value that goes to any process of any machine.

    ShardWork > open(), once a process > OpenWork: the rows of the shards that are being read > an Outcome for each

An engine (`engines/`) is an iterator of outcomes, in any order, one for each shard that it was given. It decides where
a shard is read and scored, and nothing else: what is borne, counted, said and written down is the job's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rhostream.errors import RhostreamError
from rhostream.irreducible.parts import PartBuilder
from rhostream.irreducible.sampled import Drawn
from rhostream.irreducible.score import Scorer
from rhostream.signals import StopRequest
from rhostream.stream.budget import Budget
from rhostream.stream.scan import Chunk, End, ScanSettings
from rhostream.tables.classes import ClassNames
from rhostream.tables.il import PartFacts, TableInfo

Shard = tuple[str, str]  # URL, name
MADE, PRESENT, BAD = "made", "present", "bad"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one shard."""

    url: str
    name: str
    verdict: str  # MADE, PRESENT (another job's part came before the shard was read) or BAD
    facts: PartFacts | None = None  # of a part that was made
    error: RhostreamError | None = None  # why a bad shard has no part
    seconds: float = 0.0  # from its first rows to its end
    twice: bool = False  # it was made, and another job's part of the same rows came first
    scored: int = 0  # samples through the model
    several_images: int = 0  # samples with more than one
    labels: Mapping[int, int] = field(default_factory=dict)  # of usable rows: label -> how many
    first_bad: tuple[str, ...] = ()  # some bad samples in words, of each status the first
    advice: Mapping[str, str] = field(default_factory=dict)  # as `End.advice`
    retried: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # as `storage.retried`, of another process


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What an engine tells its job while it works."""

    stop: StopRequest
    # Takes what was made into the account before its part is committed, where that is in this process; raises to stop.
    admit: Callable[[Outcome], None]
    rows: Callable[[int, int], None]  # so many samples were seen, and so many of them bad


class Engine(Protocol):
    """Who makes the parts of shards, and who draws from them."""

    @property
    def threads(self) -> int:
        """Of the model, where nobody said how many."""

    def outcomes(self, work: ShardWork, shards: Sequence[Shard], watch: Watch) -> Generator[Outcome]:
        """What becomes of each shard, in any order; ends early when it is asked to stop. Raises what stops a job."""

    def drawn(
        self, shards: Sequence[Shard], settings: ScanSettings, rows: Callable[[int, int], None]
    ) -> Generator[Drawn]:
        """What each shard gives to a uniform sample of `settings.quota`; `rows` is told of samples, and how many are
        bad. Raises Interrupted when the job that runs is asked to stop."""


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """What every shard of a job is read, scored and written by."""

    table: str  # URL, absolute
    info: TableInfo  # as it stands there
    settings: ScanSettings
    budget: Budget
    scorer: Scorer | None = None  # None: an index
    threads: int = 1  # of the model; the last bits of il depend on their number

    def open(self) -> OpenWork:
        """In the process that does it."""
        return OpenWork(self)


class OpenWork:
    """The rows of the shards that are being read, until their ends."""

    def __init__(self, work: ShardWork) -> None:
        self.work = work
        self._rows: dict[int, _Rows] = {}
        self._classes = classes_of(work.info, scored=work.scorer is not None)

    def add(self, message: Chunk, shard: Shard) -> int:
        """Score some rows of a shard. Returns how many are bad. Raises MismatchError where this shard calls a label
        otherwise than the table or the shards before it."""
        name, scorer = shard[1], self.work.scorer
        if message.shard not in self._rows:
            self._rows[message.shard] = self._begun(shard)
        require_classes(self._classes, message.class_names, name)  # before anything is scored
        rows = self._rows[message.shard]
        rows.scored += int(message.ok.sum()) if scorer else 0
        return rows.builder.add(message, scorer(message, name) if scorer else None)

    def _begun(self, shard: Shard) -> _Rows:
        return _Rows(PartBuilder(self.work.info, self.work.table, shard[1], shard[0]))

    def drop(self, number: int) -> None:
        """Forget the rows of a shard, which is read anew."""
        self._rows.pop(number, None)

    def ended(self, message: End, shard: Shard) -> tuple[PartBuilder, Outcome]:
        """A shard is over: its rows, which a shard that broke has none of, and what became of it so far."""
        rows, (url, name) = self._rows.pop(message.shard, None) or self._begun(shard), shard
        seconds = time.monotonic() - rows.begun
        if message.skipped:
            return rows.builder, Outcome(url=url, name=name, verdict=PRESENT)
        if message.error is not None:
            return rows.builder, Outcome(
                url=url, name=name, verdict=BAD, error=message.error, seconds=seconds, scored=rows.scored
            )
        return rows.builder, Outcome(
            url=url,
            name=name,
            verdict=MADE,
            facts=rows.builder.facts(message),
            seconds=seconds,
            scored=rows.scored,
            several_images=message.several_images,
            labels=dict(rows.builder.labels),
            first_bad=tuple(rows.builder.first_bad),
            advice=message.advice,
        )


@dataclass
class _Rows:
    builder: PartBuilder
    scored: int = 0
    begun: float = field(default_factory=time.monotonic)


def classes_of(info: TableInfo, *, scored: bool) -> ClassNames:
    """The names of classes that a table begins with, and who said them."""
    of = "the reference or --class-names" if info.reference else "the IL model" if scored else "the table"
    return ClassNames(dict(info.class_names), of)


def require_classes(classes: ClassNames, names: Iterable[tuple[int, str]], shard: str) -> None:
    """Raise MismatchError where a shard calls a label otherwise than the table or the shards before it."""
    classes.add(names, f"shard {shard}")
