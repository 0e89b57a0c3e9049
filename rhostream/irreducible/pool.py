"""A bounded random sample of shards in memory, as uint8: what the IL model learns from.

Shards are visited in a seeded order and each gives a seeded random quota, so that a set of any size costs no more than
the shards it takes to fill the pool, and the result doesn't depend on the workers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rhostream.errors import BudgetError, RhostreamError, UsageError
from rhostream.irreducible.accounts import SHOWN, Budget
from rhostream.randomness import generator
from rhostream.signals import while_waiting
from rhostream.storage import redact
from rhostream.stream.progress import Progress
from rhostream.stream.scan import Chunk, End, ScanSettings, scan

LOG = logging.getLogger("rhostream")
SPREAD = 64  # the pool comes from at least that many shards, where there are as many


@dataclass(frozen=True)
class Pool:
    """(N,) samples in memory."""

    image: Tensor  # (N, H, W, C) uint8, or (N, T) int32 token ids
    label: Tensor  # (N,) int64
    mark: Tensor  # (N,) int64: the fold
    shards: tuple[str, ...]  # names, in the order of visits
    statuses: dict[str, int]  # samples looked at, by status
    bad_shards: dict[str, str]  # name -> why it gave nothing
    watched: int

    def __len__(self) -> int:
        return len(self.label)


def fill(shards: Sequence[tuple[str, str]], settings: ScanSettings, *, samples: int, memory_bytes: int, seed: int,
         workers: int, title: str, budget: Budget | None = None, fail_fast: bool = False) -> Pool:
    """Up to `samples` usable samples of the shards ((URL, name) pairs), fewer when `memory_bytes` can't hold them.

    Raises UsageError when there is none, the first shard's error when no shard can be read (or any, with `fail_fast`),
    BudgetError when more of what was looked at is bad than `budget` bears.
    """
    assert settings.preprocess is not None
    shape = settings.preprocess.shape
    fits = memory_bytes // settings.preprocess.row_bytes
    if fits < samples:
        LOG.warning("%s: %s samples of %s don't fit into %s MiB; taking %s", title, f"{samples:,}", shape,
                    f"{memory_bytes >> 20:,}", f"{fits:,}")
        samples = fits
    if samples < 1:
        raise UsageError(f"{title}: no sample would be read; raise --fit-samples or take a smaller image size")
    order = generator(seed, "visits").permutation(len(shards)).tolist()
    visits = [shards[i] for i in order]
    quota = -(-samples // min(len(shards), SPREAD))
    settings = replace(settings, quota=quota, seed=seed)
    return _collect(visits, settings, samples, quota, workers, title, _Accounts(visits, budget or Budget(), fail_fast))


class _Accounts:
    """What was looked at, visit by visit in their order, so that it doesn't depend on the workers."""

    def __init__(self, visits: Sequence[tuple[str, str]], budget: Budget, fail_fast: bool) -> None:
        self._names, self._budget, self._fail_fast = [name for _, name in visits], budget, fail_fast
        self._rows = [Counter[str]() for _ in visits]
        self._first: list[list[str]] = [[] for _ in visits]
        self._errors: dict[int, RhostreamError] = {}
        self.statuses: Counter[str] = Counter()
        self.bad_shards: dict[str, str] = {}
        self.first_error: RhostreamError | None = None
        self.first_bad: list[str] = []

    def chunk(self, chunk: Chunk) -> None:
        """Rows of a shard."""
        status, first = chunk.rows.column("status").to_pylist(), self._first[chunk.shard]
        self._rows[chunk.shard].update(status)
        for row in (~chunk.ok).nonzero()[0][: SHOWN - len(first)].tolist():
            first.append(f"{chunk.rows.column('key')[row].as_py()!r} ({chunk.rows.column('error')[row].as_py()})")

    def failed(self, shard: int, error: RhostreamError) -> None:
        """A shard that breaks gives nothing, however far it was read."""
        self._errors[shard] = error
        self._rows[shard].clear()

    def settle(self, shard: int) -> None:
        """Count a shard, once all before it are counted. Raises BudgetError, or its error with `fail_fast`."""
        name = self._names[shard]
        if (error := self._errors.get(shard)) is not None:
            if self._fail_fast:
                raise error
            self.first_error = self.first_error or error
            self.bad_shards[name] = str(error)
            self._budget.check_shards(self.bad_shards, len(self._names))
            return
        self.first_bad += [f"{redact(name)}: {one}" for one in self._first[shard][: SHOWN - len(self.first_bad)]]
        self.statuses += self._rows[shard]
        self._budget.check_shard(name, self._rows[shard], self._first[shard])
        self._budget.check_total("what was read to learn from", self.statuses, self.first_bad)


def _collect(visits: Sequence[tuple[str, str]], settings: ScanSettings, samples: int, quota: int, workers: int,
             title: str, accounts: _Accounts) -> Pool:
    assert settings.preprocess is not None
    # Other workers may be ahead of the shard that fills the pool; pages that are never touched cost nothing.
    room = samples + quota * (1 + min(workers, len(visits)))
    image = torch.empty((room, *settings.preprocess.shape), dtype=settings.preprocess.dtype)
    label, mark = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int64)
    pieces: list[list[tuple[int, int]]] = [[] for _ in visits]  # where the rows of each visit lie
    ended, filled, whole, watched, in_order = set[int](), 0, 0, 0, 0
    with Progress(title, len(visits)) as progress:
        for message in while_waiting(scan(visits, settings, workers=workers)):
            if isinstance(message, Chunk):
                rows = torch.from_numpy(message.ok.nonzero()[0])
                n = min(len(rows), room - filled)
                rows = rows[:n]
                assert message.image is not None
                torch.index_select(message.image, 0, rows, out=image[filled : filled + n])
                label[filled : filled + n] = torch.from_numpy(message.label)[rows]
                mark[filled : filled + n] = torch.from_numpy(message.mark)[rows]
                pieces[message.shard].append((filled, filled + n))
                filled += n
                accounts.chunk(message)
                progress.rows(len(message), len(message) - n)
                continue
            assert isinstance(message, End)
            progress.shard()
            ended.add(message.shard)
            watched += message.watched
            if message.error is not None:
                pieces[message.shard] = []
                accounts.failed(message.shard, message.error)
                LOG.warning("%s: %s", title, message.error)
            while in_order in ended:
                whole += sum(stop - start for start, stop in pieces[in_order])
                accounts.settle(in_order)
                in_order += 1
            if whole >= samples:
                break
    used = [torch.arange(start, stop) for visit in pieces[:in_order] for start, stop in visit]
    rows = torch.cat(used)[:samples] if used else torch.empty(0, dtype=torch.int64)
    if not len(rows):
        if accounts.first_error is not None:
            raise accounts.first_error
        raise BudgetError(f"{title}: no sample of {accounts.statuses.total():,} in {len(visits)} shards can be used "
                          f"({', '.join(f'{status} {n:,}' for status, n in accounts.statuses.most_common())}; first: "
                          f"{'; '.join(accounts.first_bad) or 'none'}); look at the reasons with `rhostream index`")
    if torch.equal(rows, torch.arange(len(rows))):
        image, label, mark = image[: len(rows)], label[: len(rows)], mark[: len(rows)]
    else:
        image, label, mark = image[rows], label[rows], mark[rows]
    names = tuple(name for (_, name), piece in zip(visits[:in_order], pieces, strict=False) if piece)
    return Pool(image, label, mark, names, dict(accounts.statuses), accounts.bad_shards, watched)
