"""The run folder: made once, claimed by each attempt, and moved on only by a commit.

    run.json (settings, versions) | attempts/ | log/ | steps/ | shadow/ | commits/ | checkpoints/ | cost.json

Over several ranks each writes its own segments of the log; rank 0 writes everything else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import Interrupted, MismatchError, RhostreamError, TableError, UsageError
from rhostream.foreign import read_object
from rhostream.runs import chain, checkpoint, compaction, retention
from rhostream.runs.agreement import make_or_agree
from rhostream.runs.attempts import require_free
from rhostream.runs.cost import Cost
from rhostream.runs.link import KINDS, Link, Place, told_link
from rhostream.runs.plans import RunPlan
from rhostream.runs.process import this_process
from rhostream.runs.record import recorded, remove_record
from rhostream.runs.shards import Way
from rhostream.selection.ranks import Ranks
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
            self._made |= make_or_agree(
                self.url, self.pinned, record, self.changes, self.changing, changeable, self.changed_draws
            )
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
        shards: Mapping[Way, Tensor] | None = None,
    ) -> Link:
        """Every rank's segments and shards first, then rank 0's files and the link that names all; cost.json when the
        run is complete. Collective; returns the link, the same on every rank.

        `payload`: the state's files of rank 0, name -> bytes (see `tensors.payload`), none where another trainer keeps
        the state (`handed_out`). `shards`: the tensors of which each rank writes its own part. `selector` is the
        selector's state, `keep` the number of states whose files stay.
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
        segments, merged = fresh, list[dict[str, Any]]()
        if whole and self._link is not None:
            segments, merged = compaction.whole(self.url, self._link, fresh, self.attempt, self.ranks)
        link = Link(
            step=self.step,
            pass_index=pass_index,
            buffer=buffer,
            attempt=self.attempt,
            complete=complete,
            number=number,
            first=self._first,
            previous=None if self._link is None else self._link.place,
            whole=whole,
            log=segments["log"],
            steps=segments["steps"],
            shadow=segments["shadow"],
            merged=merged,
            selector=dict(selector),
            changes=list(self.changes),
            handed_out=handed_out,
            held=handed_out or self._held or (self._link is not None and self._link.held),
        )
        if shards:
            from rhostream.runs.sharded import save  # takes a second

            link = replace(link, files=save(self.url, chain.folder_of(link), shards, self.ranks))
        if self.ranks.first:
            self.counts = _added(one["counts"] for one in told)
            for one in told:
                for place, kinds in one["retried"].items():
                    self.cost.retried[place] = _added([self.cost.retried.get(place, {}), kinds])
            link = self._save(payload, replace(link, cost=self.cost.as_json(), counts=dict(self.counts)))
            crash_point("run: before retention")
            kept = [(state.attempt, state.step) for state in retention.retain(self.url, keep, link)]
            self._replaced = compaction.forget(self.url, link, self._replaced, kept)
        else:
            self.counts = {}
        self._committed = self.step
        self._link = told_link(self.ranks.from_first(link.plain()))
        self.ranks.wait()  # nobody goes on, or home, before the commit is there
        return self._link

    def _save(self, payload: Mapping[str, bytes], link: Link) -> Link:
        link = chain.commit(self.url, chain.save_files(self.url, link, payload))
        if link.merged and not link.held:
            self._replaced.append(compaction.replaced(link))
        if link.complete:
            crash_point("run: before cost.json")
            self._write_cost()
        return link

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


def _added(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total
