"""The order of a pass, as a pure function of (seed, pass, shard list, counts): exactly once, by arithmetic.

Shards are permuted; inside a shard the samples are permuted; the concatenation is cut into K lanes of equal length.
A lane is read from its own phase and wraps, so that lanes change shards at different steps. Every buffer takes
n_B / K samples from each lane, lane by lane. What doesn't fill a buffer is the tail of the pass. Nothing is shuffled in
memory and nothing is drawn at run time, so any buffer can be computed alone: that is what makes resume exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError
from rhostream.randomness import generator

MAX_LANES = 64
FEW_LANES = 3  # at most so many are few, where a buffer could have many
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Ordinals = npt.NDArray[np.integer[Any]]  # in the narrowest type


def choose_lanes(buffer_size: int, ranks: int = 1, lanes: int | None = None, *, carried: int | None = None) -> int:
    """K: the largest divisor of n_B up to 64 that is a multiple of the ranks, or the one asked for.

    `carried` are the lanes of a plan that began with other ranks: it keeps them, and any number of ranks up to K goes
    on. Raises UsageError, naming the nearest possible K, when the one asked for doesn't fit.
    """
    if lanes is None and carried is not None:
        if carried < 1 or buffer_size % carried:
            raise UsageError(f"{carried} lanes don't divide a buffer of {buffer_size}")
        return carried
    possible = [
        k for k in range(ranks, min(buffer_size, max(MAX_LANES, ranks)) + 1) if buffer_size % k == 0 and k % ranks == 0
    ]
    if not possible:
        near = max(round(buffer_size / ranks), 1) * ranks
        raise UsageError(
            f"--buffer-size {buffer_size} can't be split over {ranks} ranks, which read equal shares of "
            f"every buffer; nearest: {near}"
        )
    if lanes is None:
        return possible[-1]
    if buffer_size % lanes or lanes % ranks or lanes < 1:
        nearest = min(possible, key=lambda k: abs(k - lanes))
        raise UsageError(f"{lanes} lanes don't divide a buffer of {buffer_size} over {ranks} ranks; nearest: {nearest}")
    return lanes


def few_lanes(buffer_size: int, lanes: int, shards: int) -> str:
    """What to say of a buffer that comes from few shards because few numbers divide it; "" where there is nothing."""
    if lanes > FEW_LANES or min(buffer_size, shards) <= 2 * lanes:
        return ""
    below = max(buffer_size // 8, 1) * 8
    from_shards = "one or two shards" if lanes == 1 else f"about {lanes} shards"
    return (
        f"{lanes} lane{'s'[: lanes != 1]}: buffers of {buffer_size:,} come from {from_shards} each, as few numbers "
        f"divide it; nearest sizes with more: {below:,}, {below + 8:,}"
    )


def buffers_in(total: int, buffer_size: int, lanes: int) -> int:
    """Whole buffers in a pass over so many samples."""
    return total // lanes // (buffer_size // lanes)


@dataclass(frozen=True)
class Numbering:
    """Which step of the run a buffer is. A longer list of shards begins with a pass, and has more buffers in each."""

    buffers_per_pass: int
    first_pass: int = 0  # of the list of shards
    first_step: int = 0

    def __call__(self, pass_index: int, index: int) -> int:
        return self.first_step + (pass_index - self.first_pass) * self.buffers_per_pass + index


@dataclass(frozen=True)
class Rows:
    """Planned samples: indices into the shard list and ordinals inside the shards, both (n,)."""

    shard: Int32
    ordinal: Int32

    def __len__(self) -> int:
        return len(self.ordinal)


@dataclass(frozen=True)
class Plan:
    """One pass over shards of known sample counts.

    `counts` are samples seen, so a sample that can't be used keeps its place. `rank` of `ranks` gets its slice of
    every buffer: the whole lanes from floor(rank K / ranks) on, so that all ranks have the same number of steps. Where
    the ranks don't divide K, which only a plan that began with other ranks has, slices differ by a lane. A `rank` below
    0 reads nothing.
    """

    names: Sequence[str]
    counts: Int64  # (shards,)
    buffer_size: int
    lanes: int
    seed: int = 0
    pass_index: int = 0
    rank: int = 0
    ranks: int = 1
    _permutations: OrderedDict[int, Ordinals] = field(default_factory=OrderedDict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", int(self.counts.sum()))
        if self.ranks > self.lanes:
            possible = f"at most {self.lanes}" if self.lanes > 1 else "one"
            raise UsageError(
                f"{self.ranks} ranks can't share {self.lanes} lanes, which ranks read whole: go on with {possible}"
            )
        if self.total // self.lanes < self.buffer_size // self.lanes:
            raise UsageError(
                f"a buffer of {self.buffer_size:,} can't be filled from {self.total:,} samples; lower --buffer-size"
            )
        order = generator(self.seed, "shards", self.pass_index).permutation(len(self.counts))
        ends = np.cumsum(self.counts[order])
        starts = np.arange(self.lanes, dtype=np.int64) * self.lane_length
        # The phase falls inside the lane's first shard.
        first = np.searchsorted(ends, starts, side="right")
        room = np.minimum(ends[np.minimum(first, len(ends) - 1)] - starts, max(self.lane_length, 1))
        phases = (generator(self.seed, "phases", self.pass_index).random(self.lanes) * room).astype(np.int64)
        for name, value in (
            ("_order", order.astype(np.int32)),
            ("_ends", ends),
            ("_starts", starts),
            ("_phases", phases),
        ):
            object.__setattr__(self, name, value)

    total: int = field(init=False)  # samples seen in all shards
    _order: Int32 = field(init=False, repr=False, compare=False)
    _ends: Int64 = field(init=False, repr=False, compare=False)
    _starts: Int64 = field(init=False, repr=False, compare=False)
    _phases: Int64 = field(init=False, repr=False, compare=False)

    @property
    def lane_length(self) -> int:
        return self.total // self.lanes

    @property
    def buffers(self) -> int:
        """Whole buffers in the pass: the number of steps, the same on every rank."""
        return buffers_in(self.total, self.buffer_size, self.lanes)

    @property
    def own_lanes(self) -> range:
        """The lanes that this rank reads."""
        if self.rank < 0:
            return range(0)
        return range(self.rank * self.lanes // self.ranks, (self.rank + 1) * self.lanes // self.ranks)

    @property
    def own_rows(self) -> range:
        """Which rows of a buffer are this rank's."""
        share = self.buffer_size // self.lanes
        return range(self.own_lanes.start * share, self.own_lanes.stop * share)

    @property
    def most_rows(self) -> int:
        """Rows of the largest slice of any rank."""
        return -(-self.lanes // self.ranks) * (self.buffer_size // self.lanes)

    def buffer(self, index: int, whole: bool = False) -> Rows:
        """This rank's rows of buffer `index`, in canonical order: lane by lane; all n_B if `whole`.

        Raises IndexError outside [0, buffers).
        """
        if not 0 <= index < self.buffers:
            raise IndexError(f"buffer {index} of {self.buffers}")
        share = self.buffer_size // self.lanes
        lane = np.arange(self.lanes)[:, None] if whole else np.array(self.own_lanes, np.int64)[:, None]
        step = index * share + np.arange(share, dtype=np.int64)[None, :]
        within = (step + self._phases[lane]) % self.lane_length
        return self._rows((self._starts[lane] + within).ravel())

    def coming(self, index: int, within: int) -> list[int]:
        """The shards that this rank's lanes read at buffer `index` or enter within the next `within`, in that order."""
        share, lane = self.buffer_size // self.lanes, np.array(self.own_lanes, np.int64)[None, :]
        # One row of each lane and buffer tells the shard: far fewer than there are samples, and no permutation.
        step = np.minimum((index + np.arange(within + 1)) * share + share - 1, self.lane_length - 1)[:, None]
        step = np.concatenate([np.full((1, 1), index * share), step])
        position = self._starts[lane] + (step + self._phases[lane]) % self.lane_length
        shards = self._order[np.searchsorted(self._ends, position.ravel(), side="right")]
        return list(dict.fromkeys(shards.tolist()))

    def tail(self) -> Rows:
        """This rank's rows of the rest of the pass, which fills no buffer (fewer than n_B + K over all ranks)."""
        used = self.buffers * (self.buffer_size // self.lanes)
        lane = np.arange(self.lanes)[:, None]
        within = (np.arange(used, self.lane_length)[None, :] + self._phases[lane]) % max(self.lane_length, 1)
        left_over = np.arange(self.lanes * self.lane_length, self.total)
        every = np.concatenate([(self._starts[lane] + within).ravel(), left_over])
        return self._rows(every[self.rank :: self.ranks] if self.rank >= 0 else every[:0])

    def _rows(self, position: Int64) -> Rows:
        place = np.searchsorted(self._ends, position, side="right")
        shard = self._order[place]
        within = position - (self._ends[place] - self.counts[shard])
        ordinal = np.empty(len(position), np.int32)
        # Rows stand lane by lane, so equal shards stand together: one permutation per run.
        cuts = np.flatnonzero(np.diff(shard)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(shard)], strict=True):
            if stop > start:
                ordinal[start:stop] = self._permutation(int(shard[start]))[within[start:stop]]
        # Every buffer reads every lane: what this one didn't need belongs to a shard that a lane has left.
        for left in self._permutations.keys() - set(shard.tolist()):
            del self._permutations[left]
        return Rows(shard.astype(np.int32, copy=False), ordinal)

    def _permutation(self, shard: int) -> Ordinals:
        cached = self._permutations.pop(shard, None)
        if cached is None:
            rng = generator(self.seed, "samples", self.pass_index, self.names[shard])
            count = int(self.counts[shard])
            cached = rng.permutation(count).astype(np.uint16 if count <= 1 << 16 else np.int32)
            while len(self._permutations) >= 2 * self.lanes:
                self._permutations.popitem(last=False)
        self._permutations[shard] = cached
        return cached
