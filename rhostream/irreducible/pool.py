"""A bounded random sample of shards in memory, as uint8: what the IL model learns from.

Shards are visited in a seeded order and each gives a seeded random quota, so that a set of any size costs no more than
the shards it takes to fill the pool, and the result doesn't depend on the workers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rhostream.errors import RhostreamError, UsageError
from rhostream.stream.plan import generator
from rhostream.stream.progress import Progress
from rhostream.stream.scan import Chunk, End, ScanSettings, scan

LOG = logging.getLogger("rhostream")
SPREAD = 64  # the pool comes from at least that many shards, where there are as many


@dataclass(frozen=True)
class Pool:
    """(N,) samples in memory."""

    image: Tensor  # (N, H, W, C) uint8
    label: Tensor  # (N,) int64
    mark: Tensor  # (N,) int64: the fold
    shards: tuple[str, ...]  # names, in the order of visits
    dropped: int  # samples that could not be used
    watched: int

    def __len__(self) -> int:
        return len(self.label)


def fill(shards: Sequence[tuple[str, str]], settings: ScanSettings, *, samples: int, memory_bytes: int, seed: int,
         workers: int, title: str) -> Pool:
    """Up to `samples` usable samples of the shards ((URL, name) pairs), fewer when `memory_bytes` can't hold them.

    Raises UsageError when there is none, or the first shard's error when no shard can be read.
    """
    assert settings.preprocess is not None
    shape = settings.preprocess.shape
    fits = memory_bytes // (shape[0] * shape[1] * shape[2])
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
    return _collect(visits, settings, samples, quota, workers, title)


def _collect(visits: Sequence[tuple[str, str]], settings: ScanSettings, samples: int, quota: int, workers: int,
             title: str) -> Pool:
    assert settings.preprocess is not None
    # Other workers may be ahead of the shard that fills the pool; pages that are never touched cost nothing.
    room = samples + quota * (1 + min(workers, len(visits)))
    image = torch.empty((room, *settings.preprocess.shape), dtype=torch.uint8)
    label, mark = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int64)
    pieces: list[list[tuple[int, int]]] = [[] for _ in visits]  # where the rows of each visit lie
    ended, filled, whole, dropped, watched, in_order = set[int](), 0, 0, 0, 0, 0
    first_error: RhostreamError | None = None
    with Progress(title, len(visits)) as progress:
        for message in scan(visits, settings, workers=workers):
            if isinstance(message, Chunk):
                rows = torch.from_numpy(message.ok.nonzero()[0])
                n = min(len(rows), room - filled)
                rows = rows[:n]
                assert message.image is not None
                torch.index_select(message.image, 0, rows, out=image[filled : filled + n])
                label[filled : filled + n] = torch.from_numpy(message.label)[rows]
                mark[filled : filled + n] = torch.from_numpy(message.mark)[rows]
                pieces[message.shard].append((filled, filled + n))
                filled, dropped = filled + n, dropped + len(message) - n
                progress.rows(len(message), len(message) - n)
                continue
            assert isinstance(message, End)
            progress.shard()
            ended.add(message.shard)
            watched += message.watched
            if message.error is not None:
                first_error = first_error or message.error
                pieces[message.shard] = []  # a shard that breaks gives nothing, however far it was read
                LOG.warning("%s: %s", title, message.error)
            while in_order in ended:
                whole += sum(stop - start for start, stop in pieces[in_order])
                in_order += 1
            if whole >= samples:
                break
    used = [torch.arange(start, stop) for visit in pieces[:in_order] for start, stop in visit]
    rows = torch.cat(used)[:samples] if used else torch.empty(0, dtype=torch.int64)
    if not len(rows):
        if first_error is not None:
            raise first_error
        raise UsageError(f"{title}: {len(visits)} shards hold no usable sample ({dropped:,} were quarantined); "
                         "look at the reasons with `rhostream index`")
    if torch.equal(rows, torch.arange(len(rows))):
        image, label, mark = image[: len(rows)], label[: len(rows)], mark[: len(rows)]
    else:
        image, label, mark = image[rows], label[rows], mark[rows]
    names = tuple(name for (_, name), piece in zip(visits[:in_order], pieces, strict=False) if piece)
    return Pool(image, label, mark, names, dropped, watched)
