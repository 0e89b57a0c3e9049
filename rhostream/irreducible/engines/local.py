"""The local engine: processes of this machine read and decode, this one scores, a thread of it writes the parts.

scan (workers) > OpenWork > Watch.admit > commit (a thread) > Outcome
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Self

from rhostream import storage
from rhostream.irreducible.parts import PartBuilder
from rhostream.irreducible.sampled import Drawn, drawn_here
from rhostream.irreducible.work import MADE, OpenWork, Outcome, Shard, ShardWork, Watch
from rhostream.selection.hardware import spare_cores, threads
from rhostream.signals import StopRequest
from rhostream.stream.scan import TRIES, Chunk, End, ScanSettings, scan

COMMITS = 4  # parts that may wait for their commit in memory


@dataclass(frozen=True)
class Local:
    """This machine, with so many processes that read."""

    workers: int

    @property
    def threads(self) -> int:
        """The cores that the workers leave for the model."""
        return spare_cores(self.workers)

    def outcomes(self, work: ShardWork, shards: Sequence[Shard], watch: Watch) -> Generator[Outcome]:
        """What becomes of each shard."""
        with threads(work.threads):
            yield from outcomes(work.open(), shards, self.workers, watch)

    def drawn(
        self, shards: Sequence[Shard], settings: ScanSettings, rows: Callable[[int, int], None]
    ) -> Generator[Drawn]:
        """What each shard gives to a uniform sample."""
        return drawn_here(shards, settings, self.workers, rows)


def one(work: OpenWork, shard: Shard) -> Outcome:
    """What becomes of a shard that is read and scored in this process, which does nothing beside it.

    Raises what stops a job: BudgetError too, before there is a part of a shard with too much that is bad.
    """
    begun = time.monotonic()

    def admit(outcome: Outcome) -> None:
        assert outcome.facts is not None
        work.work.budget.check_shard(outcome.name, outcome.facts.statuses, outcome.first_bad)

    watch = Watch(stop=StopRequest(), admit=admit, rows=lambda samples, bad: None)
    (outcome,) = outcomes(work, [shard], 0, watch)
    return replace(outcome, seconds=time.monotonic() - begun, retried=storage.take_retried())


def outcomes(work: OpenWork, shards: Sequence[Shard], workers: int, watch: Watch) -> Generator[Outcome]:
    """What becomes of each shard; asked to stop, it ends when what was finished is committed.

    Raises what stops a whole job, beside what `Watch.admit` raises: that shard gets no part then.
    """
    messages = scan(shards, work.work.settings, workers=workers, tries=TRIES)
    source = _ahead(messages) if work.work.scorer is not None and not workers else messages
    with Commits() as commits, contextlib.closing(source):
        for message in watch.stop.while_waiting(source):
            shard = shards[message.shard]
            if isinstance(message, Chunk):
                watch.rows(len(message), work.add(message, shard))
                continue
            if message.again:
                work.drop(message.shard)
                continue
            builder, outcome = work.ended(message, shard)
            if outcome.verdict == MADE:
                watch.admit(outcome)
                commits.begin(builder, outcome)
                yield from commits.written(COMMITS)
            else:
                yield outcome
        yield from commits.written(0)


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


class Commits:
    """Writes finished parts in a thread of its own: a commit waits for the disk or the store, the model needn't.

    A context manager; leaving it waits for what was begun, so a job that stops has committed all that it finished.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "rhostream-commit")
        self._begun: deque[tuple[Future[bool], Outcome]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self, builder: PartBuilder, outcome: Outcome) -> None:
        """Write the part of a shard soon."""
        assert outcome.facts is not None
        self._begun.append((self._pool.submit(builder.commit, outcome.facts), outcome))

    def written(self, waiting: int) -> Iterator[Outcome]:
        """The outcomes whose parts are there, until no more than so many wait. Raises what a commit raised."""
        while self._begun and (len(self._begun) > waiting or self._begun[0][0].done()):
            commit, outcome = self._begun.popleft()
            yield replace(outcome, twice=not commit.result())
