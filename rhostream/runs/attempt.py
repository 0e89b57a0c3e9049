"""The run folder: made once, claimed by each attempt, and moved on only by a checkpoint.

    run.json (settings, fingerprints, versions) | attempts/ | log/ | steps/ | shadow/ | checkpoints/ | cost.json

Over several ranks each writes its own segments of the log; rank 0 writes everything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, Interrupted, MismatchError, RhostreamError, UsageError
from rhostream.runs import checkpoint
from rhostream.runs.checkpoint import Checkpoint
from rhostream.runs.cost import Cost
from rhostream.runs.record import VERSION, recorded
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
    _committed: int = 0  # the step of the newest checkpoint
    _made: bool = False  # run.json is of this process
    _retried: dict[str, dict[str, int]] = field(default_factory=storage.retried)  # before this attempt
    _log: list[dict[str, Any]] = field(default_factory=list)
    _steps: list[dict[str, Any]] = field(default_factory=list)
    _shadow: list[dict[str, Any]] = field(default_factory=list)

    def open(self, record: Mapping[str, Any], changeable: Iterable[str] = (),
             start: Mapping[str, Any] | str | None = "newest") -> Checkpoint | None:
        """Make run.json or check that it is of the same making; returns the checkpoint to resume from.

        `start`: "newest", None to begin at step 0, or what names the commit of a state that somebody else kept.

        Raises MismatchError naming the fields that differ, NotWritableError, UsageError where a rank can't see the
        folder.
        """
        if self.ranks.first:
            self._make(record, changeable)
        told = self.ranks.from_first(_as_json(checkpoint.latest(self.url)) if self.ranks.first and start else None)
        self._require_shared()
        found = None if told is None else Checkpoint(**told)
        if found is not None:
            if found.changes != self.changes:
                raise MismatchError(f"another attempt at {storage.redact(self.url)} changed its settings meanwhile; "
                                    "start again")
            self.step, self.cost = found.step, Cost.from_json(found.cost)
            self._committed = found.step
            self.counts = dict(found.counts) if self.ranks.first else {}
            self._log, self._steps, self._shadow = list(found.log), list(found.steps), list(found.shadow)
        return found

    def _make(self, record: Mapping[str, Any], changeable: Iterable[str]) -> None:
        body = {"version": VERSION, "fingerprints": self.pinned, **record}
        crash_point("run: before run.json")
        try:
            storage.create(storage.join(self.url, "run.json"),
                           json.dumps(body, indent=1, sort_keys=True, default=str).encode())
            self._made = True
        except AlreadyExistsError:
            # A run that was started before ranks could differ chose among the whole buffer.
            old = {"selection": "global", **recorded(self.url).get("fingerprints", {}),
                   **{change["field"]: change["new"] for change in [*self.changes, *self.changing]}}
            if "draws" not in old and "draws" in self.pinned:
                self._require_same_draws()
                old["draws"] = self.pinned["draws"]
            same = json.loads(json.dumps(self.pinned, default=str))
            try:
                checkpoint.require_same(old, same, f"run {storage.redact(self.url)}")
            except MismatchError as exc:
                _note_shards(exc, recorded(self.url).get("shards", []), record["shards"])
                if free := [name for name in changeable if old.get(name) != same.get(name)]:
                    exc.add_note(f"on purpose, from the newest checkpoint on: the old settings and --change "
                                 f"{' '.join(f'{name}={same.get(name)}' for name in free)}")
                if not checkpoint.committed(self.url):
                    exc.add_note("nothing of that run was committed: unless it is running, its folder can be deleted")
                raise

    def _require_same_draws(self) -> None:
        if changed := self.changed_draws():
            raise MismatchError(f"run {storage.redact(self.url)} was begun by an older version, which went otherwise "
                                f"about {', '.join(changed)}: it can't go on as it would have; begin it again in "
                                "another --run")

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
            if self._made and alone and not checkpoint.committed(self.url):
                storage.delete(storage.join(self.url, "run.json"))
            raise

    def _require_shared(self) -> None:
        if self.ranks.alone:
            return
        blind = [n for n, sees in enumerate(self.ranks.gather_json(bool(recorded(self.url)))) if not sees]
        if blind:
            raise UsageError(f"rank {blind[0]} doesn't see {storage.redact(self.url)}/run.json, which rank 0 wrote: "
                             "--run must be a folder (or a store) that all ranks share")

    def settle(self, found: Checkpoint, keep: int) -> None:
        """Do what a crash right after the newest checkpoint left undone."""
        if not self.ranks.first:
            return
        if found.complete and not storage.exists(storage.join(self.url, "cost.json")):
            self._write_cost()
        checkpoint.retain(self.url, keep)

    def claim(self, settings: Mapping[str, Any] | None = None) -> None:
        """Become the newest attempt and open the writers.

        The attempt's note says what it changes, and what it does by `settings` that nothing pins.
        """
        note = {"host": platform.node(), "pid": os.getpid(), "from_step": self.step, "ranks": self.ranks.size,
                "changes": self.changing, "settings": dict(settings or {})}
        claimed = checkpoint.claim_attempt(self.url, note) if self.ranks.first else None
        self.attempt = int(self.ranks.from_first(claimed))
        self.changes = [*self.changes, *({**change, "attempt": self.attempt} for change in self.changing)]
        self.changing = []
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

    def commit(self, payload: Mapping[str, bytes], *, pass_index: int, buffer: int, complete: bool, keep: int,
               selector: Mapping[str, Any], handed_out: bool = False) -> dict[str, Any]:
        """Every rank's segments first, then rank 0's commit that names them; cost.json when the run is complete.

        `payload`: file name -> bytes of what a resume restores, on rank 0. `handed_out`: the tensors are kept by
        somebody else's checkpoint, and what is returned is what names this commit in it.
        """
        told = self.ranks.gather_json({"log": self.log.flush(), "shadow": self.shadow.flush(), "counts": self.counts,
                                       "retried": storage.retried_since(self._retried)})
        self._retried = storage.retried()
        if self.ranks.first:
            self._log += [segment for one in told for segment in one["log"]]
            self._shadow += [segment for one in told for segment in one["shadow"]]
            self._steps += self.steps.flush()
            self.counts = _added(one["counts"] for one in told)
            for one in told:
                for place, kinds in one["retried"].items():
                    self.cost.retried[place] = _added([self.cost.retried.get(place, {}), kinds])
            self._save(payload, dict(selector), pass_index, buffer, complete)
            crash_point("run: before retention")
            checkpoint.retain(self.url, keep)
        else:
            self.counts = {}
        self._committed = self.step
        self.ranks.wait()  # nobody goes on, or home, before the commit is there
        return {}

    def _save(self, payload: Mapping[str, bytes], selector: dict[str, Any], pass_index: int, buffer: int,
              complete: bool) -> None:
        checkpoint.save_files(
            self.url,
            Checkpoint(step=self.step, pass_index=pass_index, buffer=buffer, attempt=self.attempt, complete=complete,
                       fingerprints=self.pinned, log=self._log, steps=self._steps, cost=self.cost.as_json(),
                       counts=self.counts, shadow=self._shadow, selector=selector, changes=self.changes),
            payload,
        )
        if complete:
            crash_point("run: before cost.json")
            self._write_cost()

    def confirm(self) -> None:
        """Mark the newest handed-out commit as kept."""

    def files(self, point: Checkpoint) -> dict[str, bytes]:
        """The bytes of a commit's files by their names, hashes checked. Raises TableError."""
        return checkpoint.read_files(self.url, point)

    def _write_cost(self) -> None:
        account = {**self.cost.as_json(), "reasons": self.counts}
        storage.replace(storage.join(self.url, "cost.json"), json.dumps(account, indent=1).encode())


def _note_shards(error: MismatchError, old: Sequence[str], new: Sequence[str]) -> None:
    """The fingerprint of a list doesn't say what changed in it."""
    gone, come = sorted({*old} - {*new}), sorted({*new} - {*old})
    for what, names in (("no longer given", gone), ("new", come)):
        if names:
            error.add_note(f"shards {what}: {len(names)}, first {names[0]}")


def _as_json(found: Checkpoint | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _added(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total
