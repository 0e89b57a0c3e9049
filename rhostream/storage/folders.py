"""What lies below a folder: on a disk by walking it, on a store page by page, so that a million names need no room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rhostream.errors import NotFoundError
from rhostream.storage.clients import store_of
from rhostream.storage.listing import Below, walk
from rhostream.storage.names import is_local, scheme_of
from rhostream.storage.reading import identity, translated
from rhostream.storage.retry import asked, run
from rhostream.storage.settings import Retry
from rhostream.storage.store import Entry, Identity


def list_entries(url: str, suffix: str) -> Iterator[tuple[str, Identity]]:
    """(URL, version) of every object below a folder that ends in `suffix`, in no order, a page at a time: no list of a
    million is held. What is gone before it is looked at is left out, and so are names that start with a dot.
    """
    if is_local(url):
        for path in list_files(url, suffix):
            with contextlib.suppress(NotFoundError):
                yield path, identity(path)
        return
    for path, version in _listed(url):
        if path.endswith(suffix) and not os.path.basename(path).startswith("."):
            yield f"{scheme_of(url)}://{path}", version


def list_files(url: str, suffix: str) -> list[str]:
    """Every object below a folder that ends in `suffix`, sorted; names that start with a dot are not results."""
    return sorted(f for f in below(url).files if f.endswith(suffix) and not os.path.basename(f).startswith("."))


def below(url: str) -> Below:
    """Every object below a folder, in no order; what some tools leave for a folder in a store is no object."""
    if is_local(url):
        with translated(url):
            return walk(url)
    return Below([f"{scheme_of(url)}://{path}" for path, _ in _listed(url) if not path.endswith("/")])


def _listed(url: str) -> Iterator[Entry]:
    """Page by page, each with its own deadline and retries."""
    (store, path), after = store_of(url), ""
    while True:

        async def attempt(patience: Retry, after: str = after) -> tuple[list[Entry], str]:
            return await asked(store.find(path, after), patience)

        page, after = run(url, attempt)
        yield from page
        if not after:
            return
