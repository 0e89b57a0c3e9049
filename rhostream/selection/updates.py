"""A kept batch as several updates: how many there are, and which rows go into which.

Row p of all that was kept, counted in the buffer's order over all ranks, goes into update p mod U. So an update holds
the same samples however many ranks there are, every rank has its part of each, and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhostream.errors import UsageError


def number_of_updates(total: int, size: int, most: int | None = None) -> int:
    """Updates of at most `size` of the `total` samples that all ranks kept; no more than `most`, where that is known.

    Raises UsageError for a size below 1.
    """
    if size < 1:
        raise UsageError(f"updates of {size} samples: expected at least 1")
    wanted = max(1, -(-total // size))
    return wanted if most is None else max(1, min(wanted, most))


def most_updates(rows_of_rank: Sequence[int], least: int) -> int | None:
    """How often a batch can be split so that each rank has `least` rows in each update, or none at all; None for any.

    `rows_of_rank`: how many of the kept samples each rank trains on.
    """
    return None if least <= 1 else min((rows // least for rows in rows_of_rank if rows), default=None)


def first_row(update: int, updates: int, first: int) -> int:
    """Where an update begins among a rank's rows, of which each `updates`-th is in it.

    `first`: the number of the rank's first row among those of all ranks.
    """
    return (update - first) % updates


def samples_of(update: int, updates: int, total: int) -> int:
    """How many of the `total` samples of all ranks are in an update."""
    return len(range(update, total, updates))
