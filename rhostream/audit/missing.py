"""Which shards a table has no part of, as names for people and as a list that `--shards @FILE` takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from rhostream import storage
from rhostream.audit.runs import is_table
from rhostream.errors import UsageError
from rhostream.tables import il as il_table
from rhostream.tables.names import checked_roots


def missing_parts(table: str, shards: Iterable[str], parts: Set[str]) -> list[str]:
    """Those of the named shards whose part is not among `parts`, the URLs of the parts that are there."""
    return [name for name in shards if il_table.part_url(table, name) not in parts]


def missing_shards(table: str, shards: Iterable[str], roots: Mapping[str, str] | None = None) -> list[str]:
    """The URLs of the shards that a table has no part of, in their order; its parts are listed and none is read.

    Raises UsageError for a folder that is no table, and for a URL that can't stand in a file of shards: one with a
    signature or a password, which are secrets, or with a line break.
    """
    table = storage.resolve(table)
    if not is_table(table):
        raise UsageError(f"{storage.redact(table)} is no table, and only a table has parts that are missing")
    known = il_table.roots_today(table, il_table.open_info(table), checked_roots(roots))
    wanted = il_table.named_shards(storage.expand(shards), known)
    urls = [wanted[name] for name in missing_parts(table, wanted, set(il_table.part_urls(table)))]
    for url in urls:
        if storage.redact(url) != url or "\n" in url or url.endswith("\r"):
            shown = storage.redact(url)
            raise UsageError(f"{shown!r} can't be a line of a list: it has a signature, a password or a line break")
    return urls
