"""Read-ahead: the shards that come next are brought into the spool by a few threads while the current ones are read.

It can only help: what fails here is tried again, in earnest, by whoever opens the shard.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Self

from rhostream.storage.names import is_local
from rhostream.storage.reading import Reader, SpooledReader, opened

THREADS = 4


class ReadAhead:
    """Holds wanted shards in the spool until they are no longer wanted; bounded by what is wanted at a time."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads, self._running = threads, 0
        self._wanted: list[str] = []
        self._done: dict[str, Reader | None] = {}  # None: being brought, or it can't be spooled
        self._changed = threading.Condition()
        self._closed = False

    def want(self, urls: Sequence[str]) -> None:
        """The remote shards to have next, the most urgent first; returns at once."""
        wanted = [url for url in dict.fromkeys(urls) if not is_local(url)]
        if not wanted and not self._wanted:
            return
        with self._changed:
            self._wanted = wanted
            left = [self._done.pop(url) for url in list(self._done) if url not in wanted]
            waiting = sum(url not in self._done for url in wanted)
            self._changed.notify_all()
            for _ in range(min(waiting, self._threads - self._running)):
                self._running += 1
                # Daemons: a download must not keep a process from ending.
                threading.Thread(target=self._work, name="rhostream-ahead", daemon=True).start()
        for reader in left:
            if reader is not None:
                reader.close()

    def _next(self) -> str | None:
        """The next shard to bring; None when this thread should end."""
        with self._changed:
            while not self._closed:
                for url in self._wanted:
                    if url not in self._done:
                        self._done[url] = None
                        return url
                self._changed.wait()
            self._running -= 1
            return None

    def _work(self) -> None:
        while (url := self._next()) is not None:
            reader: Reader | None = None
            try:
                reader = opened(url, tries=1)
            except Exception:  # whatever it was: whoever opens the shard meets it again, and says it
                continue
            with self._changed:
                if isinstance(reader, SpooledReader) and url in self._done and not self._closed:
                    self._done[url], reader = reader, None
            if reader is not None:
                reader.close()

    def close(self) -> None:
        """Forget what is wanted; threads end when their shard is there."""
        with self._changed:
            self._closed, self._wanted = True, []
            readers, self._done = list(self._done.values()), {}
            self._changed.notify_all()
        for reader in readers:
            if reader is not None:
                reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
