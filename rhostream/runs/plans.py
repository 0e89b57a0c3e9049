"""Which shards a run goes by in which pass: those that it began with, and every longer list that it went on with.

run.json has the first list. A longer one is a change of the run, `shards`, which every later commit names with the step
and the pass that it holds from; the list itself stands once, in the note of the attempt that took it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhostream import storage
from rhostream.errors import TableError
from rhostream.runs.attempts import note_of
from rhostream.runs.link import Link

SHARDS = "shards"  # the field of such a change: the fingerprints of names and counts, before and after


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A list of shards and where in the run it was taken up. None is what an older version's run.json doesn't say."""

    names: Sequence[str]
    urls: Sequence[str]  # without secrets; in the order of the names
    first_pass: int = 0
    first_step: int = 0
    samples: int | None = None  # in all shards
    buffers_per_pass: int | None = None
    fingerprint: str | None = None  # of names and counts

    def written(self) -> dict[str, Any]:
        """As the note of an attempt has it."""
        return {**vars(self), "names": list(self.names), "urls": list(self.urls)}


def plans_of(run: str, record: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> list[RunPlan]:
    """The lists that the branch with these changes goes by, oldest first; [] before the run's beginning.

    Raises TableError when the note of a list is gone or can't be understood.
    """
    if not record:
        return []
    first = RunPlan(
        names=record.get("shards") or (),
        urls=record.get("shard_urls") or (),
        samples=record.get("samples"),
        buffers_per_pass=record.get("buffers_per_pass"),
        fingerprint=(record.get("fingerprints") or {}).get("shards"),
    )
    return [first, *(_noted(run, change) for change in changes if change["field"] == SHARDS)]


def settings_now(run: str, link: Link | None, began: Mapping[str, Any]) -> Any:
    """The settings that the newest commit's attempt noted; `began`, those of run.json, where it noted none.

    Raises TableError when the note of a run that grew is gone or can't be understood: nothing else says where it ends.
    """
    if link is None or not link.attempt:
        return began
    try:
        return note_of(run, link.attempt).get("settings", began)
    except TableError:
        if any(change["field"] == SHARDS for change in link.changes):
            raise
        return began


def plan_of_pass(plans: Sequence[RunPlan], pass_index: int) -> RunPlan:
    """The list that a pass goes by: of lists that were taken up at the same pass the last one."""
    return next(plan for plan in reversed(plans) if plan.first_pass <= pass_index)


def _noted(run: str, change: Mapping[str, Any]) -> RunPlan:
    """The list of a change, out of the note of the attempt that made it."""
    attempt = change.get("attempt")
    url = storage.join(run, f"attempts/{attempt}.json")
    try:
        given = note_of(run, int(attempt or 0))["grown"]
        names, urls = given["names"], given["urls"]
        numbers = {name: given[name] for name in ("first_pass", "first_step", "samples", "buffers_per_pass")}
        if not all(isinstance(one, str) for one in [*names, *urls]) or len(names) != len(urls):
            raise ValueError("expected a URL for each name of a shard")
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers.values()) or not numbers["buffers_per_pass"]:
            raise ValueError(f"expected whole numbers, got {numbers}")
        if given["fingerprint"] != change["new"]:
            raise ValueError(f"the list has fingerprint {given['fingerprint']}, the commits say {change['new']}")
    except (ValueError, TypeError, KeyError) as exc:
        raise TableError(
            f"{storage.redact(url)} should hold the list of shards that the run goes by from step "
            f"{change['step']:,} on, and can't be understood ({type(exc).__name__}: {exc})"
        ) from exc
    return RunPlan(names=names, urls=urls, fingerprint=given["fingerprint"], **numbers)
