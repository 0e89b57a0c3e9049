"""From a shard's name to the file name of its part and back: one to one, and short enough for every file system.

    name         data/части/a b.tar         what tables, logs and SQL say
    file         data/%D1%87.../a%20b.tar.parquet

Percent-encoding triples what isn't ASCII, so a part of a path that would be longer than 255 bytes ends in `+` and a
digest of the whole (no encoded name holds a `+`); then the name is read from the footer. Decision 021.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from rhostream.errors import UsageError
from rhostream.storage import listed, redact, resolve, text_of

LONGEST = 255  # bytes of one part of a path, on every common file system
SUFFIX = ".parquet"
_DIGEST = 32  # hex digits
_DOTS = {".": "%2E", "..": "%2E%2E"}  # of a key in a store; on a disk they would lead elsewhere
_RAW_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


def plain(url: str) -> str:
    """The text that stands for a URL in tables: bytes that are no UTF-8 as `\\xe9`, as in keys; no user, no query."""
    return redact(url).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def raw(path: str) -> str:
    """The local path that `plain` made this of: as it stands where there is such a file."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    found = os.fsdecode(_RAW_BYTE.sub(lambda m: bytes([int(m[1], 16)]), os.fsencode(path)))
    return found if os.path.lexists(found) else path


def file_of(name: str) -> str:
    """Where the part of a shard lies below `parts/`."""
    return "/".join(part if len(part) <= LONGEST else _shortened(part) for part in unshortened(name).split("/"))


def unshortened(name: str) -> str:
    """The same whatever its length, as stores have taken it."""
    parts = ("_" + name if name.startswith("/") else name).split("/")
    return "/".join(_DOTS.get(part) or quote(part, safe="") for part in parts) + SUFFIX


def _shortened(part: str) -> str:
    suffix = SUFFIX if part.endswith(SUFFIX) else ""
    kept = re.sub(r"%.?\Z", "", part[: LONGEST - len(suffix) - _DIGEST - 1])
    return f"{kept}+{hashlib.sha256(part.encode()).hexdigest()[:_DIGEST]}{suffix}"


def name_of(file: str) -> str | None:
    """The name of the shard whose part lies there; None where only the part itself knows."""
    if "+" in file:
        return None
    name = unquote(file.removesuffix(SUFFIX))
    return name[1:] if name.startswith("_/") else name


# -- what a user gives -----------------------------------------------------------------------------------------------


def checked_roots(roots: object) -> dict[str, str]:
    """{name: URL} with the URLs resolved. Raises UsageError for any other form, and for a place with two names."""
    if roots is None:
        return {}
    if not isinstance(roots, Mapping):
        raise UsageError(f"roots: expected a dict of names and URLs, got {type(roots).__name__}")
    resolved: dict[str, str] = {}
    for name, url in roots.items():
        if not isinstance(name, str) or name in ("", ".", "..", "_") or name.endswith("/") or not name.isprintable():
            raise UsageError(f"--root {name!r}=...: expected a name that isn't _ or dots, or a folder's whole path")
        place = resolve(text_of(url, f"a path or URL as root {name!r}"))
        for other, there in resolved.items():
            if there == place:
                raise UsageError(
                    f"--root {name} and --root {other} are the same place {redact(place)}: a shard has one name"
                )
        resolved[name] = place
    return resolved


def parse_roots(entries: Iterable[str]) -> dict[str, str]:
    """`NAME=URL` arguments as a dict of resolved URLs. Raises UsageError."""
    roots: dict[str, str] = {}
    for entry in listed(entries, "--root"):
        name, equals, url = entry.partition("=")
        if not (name and equals and url) or "/" in name:
            raise UsageError(f"--root {entry!r}: expected NAME=URL, the name without a slash")
        if name in roots:
            raise UsageError(f"--root {name} is given twice: {redact(roots[name])} and {redact(url)}")
        roots[name] = url
    return checked_roots(roots)


def by_name(urls: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """{name: URL}, in their order. Raises UsageError when two shards have the same name."""
    found: dict[str, str] = {}
    for url, name in zip(urls, names, strict=True):
        if name in found:
            raise UsageError(
                f"shards {redact(found[name])} and {redact(url)} have the same name {name}; "
                "name their folders with --root NAME=URL"
            )
        found[name] = url
    return found
