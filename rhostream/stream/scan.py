"""Whole shards in tar order, for the offline wing and for evaluation: every sample a row, every row a status.

    storage.open_reader > tar.walk > examine (label, json) > decode into a slot > Chunk, ..., Chunk, End

Worker w takes shards w, w + W, ...; a chunk never spans shards, so what a shard gives depends on nothing but its own
bytes. Slots are shared and reused as in `dataset`; see there for why `PREFETCH + 2` of them are enough.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhostream import storage
from rhostream.errors import AccessError, RhostreamError, StorageError, UsageError
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
__all__ = ["CHUNK", "Chunk", "End", "Mark", "ScanSettings", "scan"]


def scan(
    shards: Sequence[tuple[str, str]], settings: ScanSettings, *, workers: int = 0, context: str | None = None
) -> Generator[Chunk | End]:
    """Read `shards` ((URL, name) pairs): the chunks of each, then its End. With workers, shards interleave.

    A shard that can't be read ends with an End that carries the error. What is odd about shards (`End.notes`) is warned
    of once a kind. Raises UsageError for what no shard can change.
    """
    if workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    workers = min(workers, len(shards))
    dataset = _Scan(shards, settings, workers)
    if not workers:
        yield from _received(dataset, dataset)
        return
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=settle_worker,
        multiprocessing_context=context or "forkserver",
    )
    with working(loader) as messages:
        yield from _received(dataset, messages)


def _received(dataset: _Scan, messages: Iterable[Chunk | End]) -> Iterator[Chunk | End]:
    """With the pixels of their slots; what the ends of shards have to say is said."""
    said = set[str]()
    for message in messages:
        if isinstance(message, Chunk):
            rows = {name: slots[message.slot, : len(message)] for name, slots in dataset.slots.items()}
            message = replace(message, fields=Fields(rows))
        else:
            storage.add_retried(message.retried)
            error, remote = message.error, not storage.is_local(dataset.url(message.shard))
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

    def __init__(self, shards: Sequence[tuple[str, str]], settings: ScanSettings, workers: int) -> None:
        self._shards, self._settings, self._carried = list(shards), settings, storage.Carried()
        self.slots: dict[str, Tensor] = slots(
            max(workers, 1) * (PREFETCH + 2), settings.chunk, settings.fields, shared=workers > 0
        )

    def url(self, shard: int) -> str:
        """Of the shard of this number."""
        return self._shards[shard][0]

    def __iter__(self) -> Iterator[Chunk | End]:
        with storage.ReadAhead(storage.spooled) as ahead:
            for message in self._messages(ahead):
                if isinstance(message, End) and get_worker_info() is not None:
                    message = replace(message, retried=storage.take_retried())
                yield message

    def _messages(self, ahead: storage.ReadAhead[storage.SpooledReader]) -> Iterator[Chunk | End]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own, turn, columns = PREFETCH + 2, 0, Columns()
        lowest = None if self._settings.quota is None else Lowest(self._settings.quota)
        for number in range(worker, len(self._shards), workers):
            url, name = self._shards[number]
            reader = ahead.take(url)
            ahead.want([self._shards[n][0] for n in range(number + workers, len(self._shards), workers)[:AHEAD]])
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
