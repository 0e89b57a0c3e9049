"""Ask a store until it answers: attempt > deadline > diagnosis > wait > attempt, counted and bounded.

    run(url, attempt)   the loop; an attempt is a coroutine on fsspec's own event loop
    transfer(...)       one read: first byte, stalls, throughput, length and checksum, all inside an attempt

Waits are random up to a bound that doubles ("full jitter"), so that a thousand workers don't come back together; a
store that says Retry-After is taken at its word. A refused credential ends the loop at once: asking again locks keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from rhostream.errors import (
    AccessError,
    AlreadyExistsError,
    ChangedError,
    NotFoundError,
    RhostreamError,
    StorageError,
)
from rhostream.storage import faults
from rhostream.storage.faults import TransferError, VersionError, diagnose
from rhostream.storage.names import place_of, redact
from rhostream.storage.settings import Retry, settings
from rhostream.storage.store import Found, Span, Store

LOG = logging.getLogger("rhostream")
T = TypeVar("T")
UPLOAD = 8  # times `slowest`, at least: how far an upload has come is not seen, so its deadline is for all of it
_said_slow: set[str] = set()


def run(url: str, attempt: Callable[[Retry], Coroutine[Any, Any, T]], tries: int | None = None) -> T:
    """Make attempts until one succeeds, `tries` at most.

    Raises NotFoundError, AccessError, AlreadyExistsError, ChangedError, or StorageError when patience ends.
    """
    patience, place, shown = settings().retry, place_of(url), redact(url)
    bound, kinds = patience.tries if tries is None else tries, list[str]()
    jitter = random.Random(os.getpid() ^ time.monotonic_ns())
    start = time.monotonic()
    while True:
        try:
            return _wait_for(attempt(patience))
        except RhostreamError:
            raise  # ours already
        except Exception as exc:
            fault = diagnose(exc)
            if fault.act == "disk":
                raise  # our own disk is full: no question to the store
        # Outside of the handler, so that no client's exception, whose text may hold a secret, is ours' context.
        if fault.act != "retry":
            raise _final(fault, shown)
        kinds.append(fault.kind)
        longest = min(patience.longest_wait, patience.first_wait * 2 ** (len(kinds) - 1))
        wait = fault.wait + jitter.uniform(0, longest)
        if tries is not None and len(kinds) == bound:
            faults.count(place, fault.kind)  # who asks with fewer tries than usual leaves the rest to another
        if len(kinds) >= bound or time.monotonic() - start + wait > patience.total:
            before = f" (tried {len(kinds)} times in {time.monotonic() - start:.0f} s: {', '.join(kinds)})"
            asked = f"; it asked to wait {fault.wait:.0f} s" if fault.wait else ""
            raise StorageError(f"{shown}: {fault.says}{asked}{before}; the same command again goes on from here")
        faults.count(place, fault.kind)
        LOG.debug("%s: %s; asking again in %.1f s", shown, fault.says, wait)
        time.sleep(wait)


def _final(fault: faults.Fault, shown: str) -> Exception:
    says = f"{shown}: {fault.says}" if fault.act in ("denied", "final") else f"{shown} {fault.says}"
    errors = {"denied": AccessError, "missing": NotFoundError, "exists": AlreadyExistsError, "changed": ChangedError}
    kind: type[RhostreamError] = errors.get(fault.act, StorageError)
    return kind(says)


def _wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on fsspec's loop, where the clients live; what interrupts us cancels it."""
    import asyncio  # who reads a disk alone does without: 75 ms of every start

    import fsspec.asyn

    future = asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@contextlib.asynccontextmanager
async def within(seconds: float, kind: str) -> AsyncIterator[None]:
    """A deadline that is a fault of that kind."""
    import asyncio

    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if deadline.expired():
            raise TransferError(kind, f"{seconds:g} s") from None
        raise


async def asked(awaitable: Awaitable[T], patience: Retry, payload: int = 0) -> T:
    """One small request and its answer, with the first byte's deadline; more for the bytes that go up."""
    async with within(patience.first_byte + payload / (UPLOAD * patience.slowest), "first byte"):
        return await awaitable


async def transfer(
    url: str,
    store: Store,
    path: str,
    sink: Callable[[bytes], object],
    patience: Retry,
    span: Span | None = None,
    known: Found | None = None,
) -> Found | None:
    """Read an object, or the bytes `span` of it, into `sink`, and prove that they are all there and right.

    `known`: what was asked for; another version is a VersionError. Raises TransferError for what may be tried again.
    """
    async with contextlib.AsyncExitStack() as open_body:
        async with within(patience.first_byte, "first byte"):
            # `known` pins the version: an adapter raises VersionError when another one is there today.
            body = await open_body.enter_async_context(store.get(path, span, known.identity.tag if known else ""))
        said = body.found
        if known and said and said.identity.tag != known.identity.tag:
            raise VersionError
        found = known or said
        checks = [] if span or found is None else _checks(found)
        pace, total = _Pace(url, patience), 0
        while True:
            async with within(patience.stall, "stalled"):
                piece = await body.read()
            if not piece:
                break
            total += len(piece)
            for digest, _ in checks:
                digest.update(piece)
            sink(piece)
            pace.moved(len(piece))
    if body.length is not None and total < body.length:
        raise TransferError("cut body", f"{total:,} of {body.length:,} bytes")
    size = found.identity.size if found else None
    expected = span[1] - span[0] if span and span[0] >= 0 else known.identity.size if known else None
    if span and span[0] < 0 and size is not None:  # its end, or all of it
        expected = size if total == size else min(-span[0], size)
    if expected is not None and total != expected:
        raise TransferError("short body", f"{total:,} of {expected:,} bytes")
    if any(digest.digest() != right for digest, right in checks):
        raise TransferError("checksum")
    return found


def _checks(found: Found) -> list[tuple[Any, bytes]]:
    """(a running digest, what it must come to): md5 where the store knows it, else crc32c where we can."""
    if found.md5 is not None:
        return [(hashlib.md5(usedforsecurity=False), found.md5)]
    if found.crc32c is not None:
        with contextlib.suppress(ImportError):
            import google_crc32c

            return [(google_crc32c.Checksum(), found.crc32c)]
    return []


class _Pace:
    """Gives a transfer up that is slower than `slowest`, measured over stretches of `stall` seconds."""

    def __init__(self, url: str, patience: Retry) -> None:
        self._url, self._patience = url, patience
        self._since, self._bytes = time.monotonic(), 0

    def moved(self, n: int) -> None:
        self._bytes += n
        seconds = time.monotonic() - self._since
        if seconds < self._patience.stall:
            return
        if self._bytes < self._patience.slowest * seconds:
            place = place_of(self._url)
            if place not in _said_slow:
                _said_slow.add(place)
                LOG.warning(
                    "%s is slow: %.0f bytes a second, less than the %.0f that are waited for; trying again",
                    place,
                    self._bytes / seconds,
                    self._patience.slowest,
                )
            raise TransferError("slow", f"{self._bytes / seconds:,.0f} bytes a second")
        self._since, self._bytes = time.monotonic(), 0
