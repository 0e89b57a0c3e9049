"""A run, proved: the newest checkpoint, every file it names, and a ledger with each planned sample once a pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rhostream import storage
from rhostream.audit.runs import read_record
from rhostream.audit.verify.ledger import ledger_problems
from rhostream.errors import AlreadyExistsError, NotFoundError, RhostreamError, TableError
from rhostream.runs import checkpoint
from rhostream.runs.checkpoint import Checkpoint
from rhostream.tables import selections

_RACES = 20  # a trainer that runs on may remove the checkpoint at hand: look for its newest again


@dataclass
class RunProof:
    """What was found in a run folder."""

    run: str
    checkpoint: Checkpoint | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # checkpoint.json files that can't be resumed from, newest first
    older: Checkpoint | None = None  # the newest whole one behind them

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        at = self.checkpoint
        return {"kind": "run", "files": len(at.log) + len(at.steps) + len(at.shadow) + len(at.files) if at else 0,
                "rows": sum(s["rows"] for s in at.log) if at else 0, "step": at.step if at else 0,
                "problems": self.problems, "warnings": self.warnings,
                "resumable_from": self.older.step if self.older else None, "next": self.next}

    @property
    def next(self) -> str:
        """What mends it."""
        if not self.problems:
            return "nothing: all is well"
        if self.older is not None:
            return (f"rhostream verify {storage.redact(self.run)} --repair sets the damaged checkpoint aside; the same "
                    f"train command then resumes from step {self.older.step:,}")
        return "there is no whole checkpoint to resume from: train again in another --run"


def prove_run(run: str) -> RunProof:
    """Prove a (resolved) run folder. Raises UsageError when it is none, TableError for a run.json that is damaged."""
    record = read_record(run)
    for _ in range(_RACES):
        committed = checkpoint.committed(run)
        proof = RunProof(run)
        if not committed:
            proof.warnings.append("no checkpoint yet: nothing of this run is committed")
            return proof
        try:
            proof.checkpoint = checkpoint.read(committed[-1])
            proof.problems = list(_file_problems(run, proof.checkpoint))
        except RhostreamError as exc:
            proof.problems = [str(exc)]
        if not proof.problems or committed[-1] in checkpoint.committed(run):
            break
    if proof.problems:
        proof.damaged = [committed[-1]]
        _look_back(proof, committed[-2::-1])
    elif proof.checkpoint is not None:
        _attempts(proof, proof.checkpoint)
        proof.problems += ledger_problems(run, record, proof.checkpoint)
    return proof


def _file_problems(run: str, found: Checkpoint) -> Iterator[str]:
    """What is wrong with the files that a checkpoint names, one sentence each."""
    whole = True
    yield from (str(p) for p in selections.damages(run, [*found.log, *found.steps, *found.shadow]) if p is not None)
    for path, digest in found.files.items():
        url = storage.join(run, path)
        try:
            if storage.digest_of(url)[1] == digest:
                continue
            yield f"{storage.redact(url)} isn't the file that was committed (sha256 differs)"
        except NotFoundError:
            yield f"{storage.redact(url)} is named by its checkpoint but is gone"
        whole = False
    if whole:
        yield from _unloadable(run, found)


def _unloadable(run: str, found: Checkpoint) -> Iterator[str]:
    """Why a run could not be resumed from files that are what their checkpoint says they are."""
    try:
        checkpoint.load_tensors(run, found)
        for name in checkpoint.others_of(found):
            checkpoint.load_other(run, found, name)
    except RhostreamError as exc:
        yield str(exc)
    except Exception as exc:  # whatever a file that somebody forged makes its reader raise; its text may be anything
        yield (f"the checkpoint of step {found.step} in {storage.redact(run)} holds what can't be loaded "
               f"({type(exc).__name__})")


def _look_back(proof: RunProof, older: list[str]) -> None:
    """Find the newest whole checkpoint behind the damaged one."""
    for url in older:
        with contextlib.suppress(RhostreamError):
            found = checkpoint.read(url)
            if next(_file_problems(proof.run, found), None) is None:
                proof.older = found
                return
        proof.damaged.append(url)


def _attempts(proof: RunProof, found: Checkpoint) -> None:
    newest = checkpoint.newest_attempt(proof.run)
    if newest < found.attempt:
        claim = storage.join(proof.run, "attempts", f"{found.attempt}.json")
        proof.problems.append(f"{storage.redact(claim)} is gone: an attempt could be claimed twice")
    elif newest > found.attempt:
        proof.warnings.append(f"attempt {newest} has claimed the run and has not committed yet")


def repair_run(proof: RunProof) -> list[str]:
    """Set the damaged checkpoints aside, newest first, so that the run resumes from the whole one behind them.

    Nothing is deleted but the name that makes a checkpoint count: its text stays as `checkpoint.damaged.json`. Returns
    the URLs of these. Raises TableError when there is nothing to resume from.
    """
    if not proof.damaged:
        return []
    if proof.older is None:
        raise TableError(f"{storage.redact(proof.run)} has no whole checkpoint to resume from; nothing was changed: "
                         "train again in another --run")
    aside = []
    for url in reversed(proof.damaged):  # the newest goes last: until then it is what the run is, as before
        other = url.removesuffix("checkpoint.json") + "checkpoint.damaged.json"
        with contextlib.suppress(AlreadyExistsError):
            storage.create(other, storage.read_bytes(url))
        storage.delete(url)
        aside.append(storage.redact(other))
    return aside
