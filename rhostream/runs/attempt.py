"""The run folder: made once, claimed by each attempt, and moved on only by a commit.

    run.json (settings, versions) | attempts/ | log/ | steps/ | shadow/ | commits/ | checkpoints/ | cost.json

Over several ranks each writes its own segments of the log; rank 0 writes everything else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, Interrupted, MismatchError, RhostreamError, TableError, UsageError
from rhostream.foreign import read_object
from rhostream.runs import chain, checkpoint, compaction, retention
from rhostream.runs.attempts import require_free
from rhostream.runs.cost import Cost
from rhostream.runs.link import KINDS, OLD, Link, Place, told_link
from rhostream.runs.plans import RunPlan, plans_of
from rhostream.runs.process import this_process
from rhostream.runs.record import class_names, recorded, remove_record, write_record
from rhostream.runs.turns import NO_SETTINGS
from rhostream.samples.geometry import CROP
from rhostream.selection.ranks import Ranks
from rhostream.tables.classes import require_same_classes
from rhostream.tables.selections import LogWriter
from rhostream.tables.shadow import ShadowWriter
from rhostream.tables.steps import StepsWriter


@dataclass
class Attempt:
    """An attempt at a run: its writers, the segments committed so far, and where it stands.

    `counts` are this rank's until a commit adds up those of all.
    """

    url: str
    pinned: dict[str, Any]  # what a resume must agree with
    ranks: Ranks = field(default_factory=Ranks)
    attempt: int = -1
    changed_draws: Callable[[], list[str]] = list  # asked when the run was begun before draws had an edition
    step: int = 0
    cost: Cost = field(default_factory=Cost)
    counts: dict[str, int] = field(default_factory=dict)  # rows of the log by reason
    changes: list[dict[str, Any]] = field(default_factory=list)  # of settings, in force at the newest checkpoint
    changing: list[dict[str, Any]] = field(default_factory=list)  # what this attempt changes, once it is claimed
    grown: RunPlan | None = None  # the longer list of shards, where that is among it
    take_over: bool = False  # also from a process of this machine that is at it
    process: dict[str, Any] = field(default_factory=dict)  # what its note says of this one
    _committed: int = 0  # the step of the newest checkpoint
    _made: bool = False  # run.json is of this process
    _retried: dict[str, dict[str, int]] = field(default_factory=storage.retried)  # before this attempt
    _link: Link | None = None  # the newest commit, of this attempt or the one that it goes on from
    _held: bool = False  # it goes back to an older commit: what those behind that one name isn't removed
    _first: int = 0  # the number of this attempt's first link
    _replaced: list[compaction.Replaced] = field(default_factory=list)  # raw segments that go when nobody needs them

    def open(
        self,
        record: Mapping[str, Any],
        changeable: Iterable[str] = (),
        *,
        start: Place | None = None,
        fresh: bool = False,
    ) -> Link | None:
        """Make run.json or check that it is of the same making; returns the commit to resume from: the state in force,
        or the one at `start`; with `fresh` none, so that the attempt begins at step 0.

        It names its own segments only (see `chain.with_segments`). Raises MismatchError naming the fields that differ,
        and for a `start` that is no commit of this run, NotWritableError, UsageError where a rank can't see
        the folder, and where another process of this machine is at the run (unless `take_over`).
        """
        told = None
        if self.ranks.first:
            newest = chain.head(self.url)  # looked for once: in a store that is a dozen requests
            if not self.take_over:
                require_free(self.url, newest)
            self._make(record, changeable)
            chosen = None if fresh else newest if start is None else self.at(start)
            self._held = not chain.is_tip(self.url, chosen)
            told = None if chosen is None else chosen.plain()
        told = self.ranks.from_first(told)
        self._require_shared()
        self._link = found = None if told is None else told_link(told)
        if found is not None:
            if found.changes != self.changes:
                raise MismatchError(
                    f"another attempt at {storage.redact(self.url)} changed its settings meanwhile; start again"
                )
            il = self.cost.il
            self.step, self.cost = found.step, Cost.from_json(found.cost)
            if self.grown is not None:
                self.cost.il = il  # the new shards were scored, too
            self._committed = found.step
            self.counts = dict(found.counts) if self.ranks.first else {}
        return found

    def at(self, start: Place) -> Link:
        """The commit that a state names. Raises MismatchError for one that this run doesn't have."""
        try:
            return chain.named(self.url, start)
        except TableError as exc:
            raise MismatchError(
                f"run {storage.redact(self.url)} has no such commit as this state names (step "
                f"{start.step:,}): it is the state of another run, or of one that was begun anew "
                f"({exc})"
            ) from exc

    def _make(self, record: Mapping[str, Any], changeable: Iterable[str]) -> None:
        crash_point("run: before run.json")
        try:
            write_record(self.url, {"fingerprints": self.pinned, **record})
            self._made = True
        except AlreadyExistsError:
            # A run that was started before ranks could differ chose among the whole buffer, and one of before there
            # were other geometries saw the centre of its images.
            geometry = {"preprocess_resize": CROP} if "preprocess_resize" in self.pinned else {}
            old = {
                "selection": "global",
                **geometry,
                **recorded(self.url).get("fingerprints", {}),
                **{
                    change["field"]: change["new"]
                    for change in [*self.changes, *self.changing]
                    if change["field"] not in NO_SETTINGS
                },
            }
            if "draws" not in old and "draws" in self.pinned:
                self._require_same_draws()
                old["draws"] = self.pinned["draws"]
            same = json.loads(json.dumps(self.pinned, default=str))
            try:
                checkpoint.require_same(old, same, f"run {storage.redact(self.url)}")
            except MismatchError as exc:
                _note_shards(exc, plans_of(self.url, recorded(self.url), self.changes)[-1].names, record["shards"])
                if free := [name for name in changeable if old.get(name) != same.get(name)]:
                    exc.add_note(
                        f"on purpose, from the newest checkpoint on: the old settings and --change "
                        f"{' '.join(f'{name}={same.get(name)}' for name in free)}"
                    )
                if chain.head(self.url) is None:
                    exc.add_note("nothing of that run was committed: unless it is running, its folder can be deleted")
                raise
            began = class_names(recorded(self.url))
            require_same_classes(class_names(record), began, "the table", f"run {storage.redact(self.url)}")

    def _require_same_draws(self) -> None:
        if changed := self.changed_draws():
            raise MismatchError(
                f"run {storage.redact(self.url)} was begun by an older version, which went otherwise "
                f"about {', '.join(changed)}: it can't go on as it would have; begin it again in "
                "another --run"
            )

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """A run that is refused before its first commit leaves no settings behind, which a mended table, say, would
        then have to agree with."""
        try:
            yield
        except Interrupted:
            raise
        except RhostreamError:
            alone = checkpoint.newest_attempt(self.url) == self.attempt
            if self._made and alone and chain.head(self.url) is None:
                remove_record(self.url)
            raise

    def _require_shared(self) -> None:
        if self.ranks.alone:
            return
        blind = [n for n, sees in enumerate(self.ranks.gather_json(bool(recorded(self.url)))) if not sees]
        if blind:
            raise UsageError(
                f"rank {blind[0]} doesn't see {storage.redact(self.url)}/run.json, which rank 0 wrote: "
                "--run must be a folder (or a store) that all ranks share"
            )

    def settle(self, found: Link, keep: int) -> None:
        """Do what a crash right after the newest checkpoint left undone."""
        if not self.ranks.first:
            return
        if found.complete and not self._has_cost(found):
            self._write_cost()
        retention.retain(self.url, keep, found)

    def claim(self, settings: Mapping[str, Any] | None = None) -> None:
        """Become the newest attempt and open the writers.

        The attempt's note says which commit it goes on from, what it changes, and what it does by `settings` that
        nothing pins.
        """
        self.process = this_process(self.url)
        note = {
            **self.process,
            "from_step": self.step,
            "ranks": self.ranks.size,
            "from": None if self._link is None else asdict(self._link.place),
            "changes": self.changing,
            "settings": dict(settings or {}),
            **({} if self.grown is None else {"grown": self.grown.written()}),
        }
        self._first = 0 if self._link is None else self._link.number + 1
        claimed = checkpoint.claim_attempt(self.url, note) if self.ranks.first else None
        self.attempt = int(self.ranks.from_first(claimed))
        self.changes = [*self.changes, *({**change, "attempt": self.attempt} for change in self.changing)]
        self.changing, self.grown = [], None
        self.log = LogWriter(self.url, self.attempt, self.ranks.rank)
        self.steps = StepsWriter(self.url, self.attempt)
        self.shadow = ShadowWriter(self.url, self.attempt, self.ranks.rank)

    @property
    def uncommitted(self) -> bool:
        """Whether steps were taken that no checkpoint knows of."""
        return self.step > self._committed

    @property
    def committed_step(self) -> int:
        """The step of the newest commit."""
        return self._committed

    def commit(
        self,
        payload: Mapping[str, bytes],
        *,
        pass_index: int,
        buffer: int,
        complete: bool,
        keep: int,
        selector: Mapping[str, Any],
        handed_out: bool = False,
    ) -> Link:
        """Every rank's segments first, then rank 0's files and the link that names all; cost.json when the run is
        complete. Collective; returns the link, the same on every rank.

        `payload`: the state's files of rank 0, name -> bytes (see `tensors.payload`), none where another trainer keeps
        the state (`handed_out`). `selector` is the selector's state, `keep` the number of states whose files stay.
        """
        told = self.ranks.gather_json(
            {
                "log": self.log.flush(),
                "shadow": self.shadow.flush(),
                "counts": self.counts,
                "steps": self.steps.flush() if self.ranks.first else [],
                "retried": storage.retried_since(self._retried),
            }
        )
        self._retried = storage.retried()
        fresh = {kind: [segment for one in told for segment in one[kind]] for kind in KINDS}
        number = 0 if self._link is None else self._link.number + 1
        whole = number % chain.WHOLE_EVERY == 0
        segments, merged = self._whole(fresh, number) if whole else (fresh, [])
        link = None
        if self.ranks.first:
            self.counts = _added(one["counts"] for one in told)
            for one in told:
                for place, kinds in one["retried"].items():
                    self.cost.retried[place] = _added([self.cost.retried.get(place, {}), kinds])
            link = self._save(
                payload,
                Link(
                    step=self.step,
                    pass_index=pass_index,
                    buffer=buffer,
                    attempt=self.attempt,
                    complete=complete,
                    number=number,
                    first=self._first,
                    previous=None if self._link is None else self._link.place,
                    whole=whole,
                    **segments,
                    merged=merged,
                    cost=self.cost.as_json(),
                    counts=dict(self.counts),
                    selector=dict(selector),
                    changes=list(self.changes),
                    handed_out=handed_out,
                    held=handed_out or self._held or (self._link is not None and self._link.held),
                ),
            )
            crash_point("run: before retention")
            self._forget(link, retention.retain(self.url, keep, link))
        else:
            self.counts = {}
        self._committed = self.step
        self._link = told_link(self.ranks.from_first(None if link is None else link.plain()))
        self.ranks.wait()  # nobody goes on, or home, before the commit is there
        return self._link

    def _whole(
        self, fresh: dict[str, list[dict[str, Any]]], number: int
    ) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
        """All segments of the branch, small ones merged: (lists, what was merged of what). Collective.

        Each rank merges what ranks of its number wrote, whoever they were.
        """
        if self._link is None:
            return fresh, []
        plan: list[dict[str, Any]] = []
        lists = fresh
        if self.ranks.first:
            before = chain.with_segments(self.url, self._link)
            lists = {kind: [*getattr(before, kind), *fresh[kind]] for kind in KINDS}
            # What an older version left stays as it is in the first link behind it.
            plan = [] if self._link.number == OLD else compaction.plan(lists, self.attempt, number)
        plan = self.ranks.from_first(plan)
        told = self.ranks.gather_json(
            [
                segment
                for job in plan
                if job["rank"] % self.ranks.size == self.ranks.rank
                for segment in compaction.merge(self.url, job)
            ]
        )
        return compaction.applied(lists, [segment for each in told for segment in each])

    def _save(self, payload: Mapping[str, bytes], link: Link) -> Link:
        link = chain.commit(self.url, chain.save_files(self.url, link, payload))
        if link.merged and not link.held:
            self._replaced.append(compaction.replaced(link))
        if link.complete:
            crash_point("run: before cost.json")
            self._write_cost()
        return link

    def _forget(self, link: Link, kept: list[retention.Kept]) -> None:
        """Remove raw segments that were merged two commits ago or more, once no kept state is older than that."""
        for one in [] if link.held else list(self._replaced):
            older = [state for state in kept if (state.attempt, state.step) < (self.attempt, one.step)]
            if link.number >= one.number + 2 and not older:
                compaction.remove(self.url, one.paths)
                self._replaced.remove(one)

    def confirm(self) -> None:
        """Mark the newest commit, whose state was handed out, as saved. Raises UsageError before the first."""
        if self._link is None or not self._link.handed_out:
            raise UsageError("run.confirm() comes after run.state_dict(), once what it gave is saved")
        if self.ranks.first:
            chain.confirm(self.url, self._link)

    def _has_cost(self, found: Link) -> bool:
        """Whether cost.json is that of this end, and not of an earlier one that the run went on from, or back from."""
        url = storage.join(self.url, "cost.json")
        try:
            return storage.exists(url) and read_object(storage.read_bytes(url)).get("reasons") == found.counts
        except ValueError:
            return False

    def _write_cost(self) -> None:
        account = {**self.cost.as_json(), "reasons": self.counts}
        storage.replace(storage.join(self.url, "cost.json"), json.dumps(account, indent=1).encode())


def _note_shards(error: MismatchError, old: Sequence[str], new: Sequence[str]) -> None:
    """The fingerprint of a list doesn't say what changed in it."""
    gone, come = sorted({*old} - {*new}), sorted({*new} - {*old})
    for what, names in (("no longer given", gone), ("new", come)):
        if names:
            error.add_note(f"shards {what}: {len(names)}, first {names[0]}")
    if come and not gone and old:
        error.add_note("at the end of a pass a run may go on with a longer list, on purpose: --grow")


def _added(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total
