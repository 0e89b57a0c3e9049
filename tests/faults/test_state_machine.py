"""Any order of bad luck: shards come, change, move and go, parts rot, jobs die anywhere; what is logged is the truth.

A hypothesis state machine over one folder. What must hold after every step is held against scores made apart from it.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import rhostream
from rhostream.audit.verify import verify
from rhostream.cli import cli
from rhostream.errors import MismatchError, RhostreamError, TableError, UsageError
from rhostream.runs import checkpoint
from rhostream.tables import il, parquet
from tests.faults import tally
from tests.faults.crash_server import Rig
from tests.support.points import points
from tests.support.shards import sample, write_shard

NAMES = ("a.tar", "b.tar", "c.tar")
CONTENTS = 5  # different bytes that a shard may have
BUFFER, BATCH = 8, 2
OFFLINE, ONLINE = ("compute-il", "scan", "commit", "table"), ("train", "stream", "run", "log", "steps", "checkpoint")


class Truth:
    """What each shard of each content must be scored as, made once and apart; the tar's bytes, too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, str(folder / "model")
        rows = [sample(i, np.random.default_rng(i)) for i in range(48)]
        write_shard(folder / "fit" / "a.tar", rows)
        rhostream.fit_il([str(folder / "fit")], self.model, model="mlp-64", epochs=1, roots={"r": str(folder / "fit")})
        self.of = functools.cache(self._of)
        self.tar = functools.cache(self._tar)

    def _tar(self, content: int) -> bytes:
        rng = np.random.default_rng(content)
        rows = [sample(int(k), rng) for k in rng.permutation(100)[: 5 + 3 * content]]
        return write_shard(self.folder / "tars" / f"{content}.tar", rows).read_bytes()

    def _of(self, name: str, content: int) -> dict[str, Any]:
        place = self.folder / f"alone-{name}-{content}"
        place.mkdir()
        (place / name).write_bytes(self.tar(content))
        rhostream.compute_il([str(place / name)], self.model, str(place / "t"), roots={"r": str(place)})
        part = il.read_part(il.part_url(str(place / "t"), f"r/{name}"))
        return {"key": part.key.to_pylist(), "label": part.label.tolist(), "il": part.il.tolist()}


class Folder(RuleBasedStateMachine):
    """The folder, and beside it what we know of it: the content of each shard, and of which content each part is."""

    rig: ClassVar[Rig]
    truth: ClassVar[Truth]
    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="state-", dir=self.truth.folder))
        self.table, self.place = str(self.root / "t"), self.root / "shards"
        self.place.mkdir()
        self.content: dict[str, int] = {}
        self.parts: dict[str, int] = {}  # name -> content that was scored
        self.damaged: dict[str, bytes] = {}  # parts that no longer read as they were written, and how they were
        self.clock, self.trained = 1_700_000_000, 0

    def teardown(self) -> None:
        if self.content and self.enough:
            self.all_is_mended_and_trained()
        shutil.rmtree(self.root)

    # What we know, and how jobs are called.

    def part(self, name: str) -> Path:
        return Path(il.part_url(self.table, f"r/{name}"))

    @property
    def shards(self) -> list[str]:
        return [str(self.place / name) for name in sorted(self.content)]

    @property
    def sound(self) -> bool:
        """Whether every shard has a part, of its bytes and undamaged."""
        fresh = all(self.parts.get(name) == content for name, content in self.content.items())
        return fresh and self.damaged.keys().isdisjoint(self.content)

    def options(self, verb: str) -> dict[str, Any]:
        roots = {"r": str(self.place)}
        if verb == "compute-il":
            return {"shards": self.shards, "il_model": self.truth.model, "out": self.table, "roots": roots}
        name = "-".join(f"{n[0]}{c}" for n, c in sorted(self.content.items()))
        run = str(self.root / f"run-{self.trained}-{name}")
        return {
            "shards": self.shards,
            "il": self.table,
            "run": run,
            "model": "mlp-64",
            "buffer_size": BUFFER,
            "batch_size": BATCH,
            "checkpoint_every": 2,
            "roots": roots,
        }

    def look(self) -> None:
        """Which parts are there now; a new one must be of the shard's bytes, so says the invariant."""
        there = {name for name in NAMES if self.part(name).exists()}
        self.parts = {name: self.parts.get(name, self.content.get(name, -1)) for name in there}
        self.damaged = {name: whole for name, whole in self.damaged.items() if name in there}

    # What happens to shards.

    @initialize(contents=st.tuples(st.integers(0, CONTENTS - 1), st.integers(1, CONTENTS - 1)))
    def two_shards(self, contents: tuple[int, int]) -> None:
        for name, content in zip(NAMES, contents, strict=False):
            self.a_shard_comes_or_changes(name, content)

    @rule(name=st.sampled_from(NAMES), content=st.integers(0, CONTENTS - 1))
    def a_shard_comes_or_changes(self, name: str, content: int) -> None:
        self.content[name] = content
        self.write(name)

    @precondition(lambda self: len(self.content) > 1)
    @rule(data=st.data())
    def a_shard_goes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        del self.content[name]
        (self.place / name).unlink()

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def a_shard_is_copied_anew(self, data: st.DataObject) -> None:
        self.write(data.draw(st.sampled_from(sorted(self.content))))

    def write(self, name: str) -> None:
        """Every write is a second later than the one before."""
        self.clock += 1
        (self.place / name).write_bytes(self.truth.tar(self.content[name]))
        os.utime(self.place / name, (self.clock, self.clock))

    # What happens to parts.

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "lose"]), where=st.floats(0, 0.999))
    def a_part_rots(self, data: st.DataObject, how: str, where: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.parts)))
        part, whole = self.part(name), self.part(name).read_bytes()
        if not whole:
            return  # nothing is left of it
        at = int(where * len(whole))
        if how == "lose":
            part.unlink()
            self.look()
            return
        part.write_bytes(whole[:at] if how == "cut" else whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        whole = self.damaged.pop(name, whole)  # the same bit twice is no damage
        if not self.reads_as_before(part, whole):
            self.damaged[name] = whole

    def reads_as_before(self, part: Path, whole: bytes) -> bool:
        """A bit of a file may mean nothing."""
        before = self.root / "before.parquet"
        before.write_bytes(whole)
        try:
            (rows, facts), (old_rows, old_facts) = parquet.read(str(part)), parquet.read(str(before))
        except TableError:
            return False
        return bool(rows.equals(old_rows)) and facts == old_facts

    # What people do.

    @precondition(lambda self: self.content)
    @rule()
    def compute_il(self) -> None:
        before = dict(self.parts)
        try:
            summary = rhostream.compute_il(**self.options("compute-il"))
        except (MismatchError, TableError) as error:
            assert not self.sound, error
            assert any(self.damaged) or any(before.get(n, c) != c for n, c in self.content.items()), error
            self.advice(error)
        else:
            self.look()
            assert set(self.content) <= set(self.parts)
            assert summary.made == len(set(self.content) - set(before)) and summary.shards == len(self.content)
            assert summary.samples == summary.ok + sum(summary.quarantined.values())
            self.done["compute-il"] += 1
        self.look()

    def advice(self, error: RhostreamError) -> None:
        """Delete the part that the message names, as it says."""
        for name in list(self.parts):
            if f"r/{name}" in str(error):
                self.part(name).unlink()
                return

    @precondition(lambda self: self.content)
    @rule(data=st.data(), passing=st.sampled_from([1, 1, 2, 3]))
    def a_job_dies(self, data: st.DataObject, passing: int) -> None:
        verb = "train" if self.sound and self.enough else "compute-il"
        own = OFFLINE if verb == "compute-il" else ONLINE
        point = data.draw(st.sampled_from(sorted(p for p in points() if p.startswith(own))))
        options = self.options(verb)
        ended = self.rig.job(verb, options, f"{point}@{passing}")
        assert ended["code"] in (0, 1, -9), ended
        self.done["killed" if ended["code"] == -9 else "not reached"] += 1
        self.look()
        if verb == "train" and checkpoint.latest(options["run"]) is not None:
            assert not verify(options["run"])["problems"]

    def all_is_mended_and_trained(self) -> None:
        """Whatever happened: who follows the messages comes to a log of everything, in a few commands."""
        for _ in range(8):
            if not self.damaged.keys().isdisjoint(self.content):
                self.repair()
            self.compute_il()
            if (error := self.train()) is None:
                return
            self.advice(error)
            self.look()
        raise AssertionError(f"the advice doesn't help: {error}")

    @property
    def enough(self) -> bool:
        return sum(len(self.truth.of(n, c)["key"]) for n, c in self.content.items()) >= BUFFER

    @precondition(lambda self: self.enough)
    @rule()
    def train_as_it_is(self) -> None:
        self.train()

    def train(self) -> RhostreamError | None:
        """Refused for a reason, or a log of everything, each sample once."""
        options = self.options("train")
        try:
            summary = rhostream.train(**options)
        except (UsageError, TableError) as error:
            assert not self.sound, error
            self.done["train refused"] += 1
            return error
        self.done["train"] += 1
        self.trained += 1  # the next one is another run
        with rhostream.open_ledger(options["run"]) as ledger:
            rows = ledger.sql("SELECT shard, ordinal, key, label, il, step FROM selections").to_pylist()
        expected = {
            (f"r/{n}", at): (key, label, value)
            for n, c in self.content.items()
            for at, (key, label, value) in enumerate(zip(*self.truth.of(n, c).values(), strict=True))
        }
        assert len(rows) == len(expected) == summary.planned
        assert {(r["shard"], r["ordinal"]): (r["key"], r["label"], r["il"]) for r in rows} == expected
        steps = Counter(r["step"] for r in rows)
        tail = steps.pop(None, 0)
        assert steps == dict.fromkeys(range(len(rows) // BUFFER), BUFFER) and tail == len(rows) % BUFFER
        return None

    @precondition(lambda self: (self.root / "t" / "_table.json").exists())
    @rule()
    def verify_names_what_is_damaged(self) -> None:
        problems = verify(self.table)["problems"]
        unnamed = {name for name in self.damaged if not any(f"{name}.parquet" in p for p in problems)}
        assert not unnamed and len(problems) == len(self.damaged), problems
        self.done["verify"] += 1

    @precondition(lambda self: (self.root / "t" / "_table.json").exists())
    @rule()
    def repair(self) -> None:
        before, command = set(self.damaged), ["verify", self.table, "--repair"]
        found = CliRunner().invoke(cli, command)
        if isinstance(found.exception, UsageError):
            # Parts are bad of shards that are gone: as it says, the shards that are there are named.
            assert before - set(self.content) and not self.rereads(before), found.exception
            if not self.content:
                return
            found = CliRunner().invoke(cli, [*command, "--shards", *self.shards, "--root", f"r={self.place}"])
        assert found.exit_code in (0, 3) and (found.exit_code == 3 or not before or not verify(self.table)["problems"])
        for name in self.rereads(before):
            if self.part(name).exists():
                self.damaged.pop(name)
                self.parts[name] = self.content[name]  # made again, of the bytes that are there
        self.look()
        self.done["repair"] += 1

    def rereads(self, names: set[str]) -> set[str]:
        """Which of these parts are sound now."""
        problems = verify(self.table)["problems"]
        return {name for name in names if not any(f"{name}.parquet" in problem for problem in problems)}

    @invariant()
    def parts_are_the_truth_of_their_content(self) -> None:
        for name, content in self.parts.items():
            if name not in self.damaged and self.part(name).exists():
                part, true = il.read_part(str(self.part(name))), self.truth.of(name, content)
                assert part.facts.shard == f"r/{name}"
                assert (part.key.to_pylist(), part.label.tolist(), part.il.tolist()) == tuple(true.values())


def explore(rig: Rig, folder: Path, examples: int, steps: int) -> None:
    Folder.rig, Folder.truth, Folder.done = rig, Truth(folder), Counter()
    cores = os.sched_getaffinity(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.sched_setaffinity(0, {min(cores)})  # threads that spin cost more than such small jobs
        run_state_machine_as_test(Folder, settings=settings(
            max_examples=examples, stateful_step_count=steps, derandomize=True, deadline=None, database=None,
            phases=[Phase.generate],  # a history of jobs takes seconds: the one that fails is shown as it is
            suppress_health_check=list(HealthCheck)))  # fmt: skip
        os.sched_setaffinity(0, cores)
    tally.say(
        f"state machine: {examples} histories of up to {steps} steps: "
        + ", ".join(f"{n} {what}" for what, n in sorted(Folder.done.items()))
    )
    assert all(Folder.done[what] for what in ("train", "killed", "verify", "repair"))


def test_whatever_happens_nothing_is_lost_doubled_or_used_in_silence(rig: Rig, tmp_path: Path) -> None:
    explore(rig, tmp_path, 8, 12)


@pytest.mark.slow
def test_whatever_happens_in_many_long_histories(rig: Rig, tmp_path: Path) -> None:
    explore(rig, tmp_path, 30, 24)
    assert Folder.done["train refused"]
