"""Names: a shard's name in a table and where it lies today, and where its part lies.

s3://bucket/train/00.tar  --root train=s3://bucket/train-->  train/00.tar  -->  TABLE/parts/train/00.tar.parquet
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from rhostream import storage
from rhostream.errors import NotFoundError, TableError
from rhostream.tables.il.info import TableInfo
from rhostream.tables.il.part import read_part_facts
from rhostream.tables.names import SUFFIX, by_name, file_of, name_of, plain, raw, unshortened
from rhostream.tables.places import todays_roots, url_below


def shard_name(url: str, roots: Mapping[str, str]) -> str:
    """`<root>/<path below it>`: what identifies a shard in tables and logs, wherever the data lies today.

    Without a matching root: the bucket and path of a remote shard, the absolute path of a local one.
    """
    name = plain(url)  # a name goes into tables and logs, so no user and no query may be in it
    for root, place in sorted(roots.items(), key=lambda item: (-len(item[1]), item[0])):
        folder = plain(storage.resolve(place)).rstrip("/")
        if name.startswith(folder + "/"):
            return root + name[len(folder) :]
    return name if storage.is_local(name) else name.split("://", 1)[1]


def named_shards(urls: Iterable[str], roots: Mapping[str, str]) -> dict[str, str]:
    """{name: URL} of resolved shards, in their order. Raises UsageError when two have the same name."""
    shards = list(urls)
    return by_name(shards, (shard_name(url, roots) for url in shards))


def roots_today(table: str, info: TableInfo, roots: Mapping[str, str] | None) -> dict[str, str]:
    """The roots by which shards of today get the names that they have in the table; see `todays_roots`."""
    return todays_roots(info.roots, roots or {}, lambda: names_in(table))


def names_in(table: str) -> Iterator[str]:
    return (shard_of_part(table, part) for part in part_urls(table))


def part_url(table: str, shard: str) -> str:
    """Where the part of a shard lies; the path mirrors the shard's name."""
    file, whole = file_of(shard), unshortened(shard)
    if file != whole and not storage.is_local(table) and _is_there(storage.join(table, "parts", whole)):
        return storage.join(table, "parts", whole)  # stores took longer names before they were shortened
    return storage.join(table, "parts", file)


@lru_cache(maxsize=100_000)
def _is_there(url: str) -> bool:
    return storage.exists(url)


def part_urls(table: str) -> list[str]:
    """Every part there is, each under the name that `part_url` would give it."""
    parts = storage.join(table, "parts")
    found = storage.list_files(parts, ".parquet")
    if storage.is_local(table):
        return found
    # A store lists an object as its client writes it, which may differ in slashes from how the table was named.
    below = parts.split("://", 1)[1].strip("/") + "/"
    return [storage.join(parts, url.split("://", 1)[1].lstrip("/").removeprefix(below)) for url in found]


def shard_of_part(table: str, part: str) -> str:
    """The name of the shard whose part would lie at `part`: the way back of `part_url`.

    Where the file's name was shortened the part itself says it; one that can't be read goes by its file's name.
    """
    file = part[len(storage.join(table, "parts")) + 1 :]
    if (name := name_of(file)) is not None:
        return name
    try:
        return read_part_facts(part).shard
    except (TableError, NotFoundError):
        return file.removesuffix(SUFFIX)


def shard_url(name: str, info: TableInfo, roots: Mapping[str, str] | None = None) -> str:
    """Where a shard of that name lies: below its root as of today, else as `roots` of the table say, else as named."""
    if below := url_below(name, roots or {}, folders=True) or url_below(name, info.roots):
        return raw(below)
    scheme = info.places.get("scheme")
    return raw(name) if name.startswith("/") or not scheme else f"{scheme}://{name}"
