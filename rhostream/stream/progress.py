"""How long a walk over shards still takes: a bar on a terminal, a plain log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

LOG = logging.getLogger("rhostream")
EVERY_SECONDS = 30.0


class Progress:
    """Counts shards, samples and bad samples; to be used as a context manager."""

    def __init__(self, title: str, shards: int) -> None:
        self._title, self._shards = title, shards
        self._done = self._samples = self._bad = 0
        self._start = self._said = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=shards, desc=title, unit="shard", leave=False, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def rows(self, samples: int, bad: int = 0) -> None:
        """More samples were seen; moves inside a shard too."""
        self._samples += samples
        self._bad += bad
        self._show()

    def shard(self) -> None:
        """A shard is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = self._samples / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:,.0f} samples/s, {self._bad:,} bad", refresh=False)
        elif now - self._said >= EVERY_SECONDS:
            self._said = now
            left = (now - self._start) / self._done * (self._shards - self._done) if self._done else float("nan")
            LOG.info(
                "%s: %d of %d shards, %s samples (%s/s), %s bad, about %.0f s left",
                self._title,
                self._done,
                self._shards,
                f"{self._samples:,}",
                f"{rate:,.0f}",
                f"{self._bad:,}",
                left,
            )


class StepProgress:
    """Counts the steps of a run or of a fit; to be used as a context manager."""

    def __init__(self, title: str, total: int, done: int = 0, *, silent: bool = False) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._start = self._said = time.monotonic()
        self._silent = silent  # another rank says it
        self._evaluation = ""
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty() and not silent:
            self._bar = tqdm(total=total, initial=done, desc=title, unit="step", leave=False, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def evaluated(self, says: str) -> None:
        """An evaluation was made: it stays in the bar, and is a line of its own where there is none."""
        self._evaluation = says
        if self._bar is None and not self._silent:
            LOG.info("%s: step %s of %s, %s", self._title, f"{self._done:,}", f"{self._total:,}", says)

    def step(self, says: str) -> None:
        """One more step is done; `says` is what there is to say of it."""
        self._done += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, (says, self._evaluation))), refresh=False)
            self._bar.update(1)
        elif not self._silent and now - self._said >= EVERY_SECONDS:
            self._said = now
            rate = (self._done - self._first) / (now - self._start)
            LOG.info("%s: step %s of %s (%.1f/s), %s", self._title, f"{self._done:,}", f"{self._total:,}", rate, says)
