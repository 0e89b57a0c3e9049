"""The IL join as a stage of anybody's webdataset pipeline: samples come in, samples with an `il` go out.

    wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples(), join_il("il"), wds.decode("rgb8"), ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rhostream import storage
from rhostream.errors import MissingPartError, NotFoundError, UsageError
from rhostream.tables import il as il_table

Sample = dict[str, Any]


def join_il(table: str, *, roots: Mapping[str, str] | None = None, missing: str = "error",
            field: str = "il") -> Callable[[Iterable[Sample]], Iterator[Sample]]:
    """A stage that sets `sample[field]` to the irreducible loss (nats), joined by (shard, `__key__`).

    One part is in memory at a time. `missing`: what happens to a sample without an il (no part, a key the part
    doesn't hold, a quarantined one): "error" raises MissingPartError, "skip" drops it, "nan" sets NaN.
    """
    if missing not in ("error", "skip", "nan"):
        raise UsageError(f"missing {missing!r}: expected error, skip or nan")
    url = storage.resolve(table)
    return _Stage(url, {**il_table.open_info(url).roots, **il_table.checked_roots(roots)}, missing, field)


class _Stage:
    """Picklable, because webdataset's loader sends its stages to worker processes."""

    def __init__(self, table: str, roots: dict[str, str], missing: str, field: str) -> None:
        self._table, self._roots, self._missing, self._field = table, roots, missing, field

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        shard, known = "", dict[str, float]()
        for sample in samples:
            if sample["__url__"] != shard:
                shard = sample["__url__"]
                known = self._part(il_table.shard_name(storage.resolve(shard), self._roots))
            value = known.get(sample["__key__"], math.nan)
            if math.isnan(value) and self._missing != "nan":
                if self._missing == "skip":
                    continue
                raise MissingPartError(f"sample {sample['__key__']!r} of shard {storage.redact(shard)} has no il in "
                                       f"{storage.redact(self._table)}; run `rhostream compute-il` on it")
            yield {**sample, self._field: value}

    def _part(self, name: str) -> dict[str, float]:
        try:
            part = il_table.read_part(il_table.part_url(self._table, name))
        except NotFoundError:
            return {}
        # Of a key that comes twice the first is the one that was scored.
        pairs = zip(reversed(part.key.to_pylist()), reversed(part.il.tolist()), strict=True)
        return {key: value for key, value in pairs if not math.isnan(value)}
