"""From what a user names (paths, brace ranges, patterns, folders) to the list of shards that are meant.

A name that is there by those very letters is that file or object; only else do `{`, `*`, `?` and `[` mean more.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from typing import Any

import braceexpand

from rhostream.errors import NotFoundError, UsageError
from rhostream.storage.names import is_local, listed, redact, resolve, scheme_of
from rhostream.storage.reading import below, exists, read_bytes

LOG = logging.getLogger("rhostream")
MOST = 10_000_000  # shards of one brace range: more is a slip of the finger that would fill the memory
_RANGE = re.compile(r"\{(-?[0-9]{1,99})\.\.(-?[0-9]{1,99})")
_PATTERN = re.compile(r"[*?\[]")
_TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)\Z", re.IGNORECASE)
_said: set[str] = set()


def expand(
    urls: str | bytes | os.PathLike[str] | Iterable[str | bytes | os.PathLike[str]], suffix: str = ".tar"
) -> list[str]:
    """The shards that one argument or several mean, resolved, in order, each once.

    An argument is a shard, a brace range (`train-{000..059}.tar`), a pattern (`*.tar`), a folder (every `*.tar`
    below it, linked folders included, sorted) or `@FILE`, whose lines are any of these. What lies beside them and could
    be meant is counted in a warning. Raises UsageError when an argument can't be understood or matches nothing, or a
    shard is named twice.
    """
    found: list[str] = []
    for argument in listed(urls):
        for line in _lines(argument):
            for text in _braces(line):
                found += _expand_one(text, suffix)
    if not found:
        raise UsageError("no shards were given")
    _require_once(found)
    return found


def _lines(text: str) -> list[str]:
    """What an argument names: of `@FILE` the lines of that file."""
    if not text.startswith("@") or os.path.lexists(text):
        return [text]
    try:
        lines = os.fsdecode(read_bytes(resolve(text[1:]))).split("\n")
    except NotFoundError:
        raise UsageError(f"{_named(text)}: there is no such file of shards, one a line") from None
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _braces(text: str) -> Iterable[str]:
    if "{" not in text or ("://" not in text and os.path.lexists(os.path.expanduser(text))):
        return [text]
    if prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(text)) > MOST:
        raise UsageError(f"{_named(text)} stands for more than {MOST:,} shards: check its range")
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError as exc:
        raise UsageError(
            f"{_named(text)} can't be understood (unbalanced braces): expected a range as in train-{{000..059}}.tar"
        ) from exc


def _named(text: str) -> str:
    """An argument in a message, as it was given where that tells no secret."""
    return repr(text) if "://" not in text else text.partition("://")[0] + "://..."


def _expand_one(text: str, suffix: str) -> list[str]:
    url = resolve(text)
    if is_local(url):
        return _on_disk(url, text, suffix)
    if scheme_of(url) == "https":
        return _require(_matching(url), url) if "*" in url.partition("?")[0] else [url]
    plain = redact(url).split("://", 1)[1]  # a signature that was left on a key is no pattern
    key = plain.partition("/")[2]
    if _PATTERN.search(plain) and not text.endswith("/"):
        return [url] if key and exists(url) else _require(_matching(url), url)
    if _TAR.search(key) and not text.endswith("/"):
        return [url]  # without a request: a list may have a million of them
    shards, why = _in_folder(url, suffix)
    if not shards and not text.endswith("/") and key and exists(url):
        return [url]
    return _require(shards, url, why)


def _on_disk(url: str, text: str, suffix: str) -> list[str]:
    if os.path.isdir(url):
        shards, why = _in_folder(url, suffix)
        return _require(shards, url, why)
    if _PATTERN.search(url) and not os.path.lexists(url):
        return _require(_on_disk_matching(url, suffix), url)
    if "," in text and not os.path.lexists(url):
        raise UsageError(f"{text!r} is no file: several shards are several arguments, without commas")
    return [url]


def _require(found: list[str], url: str, why: str = "") -> list[str]:
    if not found:
        raise UsageError(f"no file matches {redact(url)}{why}")
    return found


def _in_folder(url: str, suffix: str) -> tuple[list[str], str]:
    """The shards below a folder, and what a message says of the others where there is none."""
    found = below(url)
    shards = sorted(f for f in found.files if f.endswith(suffix) and not _hidden(f))
    others = sorted(f for f in found.files if not f.endswith(suffix) or _hidden(f))
    if not shards:
        made = any(f.endswith("/_table.json") for f in others)
        tell = (
            " (it is a table; shards are the tars that it was made of)"
            if made
            else f" ({len(others):,} other files lie there, such as {os.path.basename(others[0])})"
            if others
            else ""
        )
        return [], f": no file below it ends in {suffix}{tell}"
    meant = [f for f in others if _TAR.search(f)]
    if meant:
        _warn(
            f"{len(meant):,} files below {redact(url)} were left out, such as {os.path.basename(meant[0])}: of a "
            f"folder only what ends in {suffix} is taken; name the others to have them read"
        )
    _tell_again(found.again, url)
    return shards, ""


def _hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _warn(text: str) -> None:
    """Once a process: a verb may expand the same list several times."""
    if text not in _said:
        _said.add(text)
        LOG.warning("%s", text)


def _on_disk_matching(url: str, suffix: str) -> list[str]:
    """The files that a pattern means, and the shards below the folders that it means."""
    there, rest = "/", url.strip("/").split("/")
    while rest and os.path.lexists(os.path.join(there, rest[0])):  # a folder may be named run[1]
        there = os.path.join(there, rest.pop(0))
    if "**" in rest:
        return _deep(there, rest)
    found: list[str] = []
    for match in sorted(glob.glob(os.path.join(glob.escape(there), *rest))):
        found += _in_folder(match, suffix)[0] if os.path.isdir(match) else [match]
    return found


def _deep(folder: str, rest: Sequence[str]) -> list[str]:
    """The files that `**` means; links are followed as in a folder, where `glob` would go round and round."""
    files = below(folder)
    pattern = _compiled("/".join(rest))
    _tell_again(files.again, folder)
    start = len(folder.rstrip("/")) + 1
    return sorted(f for f in files.files if pattern.match(f[start:]) and "/." not in f"/{f[start:]}")


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of paths, with `**`, as an expression."""
    from fsspec.utils import glob_translate  # a package that a reader of plain folders does without

    return re.compile(glob_translate(pattern))


def _tell_again(linked: Sequence[str], folder: str) -> None:
    if linked:
        _warn(
            f"{len(linked):,} linked folders below {redact(folder)} were left out, such as {min(linked)}: they lead "
            "to folders that are listed already"
        )


def _matching(url: str) -> list[str]:
    """The objects of a store that a pattern means; only the folder before the first wildcard is listed."""
    if _PATTERN.search(url.split("://", 1)[1].partition("/")[0]):
        raise UsageError(f"{redact(url)}: the name of a bucket can't be a pattern")
    # `?` and `[` may be letters of a folder's name beside a `*` that is none.
    letters = re.sub(r"[\[?]", lambda c: f"[{c[0]}]", url)
    for marks, text in (("*", letters), ("*?[", url)):
        if not any(mark in url for mark in marks):
            continue
        folder = url[: min(url.index(mark) for mark in marks if mark in url)].rsplit("/", 1)[0]
        pattern = _compiled(text)
        found = sorted(f for f in below(folder).files if pattern.match(f) and not _hidden(f))
        if found:
            return found
    return []


def _canonical() -> Callable[[str], str]:
    """A function from a path to one spelling of it; the links of its folder are followed, each folder once."""
    real: Any = cache(os.path.realpath)

    def canonical(path: str) -> str:
        folder = os.path.dirname(path)
        there = real(folder)
        return path if there == folder else os.path.join(there, os.path.basename(path))

    return canonical


def _require_once(shards: Sequence[str]) -> None:
    """Raise UsageError where a shard is named twice, whatever the spelling."""
    canonical, seen = _canonical(), set[str]()
    for shard in shards:
        one = canonical(shard) if is_local(shard) else shard
        if one in seen:
            first = next(s for s in shards if (canonical(s) if is_local(s) else s) == one)
            shown = "" if first == shard else f" (first as {redact(first)})"
            raise UsageError(f"shard {redact(shard)} is named twice{shown}: every sample must be planned once")
        seen.add(one)
