"""Progress on stderr: a bar when somebody watches, a plain line now and then when a log file does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same items, counted; `what` names them, such as "shards written"."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, file=sys.stderr)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"{what}: {done:,} of {total:,} after {now - start:.0f} s", file=sys.stderr, flush=True)
