"""Which client is asked for a URL: one adapter a scheme, opened once a process, its package imported only then."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from rhostream.errors import AccessError, MissingExtraError, RhostreamError, UsageError
from rhostream.storage.faults import diagnose
from rhostream.storage.names import scheme_of
from rhostream.storage.settings import options_of, settings
from rhostream.storage.store import Store

EXTRA_OF = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "https": ("aiohttp", "https")}

_open: dict[str, tuple[tuple[int, int], Store]] = {}
_lock = threading.Lock()


def store_of(url: str) -> tuple[Store, str]:
    """The store of a resolved remote URL and the path inside it. Raises MissingExtraError, UsageError, AccessError."""
    scheme, path = scheme_of(url), url.split("://", 1)[1]
    name, options = options_of(url)
    # A client doesn't survive a fork: its connections and its event loop are the parent's.
    valid = os.getpid(), settings().version
    with _lock:
        if name not in _open or _open[name][0] != valid:
            try:
                _open[name] = valid, _make(scheme, options)
            except RhostreamError:
                raise
            except ImportError as exc:
                raise MissingExtraError.of(*EXTRA_OF.get(scheme, (scheme, scheme))) from exc
            except Exception as exc:  # its text may hold an option's value, which may be a secret
                fault = diagnose(exc)
                kind = AccessError if fault.act == "denied" else UsageError
                raise kind(f"{scheme}:// can't be opened: {fault.says}") from None
        return _open[name][1], path


def _make(scheme: str, options: Mapping[str, Any]) -> Store:
    retry = settings().retry
    if scheme == "s3":
        from rhostream.storage.s3 import S3

        return S3(options, retry)
    if scheme == "gs":
        from rhostream.storage.gcs import GCS

        return GCS(options, retry)
    if scheme == "https":
        from rhostream.storage.web import Web

        return Web(options, retry)
    from rhostream.storage.memory import Memory

    return Memory()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
