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
from rhostream.errors import AlreadyExistsError, TableError
from rhostream.stream.advice import Advice
from rhostream.stream.budget import SHOWN, listed
from rhostream.tables.il import OK, PartFacts

LOG = logging.getLogger("rhostream")


@dataclass(kw_only=True, repr=False)
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
    threads: int = 0  # of the model, 0 for an index: the last bits of il depend on their number
    seconds: float = 0.0
    # of the IL model, whether the table's il leak, labels with gaps, how shards were written
    doubts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.labels, self.advice = Counter[int](), Advice()  # of the shards that this job read; told in `doubts`

    def __repr__(self) -> str:
        bad = f", {len(self.bad_shards):,} bad" if self.bad_shards else ""
        parts = f"{self.shards:,} shards{bad}: {self.made:,} parts made"
        return f"<summary of a job: {parts}, {self.ok:,} of {self.samples:,} samples usable, {len(self.doubts)} doubts>"

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
        why = listed(self.quarantined) or "the shards hold none"
        return f"no sample of {self.samples:,} can be used ({why}{first})"

    def says(self) -> str:
        """The accounts in one line."""
        by_status = f" ({listed(self.quarantined)})" if self.quarantined else ""
        retries = says_retried(self.retried)
        return (
            f"{self.shards:,} shards = {self.made:,} made + {self.present:,} there + {len(self.bad_shards):,} bad; "
            f"{self.samples:,} samples = {self.ok:,} ok + {sum(self.quarantined.values()):,} quarantined"
            f"{by_status}; {self.members_seen:,} members = {self.members_used:,} used + "
            f"{self.members_ignored:,} ignored" + (f"; {retries}" if retries else "")
        )


def says_retried(retried: Mapping[str, Mapping[str, int]]) -> str:
    """`storage.retried` in words, "" for nothing."""
    return "; ".join(f"tried again at {place}: {listed(kinds)}" for place, kinds in retried.items())


def first_of_each(reasons: Sequence[tuple[str, str]], more: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """The bad samples to show, at most 3 of (status, words): the first of each status, then the earliest others."""
    found = [*reasons, *more]
    statuses = [status for status, _ in found]
    leading = [i for i, status in enumerate(statuses) if status not in statuses[:i]][:SHOWN]
    rest = [i for i in range(len(found)) if i not in leading]
    return [found[i] for i in [*leading, *rest][:SHOWN]]


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
