"""Whole shards in tar order, for the offline wing and for evaluation: every sample a row, every row a status.

    storage.open_reader > tar.walk > examine (label, json) > decode into a slot > Chunk, ..., Chunk, End

Worker w takes shards w, w + W, ...; a chunk never spans shards, so what a shard gives depends on nothing but its own
bytes. Slots are shared and reused as in `dataset`; see there for why `PREFETCH + 2` of them are enough.

A worker that dies takes no shard with it but the one that it had in hand, and that one only when it has ended several:
the workers are started again for all shards that have no End yet.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhostream import storage
from rhostream.errors import AccessError, RhostreamError, ShardError, StorageError, UsageError, WorkerError
from rhostream.samples.fields import Fields
from rhostream.signals import settle_worker, working
from rhostream.stream.chunks import CHUNK, Chunk, End, Mark, ScanSettings
from rhostream.stream.columns import Columns
from rhostream.stream.dataset import PREFETCH
from rhostream.stream.lowest import Lowest
from rhostream.stream.shard_scan import ShardScan
from rhostream.stream.slots import slots

LOG = logging.getLogger("rhostream")
AHEAD = 2  # shards that a worker has fetched while it reads one
TRIES = 3  # so many processes a shard may end
LOOK_SECONDS = 1.0  # when nothing came for so long, whether the workers still live
__all__ = ["CHUNK", "TRIES", "Chunk", "End", "Mark", "ScanSettings", "ended_workers", "scan"]


def ended_workers(name: str, times: int, tries: int = TRIES) -> ShardError | None:
    """Say that a shard ended the process that read it, for the n-th time; the shard's error when that was the last."""
    LOG.warning(
        "shard %s ended the process that read it, %d of %d times that are borne; often the machine is out of memory: "
        "take fewer --workers or --actors",
        storage.redact(name),
        times,
        tries,
    )
    return ShardError(f"ended its worker {tries} times") if times >= tries else None


def scan(
    shards: Sequence[tuple[str, str]],
    settings: ScanSettings,
    *,
    workers: int = 0,
    context: str | None = None,
    tries: int = 1,
    lowest: Lowest | None = None,
) -> Generator[Chunk | End]:
    """Read `shards` ((URL, name) pairs): the chunks of each, then its End. With workers, shards interleave.

    A shard that can't be read ends with an End that carries the error. What is odd about shards (`End.notes`) is warned
    of once a kind. Raises UsageError for what no shard can change, WorkerError for a worker that died. With `tries` of
    more than 1 workers are started again instead: an End with `again` says that what a shard has given so far is to be
    dropped, as it is read anew, and a shard that ended so many workers is one that can't be read. `lowest`: without
    workers, the numbers of a sample of `settings.quota` that shards before these gave.
    """
    if workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    dataset, said = _Scan(shards, settings, min(workers, len(shards)), lowest), set[str]()
    if not dataset.workers:
        yield from _received(dataset, dataset, said)
        return
    deaths = Counter[int]()
    while dataset.left:
        begun = dict[int, None]()  # shards that have given rows and no End
        try:
            with working(dataset.loader(context or "forkserver")) as messages:
                for message in _received(dataset, _patient(messages), said):
                    if isinstance(message, Chunk):
                        begun[message.shard] = None
                    else:
                        begun.pop(message.shard, None)
                        dataset.left.pop(message.shard)
                    yield message
        except WorkerError as exc:
            if tries == 1 or not (in_hand := dataset.in_hand(exc.pids)):
                raise
            for shard in begun:
                yield End(shard=shard, again=True)
            for shard in in_hand:
                deaths[shard] += 1
                if error := ended_workers(dataset.shard(shard)[1], deaths[shard], tries):
                    dataset.left.pop(shard)
                    yield End(shard=shard, error=error)


def _patient(messages: Iterator[Chunk | End]) -> Iterator[Chunk | End]:
    """The same; a loader that waits in vain looks whether its workers live and says so, which is no fault."""
    while True:
        try:
            message = next(messages)
        except StopIteration:
            return
        except RuntimeError as exc:
            if "DataLoader timed out" not in str(exc):
                raise
            continue
        yield message


def _received(dataset: _Scan, messages: Iterable[Chunk | End], said: set[str]) -> Iterator[Chunk | End]:
    """With the pixels of their slots; what the ends of shards have to say is said."""
    for message in messages:
        if isinstance(message, Chunk):
            rows = {name: slots[message.slot, : len(message)] for name, slots in dataset.slots.items()}
            message = replace(message, fields=Fields(rows))
        else:
            storage.add_retried(message.retried)
            error, remote = message.error, not storage.is_local(dataset.shard(message.shard)[0])
            # Refused credentials are refused for every shard of a store: the others aren't asked for.
            if isinstance(error, UsageError) or (isinstance(error, AccessError) and remote):
                raise error
            for kind, text in message.notes.items():
                if kind not in said:
                    LOG.warning("%s (said once, of the first such shard)", text)
                said.add(kind)
        yield message


def _as_is(message: Any) -> Any:
    return message


class _Scan(IterableDataset[Chunk | End]):
    """What runs in the workers."""

    def __init__(
        self, shards: Sequence[tuple[str, str]], settings: ScanSettings, workers: int, lowest: Lowest | None = None
    ) -> None:
        self._shards, self._settings, self._carried = list(shards), settings, storage.Carried()
        self._lowest = lowest
        self.workers, self.left = workers, dict.fromkeys(range(len(shards)))  # numbers of shards without an End
        self.slots: dict[str, Tensor] = slots(
            max(workers, 1) * (PREFETCH + 2), settings.chunk, settings.fields, shared=workers > 0
        )
        # Of each worker its process id, and the number of the shard that it has in hand, -1 for none.
        self._at = torch.full((max(workers, 1), 2), -1, dtype=torch.int64)
        if workers:
            self._at.share_memory_()

    def loader(self, context: str) -> DataLoader[Chunk | End]:
        """Workers for the shards that are left."""
        self._at.fill_(-1)
        return DataLoader(
            self,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=min(self.workers, len(self.left)),
            prefetch_factor=PREFETCH,
            worker_init_fn=settle_worker,
            multiprocessing_context=context,
            timeout=LOOK_SECONDS,
        )

    def shard(self, number: int) -> tuple[str, str]:
        """URL and name of the shard of this number."""
        return self._shards[number]

    def in_hand(self, pids: Iterable[int]) -> list[int]:
        """The shards that these workers had in hand, which have no End yet."""
        wanted = set(pids)
        return [shard for pid, shard in self._at.tolist() if pid in wanted and shard in self.left]

    def __iter__(self) -> Iterator[Chunk | End]:
        with storage.ReadAhead(storage.spooled) as ahead:
            for message in self._messages(ahead):
                if isinstance(message, End) and get_worker_info() is not None:
                    message = replace(message, retried=storage.take_retried())
                yield message

    def _messages(self, ahead: storage.ReadAhead[storage.SpooledReader]) -> Iterator[Chunk | End]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own, turn, columns, at = PREFETCH + 2, 0, Columns(), self._at[worker].numpy()
        lowest = self._lowest
        if lowest is None and self._settings.quota is not None:
            lowest = Lowest(self._settings.quota)
        at[0], left = os.getpid(), [*self.left]
        for visit, number in enumerate(mine := left[worker::workers]):
            at[1] = number
            url, name = self._shards[number]
            reader = ahead.take(url)
            ahead.want([self._shards[n][0] for n in mine[visit + 1 : visit + 1 + AHEAD]])
            if self._settings.wanted is not None and not self._settings.wanted(name):
                if reader is not None:
                    reader.close()
                yield End(shard=number, skipped=True)
                continue
            shard, whole = ShardScan(number, url, name, self._settings, columns, lowest, reader), False
            try:
                for rows in shard.chunks():
                    slot = worker * own + turn % own
                    turn += 1
                    yield shard.finish(rows, slot, {name: held[slot].numpy() for name, held in self.slots.items()})
                end, whole = shard.end(), True
                yield end
            except RhostreamError as exc:
                yield End(shard=number, error=shard.changed() or exc)
            except OSError as exc:
                yield End(shard=number, error=StorageError(f"shard {storage.redact(name)}: {exc.strerror}"))
            finally:
                if lowest is not None:
                    lowest.end(whole=whole)
                shard.close()
        at[1] = -1
