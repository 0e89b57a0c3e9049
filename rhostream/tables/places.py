"""Data that moved: names that were given to shards once, and where they lie today.

A shard is known by `<root>/<path below it>` or, where no root was named, by its whole path. `--root NAME=URL` moves
both: of names without that root it means the folder NAME in them (`/old/place/data/a.tar` is below `data`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from rhostream import storage

LOOKED_AT = 2000  # names that are compared for a hint
TRIED = 8  # shards that are looked for, where a folder's name stands in several places


def url_below(name: str, roots: Mapping[str, str], *, folders: bool = False) -> str | None:
    """Where a shard of that name lies below one of the roots; with `folders` also below a folder of a root's name."""
    for root in sorted((root for root in roots if name.startswith(root + "/")), key=len, reverse=True):
        return storage.join(roots[root], name[len(root) + 1 :])
    for root in roots if folders else ():
        if f"/{root}/" in name:
            return storage.join(roots[root], name.partition(f"/{root}/")[2])
    return None


def todays_roots(
    known: Mapping[str, str], given: Mapping[str, str], names: Callable[[], Iterable[str]]
) -> dict[str, str]:
    """The roots by which shards get the names that they have in a table (or a model) with the roots `known`.

    A given root that nobody knows stands for the folder of that name in the names that there are, if it is in any.
    """
    found = {**known, **{name: url for name, url in given.items() if name in known}}
    strange = {name: url for name, url in given.items() if name not in known}
    if not strange:
        return found
    listed = list(names())
    return found | {_folder(name, url, listed) or name: url for name, url in strange.items()}


def _folder(root: str, url: str, names: Iterable[str]) -> str | None:
    """The beginning of names that ends in the folder `root`: that below which a shard is there today, else the only
    one."""
    below: dict[str, list[str]] = {}
    for name in names:
        at = -1
        while (at := f"/{name}".find(f"/{root}/", at + 1)) >= 0:
            below.setdefault(name[: at + len(root)], []).append(name[at + len(root) + 1 :])
    for folder, paths in below.items():
        if any(storage.exists(storage.join(url, path)) for path in paths[:TRIED]):
            return folder
    return next(iter(below)) if len(below) == 1 else None


def moved_hint(urls: Iterable[str], names: Iterable[str]) -> str:
    """What to say where shards that nobody knows look like some that are known, in another place; else ""."""
    known = {name.rsplit("/", 1)[-1]: name for name in islice(names, LOOKED_AT)}
    for url in urls:
        was = known.get(url.rsplit("/", 1)[-1])
        if was is None or was == url:
            continue
        old, new = was.split("/"), storage.redact(url).split("/")
        same = 1
        while same < min(len(old), len(new)) - 1 and old[-same - 1] == new[-same - 1]:
            same += 1
        if folder := old[-same - 1] if same < len(old) else "":
            return (
                f"if they are the same data in another place (they were named like {was}), say where they lie now: "
                f"--root {folder}={'/'.join(new[:-same]) or '/'}; else "
            )
    return ""
