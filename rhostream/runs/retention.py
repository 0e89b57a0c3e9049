"""Which states of a run are kept: tensors go, links stay.

A state lies in checkpoints/step=S/attempt=K/. It counts when the branch in force has a commit of that step by that
attempt; what a killed attempt left there doesn't.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import NotFoundError, UsageError
from rhostream.runs import chain
from rhostream.runs.link import OLD, Link, Place, read_link
from rhostream.runs.old import FOLDER, old_url, read_old


@dataclass(frozen=True, order=True)
class Kept:
    """A state whose tensors are there; in the order in which states are made."""

    attempt: int
    step: int


@dataclass(frozen=True)
class Stretch:
    """The links that one attempt gave to a branch."""

    first: int
    last: Place


def stretches(run: str, link: Link) -> Iterator[Stretch]:
    """The attempts that a branch is made of, newest first; two reads for each but the first."""
    while True:
        yield Stretch(link.first, link.place)
        start = link if link.number == link.first else read_link(run, link.attempt, link.first)
        if (before := next(chain.behind(run, start), None)) is None:
            return
        link = before


def states(run: str) -> dict[Kept, list[str]]:
    """The files of every state that lies in the run, whoever left it there."""
    found: dict[Kept, list[str]] = {}
    for url in storage.list_files(storage.join(run, "checkpoints"), ""):
        if match := FOLDER.search(url.replace(os.sep, "/")):
            found.setdefault(Kept(int(match[2]), int(match[1])), []).append(url)
    return found


def of_branch(run: str, link: Link, there: Mapping[Kept, Sequence[str]]) -> list[Kept]:
    """Those that the branch of a commit has made, oldest first; attempts are followed back only as far as needed."""
    left, kept = sorted(there), list[Kept]()
    if not left:
        return []
    for stretch in stretches(run, link):
        if stretch.last.number == OLD:  # of before there were chains: the order of attempts is all that is known
            newest = Kept(stretch.last.attempt, stretch.last.step)
            kept += [one for one in left if one <= newest and any(f.endswith("/checkpoint.json") for f in there[one])]
            break
        kept += [one for one in left if one.attempt == stretch.last.attempt and one.step <= stretch.last.step]
        left = [one for one in left if one.attempt < stretch.last.attempt]
        if not left:
            break
    return sorted(kept)


def retain(run: str, keep: int, link: Link) -> list[Kept]:
    """Remove the tensors of all but the newest `keep` states behind a commit, its own among them, and what killed
    attempts left of theirs; returns all whose tensors are still there."""
    there = states(run)
    own = Kept(link.attempt, link.step)
    kept = {own, *of_branch(run, link, there)[-max(keep, 1) :]}
    stale = [one for one in there if one not in kept and one < own]
    for one in sorted(stale):
        # A checkpoint.json of before there were chains goes first: without its tensors it mustn't count.
        for url in sorted(there[one], key=lambda url: not url.endswith("/checkpoint.json")):
            storage.delete(url)
            crash_point("checkpoint: one file of an old one removed")
    return sorted(set(there) - set(stale))


def kept(run: str) -> list[Link]:
    """The commits of the branch in force whose tensors are there, oldest first."""
    link = chain.head(run)
    if link is None:
        return []
    found, there = list[Link](), states(run)
    left = set(of_branch(run, link, there))
    for one in chain.behind_and(run, link):
        state = Kept(one.attempt, one.step)
        if one.files and state in left:
            found.append(one)
            left.remove(state)
        if not left:
            break
    if left:  # of before there were chains: they don't name each other
        found += [
            read_old(old_url(run, Place(attempt=one.attempt, number=OLD, step=one.step, sha256="")))
            for one in sorted(left, reverse=True)
        ]
    return found[::-1]


def at_step(run: str, step: int) -> Link:
    """The newest commit of that step on the branch in force, its tensors there. Raises UsageError naming those kept."""
    link = chain.head(run)
    there = states(run)
    mine = [] if link is None else of_branch(run, link, there)
    if link is not None and (of_step := [one for one in mine if one.step == step]):
        attempt = of_step[-1].attempt
        for stretch in stretches(run, link):
            if stretch.last.number == OLD:
                return read_old(old_url(run, Place(attempt=attempt, number=OLD, step=step, sha256="")))
            if stretch.last.attempt == attempt:
                return _with_files(run, stretch, step)
    steps = ", ".join(f"{one:,}" for one in sorted({one.step for one in mine}))
    raise UsageError(
        f"{storage.redact(run)} keeps no state of step {step:,}; "
        + (f"kept are those of step {steps}" if steps else "it keeps none at all")
    )


def _with_files(run: str, stretch: Stretch, step: int) -> Link:
    """The last link of a stretch that has files of that step, by halves: steps never go down along a chain."""
    attempt, low, high = stretch.last.attempt, stretch.first, stretch.last.number
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if read_link(run, attempt, middle).step <= step else (low, middle - 1)
    for number in range(low, stretch.first - 1, -1):
        link = read_link(run, attempt, number)
        if link.step < step:
            break
        if link.files:
            return link
    raise NotFoundError(f"{storage.redact(run)} has tensors of step {step:,} that no commit of it names")
