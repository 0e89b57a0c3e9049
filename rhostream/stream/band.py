"""The band: what any model learns, or none, by its il, or what another column condemns, costs no read or decode.

A band is given in nats (`0.05:2.5`) or as shares of the table (`20%:90%`), which are looked up once in a seeded sample
of its parts: thresholds are numbers of the run, the same for every buffer, rank and resume. `NAME=LOW:HIGH` is a band
of another column: `similarity=70%:` of pairs is what the field filters by, a kept field of numbers what that holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import UsageError
from rhostream.randomness import generator
from rhostream.storage import redact
from rhostream.stream.join import Joined, checked_columns
from rhostream.tables import il

SAMPLED_PARTS = 64


@dataclass(frozen=True, repr=False)
class Band:
    """Bounds of il, in nats, or of a `column`, both inside; a prefilter of the stream. A row without either passes."""

    low: float = -math.inf
    high: float = math.inf
    column: str | None = None

    def __repr__(self) -> str:
        of = "" if self.column is None else f", column={self.column!r}"
        return f"Band(low={self.low!r}, high={self.high!r}{of})"

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None:
        values = joined.il if self.column is None else joined.columns[self.column]
        outside = (values < self.low) | (values > self.high)  # NaN is neither
        joined.reason[outside & (joined.reason == CANDIDATE)] = Reason.band


def resolve_band(text: str, table: il.Table, seed: int = 0, names: Sequence[str] | None = None) -> Band:
    """`LOW:HIGH`, each in nats or `%` of the usable samples of the table, either left out for no bound; of another
    column than il `NAME=LOW:HIGH`.

    `names`: the shards that shares are of, all of the table's unless given.

    Raises UsageError for anything else, for shares of a table without il, and for a column that isn't there.
    """
    column, bounds_text = column_of(text), text.rpartition("=")[2]
    low, colon, high = bounds_text.partition(":")
    bounds = [_bound(side, text) for side in (low, high)]
    if not colon or bounds == [None, None]:
        raise UsageError(
            f"--band {text!r}: expected LOW:HIGH in nats or per cent, such as 20%:90%, 0.05:2.5 or similarity=70%:"
        )
    if column is not None:
        checked_columns([column], table, "--band")
    elif table.info.kind != "il":
        raise UsageError(
            f"--band {text}: {redact(table.url)} is an index without il; make one with `rhostream compute-il`"
        )
    values = (
        _sampled(table, seed, names or table.names, column)
        if any(b is not None and b[1] for b in bounds)
        else np.empty(0)
    )
    found = [None if b is None else float(np.quantile(values, b[0] / 100)) if b[1] else b[0] for b in bounds]
    band = Band(-math.inf if found[0] is None else found[0], math.inf if found[1] is None else found[1], column)
    if not band.low < band.high:
        unit = " nats" if column is None else ""
        raise UsageError(f"--band {text}: nothing lies between {band.low:.4g} and {band.high:.4g}{unit}")
    return band


def column_of(text: str) -> str | None:
    """The column that a band is of; None for il."""
    return text.rpartition("=")[0].strip() or None


def _bound(side: str, text: str) -> tuple[float, bool] | None:
    """(value, whether in per cent), None for no bound."""
    side = side.strip()
    if not side:
        return None
    try:
        value, share = float(side.removesuffix("%")), side.endswith("%")
    except ValueError:
        raise UsageError(f"--band {text!r}: {side!r} is no number of nats or per cent") from None
    if not math.isfinite(value) or (share and not 0 <= value <= 100):
        raise UsageError(f"--band {text!r}: {side} is outside " + ("0 to 100 %" if share else "the finite numbers"))
    return value, share


def _sampled(
    table: il.Table, seed: int, names: Sequence[str], column: str | None
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The il, or the numbers of a column, of the usable samples of up to 64 parts."""
    numbers = () if column is None else (column,)
    shards = generator(seed, "band").permutation(len(names))[:SAMPLED_PARTS]
    found = []
    for shard in np.sort(shards).tolist():
        part = il.read_part(il.part_url(table.url, names[shard]), members=table.info.members, numbers=numbers)
        own = part.il if column is None else part.columns[column]
        found.append(own[part.usable & np.isfinite(own) & ~part.in_holdout])
    values = np.concatenate(found) if found else np.empty(0, np.float32)
    if not len(values):
        raise UsageError(f"--band: no usable {column or 'il'} in {len(shards)} parts of {redact(table.url)}")
    return values
