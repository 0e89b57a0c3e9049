"""What a URL may be and how it is shown: allowed schemes, canonical form, and never a secret in a message."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

from rhostream.errors import UsageError

SCHEMES = ("file", "s3", "gs", "https", "memory")


def redact(url: str) -> str:
    """The URL without user, password and query: presigned URLs are secrets."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def resolve(url: str | os.PathLike[str]) -> str:
    """The canonical form: an absolute path for local files, else the URL as given.

    Raises UsageError for a scheme that is not allowed.
    """
    text = os.fspath(url)
    if text.startswith("pipe:"):
        # Not its text: a URL that is cut in the middle can't be redacted.
        raise UsageError(f"'pipe:...' is a shell command, not a shard; allowed: paths, {', '.join(SCHEMES)}")
    if "::" in text:
        raise UsageError(f"'::' in {redact(text)!r} has two meanings; give several shards as separate arguments")
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    scheme, rest = text.split("://", 1)
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {scheme!r} of {redact(text)!r} is not allowed; allowed: {', '.join(SCHEMES)}")
    return os.path.abspath(rest) if scheme == "file" else text.rstrip("/")


def is_local(url: str) -> bool:
    """Whether a resolved URL is a path of this machine."""
    return "://" not in url


def scheme_of(url: str) -> str:
    """The scheme of a resolved URL; "file" for a path."""
    return "file" if is_local(url) else url.split("://", 1)[0]


def place_of(url: str) -> str:
    """Scheme and bucket (or host) of a resolved URL: what the counts of retries go by."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{redact(url).partition('://')[2].split('/', 1)[0]}" if rest else "disk"


def join(url: str, *names: str) -> str:
    """`url/name/...`, for paths and URLs alike."""
    return "/".join([url.rstrip("/"), *names])
