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
from rhostream.storage.names import place_of, scheme_of

SPOOL_BYTES = 16 << 30
CONFIGURABLE = ("s3", "gs", "https")


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

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # by scheme or scheme://bucket
    retry: Retry = field(default_factory=Retry)
    spool: str | None = None  # folder; None: below the system's temporary folder
    spool_bytes: int = SPOOL_BYTES
    version: int = 0  # clients of older settings are not used again


_current: Settings | None = None


def settings() -> Settings:
    """The settings in force. Raises UsageError when the environment's can't be understood."""
    global _current
    if _current is None:
        _current = Settings(
            options=_options_of_environment(),
            retry=_retry_of_environment(),
            spool=os.environ.get("RHOSTREAM_SPOOL") or None,
            spool_bytes=_bytes_of_environment(),
        )
    return _current


def configure(store: str, options: Mapping[str, Any] | None) -> None:
    """Open every store of a scheme ("s3", "gs", "https"), or one bucket or host of it ("s3://results"), with these
    options of its client instead of the environment's; None: as if never set. A bucket's own options stand alone.

    s3 takes those of s3fs (key, secret, token, endpoint_url, profile, anon, client_kwargs, ...), gs those of gcsfs
    (token, project, endpoint_url, ...), https `headers`, `ca_file` and `trust_env`. They are kept in memory
    and go to loader workers, and nowhere else. Raises UsageError for a scheme that has none.
    """
    _require_configurable(store, "configure")
    others = {name: given for name, given in settings().options.items() if name != store}
    _set(options=others if options is None else {**others, store: dict(options)})


def options_of(url: str) -> tuple[str, Mapping[str, Any]]:
    """The options that a remote URL is opened with, and by what name they are known."""
    options, place = settings().options, place_of(url)
    name = place if place in options else scheme_of(url)
    return name, options.get(name, {})


def _require_configurable(store: str, who: str) -> None:
    scheme, sep, bucket = store.partition("://")
    if scheme not in CONFIGURABLE or (sep and (not bucket or "/" in bucket)):
        # It may be a mistyped secret, so it isn't repeated.
        raise UsageError(f"{who}: options are for s3, gs or https, or for one bucket as in s3://bucket")


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
    """RHOSTREAM_STORAGE_OPTIONS: JSON of options by scheme or scheme://bucket, or the path of a file that holds it."""
    found = _json_of_environment("RHOSTREAM_STORAGE_OPTIONS")
    for name, given in found.items():
        _require_configurable(name, "RHOSTREAM_STORAGE_OPTIONS")
        if not isinstance(given, dict):
            raise UsageError(f"RHOSTREAM_STORAGE_OPTIONS: {name}: expected an object of options")
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
