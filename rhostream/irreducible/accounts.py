"""The accounts of an offline job: what it saw, what was bad, how much of that is allowed, and where it is written down.

The laws: samples seen = ok + quarantined; members seen = used + ignored; shards = made + present + bad. They hold over
all shards of the job, those included whose part was there already, or nothing is reported at all.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rhostream import storage
from rhostream.errors import AlreadyExistsError, BudgetError, TableError, UsageError
from rhostream.tables.il import OK, PartFacts

LOG = logging.getLogger("rhostream")
FREE_BAD = 10  # bad rows a shard may always have: 1 % of a small shard is no evidence of anything
FREE_BAD_TOTAL = 100
FREE_BAD_SHARDS = 10
SHOWN = 3  # first bad samples in a message


@dataclass(kw_only=True)
class Summary:
    """What a job found, over all its shards, those included whose part was there already."""

    shards: int = 0
    made: int = 0  # parts written by this job
    present: int = 0  # parts that were there, or came from another job meanwhile
    twice: int = 0  # of these, the ones that this job had made too when the other's came first
    samples: int = 0
    ok: int = 0
    scored: int = 0  # samples through the model in this job
    quarantined: dict[str, int] = field(default_factory=dict)  # by status
    members_seen: int = 0
    members_used: int = 0
    members_ignored: int = 0
    first_bad: list[str] = field(default_factory=list)  # of the samples that this job read, with shard and why
    several_images: int = 0  # of the samples that this job read, those with more than one
    bad_fields: dict[str, int] = field(default_factory=dict)
    bad_shards: dict[str, str] = field(default_factory=dict)  # name -> why it has no part
    empty_shards: int = 0  # parts without a row
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # store -> fault -> times it was tried again
    seconds: float = 0.0
    doubts: list[str] = field(default_factory=list)  # of the IL model, and whether the table's il leak

    def add(self, facts: PartFacts) -> None:
        """Count a part."""
        self.samples += facts.samples
        self.ok += facts.statuses.get(OK, 0)
        self.members_seen += facts.members_seen
        self.members_used += facts.members_used
        self.members_ignored += facts.members_ignored
        self.empty_shards += not facts.samples
        for mine, theirs in ((self.quarantined, facts.statuses), (self.bad_fields, facts.bad_fields)):
            for name, count in theirs.items():
                if name != OK:
                    mine[name] = mine.get(name, 0) + count

    def require_laws(self) -> None:
        """Raise TableError when the accounts don't add up: a bug, or a part whose footer lies."""
        laws = {
            "shards = made + present + bad": self.shards == self.made + self.present + len(self.bad_shards),
            "samples seen = ok + quarantined": self.samples == self.ok + sum(self.quarantined.values()),
            "members seen = used + ignored": self.members_seen == self.members_used + self.members_ignored,
        }
        if broken := [law for law, holds in laws.items() if not holds]:
            raise TableError(f"the accounts don't add up: {'; '.join(broken)} ({self.says()}); run `rhostream verify`")

    @property
    def useless(self) -> bool:
        """Whether there are shards that could be read and not one sample that can be used."""
        return self.shards > len(self.bad_shards) and not self.ok

    def says_useless(self) -> str:
        """What a job without a usable sample ends with."""
        first = f"; first: {'; '.join(self.first_bad)}" if self.first_bad else ""
        why = _listed(self.quarantined) or "the shards hold none"
        return f"no sample of {self.samples:,} can be used ({why}{first})"

    def says(self) -> str:
        """The accounts in one line."""
        by_status = f" ({_listed(self.quarantined)})" if self.quarantined else ""
        retries = says_retried(self.retried)
        return (f"{self.shards:,} shards = {self.made:,} made + {self.present:,} there + {len(self.bad_shards):,} bad; "
                f"{self.samples:,} samples = {self.ok:,} ok + {sum(self.quarantined.values()):,} quarantined"
                f"{by_status}; {self.members_seen:,} members = {self.members_used:,} used + "
                f"{self.members_ignored:,} ignored" + (f"; {retries}" if retries else ""))


def says_retried(retried: Mapping[str, Mapping[str, int]]) -> str:
    """`storage.retried` in words, "" for nothing."""
    return "; ".join(f"tried again at {place}: {_listed(kinds)}" for place, kinds in retried.items())


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
        raise BudgetError(f"{len(bad):,} of {of:,} shards can't be read, at most {allowed:,.0f} are allowed (first: "
                          f"{why}); something systematic: mend it, or allow more with --max-bad-shards")


def first_of_each(reasons: Sequence[tuple[str, str]], more: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """The bad samples to show, at most 3 of (status, words): the first of each status, then the earliest others."""
    found = [*reasons, *more]
    statuses = [status for status, _ in found]
    leading = [i for i, status in enumerate(statuses) if status not in statuses[:i]][:SHOWN]
    rest = [i for i in range(len(found)) if i not in leading]
    return [found[i] for i in [*leading, *rest][:SHOWN]]


def _bad(statuses: Mapping[str, int]) -> int:
    return sum(statuses.values()) - statuses.get(OK, 0)


def _listed(statuses: Mapping[str, int]) -> str:
    counts = Counter({status: count for status, count in statuses.items() if status != OK})
    return ", ".join(f"{status} {count:,}" for status, count in counts.most_common())


def _systematic(where: str, statuses: Mapping[str, int], first: Sequence[str], limit: str, option: str) -> BudgetError:
    shown = "; ".join(first[:SHOWN]) or "in parts that were there"
    return BudgetError(f"{where}: {_bad(statuses):,} of {sum(statuses.values()):,} samples can't be used, at most "
                       f"{limit} are allowed ({_listed(statuses)}; first: {shown}); something systematic: mend it, or "
                       f"allow more with --max-bad-{option}")


def store(table: str, verb: str, part_of: str | None, summary: Summary) -> str:
    """Write the account of a finished job as `jobs/<n>.json` below its table; nothing reads it but people."""
    numbers = [url.rsplit("/", 1)[1][:-5] for url in storage.list_files(storage.join(table, "jobs"), ".json")]
    number = max((int(n) for n in numbers if n.isdigit()), default=-1) + 1
    data = json.dumps({"verb": verb, "index": part_of, **asdict(summary)}, indent=1).encode()
    while True:
        url = storage.join(table, "jobs", f"{number}.json")
        try:
            storage.create(url, data)
            return url
        except AlreadyExistsError:
            number += 1
