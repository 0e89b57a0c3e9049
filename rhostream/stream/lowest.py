"""A uniform sample of unknown shards in one pass: every sample has a random number, and the lowest ones are the sample.

A worker decodes a sample only while its number may still be among the lowest: of N samples in a sample of n about
n (1 + ln(N / n)) are decoded, whatever the order and the sizes of shards. What is chosen in the end depends on numbers
alone, so workers and order change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rhostream.randomness import generator

Numbers = npt.NDArray[np.float64]


def numbers(seed: int, shard: str) -> np.random.Generator:
    """Its i-th draw is the number of sample i of the shard, in [0, 1)."""
    return generator(seed, "sample", shard)


class Lowest:
    """The n lowest numbers of usable samples so far, in one worker; a shard's count for good when it is whole."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._sure, self._own = np.empty(0), np.empty(0)
        self.limit = np.inf  # a number above it can't be among the n lowest

    def add(self, own: Numbers) -> None:
        """Numbers of usable samples of the shard that is read."""
        self._own = self._cut(np.concatenate([self._own, own]))
        self._limit()

    def end(self, *, whole: bool) -> None:
        """The shard is over; one that broke gives nothing."""
        if whole:
            self._sure = self._cut(np.concatenate([self._sure, self._own]))
        self._own = np.empty(0)
        self._limit()

    def drawn(self, number: Numbers, may: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of a batch to look at, in groups, until the lowest of them are known to be usable or there are no more.

        number: (B,); may: (B,) bool, what can be drawn at all. After each group the caller has given its usable
        numbers to `add`.
        """
        waiting = np.flatnonzero(may)
        waiting = waiting[np.argsort(number[waiting], kind="stable")]
        while len(waiting := waiting[number[waiting] <= self.limit]):
            yield np.sort(waiting[: self.n])
            waiting = waiting[self.n :]

    def _cut(self, some: Numbers) -> Numbers:
        return some if len(some) <= self.n else np.partition(some, self.n - 1)[: self.n]

    def _limit(self) -> None:
        both = self._cut(np.concatenate([self._sure, self._own]))
        self.limit = float(both.max()) if len(both) == self.n else np.inf
