"""Source quotas: the least and the most of a batch that samples of one source may be.

Selection rewrites the mixture of the sources that shards are made of; this bounds by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rhostream.errors import UnknownNameError, UsageError
from rhostream.inert import one_line
from rhostream.selection.quota import Ints, places

Shares = Mapping[str, float]


def parse_shares(option: str, given: Shares | Iterable[str] | None) -> dict[str, float] | None:
    """{source: share} of that, or of `NAME=SHARE` texts. Raises UsageError for a share outside 0 to 1."""
    if given is None:
        return None
    pairs = given.items() if isinstance(given, Mapping) else [_pair(option, text) for text in given]
    shares = dict[str, float]()
    for name, share in pairs:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UsageError(f"{option} {one_line(name)}={share}: a share of the batch lies between 0 and 1")
        if name in shares:
            raise UsageError(f"{option}: {one_line(name)} is given twice")
        shares[str(name)] = float(share)
    return shares or None


def _pair(option: str, text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    try:
        if name and equals:
            return name, float(share)
    except ValueError:
        pass
    raise UsageError(f"{option} {one_line(text)}: expected NAME=SHARE, as web=0.2")


@dataclass(frozen=True, kw_only=True)
class SourceQuota:
    """Shares of a batch of n: at least floor(share * n) of a source, as far as a buffer has them; at most ceil."""

    floors: Shares = field(default_factory=dict)
    caps: Shares = field(default_factory=dict)

    @classmethod
    def of(cls, floors: Shares | None, caps: Shares | None) -> SourceQuota | None:
        """None for no bounds. Raises UsageError for what no batch can be: floors above 1, a floor above its cap."""
        if not floors and not caps:
            return None
        quota = cls(floors=floors or {}, caps=caps or {})
        if sum(quota.floors.values()) > 1 + 1e-9:
            raise UsageError(
                f"--source-floor: the floors are {sum(quota.floors.values()):.4g} of a batch together, which is above 1"
            )
        for name, least in quota.floors.items():
            if least > (most := quota.caps.get(name, 1.0)):
                raise UsageError(f"--source-floor {one_line(name)}={least:g} is above its --source-cap {most:g}")
        return quota

    def check(self, names: Sequence[str], n: int) -> None:
        """Raise UsageError for a source that there isn't, and for caps that leave room for fewer than n samples."""
        for option, shares in (("--source-floor", self.floors), ("--source-cap", self.caps)):
            for name in shares:
                if name not in names:
                    raise UnknownNameError.of(f"source of {option}", one_line(name), [one_line(one) for one in names])
        if (room := int(self._bounds(names, n)[1].sum())) < n:
            raise UsageError(
                f"--source-cap: every source has one, and together they leave room for {room} samples of a batch of {n}"
            )

    def admit(self, order: Ints, source: Ints, names: Sequence[str], n: int) -> Ints:
        """Of `order` (rows, the best first) those that a batch of n is filled from, in the order in which it is.

        `source` (B,) numbers the rows' sources, by `names`. First come the rows that floors ask for, which are the best
        of their sources; a row beyond its source's cap isn't there.
        """
        least, most = self._bounds(names, n)
        own = source[order]
        place = places(own)
        asked = place < least[own]
        return np.concatenate([order[asked], order[~asked & (place < most[own])]])

    def _bounds(self, names: Sequence[str], n: int) -> tuple[Ints, Ints]:
        """(S,) the least and the most of each source in a batch of n."""
        least = [math.floor(self.floors.get(name, 0.0) * n + 1e-9) for name in names]
        most = [math.ceil(self.caps[name] * n - 1e-9) if name in self.caps else n for name in names]
        return np.array(least, np.int64), np.array(most, np.int64)


def require_sources(quota: SourceQuota | None, names: Sequence[str] | None, sizes: Iterable[int]) -> None:
    """Raise UsageError for a quota where sources have no names, or that no batch of one of these sizes can meet."""
    if quota is None:
        return
    if names is None:
        raise UsageError(
            "--source-floor and --source-cap need the names of sources: --sources root or FIELD (in a loop of your own "
            "open_stream(sources=))"
        )
    for n in sizes:
        quota.check(names, n)
