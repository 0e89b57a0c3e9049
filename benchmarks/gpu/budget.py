"""Which part has how much of the minutes: its share of what is left, so that one that ends early gives to others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

SHARES: Mapping[str, float] = {  # in the order in which they are done, in minutes of 25
    "tests": 2.5,
    "step": 2.5,
    "copies": 1.0,
    "idle": 3.0,
    "paper-clean": 8.0,
    "paper-noise": 8.0,
}
LEAST = 0.2  # of its share: a part with less isn't begun


def seconds_of(part: str, left: float, still: Sequence[str], shares: Mapping[str, float] = SHARES) -> float:
    """What a part may take of the `left` seconds, where `still` are the parts to be done, itself among them."""
    return left * shares[part] / sum(shares[name] for name in still)


def is_too_little(part: str, seconds: float, total: float, shares: Mapping[str, float] = SHARES) -> bool:
    """Whether it is too little to begin with: less than a fifth of its share of `total` seconds for all parts."""
    return seconds < LEAST * total * shares[part] / sum(shares.values())


class Clock:
    """Seconds that are left of a limit."""

    def __init__(self, limit: float, now: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._now, self._began = limit, now, now()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds, 0 where the limit is reached."""
        return max(self.limit - self.spent, 0.0)
