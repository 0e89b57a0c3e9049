"""The chain of a run's commits, proved from its newest to its first: digests, numbers, rows, and what was merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rhostream import storage
from rhostream.errors import RhostreamError
from rhostream.runs import chain
from rhostream.runs.attempts import start_of
from rhostream.runs.link import KINDS, OLD, Link, Place, url_of
from rhostream.runs.old import old_commits, old_url, order_of
from rhostream.tables.merged import same_rows


@dataclass(frozen=True)
class Commit:
    """A commit that should be there: where it lies, and what it says, or why that can't be known."""

    url: str
    link: Link | None
    error: RhostreamError | None = None


def commits_behind(run: str) -> Iterator[Commit]:
    """The state in force and the commits behind it, newest first; behind one that can't be read by their names."""
    try:
        place = chain.newest_place(run)
    except RhostreamError as exc:
        yield Commit(run, None, exc)
        return
    while place is not None:
        url = old_url(run, place) if place.number == OLD else url_of(run, place.attempt, place.number)
        link: Link | None = None
        try:
            link = chain.in_force(run, place)
            yield Commit(url, link)
        except RhostreamError as exc:
            yield Commit(url, None, exc)
        place = _before(run, place, url) if link is None or place.number == OLD else link.previous


def _before(run: str, place: Place, url: str) -> Place | None:
    """What lies before a commit that doesn't say so."""
    if place.number == OLD:
        older = [one for one in old_commits(run) if order_of(one) < order_of(url)]
        if not older:
            return None
        attempt, step = order_of(older[-1])
        return Place(attempt=attempt, number=OLD, step=step, sha256="")
    if place.number and storage.exists(url_of(run, place.attempt, place.number - 1)):
        return Place(attempt=place.attempt, number=place.number - 1, step=0, sha256="")
    return start_of(run, place.attempt)[1]


def chain_problems(run: str, newest: Link, whole: Link) -> list[str]:
    """What is wrong with the links behind a commit; `whole` is the same commit with all its segments."""
    problems, merged = list[str](), dict[str, str]()
    problems += [
        f"{path} is named {n:,} times by the commit of step {whole.step:,}: its rows count {n:,} times"
        for path, n in Counter(s["path"] for kind in KINDS for s in getattr(whole, kind)).items()
        if n > 1
    ]
    try:
        newer = newest
        _rows_agree(newest, None, problems)
        merged |= _merged(run, newest, problems)
        for link in chain.behind(run, newest):
            if (link.step, link.pass_index, link.buffer) > (newer.step, newer.pass_index, newer.buffer):
                problems.append(
                    f"commit {newer.number:,} stands at step {newer.step:,}, the one before it at step {link.step:,}"
                )
            _rows_agree(newer, link, problems)
            merged |= _merged(run, link, problems)
            newer = link
    except RhostreamError as exc:
        problems.append(str(exc))
    for segment in (s for kind in KINDS for s in getattr(whole, kind)):
        if segment["path"] in merged:
            problems.append(f"{segment['path']} counts beside {merged[segment['path']]}, which it was merged into")
    return problems


def _rows_agree(link: Link, before: Link | None, problems: list[str]) -> None:
    """The rows of its segments are those that it counts: all of them, or those since the link before."""
    if not link.counts or (before is None and not link.whole):
        return
    counted = sum(link.counts.values()) - (0 if link.whole or before is None else sum(before.counts.values()))
    rows = sum(segment["rows"] for segment in link.log)
    if rows != counted and not (link.whole and before is None):
        problems.append(
            f"commit {link.number:,} of step {link.step:,} names log segments of {rows:,} rows and counts {counted:,}"
        )


def _merged(run: str, link: Link, problems: list[str]) -> dict[str, str]:
    """Part -> the segment it was merged into; those that are all still there are compared row by row."""
    for one in link.merged:
        urls = [storage.join(run, path) for path in (one["path"], *one["of"])]
        if all(map(storage.exists, urls)) and not same_rows(urls[0], urls[1:]):
            problems.append(
                f"{one['path']} doesn't hold the rows of the {len(one['of']):,} segments that were merged into it"
            )
    return {path: one["path"] for one in link.merged for path in one["of"]}
