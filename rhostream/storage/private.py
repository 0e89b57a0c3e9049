"""The names of other packages on which we lean though they never promised them: all of them, and nowhere else.

aiohttp sends a request again by itself when a connection that it had kept open breaks, so that a PUT may be made
twice and nobody has counted it. No public switch turns that off, and aiobotocore has no public way to its sessions.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rhostream.errors import UsageError

NAMES = {"aiohttp": ("ClientSession._retry_connection",),
         "aiobotocore": ("client._endpoint.http_session._sessions",)}  # fmt: skip


def only_once(session: Any) -> None:
    """Keep an aiohttp session from repeating requests. Raises UsageError where it has no such switch."""
    if not hasattr(session, "_retry_connection"):
        raise _lacking("aiohttp")
    session._retry_connection = False


def sessions_of(client: Any) -> list[Any]:
    """The aiohttp sessions that a client of aiobotocore has opened so far. Raises UsageError where it has none."""
    try:
        return list((client._endpoint.http_session._sessions or {}).values())
    except AttributeError:
        raise _lacking("aiobotocore") from None


def _lacking(package: str) -> UsageError:
    return UsageError(
        f"{package} {version(package)} has no {NAMES[package][0]}, without which it would repeat writes unseen: "
        f"install another version of {package}, or a newer rhostream"
    )
