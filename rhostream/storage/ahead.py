"""Read-ahead: what comes next is brought by a few threads meanwhile, and handed over to whoever needs it.

It can only help: what fails here is tried again, in earnest, by whoever needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

from rhostream.storage.names import is_local
from rhostream.storage.reading import SpooledReader, opened

# A shard takes two requests one after the other: at 100 ms each, four threads bring twenty shards a second.
THREADS = 4


T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Brings what is wanted, by URL, and holds it until it is taken or no longer wanted; bounded by what is wanted.

    `bring` makes one of them, in a thread; None for what is better had by whoever needs it. A reader that nobody took
    is closed.
    """

    def __init__(self, bring: Callable[[str], T | None], threads: int | None = None) -> None:
        self._bring, self._threads, self._running = bring, threads or THREADS, 0
        self._wanted: list[str] = []
        self._coming: set[str] = set()
        self._done: dict[str, T | None] = {}  # None: it can't be brought, or was taken
        self._changed = threading.Condition()
        self._closed = False

    def want(self, urls: Sequence[str]) -> None:
        """The remote objects to have next, the most urgent first; returns at once."""
        wanted = [url for url in dict.fromkeys(urls) if not is_local(url)]
        if not wanted and not self._wanted:
            return
        with self._changed:
            self._wanted = wanted
            left = [self._done.pop(url) for url in list(self._done) if url not in wanted]
            waiting = sum(url not in self._done and url not in self._coming for url in wanted)
            self._changed.notify_all()
            for _ in range(min(waiting, self._threads - self._running)):
                self._running += 1
                # Daemons: a download must not keep a process from ending.
                threading.Thread(target=self._work, name="rhostream-ahead", daemon=True).start()
        _close(left)

    def take(self, url: str) -> T | None:
        """What was brought for it, once; waits for one that is on its way. None: nobody brings it, or it failed."""
        with self._changed:
            while url in self._coming and not self._closed:
                self._changed.wait()
            ready = self._done.get(url)
            if url in self._wanted:
                self._done[url] = None  # nor is it begun any more
            return ready

    def _next(self) -> str | None:
        """The next one to bring; None when this thread should end."""
        with self._changed:
            while not self._closed:
                for url in self._wanted:
                    if url not in self._done and url not in self._coming:
                        self._coming.add(url)
                        return url
                self._changed.wait()
            self._running -= 1
            return None

    def _work(self) -> None:
        while (url := self._next()) is not None:
            ready: T | None = None
            try:
                ready = self._bring(url)
            except Exception:  # whatever it was: whoever needs it meets it again, and says it
                pass
            finally:
                with self._changed:
                    self._coming.discard(url)
                    if url in self._wanted and not self._closed:
                        self._done[url], ready = ready, None
                    self._changed.notify_all()
            _close([ready])

    def close(self) -> None:
        """Forget what is wanted; threads end when what they bring is there."""
        with self._changed:
            self._closed, self._wanted = True, []
            left, self._done = list(self._done.values()), {}
            self._changed.notify_all()
        _close(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(things: Sequence[object]) -> None:
    for thing in things:
        if isinstance(thing, SpooledReader):
            thing.close()


def spooled(url: str) -> SpooledReader | None:
    """A shard in the spool, asked for once; None for one that is read by ranges."""
    reader = opened(url, tries=1)
    if isinstance(reader, SpooledReader):
        return reader
    reader.close()
    return None
