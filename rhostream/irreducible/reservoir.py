"""The rows of the lowest random numbers among all that come by: a uniform sample of bounded size, decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.samples.fields import Fields
from rhostream.stream.scan import ScanSettings
from rhostream.stream.slots import slots


@dataclass
class Piece:
    """Usable rows of a chunk: number, ordinal, label, mark (n,), fields (n, ...)."""

    number: npt.NDArray[np.float64]
    ordinal: npt.NDArray[np.int64]
    label: Tensor
    mark: Tensor
    fields: Fields

    def rows(self, keep: npt.NDArray[np.int64]) -> Piece:
        """Some of them."""
        at = torch.from_numpy(keep)
        return Piece(self.number[keep], self.ordinal[keep], self.label[at], self.mark[at], self.fields[at])


class Reservoir:
    """The rows of the lowest numbers of all shards that were read to their end."""

    def __init__(self, samples: int, settings: ScanSettings) -> None:
        # Pages that are never touched cost nothing.
        room = slots(1, samples, settings.kind.fields(), shared=False)
        self.fields = Fields({name: array[0] for name, array in room.items()})
        self.label, self.mark = torch.empty(samples, dtype=torch.int64), torch.empty(samples, dtype=torch.int64)
        self.number = np.empty(samples)
        self.place = np.empty((samples, 2), np.int64)  # shard, ordinal
        self.samples, self.filled = samples, 0

    @property
    def limit(self) -> float:
        """No row of a number above it is of the sample."""
        return float(self.number.max()) if self.filled == self.samples else np.inf

    def take(self, shard: int, piece: Piece) -> None:
        """Put rows in that are of the sample, in the place of those that no longer are."""
        limit = self.limit
        piece = piece.rows(np.flatnonzero(piece.number <= limit))
        n, filled = len(piece.number), self.filled
        if not n:
            return
        number = np.concatenate([self.number[:filled], piece.number])
        place = np.concatenate([self.place[:filled], np.stack([np.full(n, shard), piece.ordinal], 1)])
        best = np.lexsort((place[:, 1], place[:, 0], number))[: self.samples]
        stays = np.zeros(filled + n, bool)
        stays[best] = True
        self.filled = len(best)
        new = np.flatnonzero(stays[filled:])
        free = np.flatnonzero(~stays[:filled])
        slots = np.concatenate([free, np.arange(filled, self.filled)])[: len(new)]
        piece, at = piece.rows(new), torch.from_numpy(slots)
        self.number[slots], self.place[slots] = piece.number, place[filled + new]
        for name, array in self.fields.items():
            array[at] = piece.fields[name]
        self.label[at], self.mark[at] = piece.label, piece.mark

    def sort(self) -> None:
        """By number, in place: a second copy might not fit."""
        order = np.lexsort((self.place[: self.filled, 1], self.place[: self.filled, 0], self.number[: self.filled]))
        self.number[: self.filled], self.place[: self.filled] = self.number[order], self.place[order]
        at = torch.from_numpy(order)
        self.label[: self.filled], self.mark[: self.filled] = self.label[at], self.mark[at]
        done = np.zeros(self.filled, bool)
        for start in range(self.filled):
            if done[start] or order[start] == start:
                continue
            first, to = {name: array[start].clone() for name, array in self.fields.items()}, start
            while order[to] != start:
                for _, array in self.fields.items():
                    array[to] = array[order[to]]
                done[to], to = True, int(order[to])
            for name, array in self.fields.items():
                array[to] = first[name]
            done[to] = True


def bound(pieces: list[Piece], samples: int) -> None:
    """Leave out what a shard's own lower numbers rule out, before it is much more than the sample."""
    if sum(len(piece.number) for piece in pieces) <= 2 * samples + 512:
        return
    limit = np.partition(np.concatenate([piece.number for piece in pieces]), samples - 1)[samples - 1]
    pieces[:] = [piece.rows(np.flatnonzero(piece.number <= limit)) for piece in pieces]
