"""Compaction: many small segments of a run become few larger ones, so that a whole link stays short.

    whole: plan (rank 0: who merges what) > merge (every rank its own) > applied (the lists of the whole link)
    forget, two links later: remove what was merged

Only segments below `SMALL` are merged, neighbours of one rank, in their order, into segments of up to `TARGET` bytes or
a million rows: that bounds memory to one of these, and what is rewritten again to one small segment a rank.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import RhostreamError
from rhostream.runs import chain
from rhostream.runs.link import KINDS, OLD, Link
from rhostream.selection.ranks import Ranks
from rhostream.tables.merged import encode_together, read_part
from rhostream.tables.segments import segment_record

TARGET, SMALL, ROWS = 16 << 20, 8 << 20, 1_000_000
AT_ONCE = 4096  # segments merged by one rank at one whole link; more are left for the next
_SPAN = re.compile(r"/(\d+)-(\d+)(?:-\d+)?\.parquet\Z")
_RANK = re.compile(r"/rank=(\d+)/")
_REMOVERS = 16
Lists = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Replaced:
    """Segments that a whole link doesn't name any more: of its number and step."""

    number: int
    step: int
    paths: list[str]


@dataclass(frozen=True)
class _Part:
    """A segment that is to be merged, as it was read."""

    record: Mapping[str, Any]
    rows: pa.Table
    facts: dict[str, Any]

    def like(self, other: _Part) -> bool:
        return bool(self.rows.schema.names == other.rows.schema.names and self.facts == other.facts)


def whole(run: str, before: Link, fresh: Lists, attempt: int, ranks: Ranks) -> tuple[Lists, list[dict[str, Any]]]:
    """All segments of the branch, small ones merged: (lists, what was merged of what). Collective.

    `before`: the link before, `fresh`: what came since. Each rank merges what ranks of its number wrote, whoever they
    were.
    """
    jobs, lists = list[dict[str, Any]](), fresh
    if ranks.first:
        branch = chain.with_segments(run, before)
        lists = {kind: [*getattr(branch, kind), *fresh[kind]] for kind in KINDS}
        # What an older version left stays as it is in the first link behind it.
        jobs = [] if before.number == OLD else plan(lists, attempt, before.number + 1)
    jobs = ranks.from_first(jobs)
    own = [job for job in jobs if job["rank"] % ranks.size == ranks.rank]
    told = ranks.gather_json([segment for job in own for segment in merge(run, job)])
    return applied(lists, [segment for each in told for segment in each])


def plan(lists: Mapping[str, Sequence[Mapping[str, Any]]], attempt: int, number: int) -> list[dict[str, Any]]:
    """What is to be merged: {"kind", "rank", "folder", "of": the records of the parts, in order}."""
    jobs = []
    for kind in KINDS:
        by_rank: dict[int, list[Mapping[str, Any]]] = {}
        for segment in lists[kind]:
            match = _RANK.search(segment["path"])
            by_rank.setdefault(int(match[1]) if match else 0, []).append(segment)
        for rank, segments in by_rank.items():
            for parts in _groups(segments):
                folder = f"{kind}/attempt={attempt}/rank={rank}/merged={number:010d}"
                jobs.append({"kind": kind, "rank": rank, "folder": folder, "of": parts})
    return jobs


def _groups(segments: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbours that go together, two or more."""
    groups: list[list[Mapping[str, Any]]] = [[]]
    size = rows = taken = 0
    for segment in segments:
        small = segment["bytes"] < SMALL and taken < AT_ONCE
        if not small or size + segment["bytes"] > TARGET or rows + segment["rows"] > ROWS:
            groups.append([])
            size = rows = 0
        if small:
            groups[-1].append(segment)
            size, rows, taken = size + segment["bytes"], rows + segment["rows"], taken + 1
    return [group for group in groups if len(group) > 1]


def merge(run: str, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Merge the parts of one job: {"kind", "of": paths, "segment": the record of what they became}.

    One new segment as a rule; parts of other columns, as another version wrote them, go together for themselves. One
    that is damaged or gone stays as it is named, for `verify` to say, and the run goes on. In memory: all rows.
    """
    return [_merge(run, job, parts) for parts in _alike(run, job["of"]) if len(parts) > 1]


def _alike(run: str, parts: Sequence[Mapping[str, Any]]) -> Iterator[list[_Part]]:
    """Neighbours of the same columns; nothing for a part that can't be read."""
    group = list[_Part]()
    for record in parts:
        try:
            part = _Part(record, *read_part(run, record))
        except RhostreamError as exc:
            warnings.warn(f"a segment is left unmerged: {exc}", stacklevel=2)
            yield group
            group = []
            continue
        if group and not part.like(group[0]):
            yield group
            group = []
        group.append(part)
    yield group


def _merge(run: str, job: Mapping[str, Any], parts: Sequence[_Part]) -> dict[str, Any]:
    spans = [_SPAN.search(parts[at].record["path"]) for at in (0, -1)]
    first, last = (int(match[end]) if match else 0 for match, end in zip(spans, (1, 2), strict=True))
    path = f"{job['folder']}/{first:010d}-{last:010d}.parquet"
    data = encode_together(job["kind"], [part.rows for part in parts], parts[0].facts)
    crash_point("chain: segments merged")
    storage.create(storage.join(run, path), data)
    crash_point("chain: merged segment written")
    return {
        "kind": job["kind"],
        "of": [part.record["path"] for part in parts],
        "segment": segment_record(path, data, sum(part.rows.num_rows for part in parts)),
    }


def applied(lists: Lists, merged: Sequence[Mapping[str, Any]]) -> tuple[Lists, list[dict[str, Any]]]:
    """The lists with each merged segment where its first part stood; and what was merged of what, for the link."""
    at = {one["of"][0]: one["segment"] for one in merged}
    gone = {path for one in merged for path in one["of"]}
    new = {
        kind: [
            at.get(segment["path"], segment)
            for segment in segments
            if segment["path"] in at or segment["path"] not in gone
        ]
        for kind, segments in lists.items()
    }
    return new, [{"path": one["segment"]["path"], "of": one["of"]} for one in merged]


def replaced(link: Link) -> Replaced:
    """The segments that a whole link has merged."""
    return Replaced(link.number, link.step, [path for one in link.merged for path in one["of"]])


def forget(run: str, link: Link, merged: Sequence[Replaced], kept: Sequence[tuple[int, int]]) -> list[Replaced]:
    """Remove raw segments that were merged two commits ago or more, once no state that is `kept` (attempt, step) is
    older than that; returns what stays. A link that holds what is behind it lets nothing go."""
    stay = []
    for one in merged:
        older = any(state < (link.attempt, one.step) for state in kept)
        if link.held or older or link.number < one.number + 2:
            stay.append(one)
        else:
            remove(run, one.paths)
    return stay


def remove(run: str, paths: Sequence[str]) -> None:
    """Delete segments that nothing needs any more."""
    crash_point("chain: before raw segments are removed")
    with ThreadPoolExecutor(_REMOVERS) as pool:
        list(pool.map(lambda path: storage.delete(storage.join(run, path)), paths))
    crash_point("chain: raw segments removed")
