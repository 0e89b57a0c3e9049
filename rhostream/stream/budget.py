"""How much that is bad a reader of shards bears before it stops: the same for tables, IL models and test sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhostream import storage
from rhostream.errors import BudgetError, UsageError
from rhostream.tables.il import OK

FREE_BAD = 10  # bad rows a shard may always have: 1 % of a small shard is no evidence of anything
FREE_BAD_TOTAL = 100
FREE_BAD_SHARDS = 10
SHOWN = 3  # first bad samples in a message


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much that is bad a job bears before it stops: more is something systematic.

    A few (10 samples of a shard, 100 in all, 10 shards) are always borne by a fraction; numbers are taken as they are.
    """

    fraction: float = 0.01  # of the samples of one shard, and of all that were read so far
    samples: int | None = None  # in the whole job, parts that were there included
    shards: float = 0.1  # below 1 the fraction, else the number of shards that can't be read

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise UsageError(f"--max-bad-fraction {self.fraction}: expected a fraction between 0 and 1")
        if self.samples is not None and self.samples < 0:
            raise UsageError(f"--max-bad-samples {self.samples}: expected 0 or more")
        if self.shards < 0 or (self.shards >= 1 and self.shards != int(self.shards)):
            raise UsageError(f"--max-bad-shards {self.shards:g}: expected a number of shards, or a fraction below 1")

    def check_shard(self, name: str, statuses: Mapping[str, int], first: Sequence[str]) -> None:
        """Raise BudgetError when too much of one shard is bad."""
        bad, seen = _bad(statuses), sum(statuses.values())
        if bad > max(FREE_BAD, self.fraction * seen):
            raise _systematic(f"shard {storage.redact(name)}", statuses, first, f"{self.fraction:.2%}", "fraction")

    def check_total(self, where: str, statuses: Mapping[str, int], first: Sequence[str]) -> None:
        """Raise BudgetError when too much of the whole job is bad so far; `statuses` counts every sample by status."""
        bad, seen = _bad(statuses), sum(statuses.values())
        if self.samples is not None:
            if bad > self.samples:
                raise _systematic(where, statuses, first, f"{self.samples:,}", "samples")
        elif bad > max(FREE_BAD_TOTAL, self.fraction * seen):
            raise _systematic(where, statuses, first, f"{self.fraction:.2%}", "fraction")

    def check_shards(self, bad: Mapping[str, str], of: int) -> None:
        """Raise BudgetError when too many shards can't be read; `bad`: name -> why."""
        allowed = int(self.shards) if self.shards >= 1 or not self.shards else max(FREE_BAD_SHARDS, self.shards * of)
        if len(bad) <= allowed:
            return
        why = "; ".join(list(bad.values())[:SHOWN])
        raise BudgetError(
            f"{len(bad):,} of {of:,} shards can't be read, at most {allowed:,.0f} are allowed (first: "
            f"{why}); something systematic: mend it, or allow more with --max-bad-shards"
        )


def _bad(statuses: Mapping[str, int]) -> int:
    return sum(statuses.values()) - statuses.get(OK, 0)


def listed(statuses: Mapping[str, int]) -> str:
    """Counts of what isn't ok, the most frequent first."""
    counts = Counter({status: count for status, count in statuses.items() if status != OK})
    return ", ".join(f"{status} {count:,}" for status, count in counts.most_common())


def _systematic(where: str, statuses: Mapping[str, int], first: Sequence[str], limit: str, option: str) -> BudgetError:
    shown = "; ".join(first[:SHOWN]) or "in parts that were there"
    return BudgetError(
        f"{where}: {_bad(statuses):,} of {sum(statuses.values()):,} samples can't be used, at most "
        f"{limit} are allowed ({listed(statuses)}; first: {shown}); something systematic: mend it, or "
        f"allow more with --max-bad-{option}"
    )
