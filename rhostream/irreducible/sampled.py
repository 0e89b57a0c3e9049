"""What one shard gives to a uniform sample of many: its rows of the lowest numbers, and its account."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch

from rhostream import storage
from rhostream.errors import RhostreamError
from rhostream.irreducible.reservoir import Piece, bound
from rhostream.signals import while_waiting
from rhostream.stream.budget import SHOWN
from rhostream.stream.lowest import Lowest
from rhostream.stream.scan import TRIES, Chunk, End, ScanSettings, scan


@dataclass
class Drawn:
    """The rows of a shard that may be of the sample, and how many of those looked at were usable; then its end."""

    end: End
    pieces: list[Piece] = field(default_factory=list)
    ok: int = 0
    bad: list[tuple[float, str]] = field(default_factory=list)  # number and status of each
    first: list[tuple[float, str]] = field(default_factory=list)  # of some of these, number and what is wrong

    @classmethod
    def broken(cls, shard: int, error: RhostreamError) -> Drawn:
        """Of a shard that can't be read."""
        return cls(End(shard=shard, error=error))

    def add(self, chunk: Chunk, samples: int) -> int:
        """Take some rows, of which no more than `samples` can be of the sample. Returns how many are bad."""
        rows = chunk.ok.nonzero()[0]
        at = torch.from_numpy(rows)
        assert chunk.number is not None
        self.pieces.append(
            Piece(
                chunk.number[rows], chunk.ordinal[rows].astype("int64"), torch.from_numpy(chunk.label)[at],
                torch.from_numpy(chunk.mark)[at], chunk.fields[at],
            )
        )  # fmt: skip
        bound(self.pieces, samples)
        self.ok += len(rows)
        bad = (~chunk.ok).nonzero()[0].tolist()
        if bad:
            status, keys, errors = (chunk.rows.column(name) for name in ("status", "key", "error"))
        for row in bad:
            number = float(chunk.number[row])
            self.bad.append((number, status[row].as_py()))
            if len(self.first) < SHOWN:
                self.first.append((number, f"{keys[row].as_py()!r} ({errors[row].as_py()})"))
        return len(bad)

    def ended(self, end: End) -> Drawn:
        """The whole of it; a shard that broke gives nothing, however far it was read."""
        return Drawn(end) if end.error is not None else replace(self, end=end)


def drawn_here(
    shards: Sequence[tuple[str, str]], settings: ScanSettings, workers: int, rows: Callable[[int, int], None]
) -> Generator[Drawn]:
    """What each shard gives, read by processes of this machine. `rows` is told of samples, and how many are bad.

    Raises Interrupted when the job that runs is asked to stop.
    """
    begun = dict[int, Drawn]()
    assert settings.quota is not None
    for message in while_waiting(scan(shards, settings, workers=workers, tries=TRIES)):
        if isinstance(message, Chunk):
            drawn = begun.setdefault(message.shard, Drawn(End(shard=message.shard)))
            rows(len(message), drawn.add(message, settings.quota))
            continue
        drawn = begun.pop(message.shard, Drawn(message))
        if not message.again:
            yield drawn.ended(message)


def drawer(settings: ScanSettings) -> Callable[[tuple[str, str]], Drawn]:
    """What gives the `Drawn` of one shard after the other, in this process: from each it decodes less."""
    assert settings.quota is not None
    samples, lowest = settings.quota, Lowest(settings.quota)

    def draw(shard: tuple[str, str]) -> Drawn:
        drawn = Drawn(End(shard=0))
        for message in scan([shard], settings, lowest=lowest):
            if isinstance(message, Chunk):
                drawn.add(message, samples)
            else:
                drawn = drawn.ended(replace(message, retried=storage.take_retried()))
        return drawn

    return draw
