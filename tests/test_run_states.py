"""Runs whose checkpoint another trainer owns: the log that counts is the one that the state in hand names."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, SupersededError, UsageError
from rhostream.runs import checkpoint
from tests.support.ledger import as_text, rows
from tests.support.own_loop import demanding, network

pytestmark = pytest.mark.usefixtures("one_thread")
BUFFERS = 25


class Loop:
    """A loop that keeps its own checkpoints, in memory."""

    def __init__(
        self, world: Path, folder: Path, seed: int = 0, rule: str = "rho", buffer_size: int = 40, **selector: Any
    ) -> None:
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=buffer_size, seed=seed)
        self.run = rhostream.Run(
            str(folder), stream, rhostream.Selector(self.model, rule, 8, **selector), config={"lr": 1e-2}
        )

    def go(self, until: int | None = None, save_at: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """The loop until so many buffers were gone through; the states saved after those of `save_at`."""
        saved = []
        for kept in self.run:
            loss_b = cross_entropy(self.model(kept.input), kept.label, reduction="none")
            self.optimizer.zero_grad()
            kept.mean(loss_b).backward()
            self.optimizer.step()
            self.run.step(loss_b)
            if self.run.steps + 1 in save_at:
                saved.append(self.state())
            if self.run.steps == until:
                break
        return saved

    def state(self) -> dict[str, Any]:
        run = self.run.state_dict()
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "run": run})

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.run.load_state_dict(state["run"])


Make = Callable[..., Loop]


@pytest.fixture
def loop(world: Path, tmp_path: Path) -> Make:
    def made(folder: str = "run", **options: Any) -> Loop:
        return Loop(world, tmp_path / folder, **options)

    return made


def steps(folder: Path) -> list[int]:
    question = "SELECT DISTINCT step FROM selections WHERE step IS NOT NULL ORDER BY 1"
    return [row["step"] for row in rows(folder, question)]


def test_the_ledger_holds_the_steps_of_the_state_that_was_loaded(loop: Make, tmp_path: Path) -> None:
    whole = loop("whole")
    whole.go()
    whole.state()
    first = loop()
    early, late = first.go(until=12, save_at=(5, 10))
    assert steps(tmp_path / "run") == [*range(10)]  # the newest, though nobody says that it was saved
    again = loop()
    again.load(early)  # the later state was lost
    assert steps(tmp_path / "run") == [*range(5)]
    again.go()
    again.state()
    assert as_text(tmp_path / "run") == as_text(tmp_path / "whole") and steps(tmp_path / "run") == [*range(BUFFERS)]
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    assert verify(str(tmp_path / "run"))["problems"] == []
    assert late["run"]["step"] == 10


def test_a_state_can_be_saved_by_torch_and_read_without_running_code(loop: Make, tmp_path: Path) -> None:
    (state,) = loop().go(until=4, save_at=(4,))
    torch.save(state, tmp_path / "mine.pt")
    again = loop()
    again.load(torch.load(tmp_path / "mine.pt", weights_only=True))
    again.go(until=8)
    assert steps(tmp_path / "run") == [*range(4)] and again.run.steps == 8


def test_the_newest_state_is_unconfirmed_until_somebody_says_so(loop: Make, tmp_path: Path) -> None:
    mine = loop()
    mine.go(until=3, save_at=(3,))
    head = checkpoint.head(str(tmp_path / "run"))
    assert head is not None and head.handed_out and head.unconfirmed and head.files == {}
    mine.run.confirm()
    head = checkpoint.head(str(tmp_path / "run"))
    assert head is not None and not head.unconfirmed


def test_a_load_confirms(loop: Make, tmp_path: Path) -> None:
    (state,) = loop().go(until=3, save_at=(3,))
    loop().load(state)
    head = checkpoint.head(str(tmp_path / "run"))
    assert head is not None and head.step == 3 and not head.unconfirmed


def test_a_loop_that_begins_without_a_state_begins_anew(loop: Make, tmp_path: Path) -> None:
    loop().go(until=7, save_at=(6,))
    again = loop()
    again.go(until=3, save_at=(2,))
    assert steps(tmp_path / "run") == [0, 1]
    assert [path.name for path in sorted((tmp_path / "run" / "attempts").iterdir())] == ["0.json", "1.json"]
    assert verify(str(tmp_path / "run"))["problems"] == []


def test_of_two_that_go_on_from_one_state_the_newer_counts(loop: Make, tmp_path: Path) -> None:
    (state,) = loop().go(until=4, save_at=(4,))
    one, other = loop(), loop()
    one.load(state)
    other.load(state)
    other.go(until=6, save_at=(6,))
    with pytest.raises(SupersededError):
        one.go(until=5, save_at=(5,))
    assert steps(tmp_path / "run") == [*range(6)]


@pytest.mark.parametrize("change", [{"seed": 1}, {"rule": "loss"}, {"buffer_size": 50}, {"gumbel": 0.5}])
def test_the_state_of_another_plan_or_of_other_settings_is_refused(
    loop: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    (state,) = loop().go(until=3, save_at=(3,))
    with pytest.raises(MismatchError):
        loop(**change).load(state)
    assert [path.name for path in (tmp_path / "run" / "attempts").iterdir()] == ["0.json"]


def test_the_state_of_another_run_is_refused(loop: Make, tmp_path: Path) -> None:
    (state,) = loop("a").go(until=3, save_at=(3,))
    loop("b").go(until=3, save_at=(3,))
    with pytest.raises(MismatchError, match="another run"):
        loop("b").load(state)
    assert len(list((tmp_path / "b" / "attempts").iterdir())) == 1


@pytest.mark.parametrize("state", [{}, {"version": 1}, {"version": "new"}, [], {"version": 1, "link": 3}])
def test_what_is_no_state_is_refused(loop: Make, state: Any) -> None:
    with pytest.raises(MismatchError, match="no state of a run"):
        loop().run.load_state_dict(state)


def test_the_state_of_a_newer_version_is_refused(loop: Make) -> None:
    (state,) = loop().go(until=2, save_at=(2,))
    with pytest.raises(MismatchError, match="newer rhostream"):
        loop().run.load_state_dict({**state["run"], "version": 99})


def test_a_state_is_loaded_before_the_first_batch(loop: Make) -> None:
    mine = loop()
    (state,) = mine.go(until=2, save_at=(2,))
    with pytest.raises(UsageError, match="before the first batch"):
        mine.run.load_state_dict(state["run"])


def test_a_state_before_the_step_is_told_is_refused(loop: Make) -> None:
    mine = loop()
    with pytest.raises(UsageError, match="after run"):
        for _ in mine.run:
            mine.run.state_dict()


def test_a_run_without_state_has_nothing_to_commit(loop: Make) -> None:
    with pytest.raises(UsageError, match=r"run\.state_dict"):
        loop().run.commit()


def test_a_state_holds_what_the_selector_learns_beside_the_model(world: Path, tmp_path: Path) -> None:
    def made() -> Loop:
        mine = Loop(world, tmp_path / "run")
        proxy = rhostream.selection.proxy.Proxy(network(1))
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
        mine.run = rhostream.Run(
            str(tmp_path / "run"),
            stream,
            rhostream.Selector(mine.model, "rho", 8, proxy=proxy, shortlist=2, class_quota="reducr"),
        )
        return mine

    (state,) = made().go(until=4, save_at=(4,))
    proxy = state["run"]["models"]["proxy"]["model"]
    again = made()
    again.load(state)
    loaded = again.run.selector.proxy
    assert loaded is not None
    assert all(torch.equal(proxy[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert not torch.equal(next(iter(proxy.values())), next(iter(network(1).state_dict().values())))


def test_at_the_end_the_last_state_completes_the_run(world: Path, tmp_path: Path) -> None:
    demanding(str(world), str(tmp_path / "run"), keeps_its_own=True)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete and latest.step == BUFFERS
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["scored"] > 0
    once = as_text(tmp_path / "run")
    demanding(str(world), str(tmp_path / "run"), keeps_its_own=True)
    assert as_text(tmp_path / "run") == once


def test_a_module_is_no_state_of_a_run(loop: Make) -> None:
    with pytest.raises(MismatchError):
        loop().run.load_state_dict(nn.Linear(1, 1).state_dict())
