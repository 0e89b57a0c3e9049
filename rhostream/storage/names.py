"""What a URL may be and how it is shown: allowed schemes, canonical form, and never a secret in a message."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit, urlunsplit

from rhostream.errors import UsageError

SCHEMES = ("file", "s3", "gs", "https", "memory")
KEYED = ("s3", "gs", "memory")  # what follows the bucket is a key: bytes of the object's name, whatever they are
_SIGNED = re.compile(r"\?([^/]*&)?(X-(Amz|Goog)-|AWSAccessKeyId=|GoogleAccessId=).*", re.IGNORECASE | re.DOTALL)
_ONE_SLASH = re.compile(r"(s3|gs|https?|memory):/(?!/)", re.IGNORECASE)


def redact(url: str) -> str:
    """The URL without user, password and query: presigned URLs are secrets.

    A key of a store has neither query nor fragment, so it stays whole, but for a signature that somebody left on it.
    """
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    if scheme.lower() in KEYED:
        bucket, slash, key = rest.partition("/")
        return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{_SIGNED.sub('', key)}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def text_of(value: object, what: str = "a path or URL") -> str:
    """A path or URL as text, bytes that are no UTF-8 as lone surrogates. Raises UsageError for what is neither."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, str):
        return value
    raise UsageError(f"expected {what}, got {'nothing (None)' if value is None else type(value).__name__}")


def listed(given: object, what: str = "shards") -> list[str]:
    """What an argument of one or many paths and URLs names, in its order. Raises UsageError for any other form."""
    if isinstance(given, (str, bytes, os.PathLike)):
        return [text_of(given)]
    if isinstance(given, (set, frozenset)):
        raise UsageError(f"{what}: a set has no order, and the order of shards decides the plan: give sorted(...)")
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, io.IOBase)):
        got = "nothing (None)" if given is None else f"a {type(given).__name__}"
        raise UsageError(f"{what}: expected a path, a URL or a list of them, got {got}")
    return [text_of(one, f"{what} as paths or URLs") for one in given]


def resolve(url: str | bytes | os.PathLike[str]) -> str:
    """The canonical form: an absolute path for local files, else the URL as given.

    Raises UsageError for a scheme that is not allowed, an empty name and what is no path at all.
    """
    text = text_of(url)
    if not text.strip() or "\0" in text:
        raise UsageError(f"{text!r} is no path and no URL: expected the name of a file, a folder or an object")
    if text.startswith("pipe:"):
        # Not its text: a URL that is cut in the middle can't be redacted.
        raise UsageError(f"'pipe:...' is a shell command, not a shard; allowed: paths, {', '.join(SCHEMES)}")
    if "::" in text:
        raise UsageError(f"'::' in {_shown(text)!r} has two meanings; give several shards as separate arguments")
    if _ONE_SLASH.match(text):
        raise UsageError(f"{_shown(text)!r} has one slash after its scheme, as pathlib leaves it: give a URL as text")
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    scheme, rest = text.split("://", 1)
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {scheme[:40]!r} of {_shown(text)!r} is not allowed; allowed: {', '.join(SCHEMES)}")
    if scheme == "file":
        return os.path.abspath(rest) if rest else resolve(rest)
    if not rest.split("/", 1)[0]:
        raise UsageError(f"{_shown(text)!r} names no {'host' if scheme == 'https' else 'bucket'}")
    if scheme == "https":
        try:
            urlsplit(text)
        except ValueError as exc:
            raise UsageError(f"'https://...' can't be understood: {exc}") from exc
    # The last slash of a query belongs to what was signed.
    return f"{scheme}://{rest if scheme == 'https' and '?' in rest else rest.rstrip('/')}"


def _shown(text: str) -> str:
    """For a message about a URL that can't be: redacted, or where it can't be parsed only its scheme."""
    if _ONE_SLASH.match(text):
        return text.partition("?")[0].rpartition("@")[2]
    try:
        return redact(text)
    except ValueError:
        return text.partition("://")[0] + "://..."


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
