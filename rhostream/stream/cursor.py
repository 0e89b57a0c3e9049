"""The cursor: where a stream stands, and the identity of the plan in which that means anything.

The identity is what the order of a pass is a function of, as plain values that a saved cursor carries: one of another
plan is refused, and the message names what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhostream.errors import MismatchError
from rhostream.tables import il

VERSION = 1
_WORDS = {
    "table": "the table's fingerprint",
    "seed": "seed",
    "buffer_size": "buffer_size",
    "shards": "the shards and their samples",
}


@dataclass
class Cursor:
    """Where the stream stands: (pass, buffers consumed of it). All the state there is."""

    pass_index: int = 0
    buffer: int = 0


def identity_of(table: il.Table, shards: Mapping[str, str], seed: int, buffer_size: int, lanes: int) -> dict[str, Any]:
    """What the plan over a table is a function of; `shards` as `digests_of` gives them."""
    return {
        "version": VERSION,
        "table": table.info.fingerprint,
        "seed": seed,
        "buffer_size": buffer_size,
        "lanes": lanes,
        **shards,
        "first_shard": table.names[0],
    }


def digests_of(table: il.Table) -> dict[str, str]:
    """{"shards": of the shards and their counts, whatever their order, "order": of their order}."""
    total, order = 0, hashlib.sha256()
    for name, count in zip(table.names, table.counts.tolist(), strict=True):
        raw = name.encode("utf-8", "surrogateescape") + b"\0"
        order.update(raw)
        total += int.from_bytes(hashlib.blake2b(raw + str(count).encode(), digest_size=16).digest(), "big")
    return {"shards": f"{total % (1 << 128):032x}", "order": order.hexdigest()[:32]}


def require_same_plan(here: Mapping[str, Any], cursor: Mapping[str, Any]) -> None:
    """Raise MismatchError, naming what differs, where a cursor's plan isn't this one, whatever the lanes."""
    if int(cursor.get("version", 0)) > VERSION:
        raise MismatchError(
            f"this cursor was written by a newer rhostream (version {cursor['version']}); upgrade rhostream"
        )
    if differ := [name for name in _WORDS if cursor.get(name) != here[name]]:
        detail = "; ".join(f"{_WORDS[name]}: was {cursor.get(name)!r}, now {here[name]!r}" for name in differ)
        raise MismatchError(
            f"this cursor is of another plan ({detail}): open the stream as it was then, or begin without a cursor"
        )
    if cursor.get("order") != here["order"]:
        raise MismatchError(
            "this cursor is of the same shards in another order, and the order of a pass is a "
            f"function of the list: give them as they were then, first {cursor['first_shard']}, "
            "or name that order with open_stream(order=[names])"
        )
