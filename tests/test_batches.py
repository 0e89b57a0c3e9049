"""Batches in a trainer's hands: a loop that calls nothing back has the ledger, weights and resume of a run's own."""

from __future__ import annotations

import copy
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, NonFiniteError, UsageError
from rhostream.integrations.batches import Batches
from rhostream.runs import checkpoint
from tests.support.ledger import as_text, rows
from tests.support.own_loop import network

pytestmark = pytest.mark.usefixtures("one_thread")
BUFFERS = 25


class Theirs:
    """A trainer as others write them: epochs, means of batches, and a checkpoint behind the optimizer's step."""

    def __init__(self, world: Path, folder: Path, *, accumulate: int = 1, passes: int = 1, **options: Any) -> None:
        self.model, self.accumulate = network(), accumulate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40, passes=passes)
        selector = rhostream.Selector(self.model, batch_size=8)
        run = rhostream.Run(str(folder), stream, selector, config={"lr": 1e-2}, **options)
        self.batches = Batches(run, accumulate=accumulate)
        self.batches.watch(self.optimizer)
        self.sizes: list[int] = []

    def epoch(self, until: int | None = None, save_at: tuple[int, ...] = (), refuse: int = -1) -> list[dict[str, Any]]:
        saved, number = [], 0
        for batch in self.batches:
            self.sizes.append(len(batch["target"]))
            loss = cross_entropy(self.model(batch["input"]), batch["target"])
            self.batches.losses(loss, len(batch["target"]))
            (loss / self.accumulate).backward()
            number += 1
            if number % self.accumulate:
                continue
            if self.batches.updates != refuse:
                self.optimizer.step()
            self.optimizer.zero_grad()
            if self.batches.updates in save_at:
                saved.append(self.state())
            if self.batches.updates == until:
                break
        return saved

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy({**state, "batches": self.batches.state_dict()})

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])


def equal(one: Theirs, other: Theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_it_trains_as_a_loop_over_the_run_does(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "theirs")
    theirs.epoch()
    theirs.state()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
    run = rhostream.Run(str(tmp_path / "own"), stream, rhostream.Selector(model, batch_size=8), config={"lr": 1e-2},
                        state={"model": model, "optimizer": optimizer})  # fmt: skip
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
        run.step(loss_b)
    for a, b in zip(model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    keys = "SELECT step, key FROM selections WHERE kept ORDER BY ALL"
    assert rows(tmp_path / "own", keys) == rows(tmp_path / "theirs", keys)
    losses = "SELECT loss_kept AS loss FROM steps ORDER BY step"
    for a, b in zip(rows(tmp_path / "own", losses), rows(tmp_path / "theirs", losses), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert theirs.sizes == [8] * BUFFERS and len(theirs.batches) == BUFFERS
    assert verify(str(tmp_path / "theirs"))["problems"] == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_killed_and_resumed_from_an_older_checkpoint_it_is_the_uninterrupted_run(
    world: Path, tmp_path: Path, accumulate: int
) -> None:
    whole = Theirs(world, tmp_path / "whole", accumulate=accumulate, passes=2)
    for _ in range(2):
        whole.epoch()
    whole.state()
    first = Theirs(world, tmp_path / "run", accumulate=accumulate, passes=2)
    early, _ = first.epoch(until=14, save_at=(6, 12))
    first.batches.close()
    again = Theirs(world, tmp_path / "run", accumulate=accumulate, passes=2)
    again.load(early)
    again.epoch()  # the rest of the first pass
    assert again.batches.updates == BUFFERS
    with pytest.raises(UsageError, match="before the first batch"):
        again.batches.load_state_dict(early["batches"])
    again.epoch()
    again.state()
    assert as_text(tmp_path / "run") == as_text(tmp_path / "whole") and equal(again, whole)
    assert set(again.sizes) == {8 // accumulate}
    assert verify(str(tmp_path / "run"))["problems"] == []


def test_a_state_is_the_same_until_something_came_after_it(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run", passes=2)
    theirs.epoch(until=24)
    before = theirs.batches.state_dict()
    assert theirs.batches.state_dict() is before
    theirs.epoch()  # the pass's last buffer: recorded, and nothing was drawn since
    after = theirs.batches.state_dict(complete=True)
    assert (before["updates"], after["updates"], after["run"]["step"]) == (24, 25, 25)
    assert verify(str(tmp_path / "run"))["problems"] == [] and theirs.batches.run.steps == 25
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete and latest.unconfirmed
    theirs.batches.confirm()
    theirs.epoch(until=26)  # and it goes on
    theirs.state()
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and not latest.complete and latest.step == 26


def test_an_update_of_which_nothing_was_learned_is_unapplied(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run")
    for _ in theirs.batches:
        theirs.optimizer.step()
        if theirs.batches.updates == 3:
            theirs.batches.leave_out()
        if theirs.batches.updates == 5:
            break
    theirs.state()
    asked = "SELECT DISTINCT step FROM selections WHERE reason = 'unapplied'"
    assert [row["step"] for row in rows(tmp_path / "run", asked)] == [2]


def test_an_update_that_a_guard_left_out_is_unapplied(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run")
    theirs.epoch(refuse=3)
    theirs.state()
    asked = "SELECT DISTINCT step FROM selections WHERE reason = 'unapplied'"
    assert [row["step"] for row in rows(tmp_path / "run", asked)] == [2]


def test_weights_that_took_a_loss_that_is_nan_are_never_named(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run")
    with pytest.raises(NonFiniteError, match="step 0"):
        for batch in theirs.batches:
            theirs.batches.losses(torch.tensor(float("nan")), len(batch["target"]))
            theirs.optimizer.step()


def test_no_checkpoint_falls_inside_an_update(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run", accumulate=4)
    for number, _ in enumerate(theirs.batches):
        if number == 1:
            with pytest.raises(UsageError, match="inside an update of 4"):
                theirs.batches.state_dict()
            break


def test_of_a_short_buffer_the_pieces_say_how_they_count(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run", accumulate=2)
    run = theirs.batches.run
    kept = next(iter(run))
    short = replace(kept, total=7, input=kept.input[:7], target=kept.target[:7], label=kept.label[:7])  # type: ignore[index]
    assert [piece.factor for piece in theirs.batches._cut(short)] == pytest.approx([8 / 7, 6 / 7])


def test_signals_are_left_to_the_trainer(world: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    theirs = Theirs(world, tmp_path / "run")
    for _ in theirs.batches:
        assert signal.getsignal(signal.SIGTERM) is before
        break
    theirs.batches.close()


def test_what_cannot_go_together_is_refused(world: Path, tmp_path: Path) -> None:
    theirs = Theirs(world, tmp_path / "run")
    with pytest.raises(UsageError, match="DataLoader"):
        next(iter(torch.utils.data.DataLoader(theirs.batches)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="8 doesn't divide into 1 ranks x 3"):
        Batches(theirs.batches.run, accumulate=3)
    with pytest.raises(MismatchError, match="no state"):
        theirs.batches.load_state_dict({"model": 1})
    stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
    weighed = rhostream.Run(str(tmp_path / "is"), stream, rhostream.Selector(network(), "grad_norm_is", 8))
    with pytest.raises(UsageError, match="weighs"):
        Batches(weighed)
