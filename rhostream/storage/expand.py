"""From what a user names (paths, brace ranges, patterns, folders) to the list of shards that are meant."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable

import braceexpand
from fsspec.utils import glob_translate

from rhostream.errors import UsageError
from rhostream.storage.names import is_local, redact, resolve, scheme_of
from rhostream.storage.reading import list_files


def expand(urls: Iterable[str | os.PathLike[str]], suffix: str = ".tar") -> list[str]:
    """The shards that the arguments mean, resolved, in order, each once.

    An argument is a shard, a brace range (`train-{000..059}.tar`), a pattern (`*.tar`) or a folder (every `*.tar`
    below it, sorted). Raises UsageError when an argument matches nothing or a shard is named twice.
    """
    found: list[str] = []
    for argument in urls:
        text = os.fspath(argument)
        for one in braceexpand.braceexpand(text) if "{" in text else [text]:
            found += _expand_one(resolve(one), suffix)
    if not found:
        raise UsageError("no shards were given")
    seen: set[str] = set()
    for shard in found:
        if shard in seen:
            raise UsageError(f"shard {redact(shard)} is named twice: every sample must be planned once")
        seen.add(shard)
    return found


def _expand_one(url: str, suffix: str) -> list[str]:
    if "*" in url.rsplit("?", 1)[0]:
        matches = sorted(glob.glob(url, recursive=True)) if is_local(url) else _matching(url)
    elif is_local(url) and os.path.isdir(url):
        matches = list_files(url, suffix)
    elif not is_local(url) and scheme_of(url) != "https" and "." not in os.path.basename(url.split("://", 1)[1]):
        # A name without an extension is a folder, unless nothing lies below it.
        return list_files(url, suffix) or [url]
    else:
        return [url]
    if not matches:
        raise UsageError(f"no file matches {redact(url)}")
    return matches


def _matching(url: str) -> list[str]:
    """The objects of a store that a pattern means; only the folder before the first wildcard is listed."""
    pattern = re.compile(glob_translate(url))
    folder = url[: url.index("*")].rsplit("/", 1)[0]
    return [found for found in list_files(folder, "") if pattern.match(found)]
