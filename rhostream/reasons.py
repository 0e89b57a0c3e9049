"""Why a planned sample was kept or skipped: the words of the log, known to who writes it and to who reads it."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Why a planned sample was kept or skipped. Stored by name; the numbers live inside one process only."""

    kept = 0
    below = 1  # reached the rule, but not the top n_b (or was not drawn by `uniform`)
    band = 2  # its il is outside the band
    shortlist = 3  # a cheaper score left it out
    tail = 4  # the end of a pass that doesn't fill a buffer
    missing_il = 5
    quarantined = 6  # the table says it can't be used
    unreadable = 7  # the table says it can, but this decoder couldn't
    nonfinite = 8  # its loss or score is NaN or infinite
    holdout = 9  # the il model was trained on it
    unlisted = 10  # there is a keep-list, and it isn't on it
    duplicate = 11  # a near-duplicate of one that scored better in the same buffer
    unapplied = 12  # chosen, and the update that it was in was refused (GradScaler, a guard, an open accumulation)
    passed_over = 13  # its buffer was skipped on purpose, after a loss spike
    denied = 14  # a deny-list names it
