"""The ledger of a run, proved from its rows: steps without a gap, buffers that are full, each sample once a pass.

In memory: the segment at hand, and one byte for each sample of the passes at hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from rhostream import storage
from rhostream.errors import NotFoundError, RhostreamError
from rhostream.runs.link import Link
from rhostream.runs.plans import RunPlan, plan_of_pass, plans_of
from rhostream.tables import il, parquet

COLUMNS = ["pass", "step", "shard", "ordinal", "kept", "reason"]
_FIRST_STEP = re.compile(r"/(\d+)-\d+(?:-\d+)?\.parquet\Z")
_RANK = re.compile(r"/rank=(\d+)/")


def ledger_problems(run: str, record: Mapping[str, Any], at: Link) -> list[str]:
    """What the rows of the committed segments contradict: the checkpoint, run.json, the IL table or each other."""
    try:
        plans = plans_of(run, record, at.changes)
    except RhostreamError as exc:  # what the rows should be can't be known
        return [str(exc)]
    ledger = _Ledger(at.step, _counts_of(record, plans), plans)
    try:
        for segment in _in_order(at.log):
            ledger.add(parquet.read(storage.join(run, segment["path"]), COLUMNS)[0], segment)
        ledger.end(at, record)
        return [*ledger.problems, *_steps(run, at, ledger), *_il_table(record)]
    except RhostreamError as exc:
        return [*ledger.problems, str(exc)]


def _in_order(segments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By first step, so that no more than two passes are at hand, however many ranks wrote."""

    def first(segment: dict[str, Any]) -> int:
        match = _FIRST_STEP.search(segment["path"])
        return int(match[1]) if match else 0

    return sorted(segments, key=first)


def _counts_of(record: Mapping[str, Any], plans: Sequence[RunPlan]) -> dict[str, int]:
    """Samples seen in each shard of the run, from its IL table; {} when that can't be reached or is another one."""
    if not record.get("il"):
        return {}
    try:
        url = storage.resolve(record["il"])
        if _pinned(record) not in (None, il.open_info(url).fingerprint):
            return {}
        return {name: il.read_part_facts(il.part_url(url, name)).samples for name in plans[-1].names}
    except RhostreamError:
        return {}


def _pinned(record: Mapping[str, Any]) -> Any:
    """The fingerprint of the IL table that the run began with."""
    return (record.get("fingerprints") or {}).get("il")


def _il_table(record: Mapping[str, Any]) -> Iterator[str]:
    pinned, url = _pinned(record), record.get("il")
    if not (pinned and url):
        return
    try:
        info = il.open_info(storage.resolve(url))
    except (NotFoundError, RhostreamError):
        return  # a table that was moved is no fault of the run
    if info.fingerprint != pinned:
        yield (
            f"the run was trained with il of fingerprint {pinned}, {storage.redact(url)} has {info.fingerprint} "
            "today: another table has taken its place"
        )


class _Ledger:
    """What was seen so far, segment by segment."""

    def __init__(self, steps: int, counts: Mapping[str, int], plans: Sequence[RunPlan]) -> None:
        self.problems: list[str] = []
        self.per_step = np.zeros(steps, np.int64)
        self.kept_per_step = np.zeros(steps, np.int64)
        self._counts, self._plans = counts, plans
        self._reasons = Counter[str]()
        self._seen: dict[int, dict[str, npt.NDArray[np.bool_]]] = {}
        self._of_pass: dict[int, dict[str, int]] = {}  # samples seen of each shard, for passes that are over
        self._in_pass: Counter[int] = Counter()  # rows that have a step
        self._twice = 0
        self._first_twice = ""

    def add(self, rows: Any, segment: Mapping[str, Any]) -> None:
        """One segment."""
        if rows.num_rows != segment["rows"]:
            self.problems.append(
                f"{segment['path']} has {rows.num_rows:,} rows, the checkpoint says {segment['rows']:,}"
            )
        rows = rows.combine_chunks().unify_dictionaries()
        passes, ordinal = rows["pass"].to_numpy(), rows["ordinal"].to_numpy()
        kept = rows["kept"].to_numpy()
        step = rows["step"].fill_null(-1).to_numpy()
        for value in pc.value_counts(rows["reason"].cast("string")).to_pylist():
            self._reasons[value["values"]] += value["counts"]
        if not np.array_equal(kept, pc.equal(rows["reason"].cast("string"), "kept").to_numpy(zero_copy_only=False)):
            self.problems.append(f"{segment['path']}: a row is kept and its reason isn't, or the other way round")
        beyond = step >= len(self.per_step)
        if beyond.any():
            self.problems.append(
                f"{segment['path']} has rows of step {int(step.max()):,}, the checkpoint is of step "
                f"{len(self.per_step):,}"
            )
        inside = (step >= 0) & ~beyond
        self.per_step += np.bincount(step[inside], minlength=len(self.per_step))
        self.kept_per_step += np.bincount(step[inside & kept], minlength=len(self.per_step))
        if not len(passes):
            return
        for pass_index, count in zip(*np.unique(passes[step >= 0], return_counts=True), strict=True):
            self._in_pass[int(pass_index)] += int(count)
        for over in [p for p in self._seen if p < passes[0]]:
            self._close(over)
        shard = rows["shard"].combine_chunks()
        names, code = shard.dictionary.to_pylist(), shard.indices.to_numpy()
        order = np.lexsort((ordinal, code, passes))
        cuts = np.flatnonzero(np.diff(passes[order]).astype(bool) | np.diff(code[order]).astype(bool)) + 1
        for own in np.split(order, cuts):
            self._mark(int(passes[own[0]]), names[code[own[0]]], ordinal[own])

    def _mark(self, pass_index: int, shard: str, ordinal: npt.NDArray[np.int32]) -> None:
        """Note the ordinals (sorted) of one shard; one that was seen before in this pass is a fault."""
        shards = self._seen.setdefault(pass_index, {})
        seen = shards.get(shard)
        size = max(int(ordinal[-1]) + 1, self._counts.get(shard, 0))
        if seen is None or len(seen) < size:
            grown = np.zeros(size, bool)
            if seen is not None:
                grown[: len(seen)] = seen
            shards[shard] = seen = grown
        twice = seen[ordinal]
        twice[1:] |= ordinal[1:] == ordinal[:-1]
        if twice.any():
            self._twice += int(twice.sum())
            self._first_twice = self._first_twice or (
                f"sample {int(ordinal[np.argmax(twice)])} of shard {shard} in pass {pass_index}"
            )
        seen[ordinal] = True

    def _close(self, pass_index: int) -> None:
        shards = self._seen.pop(pass_index)
        self._of_pass[pass_index] = {shard: int(seen.sum()) for shard, seen in shards.items()}
        over = [
            f"{shard} #{len(seen) - 1}"
            for shard, seen in shards.items()
            if self._counts and seen[self._counts.get(shard, 0) :].any()
        ]
        if over:
            self.problems.append(f"pass {pass_index} has samples that the IL table doesn't: {', '.join(over[:5])}")

    def end(self, at: Link, record: Mapping[str, Any]) -> None:
        """The sums, against the checkpoint and run.json."""
        for pass_index in list(self._seen):
            self._close(pass_index)
        if self._twice:
            self.problems.append(f"{self._twice:,} samples are planned twice in a pass, first {self._first_twice}")
        if at.counts and dict(self._reasons) != {k: v for k, v in at.counts.items() if v}:
            self.problems.append(
                f"the log has {dict(sorted(self._reasons.items()))}, the checkpoint counted "
                f"{dict(sorted(at.counts.items()))}"
            )
        n_B = (record.get("settings") or {}).get("buffer_size")
        if n_B and (wrong := np.flatnonzero(self.per_step != n_B)).size:
            self.problems.append(
                f"{wrong.size:,} of {at.step:,} steps don't have the {n_B:,} rows of a buffer, first "
                f"step {int(wrong[0])} with {int(self.per_step[wrong[0]]):,}"
            )
        if n_B and self._in_pass[at.pass_index] != at.buffer * n_B:
            self.problems.append(
                f"the checkpoint stands {at.buffer:,} buffers into pass {at.pass_index}, the log has "
                f"{self._in_pass[at.pass_index] // n_B:,}"
            )
        for pass_index, shards in self._of_pass.items():
            self._whole_pass(pass_index, shards, at)

    def _whole_pass(self, pass_index: int, shards: Mapping[str, int], at: Link) -> None:
        """A pass that is over has every sample of its own list of shards, and of no other."""
        plan = plan_of_pass(self._plans, pass_index)
        strange = sorted(shards.keys() - {*plan.names}) if len(self._plans) > 1 else []
        if strange:
            self.problems.append(
                f"pass {pass_index} has samples of {len(strange):,} shards that the run doesn't go by "
                f"there, first {strange[0]}"
            )
        ended = pass_index < at.pass_index or (pass_index == at.pass_index and at.buffer > 0
                                               and at.buffer == plan.buffers_per_pass)  # fmt: skip
        if not ended:
            return
        if self._counts:
            short = [
                f"{shard} ({shards.get(shard, 0):,} of {n:,})"
                for shard in plan.names
                if shards.get(shard, 0) < (n := self._counts[shard])
            ]
            if short:
                self.problems.append(
                    f"pass {pass_index} lacks samples of {len(short):,} shards: {', '.join(short[:5])}"
                )
        elif (samples := plan.samples) and sum(shards.values()) != samples:
            says = "run.json" if plan is self._plans[0] else "the list of its shards"
            self.problems.append(f"pass {pass_index} has {sum(shards.values()):,} samples, {says} says {samples:,}")


def _steps(run: str, at: Link, ledger: _Ledger) -> Iterator[str]:
    """The steps table: of every rank that wrote one, each step once and in order, with what the log says was kept."""
    by_rank: dict[str, list[dict[str, Any]]] = {}
    for segment in _in_order(at.steps):
        match = _RANK.search(segment["path"])
        by_rank.setdefault(match[1] if match else "0", []).append(segment)
    for rank, segments in by_rank.items():
        rows = [parquet.read(storage.join(run, s["path"]), ["step", "kept"])[0] for s in segments]
        step = np.concatenate([r["step"].to_numpy() for r in rows])
        if not np.array_equal(step, np.arange(at.step)):
            yield (
                f"the steps table of rank {rank} doesn't hold steps 0 to {at.step - 1:,} each once, in order "
                f"({len(step):,} rows)"
            )
        elif len(by_rank) == 1 and rows[0]["kept"].null_count == 0:
            kept = np.concatenate([r["kept"].to_numpy() for r in rows])
            if (wrong := np.flatnonzero(kept != ledger.kept_per_step)).size:
                yield (
                    f"{wrong.size:,} steps kept another number of samples than the log says, first step "
                    f"{int(wrong[0])}: {int(kept[wrong[0]])} != {int(ledger.kept_per_step[wrong[0]])}"
                )
