"""The table that a job fills: what it lacks, and its accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rhostream import storage
from rhostream.errors import (
    MismatchError,
    NotFoundError,
    StaleShardError,
    StorageError,
)
from rhostream.irreducible.accounts import Summary
from rhostream.irreducible.work import Shard, classes_of, require_classes
from rhostream.storage import redact
from rhostream.tables import il
from rhostream.tables.il import PartFacts, TableInfo

# a table, the names of some of its shards and its rows that can't be used by status, to what is doubtful
Examine = Callable[[str, Sequence[str], Mapping[str, int]], list[str]]


class Target:
    """The table that a job fills: what it lacks, and its accounts. `scored`: it is no index."""

    def __init__(self, out: str, info: TableInfo, examine: Examine | None = None, *, scored: bool = False) -> None:
        self.out, self.scored, self.examine = storage.resolve(out), scored, examine
        self.summary = Summary()
        there = il.find_info(self.out)
        self.roots = info.roots
        if there is not None:
            # The table keeps the roots it was made with; data that moved is still the same shards.
            today = il.roots_today(self.out, there, info.roots)
            strange = [name for name in info.roots if name in today and name not in there.roots and "/" not in name]
            if not strange:  # else a root that means nothing in this table
                self.roots, info = today, replace(info, roots=there.roots)
        self._asked = self.info = info
        self.missing = frozenset[str]()  # names of shards
        self.copies: list[str] = []  # names of shards with a new time or ETag and nothing that speaks against them
        self._classes = classes_of(info, scored=scored)  # as the shards say them, and before them the table

    def open(self) -> None:
        """Make the table, or check that the one there is of the same making. Raises MismatchError."""
        self.info = il.make_or_match(self.out, self._asked)
        self._classes = classes_of(self.info, scored=self.scored)

    @property
    def first(self) -> bool:
        """Whether this job made the table."""
        return self.info is self._asked

    def require_classes(self, names: Iterable[tuple[int, str]], shard: str) -> None:
        """Raise MismatchError where a shard calls a label otherwise than the IL model or the shards before it."""
        require_classes(self._classes, names, shard)

    def present(self, shard: Shard) -> PartFacts | StorageError | StaleShardError | None:
        """The facts of a part that is there, None without one, or why the shard isn't the one it is of."""
        url, name = shard
        part = il.part_url(self.out, name)
        try:
            facts = il.read_part_facts(part)
        except NotFoundError:
            return None
        if facts.fingerprint != self.info.fingerprint:
            raise MismatchError(
                f"{redact(part)} has fingerprint {facts.fingerprint}, its table has "
                f"{self.info.fingerprint}: `rhostream verify --repair` makes it again"
            )
        il.require_part_of(name, facts)
        try:
            if il.require_same_shard(url, name, facts) is not False:
                self.copies.append(name)
        except (StorageError, StaleShardError) as exc:
            return exc
        return facts
