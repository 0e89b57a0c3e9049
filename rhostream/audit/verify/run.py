"""A run, proved: the state in force, every file it names, the chain behind it, and a ledger with each planned sample
once a pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from rhostream import storage
from rhostream.audit.runs import read_record
from rhostream.audit.verify.chain import Commit, chain_problems, commits_behind
from rhostream.audit.verify.ledger import ledger_problems
from rhostream.errors import AlreadyExistsError, NotFoundError, RhostreamError, TableError
from rhostream.runs import chain, checkpoint, retention
from rhostream.runs.link import Link
from rhostream.runs.loadable import is_loadable
from rhostream.runs.shards import FILE as INDEX
from rhostream.runs.shards import read_index
from rhostream.tables import selections

_OF_A_SELECTOR = re.compile(r"(proxy|live-\d+)\.safetensors\Z")
_LOOK_BACK = 10_000  # commits; behind a handful, most have no tensors any more
_RACES = 20  # a trainer that runs on may remove the state at hand: look for its newest again


@dataclass
class RunProof:
    """What was found in a run folder."""

    run: str
    checkpoint: Link | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # URLs of commits that can't be resumed from, newest first
    older: Link | None = None  # the newest sound one behind them, with all its segments

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        at = self.checkpoint
        return {
            "kind": "run",
            "files": len(at.log) + len(at.steps) + len(at.shadow) + len(at.files) if at else 0,
            "rows": sum(s["rows"] for s in at.log) if at else 0,
            "step": at.step if at else 0,
            "problems": self.problems,
            "warnings": self.warnings,
            "resumable_from": self.older.step if self.older else None,
            "next": self.next,
        }

    @property
    def next(self) -> str:
        """What mends it."""
        if not self.problems:
            return "nothing: all is well"
        if self.older is not None:
            return (
                f"rhostream verify {storage.redact(self.run)} --repair sets the damaged checkpoint aside; the same "
                f"train command then resumes from step {self.older.step:,}"
            )
        return "there is no whole checkpoint to resume from: train again in another --run"


def prove_run(run: str) -> RunProof:
    """Prove a (resolved) run folder. Raises UsageError when it is none, TableError for a run.json that is damaged."""
    record, proof = read_record(run), RunProof(run)
    for _ in range(_RACES):
        commits = commits_behind(run)
        newest, proof = next(commits, None), RunProof(run)
        if newest is None:
            proof.warnings.append("no checkpoint yet: nothing of this run is committed")
            return proof
        _prove_files(proof, record, newest)
        again = next(commits_behind(run), None) if proof.problems else newest
        if again is not None and again.url == newest.url:
            break
    if proof.problems:
        proof.damaged = [newest.url] if newest is not None else []
        _look_back(proof, record, commits)
    elif proof.checkpoint is not None and newest is not None and newest.link is not None:
        _attempts(proof, proof.checkpoint)
        proof.problems += chain_problems(run, newest.link, proof.checkpoint)
        proof.problems += ledger_problems(run, record, proof.checkpoint)
        proof.warnings += filter(None, [proof.checkpoint.doubt])
    return proof


def _prove_files(proof: RunProof, record: Mapping[str, Any], newest: Commit) -> None:
    """The state in force and the files that it counts."""
    try:
        if newest.error is not None:
            raise newest.error
        if newest.link is not None:
            proof.checkpoint = chain.with_segments(proof.run, newest.link)
            proof.problems = list(_file_problems(proof.run, record, proof.checkpoint))
    except RhostreamError as exc:
        proof.problems = [str(exc)]


def _look_back(proof: RunProof, record: Mapping[str, Any], older: Iterator[Commit]) -> None:
    """Find the newest sound commit behind the damaged one, among those whose tensors are there."""
    there = retention.states(proof.run)
    for commit in islice(older, _LOOK_BACK):
        link = commit.link
        if link is not None and link.files and retention.Kept(link.attempt, link.step) not in there:
            continue
        if (sound := _sound(proof.run, record, link)) is not None:
            proof.older = sound
            return
        proof.damaged.append(commit.url)


def _sound(run: str, record: Mapping[str, Any], link: Link | None) -> Link | None:
    """The commit with all its segments, if a run could be resumed from it."""
    with contextlib.suppress(RhostreamError):
        if link is not None and (link.files or link.handed_out):
            whole = chain.with_segments(run, link)
            if next(_file_problems(run, record, whole), None) is None:
                return whole
    return None


def _file_problems(run: str, record: Mapping[str, Any], found: Link) -> Iterator[str]:
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
        yield from _unloadable(run, record, found)


def _unloadable(run: str, record: Mapping[str, Any], found: Link) -> Iterator[str]:
    """Why a run could not be resumed from files that are what their checkpoint says they are."""
    if not found.files:  # another trainer keeps the state
        return
    where = f"the checkpoint of step {found.step} in {storage.redact(run)}"
    names = {path.rsplit("/", 1)[1]: path for path in found.files}
    needed = {f"{name.removesuffix('.safetensors')}-optimizer.pt" for name in names if _OF_A_SELECTOR.match(name)}
    if (record.get("settings") or {}).get("loop") != "own":  # which names what it saves
        needed |= {"model.safetensors", "optimizer.pt"}
    if missing := needed - {*names}:
        yield f"{where} lists no {' and no '.join(sorted(missing))}"
    for name, path in names.items():
        data = storage.read_bytes(storage.join(run, path))
        if name == INDEX:
            try:
                read_index(data, names)
            except (ValueError, TypeError, RecursionError) as exc:
                yield f"{where} has sharded tensors that can't be put together: {exc}"
            continue
        if is_loadable(name, data):
            continue
        from rhostream.runs.tensors import load  # torch, where its word is needed

        try:
            load(name, data)
        except (
            Exception
        ) as exc:  # whatever a file that somebody forged makes its reader raise; its text may be anything
            yield f"{where} holds what is no tensor or can't be read: {name} ({type(exc).__name__})"


def _attempts(proof: RunProof, found: Link) -> None:
    newest = checkpoint.newest_attempt(proof.run)
    if newest < found.attempt:
        claim = storage.join(proof.run, "attempts", f"{found.attempt}.json")
        proof.problems.append(f"{storage.redact(claim)} is gone: an attempt could be claimed twice")
    elif newest > found.attempt:
        proof.warnings.append(f"attempt {newest} has claimed the run and has not committed yet")


def repair_run(proof: RunProof) -> list[str]:
    """Set the damaged commits aside, so that the run resumes from the sound one behind them.

    A new attempt is claimed that starts from that one: from then on it is what the run is, and a trainer that still
    writes stops. Nothing is deleted but the names of the damaged ones: their text stays as `NAME.damaged.json`. Returns
    the URLs of these. Raises TableError when there is nothing to resume from.
    """
    if not proof.damaged:
        return []
    if proof.older is None:
        raise TableError(
            f"{storage.redact(proof.run)} has no whole checkpoint to resume from; nothing was changed: "
            "train again in another --run"
        )
    if any("/commits/" in url for url in proof.damaged):
        checkpoint.claim_attempt(
            proof.run, {"from": asdict(proof.older.place), "from_step": proof.older.step, "repair": True}
        )
    aside = []
    for url in reversed(proof.damaged):  # the newest goes last: until then it is what an old run is, as before
        other = url.removesuffix(".json") + ".damaged.json"
        with contextlib.suppress(NotFoundError):  # one that is gone is named here too
            data = storage.read_bytes(url)
            with contextlib.suppress(AlreadyExistsError):
                storage.create(other, data)
            storage.delete(url)
            aside.append(storage.redact(other))
    return aside
