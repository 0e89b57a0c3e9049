"""From scanned chunks to committed parts: collects a shard's rows and accounts, checks the budget, writes the part.

Knows no model; `compute` gives it the losses, `index` gives it none.
"""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream import storage
from rhostream.errors import AlreadyExistsError, BudgetError, MismatchError
from rhostream.stream.scan import Chunk, End
from rhostream.tables import il
from rhostream.tables.il import OK, PartFacts, TableInfo

FREE_BAD = 10  # bad rows a shard may always have: 1 % of a small shard is no evidence of anything
FREE_BAD_TOTAL = 100
COMMITS = 4  # parts that may wait for their commit in memory


@dataclass(frozen=True)
class Scored:
    """What a model says of the rows of a chunk; all (n,), NaN and -1 where a row was not scored."""

    il: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    in_holdout: npt.NDArray[np.bool_]


@dataclass(kw_only=True)
class Summary:
    """What a job found, over all its shards, those included whose part was there already."""

    shards: int = 0
    made: int = 0  # parts written by this job
    present: int = 0  # parts that were there
    samples: int = 0
    ok: int = 0
    scored: int = 0  # samples through the model in this job
    quarantined: dict[str, int] = field(default_factory=dict)  # by status
    members_seen: int = 0
    members_used: int = 0
    members_ignored: int = 0
    bad_fields: dict[str, int] = field(default_factory=dict)
    bad_shards: dict[str, str] = field(default_factory=dict)  # name -> why it has no part
    seconds: float = 0.0

    def add(self, facts: PartFacts) -> None:
        """Count a part."""
        self.samples += facts.samples
        self.ok += facts.statuses.get(OK, 0)
        self.members_seen += facts.members_seen
        self.members_used += facts.members_used
        self.members_ignored += facts.members_ignored
        for mine, theirs in ((self.quarantined, facts.statuses), (self.bad_fields, facts.bad_fields)):
            for name, count in theirs.items():
                if name != OK:
                    mine[name] = mine.get(name, 0) + count


class PartBuilder:
    """The rows of one shard, until its End."""

    def __init__(self, info: TableInfo, table: str, name: str, url: str) -> None:
        self._info, self._table, self._name, self._url = info, table, name, url
        self._batches: list[pa.RecordBatch] = []
        self.statuses: Counter[str] = Counter()
        self.first_bad = ""
        self._il_rows = self._in_holdout = 0

    def add(self, chunk: Chunk, scored: Scored | None) -> int:
        """Take a chunk; rows whose loss is not finite become `nonfinite`. Returns how many rows are bad."""
        n, rows = len(chunk), chunk.rows
        columns: dict[str, Any] = {name: rows.column(name) for name in rows.schema.names}
        columns["ordinal"] = pa.array(chunk.ordinal)
        if scored is None:
            columns |= {name: pa.nulls(n, il.SCHEMA.field(name).type) for name in ("il", "predicted", "fold")}
            columns["in_holdout"] = pa.array(np.zeros(n, bool))
        else:
            finite = np.isfinite(scored.il)
            if (bad := chunk.ok & ~finite).any():
                columns["status"], columns["error"] = _nonfinite(columns, bad)
            columns["il"] = pa.array(scored.il, pa.float32(), mask=~finite)
            columns["predicted"] = pa.array(scored.predicted.astype(np.int32), mask=~finite)
            columns["fold"] = pa.array(scored.fold.astype(np.int8), mask=~chunk.ok)
            columns["in_holdout"] = pa.array(scored.in_holdout)
            self._il_rows += int(finite.sum())
            self._in_holdout += int(scored.in_holdout.sum())
        schema = self._info.schema
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        self._batches.append(batch)
        if chunk.ok.all() and columns["status"] is rows.column("status"):
            counts = Counter({OK: n})
        else:
            counts = Counter(columns["status"].to_pylist())
        self.statuses += counts
        if not self.first_bad and counts[OK] < n:
            row = next(i for i, status in enumerate(columns["status"].to_pylist()) if status != OK)
            self.first_bad = f"{columns['key'][row].as_py()!r} ({columns['error'][row].as_py()})"
        return n - counts[OK]

    @property
    def bad(self) -> int:
        """Rows so far that can't be used."""
        return self.statuses.total() - self.statuses[OK]

    def facts(self, end: End) -> PartFacts:
        """The footer of the part, once the shard has ended."""
        return PartFacts(
            fingerprint=self._info.fingerprint, kind=self._info.kind, shard=self._name,
            shard_size=end.identity.size, shard_tag=end.identity.tag, samples=end.samples_seen,
            statuses=dict(sorted(self.statuses.items())), members_seen=end.members_seen,
            members_used=end.members_used, members_ignored=end.members_ignored, bad_fields=end.bad_fields,
            shard_sha256=end.sha256, il_rows=self._il_rows, in_holdout=self._in_holdout,
            compression=end.compression,
        )

    def commit(self, facts: PartFacts) -> None:
        """Write the part. Another job that wrote the same one first is fine. Raises MismatchError, TableError."""
        data = il.encode_part(pa.Table.from_batches(self._batches, self._info.schema), facts)
        url = il.part_url(self._table, self._name)
        try:
            storage.create(url, data)
        except AlreadyExistsError:
            there = il.read_part_facts(url)
            if there != facts:
                message = (f"another job wrote a different part of shard {self._name} into "
                           f"{storage.redact(self._table)} at the same time; use another --out")
                raise MismatchError(message) from None


class Commits:
    """Writes finished parts in a thread of its own: a commit waits for the disk or the store, the model needn't.

    A context manager; leaving it waits for what was begun, so a job that stops has committed all that it finished.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "rhostream-commit")
        self._begun: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if failed is None:
            self._wait(0)

    def begin(self, builder: PartBuilder, facts: PartFacts) -> None:
        """Write a part soon. Raises what an earlier commit raised."""
        self._begun.append(self._pool.submit(builder.commit, facts))
        self._wait(COMMITS)

    def _wait(self, left: int) -> None:
        while self._begun and (len(self._begun) > left or self._begun[0].done()):
            self._begun.popleft().result()


def _nonfinite(columns: dict[str, Any], bad: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    status, error = columns["status"].to_pylist(), columns["error"].to_pylist()
    for row in np.flatnonzero(bad).tolist():
        status[row], error[row] = "nonfinite", "the IL model's loss is NaN or infinite"
    return pa.array(status, pa.string()), pa.array(error, pa.string())


def check_budget(builder: PartBuilder, name: str, samples: int, summary: Summary, fraction: float) -> None:
    """Stop when bad samples are more than `fraction` of a shard, or of all that was read so far: something systematic.

    A few (10 of a shard, 100 in all) are always allowed. Raises BudgetError; the shard gets no part.
    """
    bad, all_bad = builder.bad, builder.bad + sum(summary.quarantined.values())
    total = samples + summary.samples
    where, count, of = "", 0, 0
    if bad > max(FREE_BAD, fraction * samples):
        where, count, of = f"shard {storage.redact(name)}", bad, samples
    elif all_bad > max(FREE_BAD_TOTAL, fraction * total):
        where, count, of = f"all shards up to {storage.redact(name)}", all_bad, total
    if where:
        listed = ", ".join(f"{s} {c:,}" for s, c in builder.statuses.most_common() if s != OK)
        raise BudgetError(f"{where}: {count:,} of {of:,} samples can't be used, at most {fraction:.2%} are allowed "
                          f"({listed}; first: {builder.first_bad}); something systematic: mend it, or allow more with "
                          "--max-bad-fraction")
