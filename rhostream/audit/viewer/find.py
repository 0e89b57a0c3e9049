"""Single rows of what is selected: the first of an order, each sample once, and all looks at one sample.

Found by scanning columns: no index, a few hundredths of a second for 10 million rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rhostream.audit.viewer.filters import Filters, places_of, selected
from rhostream.audit.viewer.rows import REASONS, VALUES, Array, Block, Snapshot
from rhostream.errors import UnknownNameError

MOST_SAMPLES = 1 << 28  # places of samples
_LEAST = 4096  # rows that are ranked at a time
Row = dict[str, Any]  # the columns of `rows.DTYPES` by name, shard as its number, None where there is nothing
Key = Callable[[Mapping[str, Array]], Array]  # smaller comes first; NaN: not at all


def _mixed(columns: Mapping[str, Array]) -> Array:
    """The same order at every look, which has nothing to do with what the samples are."""
    mixed = columns["ordinal"].astype(np.uint32) * np.uint32(2654435761) ^ columns["shard"].astype(
        np.uint32
    ) * np.uint32(2246822519)
    mixed ^= mixed >> np.uint32(15)
    return (mixed * np.uint32(3266489917)).astype(np.float64)


def _step(columns: Mapping[str, Array]) -> Array:
    return np.where(columns["step"] < 0, np.nan, columns["step"].astype(np.float64))


ORDERS: Mapping[str, Key] = {
    "mixed": _mixed,
    **{f"{name}_high": lambda columns, name=name: -columns[name] for name in VALUES},  # type: ignore[misc]
    **{f"{name}_low": lambda columns, name=name: columns[name] for name in VALUES},  # type: ignore[misc]
    "newest": lambda columns: -_step(columns),
    "oldest": _step,
}


def first_rows(snapshot: Snapshot, filters: Filters, order: str, start: int, count: int) -> tuple[list[Row], bool]:
    """Rows `start` to `start + count` of the selected samples in an order, each sample where it comes first; and
    whether there are more. Ties go by shard, ordinal and step. Raises UnknownNameError.
    """
    if order not in ORDERS:
        raise UnknownNameError.of("order", order, ORDERS)
    ranked = max(_LEAST, 4 * (start + count))
    while True:
        rows, cut = _ranked(snapshot, filters, ORDERS[order], ranked)
        if not cut or len(rows) > start + count:
            break
        ranked *= 8
    return [_row(*place) for place in rows[start : start + count]], len(rows) > start + count


def _ranked(snapshot: Snapshot, filters: Filters, key: Key, most: int) -> tuple[list[tuple[Block, int]], bool]:
    """The places of the first rows, each sample once; and whether there are more than the `most` that were ranked."""
    keys, places, cut = [], [], False
    for number, (block, rows) in enumerate(snapshot.blocks):
        at = np.flatnonzero(selected(block, 0, rows, filters.items()))
        values = key({name: column[:rows][at] for name, column in block.columns.items()})
        at, values = at[~np.isnan(values)], values[~np.isnan(values)]
        if len(at) > most:
            cut = True
            # All that tie with the last of them too, or ties would be broken by chance.
            last = np.partition(values, most)[most]
            at, values = at[values <= last], values[values <= last]
        keys.append(values)
        places.append(number * (1 << 32) + at)
    every, place = np.concatenate([*keys, []]), np.concatenate([*places, np.zeros(0, np.int64)])
    if len(every) > most:
        cut = True
        last = np.partition(every, most)[most]
        every, place = every[every <= last], place[every <= last]
    names = ("shard", "ordinal", "step")
    columns = {name: np.empty(len(place), np.int32) for name in names}
    for number, (block, _) in enumerate(snapshot.blocks):
        mine = np.flatnonzero(place >> 32 == number)
        for name in names:
            columns[name][mine] = block.columns[name][place[mine] & 0xFFFFFFFF]
    order = np.lexsort((columns["step"], columns["ordinal"], columns["shard"], every))
    sample = columns["shard"][order].astype(np.int64) << 32 | columns["ordinal"][order]
    first = np.sort(np.unique(sample, return_index=True)[1])
    chosen = place[order[first]]
    return [(snapshot.blocks[int(one) >> 32][0], int(one) & 0xFFFFFFFF) for one in chosen], cut


def different(snapshot: Snapshot, filters: Filters) -> int | None:
    """How many different samples are selected; None where there are too many places to count them."""
    offsets = np.concatenate([[0], np.cumsum(snapshot.sizes)])
    if offsets[-1] > MOST_SAMPLES:
        return None
    seen = np.zeros(int(offsets[-1]), np.uint8)
    for block, rows in snapshot.blocks:
        at = places_of(block, 0, rows, filters.items())
        seen[offsets[block.columns["shard"][:rows][at]] + block.columns["ordinal"][:rows][at]] = 1
    return int(np.count_nonzero(seen))


def looks(snapshot: Snapshot, shard: int, ordinal: int) -> list[Row]:
    """Every row of one sample, oldest first; a tail, which has no step, behind the steps of its pass."""
    rows = [
        _row(block, int(at))
        for block, count in snapshot.blocks
        for at in np.flatnonzero(
            (block.columns["ordinal"][:count] == ordinal) & (block.columns["shard"][:count] == shard)
        )
    ]
    return sorted(rows, key=lambda row: (row["pass"], row["step"] is None, row["step"] or 0))


def _row(block: Block, at: int) -> Row:
    row: Row = {name: column[at].item() for name, column in block.columns.items()}
    for name in VALUES:
        row[name] = None if np.isnan(row[name]) else float(f"{row[name]:.7g}")
    for name in ("step", "label"):
        row[name] = None if row[name] < 0 else row[name]
    row["reason"] = REASONS[row["reason"]]
    return row
