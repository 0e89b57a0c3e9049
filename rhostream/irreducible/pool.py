"""A bounded uniform sample of shards in memory, decoded: what the IL model learns from.

All shards are walked, for the number of their samples isn't known before; only what may be of the sample is decoded
(see `stream.lowest`). The sample is a function of the seed and of what the shards hold, not of their sizes, their order
or the workers.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rhostream.errors import BudgetError, RhostreamError, UsageError
from rhostream.irreducible.engines.local import Local
from rhostream.irreducible.reservoir import Reservoir
from rhostream.irreducible.sampled import Drawn
from rhostream.irreducible.work import Engine
from rhostream.progress import Progress
from rhostream.samples.fields import Fields
from rhostream.storage import redact
from rhostream.stream.advice import Advice
from rhostream.stream.budget import SHOWN, Budget
from rhostream.stream.scan import End, ScanSettings
from rhostream.tables.classes import ClassNames

LOG = logging.getLogger("rhostream")


ShardVersion = tuple[int, str, str]  # bytes, ETag or mtime, sha256 ("" for a shard that was read in ranges)


@dataclass(frozen=True)
class Places:
    """Where each of N samples lies: (shard name, ordinal)."""

    names: Sequence[str]  # of the shards by their numbers
    place: npt.NDArray[np.int64]  # (N, 2): number of the shard, ordinal

    def __getitem__(self, row: int) -> tuple[str, int]:
        shard, ordinal = self.place[row].tolist()
        return self.names[shard], ordinal


@dataclass(frozen=True)
class Pool:
    """(N,) samples in memory, in the order of their random numbers."""

    fields: Fields  # (N, ...) each
    label: Tensor  # (N,) int64
    mark: Tensor  # (N,) int64: the fold
    shards: tuple[str, ...]  # names of those that gave samples
    statuses: dict[str, int]  # samples drawn, by status
    bad_shards: dict[str, str]  # name -> why it gave nothing
    watched: int
    seen: dict[str, int]  # name of each shard that was read -> its samples
    labels: dict[int, int]  # valid label -> samples of these shards, drawn or not; {} where labels aren't needed
    versions: dict[str, ShardVersion]  # name of each shard that was read -> which version of it
    class_names: dict[int, str]  # label -> name, of these shards
    where: Places  # of each sample

    def __len__(self) -> int:
        return len(self.label)


def fill(
    shards: Sequence[tuple[str, str]],
    settings: ScanSettings,
    *,
    samples: int,
    memory_bytes: int,
    seed: int,
    workers: int,
    title: str,
    budget: Budget | None = None,
    fail_fast: bool = False,
    may_be_empty: bool = False,
    engine: Engine | None = None,
) -> Pool:
    """`samples` usable samples of the shards ((URL, name) pairs), drawn uniformly; all where there are fewer, and
    fewer when `memory_bytes` can't hold them. While a shard is read, what it gives is held beside. `engine`: who reads,
    instead of `workers` of this machine.

    Raises UsageError when there is none (unless `may_be_empty`), the first shard's error when no shard can be read (or
    any, with `fail_fast`), BudgetError when more of what was drawn is bad than `budget` bears, MismatchError where two
    shards call a label otherwise.
    """
    fits = memory_bytes // settings.kind.row_bytes()
    if fits < samples:
        LOG.warning(
            "%s: %s samples of %s don't fit into %s MiB; taking %s",
            title,
            f"{samples:,}",
            settings.kind.in_words(),
            f"{memory_bytes >> 20:,}",
            f"{fits:,}",
        )
        samples = fits
    if samples < 1:
        raise UsageError(f"{title}: no sample would be read; raise --fit-samples or take a smaller image size")
    visits = sorted(shards, key=lambda shard: shard[1])
    settings = replace(settings, quota=samples, seed=seed)
    accounts = _Accounts(visits, samples, budget or Budget(), fail_fast)
    sample = Reservoir(samples, settings)
    _collect(visits, settings, sample, engine or Local(workers), title, accounts)
    accounts.finish(sample)
    if not sample.filled and not may_be_empty:
        if accounts.first_error is not None:
            raise accounts.first_error
        raise accounts.advice.onto(
            BudgetError(
                f"{title}: no sample of {accounts.statuses.total():,} in {len(visits)} shards can be used "
                f"({', '.join(f'{status} {n:,}' for status, n in accounts.statuses.most_common())}; first: "
                f"{'; '.join(accounts.first_bad) or 'none'}); look at the reasons with `rhostream index`"
            )
        )
    for sentence in accounts.advice.sentences:
        LOG.warning("%s", sentence)
    sample.sort()
    n, names = sample.filled, [visits[shard][1] for shard in np.unique(sample.place[: sample.filled, 0]).tolist()]
    return Pool(
        sample.fields[:n],
        sample.label[:n],
        sample.mark[:n],
        tuple(names),
        dict(accounts.statuses),
        accounts.bad_shards,
        accounts.watched,
        accounts.seen,
        dict(accounts.labels),
        accounts.versions,
        accounts.classes.names,
        Places([name for _, name in visits], sample.place[:n]),
    )


class _Accounts:
    """What was drawn, shard by shard in the order of their names, so that it doesn't depend on the workers.

    More is decoded than is of the sample, how much more depends on the workers, and that is not counted. As long as all
    that was read is less than the sample, all of it is looked at, and the budget is asked after each shard.
    """

    def __init__(self, visits: Sequence[tuple[str, str]], samples: int, budget: Budget, fail_fast: bool) -> None:
        self._names, self._budget, self._fail_fast = [name for _, name in visits], budget, fail_fast
        self._samples, self._usable, self._settled = samples, 0, 0
        self._ok = [0] * len(visits)
        self._bad: list[list[tuple[float, str]]] = [[] for _ in visits]  # number and status of each
        self._first: list[list[tuple[float, str]]] = [[] for _ in visits]
        self._ended: dict[int, End] = {}
        self.statuses: Counter[str] = Counter()
        self.bad_shards: dict[str, str] = {}
        self.advice = Advice()
        self.first_error: RhostreamError | None = None
        self.first_bad: list[str] = []
        self.watched = 0
        self.seen: dict[str, int] = {}
        self.versions: dict[str, ShardVersion] = {}
        self.labels: Counter[int] = Counter()
        self.classes = ClassNames()

    def end(self, drawn: Drawn) -> None:
        """A shard is over; what can be settled is."""
        shard = drawn.end.shard
        self._ok[shard], self._bad[shard], self._first[shard] = drawn.ok, drawn.bad, drawn.first
        self._ended[shard] = drawn.end
        while self._settled in self._ended:
            self._settle(self._settled, self._ended.pop(self._settled))
            self._settled += 1

    def _settle(self, shard: int, end: End) -> None:
        """Count a shard. Raises BudgetError, or its error with `fail_fast`."""
        name = self._names[shard]
        if end.error is not None:
            if self._fail_fast:
                raise end.error
            self.first_error = self.first_error or end.error
            self.bad_shards[name] = str(end.error)
            self._budget.check_shards(self.bad_shards, len(self._names))
            return
        self.watched += end.watched
        self.advice.add(end.advice)
        self.seen[name] = end.samples_seen
        self.versions[name] = (end.identity.size, end.identity.tag, end.sha256)
        self.labels.update(end.labels)
        self.classes.add(end.class_names, f"shard {name}")
        self._usable += self._ok[shard]
        if self._usable < self._samples:
            self._check(shard, np.inf, self._ok[shard])

    def _check(self, shard: int, limit: float, ok: int) -> None:
        """Count the drawn rows of a shard, those up to the limit, and ask the budget."""
        drawn = Counter(status for number, status in self._bad[shard] if number <= limit) + Counter(ok=ok)
        first = [text for number, text in self._first[shard] if number <= limit]
        self.first_bad += [f"{redact(self._names[shard])}: {text}" for text in first[: SHOWN - len(self.first_bad)]]
        self.statuses += drawn
        try:
            self._budget.check_shard(self._names[shard], drawn, first)
            self._budget.check_total("what was read to learn from", self.statuses, self.first_bad)
        except BudgetError as exc:
            raise self.advice.onto(exc) from None

    def finish(self, sample: Reservoir) -> None:
        """Count what is of the sample, where that is not everything."""
        if self._usable < self._samples:
            return
        self.statuses, self.first_bad = Counter(), []
        ok = np.bincount(sample.place[: sample.filled, 0], minlength=len(self._names)).tolist()
        for shard in range(len(self._names)):
            self._check(shard, sample.limit, ok[shard])


def _collect(
    visits: Sequence[tuple[str, str]],
    settings: ScanSettings,
    sample: Reservoir,
    engine: Engine,
    title: str,
    accounts: _Accounts,
) -> None:
    with (
        Progress(title, len(visits)) as progress,
        contextlib.closing(engine.drawn(visits, settings, progress.rows)) as shards,
    ):
        for drawn in shards:
            progress.advance()
            for piece in drawn.pieces:
                sample.take(drawn.end.shard, piece)
            if drawn.end.error is not None:
                LOG.warning("%s: %s", title, drawn.end.error)
            accounts.end(drawn)
