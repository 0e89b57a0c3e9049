"""What a process tells its stores: options of each scheme, how to retry, where to spool; carried to loader workers.

Options may be secrets: they live in memory and in `RHOSTREAM_STORAGE_OPTIONS`, never in an artifact, log or message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rhostream.errors import UsageError
from rhostream.storage.names import SCHEMES

SPOOL_BYTES = 16 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How patient we are with a store: attempts, the waits between them, and the deadlines of each. Seconds."""

    tries: int = 6  # attempts in all
    first_wait: float = 0.5  # the bound of the first random wait; each later one is twice the one before
    longest_wait: float = 30.0
    total: float = 600.0  # no attempt begins later than this after the first
    connect: float = 10.0
    first_byte: float = 30.0  # from the request to its answer
    stall: float = 30.0  # between two pieces of a body
    slowest: float = 16384.0  # bytes per second, over any `stall` seconds

    @property
    def socket(self) -> float:
        """The deadline of a client for its socket: a little after ours, and the only one between upload and answer."""
        return 1.25 * max(self.first_byte, self.stall) + 0.1

    def __post_init__(self) -> None:
        if self.tries < 1 or min(self.total, self.connect, self.first_byte, self.stall, self.slowest) <= 0:
            raise UsageError(f"{self}: expected at least one try, and everything else above 0")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `configure`, `configure_retry`, `configure_spool` and the environment say."""

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # scheme -> options
    retry: Retry = field(default_factory=Retry)
    spool: str | None = None  # folder; None: below the system's temporary folder
    spool_bytes: int = SPOOL_BYTES
    version: int = 0  # clients of older settings are not used again


_current: Settings | None = None


def settings() -> Settings:
    """The settings in force. Raises UsageError when the environment's can't be understood."""
    global _current
    if _current is None:
        _current = Settings(options=_options_of_environment(), retry=_retry_of_environment(),
                            spool=os.environ.get("RHOSTREAM_SPOOL") or None, spool_bytes=_bytes_of_environment())
    return _current


def configure(scheme: str, options: Mapping[str, Any] | None) -> None:
    """Open every store of `scheme` ("s3", "gs", "https") with these options of its client; None: as if never set.

    s3 takes those of s3fs (key, secret, token, endpoint_url, profile, anon, client_kwargs, ...), gs those of gcsfs
    (token, project, endpoint_url, ...), https `headers`, `ca_file` and `trust_env`. They are kept in memory
    and go to loader workers, and nowhere else. Raises UsageError for a scheme that has none.
    """
    if scheme not in ("s3", "gs", "https"):
        raise UsageError(f"storage options for scheme {scheme!r}: expected s3, gs or https")
    others = {name: given for name, given in settings().options.items() if name != scheme}
    _set(options=others if options is None else {**others, scheme: dict(options)})


def configure_retry(retry: Retry | None) -> None:
    """How patiently every store is asked; None: as by default."""
    _set(retry=retry or Retry())


def configure_spool(folder: str | os.PathLike[str] | None, spool_bytes: int | None = None) -> None:
    """Where remote shards are kept on disk and how many bytes in all; None: as by default."""
    size = SPOOL_BYTES if spool_bytes is None else spool_bytes
    if size < 0:
        raise UsageError(f"a spool of {size} bytes: expected 0 or more")
    _set(spool=None if folder is None else os.fspath(folder), spool_bytes=size)


def _set(**changes: Any) -> None:
    global _current
    new = replace(settings(), **changes)
    if (new.options, new.retry) != (settings().options, settings().retry):
        new = replace(new, version=new.version + 1)
    _current = new


class Carried:
    """Put into what is sent to a worker process: unpickled there, it brings this process's settings along."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (settings(),)


def _arrive(sent: Settings) -> Carried:
    global _current
    _current = sent
    return Carried()


# -- the environment -------------------------------------------------------------------------------------------------


def _options_of_environment() -> dict[str, dict[str, Any]]:
    """RHOSTREAM_STORAGE_OPTIONS: JSON of scheme -> options, or the path of a file that holds it."""
    found = _json_of_environment("RHOSTREAM_STORAGE_OPTIONS")
    unknown = [name for name, given in found.items() if name not in SCHEMES or not isinstance(given, dict)]
    if unknown:
        raise UsageError(f"RHOSTREAM_STORAGE_OPTIONS: {unknown[0]!r} isn't a scheme with an object of options; "
                         'expected {"s3": {...}, "gs": {...}, "https": {...}}')
    return found


def _retry_of_environment() -> Retry:
    """RHOSTREAM_RETRY: JSON of the fields of `Retry`."""
    found = _json_of_environment("RHOSTREAM_RETRY")
    names = [f.name for f in fields(Retry)]
    for name, value in found.items():
        if name not in names or isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"RHOSTREAM_RETRY: {name!r}: expected numbers for some of {', '.join(names)}")
    return Retry(**found)


def _bytes_of_environment() -> int:
    text = os.environ.get("RHOSTREAM_SPOOL_BYTES") or str(SPOOL_BYTES)
    if not text.isdigit():
        raise UsageError(f"RHOSTREAM_SPOOL_BYTES {text!r}: expected a number of bytes")
    return int(text)


def _json_of_environment(name: str) -> dict[str, Any]:
    text = os.environ.get(name, "").strip()
    if text and not text.startswith("{"):
        try:
            with open(os.path.expanduser(text), encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError):
            # The value may be mistyped JSON, and so a secret: it is not repeated.
            raise UsageError(f"{name} is neither JSON nor the path of a file that can be read") from None
    try:
        found = json.loads(text or "{}")
    except ValueError:
        raise UsageError(f"{name} holds no valid JSON") from None
    if not isinstance(found, dict):
        raise UsageError(f"{name} holds no JSON object")
    return found
