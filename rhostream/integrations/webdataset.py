"""The IL join as a stage of anybody's webdataset pipeline: samples come in, samples with an il go out.

    wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples(), join_il("il"), wds.decode("rgb8"),
                     wds.to_tuple("jpg", "cls", "__il__"), ...)

`__il__`, because webdataset's decoder takes every field for bytes but those between double underscores.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from rhostream import storage
from rhostream.errors import MissingPartError, NotFoundError, UsageError
from rhostream.tables import il as il_table
from rhostream.tables.names import checked_roots

LOG = logging.getLogger("rhostream")
Sample = dict[str, Any]
ROWS_KEPT = 400_000  # of parts at hand, about 100 MB a process; a shuffle mixes shards, and each asks for its part
OK, HOLDOUT, REPEATED, QUARANTINED, MISSING = "ok", "holdout", "dup", "quarantined", "missing"
_SAYS = {
    REPEATED: "repeats a key of its shard, and the table holds the il of the first one",
    QUARANTINED: "can't be used, says {table}",
    MISSING: "has no il in {table}; run `rhostream compute-il` on it",
}


def join_il(
    table: str,
    *,
    roots: Mapping[str, str] | None = None,
    missing: str = "error",
    keep_holdout: bool = False,
    field: str = "__il__",
) -> JoinStage:
    """A stage that sets `sample[field]` to the irreducible loss (nats), joined by (shard, `__key__`).

    It may stand anywhere in the pipeline. A `field` without double underscores, such as "il", must come behind
    `decode`, or before one with `partial=True`: webdataset's decoder takes any other field for bytes.

    Samples that the IL model was trained on are left out unless `keep_holdout`, as `open_stream` does.
    `sample["__il_status__"]` (`field` with `_status` behind its name) says what the number is: "ok", "holdout" (the IL
    model learned from it), or NaN's why:
    "missing" (no part, a key that the part doesn't hold, no il), "quarantined" (the table says that it can't be used)
    or "dup" (its key came before in its shard: the first one counts). `missing` is what happens to the last three:
    "error" raises MissingPartError, "skip" drops the sample, "nan" lets it through with il = NaN. Every sample is
    counted in the stage's `counts` (of its process), and the counts are logged when the pipeline ends.

    A repeated key names no sample, so its first one is told by its place in the shard: put the stage right behind
    `tarfile_to_samples`. Behind a shuffle or a filter all samples of such a key are "dup". Parts stay in memory up to
    400,000 rows, so that a shuffle doesn't read them again and again. Raises UsageError for a table without il.
    """
    if missing not in ("error", "skip", "nan"):
        raise UsageError(f"missing {missing!r}: expected error, skip or nan")
    url = storage.resolve(table)
    info = il_table.open_info(url)
    if info.kind != "il":
        raise UsageError(f"{storage.redact(url)} is an index without il; make a table with `rhostream compute-il`")
    today = il_table.roots_today(url, info, checked_roots(roots))
    return JoinStage(url, today, missing, keep_holdout, field, info.members)


class JoinStage:
    """What `join_il` returns. Picklable, because webdataset's loader sends its stages to worker processes."""

    def __init__(self, table: str, roots: dict[str, str], missing: str, keep_holdout: bool, field: str,
                 members: tuple[tuple[str, ...], ...]) -> None:  # fmt: skip
        self._members = members  # of a sample: the extensions of each
        self._table, self._roots, self._missing, self._field = table, roots, missing, field
        self._keep_holdout = keep_holdout
        self.counts = Counter[str]()  # samples by status
        self._status_field = f"{field[:-2]}_status__" if field.endswith("__") else f"{field}_status"
        self._parts = OrderedDict[str, _Rows]()  # by URL of the shard, the one asked for last at the end
        self._held = 0  # their rows
        self._seen = set[str]()  # shards of this loop whose part was read: where it comes again the order is unknown

    def __getstate__(self) -> dict[str, Any]:
        """Without the parts at hand: each process reads those of its own shards."""
        return self.__dict__ | {"_parts": OrderedDict(), "_held": 0}

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        url, rows, before = "", _Rows(None), self.counts.copy()
        self._seen = set(self._parts)
        for kept in self._parts.values():
            kept.begin()
        try:
            for sample in samples:
                if sample["__url__"] != url:
                    url = sample["__url__"]
                    rows = self._rows(url)
                status, value = rows.next(sample["__key__"])
                self.counts[status] += 1
                if status in _SAYS and self._missing == "error":
                    raise MissingPartError(self._refusal(sample["__key__"], url, status))
                if (status == HOLDOUT and not self._keep_holdout) or (status in _SAYS and self._missing == "skip"):
                    continue
                yield {**sample, self._field: value, self._status_field: status}
        finally:
            self._say(self.counts - before)

    def _refusal(self, key: str, url: str, status: str) -> str:
        why = _SAYS[status].format(table=storage.redact(self._table))
        return f"sample {key!r} of shard {storage.redact(url)} {why}; or say missing='skip' or 'nan'"

    def _say(self, counts: Counter[str]) -> None:
        if sum(counts.values()) > counts[OK]:
            kept = {*([HOLDOUT] if self._keep_holdout else []), *(_SAYS if self._missing == "nan" else [])}
            listed = ", ".join(
                f"{status} {n:,} ({'marked' if status in kept else 'left out'})"
                for status, n in counts.most_common()
                if status != OK
            )
            LOG.warning(
                "join_il: %s of %s samples have an il of %s; the others: %s",
                f"{counts[OK]:,}",
                f"{sum(counts.values()):,}",
                storage.redact(self._table),
                listed,
            )

    def _rows(self, url: str) -> _Rows:
        rows = self._parts.pop(url, None)
        if rows is None:
            name = il_table.shard_name(storage.resolve(url), self._roots)
            try:
                rows = _Rows(
                    il_table.read_part(il_table.part_url(self._table, name), members=self._members), self._keep_holdout
                )
            except NotFoundError:
                rows = _Rows(None)
            rows.begin(in_order=url not in self._seen)
            self._seen.add(url)
            self._held += len(rows)
        self._parts[url] = rows
        while len(self._parts) > 1 and self._held > ROWS_KEPT:
            self._held -= len(self._parts.popitem(last=False)[1])
        return rows


class _Rows:
    """The rows of one part, asked for in the order of its shard."""

    def __init__(self, part: il_table.Part | None, keep_holdout: bool = False) -> None:
        self._part, self._keep_holdout = part, keep_holdout
        self._keys: list[str] = [] if part is None else part.key.to_pylist()
        self._first = dict(zip(reversed(self._keys), reversed(range(len(self._keys))), strict=True))
        self._repeated = frozenset[str]()
        if len(self._first) < len(self._keys):
            counts = pc.value_counts(part.key).flatten()  # type: ignore[union-attr]
            self._repeated = frozenset(counts[0].filter(pc.greater(counts[1], 1)).to_pylist())
        self.begin()

    def __len__(self) -> int:
        return len(self._keys) or 1  # what isn't there takes its place too

    def begin(self, in_order: bool = True) -> None:
        """A new loop over the pipeline: the shard from its beginning, in its order or in another."""
        self._place, self._in_order = 0, in_order

    def next(self, key: str) -> tuple[str, float]:
        """Status and il (nats) of the next sample of the shard; NaN unless it is "ok" or "holdout"."""
        place = self._place % max(len(self._keys), 1)  # the same shard once more
        self._in_order = self._in_order and self._keys[place : place + 1] == [key]
        self._place += 1
        row, part = self._first.get(key), self._part
        if row is None or part is None:
            return MISSING, math.nan
        value, in_holdout = float(part.il[row]), bool(part.in_holdout[row])
        if in_holdout and not self._keep_holdout:
            return HOLDOUT, math.nan
        if key in self._repeated and not (self._in_order and place == row):
            return REPEATED, math.nan
        if not part.usable[row]:
            return QUARANTINED, math.nan
        if math.isnan(value):
            return MISSING, math.nan
        return (HOLDOUT if in_holdout else OK), value
