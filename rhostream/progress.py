"""How far a job is: one line that moves on a terminal; elsewhere a line now and then, or events for programs.

    with Progress("train", 1000, "step") as progress:
        progress.advance(loss=1.234, kept_share=0.1)

In a notebook, a pipe or a log file there are no bars. Where nobody has configured logging, lines go to stderr.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

from tqdm import tqdm

from rhostream import events

LOG = logging.getLogger("rhostream")
EVERY_SECONDS = 30.0  # between lines for people
EVENT_SECONDS = 5.0  # between events for programs
T = TypeVar("T")
WORDS: dict[str, Callable[[Any], str]] = {  # how a figure is said, in this order
    "epoch": lambda n: f"epoch {n}",
    "epochs": lambda n: f"of {n}",
    "kept_share": lambda share: f"kept {100 * share:.1f} %",
    "loss": lambda loss: f"loss {loss:.3f}",
    "loss_on_others": lambda loss: f"loss {loss:.3f} on others",
    "samples_per_second": lambda rate: f"{rate:,.0f} samples/s",
    "bad": lambda n: f"{n:,} bad",
    "memory_bytes": lambda n: f"{n / 1e9:.1f} GB",
}


class Progress:
    """Counts what is done of `total` pieces; to be used as a context manager.

    `done`: by earlier processes.
    """

    def __init__(self, title: str, total: int, unit: str = "shard", *, done: int = 0) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._first = done
        self._samples = self._bad = 0
        self._figures: dict[str, Any] = {}
        self._note = ""
        self._start = self._said = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty() and not events.as_json:
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif events.as_json and self._done > self._first:
            self._say()

    def resume(self, done: int) -> None:
        """So many pieces were done by an earlier process."""
        self._done = self._first = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def rows(self, samples: int, bad: int = 0) -> None:
        """More samples were seen, in the midst of a piece too."""
        self._samples += samples
        self._bad += bad
        rate = self._samples / max(time.monotonic() - self._start, 1e-9)
        self._show(samples_per_second=rate, bad=self._bad)

    def advance(self, pieces: int = 1, **figures: Any) -> None:
        """More pieces are done; `figures` by the names of `WORDS`, those that are None left out."""
        self._done += pieces
        if self._bar is not None:
            self._bar.update(pieces)
        self._show(**figures)

    def note(self, message: str, event: str, **fields: Any) -> None:
        """Something happened: it stays in the bar, and is a line of its own where there is none."""
        self._note = message
        if self._bar is None:
            self._line(event, f"{self._where()}, {message}", **{self._unit: self._done, "total": self._total}, **fields)

    def _show(self, **figures: Any) -> None:
        self._figures |= {name: value for name, value in figures.items() if value is not None}
        if self._bar is not None:
            self._bar.set_postfix_str(self._words(), refresh=False)
        elif time.monotonic() - self._said >= (EVENT_SECONDS if events.as_json else EVERY_SECONDS):
            self._say()

    def _words(self) -> str:
        said = [words(self._figures[name]) for name, words in WORDS.items() if name in self._figures]
        return ", ".join(filter(None, (*said, self._note))).replace(", of ", " of ", 1)

    def _where(self) -> str:
        if self._unit == "step":
            return f"{self._title}: step {self._done:,} of {self._total:,}"
        samples = f", {self._samples:,} samples" if self._samples else ""
        return f"{self._title}: {self._done:,} of {self._total:,} {self._unit}s{samples}"

    def _say(self) -> None:
        self._said = now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else None
        said = [
            self._where() + (f" ({rate:.1f}/s)" if self._unit == "step" else ""),
            self._words(),
            "" if left is None else f"about {left:,.0f} s left",
        ]
        self._line(
            "progress",
            ", ".join(filter(None, said)),
            job=self._title,
            unit=self._unit,
            done=self._done,
            total=self._total,
            per_second=round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
            samples=self._samples or None,
            **self._figures,
        )

    @staticmethod
    def _line(event: str, message: str, **fields: Any) -> None:
        if LOG.hasHandlers():
            events.emit(event, message, **fields)
        else:  # nobody has configured logging, and a job that says nothing for hours looks dead
            print(message, file=sys.stderr, flush=True)


def counted(items: Iterable[T], total: int, title: str, unit: str = "shard") -> Iterator[T]:
    """The same items, with their progress."""
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
