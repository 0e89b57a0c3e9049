"""What a run changes on purpose is recorded, said and respected; and the command that goes on is the whole command."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.audit.alike import differing, setting_of
from rhostream.audit.compare import grouped
from rhostream.audit.facts import gather_all
from rhostream.audit.report import write_report
from rhostream.audit.runs import open_runs
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.errors import Interrupted, MismatchError, UsageError
from rhostream.runs import checkpoint, tensors
from rhostream.training.changes import CHANGEABLE, WHY_NOT, parse_changes
from rhostream.training.start import train
from tests.support.logs import rates, weights_of
from tests.support.process import run as command
from tests.support.small_run import go


def test_every_argument_of_train_can_be_changed_or_says_why_not() -> None:
    arguments = set(inspect.signature(train).parameters) - {"config", "run", "change"}
    assert arguments <= {*CHANGEABLE, *WHY_NOT} and not {*CHANGEABLE} & {*WHY_NOT}
    for name in WHY_NOT:
        with pytest.raises(UsageError, match=f"--change {name}"):
            parse_changes({name: 1})


def test_a_changed_rate_holds_from_its_step_on_and_run_json_keeps_how_it_began(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run)
    began = (run / "run.json").read_bytes()
    go(world, run, 12, change={"lr": 5e-4, "weight_decay": 0.0})
    assert rates(run) == [1e-3] * 6 + [5e-4] * 6
    assert (run / "run.json").read_bytes() == began
    latest = checkpoint.latest(str(run))
    assert latest is not None
    assert latest.changes == [
        {"field": "lr", "old": 1e-3, "new": 5e-4, "step": 6, "attempt": 1},
        {"field": "weight_decay", "old": 0.01, "new": 0.0, "step": 6, "attempt": 1},
    ]
    note = json.loads((run / "attempts" / "1.json").read_text())
    assert note["changes"][0]["new"] == 5e-4 and note["settings"]["steps"] == 12
    assert "lr 0.001 to 0.0005 from step 6 (attempt 1)" in render_status(status_of(str(run)))
    page = Path(write_report(str(run), str(tmp_path / "r.html"))).read_text()
    assert "Changed on purpose: run, lr 0.001 to 0.0005 from step 6." in page
    go(world, run, 14)  # the first command again: what was changed stays in force
    go(world, run, 15, lr=5e-4, weight_decay=0.0)  # and so it does said as it is now
    go(world, run, 16, change="lr=0.002")
    assert rates(run) == [1e-3] * 6 + [5e-4] * 9 + [0.002]
    with pytest.raises(MismatchError, match=r"began with lr 0.001 and has 0.002 now, not 0.5; --change lr=0.5"):
        go(world, run, 18, lr=0.5)


def test_the_same_command_again_changes_nothing_more_and_the_weights_are_those_of_one_attempt(
    world: Path, tmp_path: Path
) -> None:
    def killed(row: dict[str, Any]) -> None:
        if row["step"] == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    for name in ("once", "twice"):
        go(world, tmp_path / name)
    go(world, tmp_path / "once", 18, change={"lr": 0.01})
    with pytest.raises(Interrupted):
        go(world, tmp_path / "twice", 18, change={"lr": 0.01}, metrics=killed)
    go(world, tmp_path / "twice", 18, change={"lr": 0.01})
    assert rates(tmp_path / "once") == rates(tmp_path / "twice")
    latest = checkpoint.latest(str(tmp_path / "twice"))
    assert latest is not None and latest.attempt == 2 and len(latest.changes) == 1
    one, two = weights_of(tmp_path / "once"), weights_of(tmp_path / "twice")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_changed_runs_are_seeds_only_of_runs_with_the_same_changes(world: Path, tmp_path: Path) -> None:
    for name, seed, change in (("a", 0, "lr=0.01"), ("b", 1, "lr=0.01"), ("c", 2, None), ("d", 3, "lr=0.02")):
        go(world, tmp_path / name, 4, seed=seed, checkpoint_every=4)
        go(world, tmp_path / name, 8, seed=seed, change=change)
    facts = gather_all({name: str(tmp_path / name) for name in "abcd"}, None)
    groups = grouped(facts.values())
    assert [[run.name for run in runs] for runs in groups.values()] == [["a", "b"], ["c"], ["d"]]
    a, d = (setting_of(one) for one in open_runs([str(tmp_path / "a"), str(tmp_path / "d")]))
    assert differing(a, d) == ["change 1"]


@pytest.mark.parametrize(("change", "says"), [
    ("lr", "expected NAME=VALUE"), ("lr=fast", "expected a number"), ("accumulate=1.5", "whole number"),
    ("accumulate=0", "at least 1"), ("learning-rate=1", "unknown"), ("seed=3", "order of the samples"),
    ("eval-every=3", "give the option itself"), ("il_lr_scale=2", "no such setting"), ("compile=perhaps", "true or"),
    ("augment=turn", "unknown augmentation"),
])  # fmt: skip
def test_a_change_that_can_not_be_is_refused_before_any_work(
    world: Path, tmp_path: Path, change: str, says: str
) -> None:
    go(world, tmp_path / "run", 2)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says):
        go(world, tmp_path / "run", 4, change=change)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_a_change_of_what_has_not_begun_or_is_over_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run in"):
        go(world, tmp_path / "run", change="lr=1")
    go(world, tmp_path / "run", 2)
    with pytest.raises(UsageError, match="complete at step 2"):
        go(world, tmp_path / "run", 2, change="lr=1")
    with pytest.raises(MismatchError, match=r"lr: was 0.001, now 0.5") as error:
        go(world, tmp_path / "run", 4, lr=0.5)
    assert any("--change lr=0.5" in note for note in error.value.__notes__)


def test_a_proxy_and_an_il_model_that_learn_along_take_the_new_rate_too(world: Path, tmp_path: Path) -> None:
    for name, more in (("proxy", {"shortlist": "proxy:2"}), ("live-0", {"rule": "rho_updated"})):
        run = tmp_path / name
        go(world, run, 2, **more)  # type: ignore[arg-type]
        go(world, run, 4, change="lr=0.5", **more)  # type: ignore[arg-type]
        latest = checkpoint.latest(str(run))
        assert latest is not None
        found = tensors.load_other(str(run), latest, name)["optimizer"]["param_groups"][0]["lr"]
        assert found == pytest.approx(0.5 if name == "proxy" else 0.005)


# -- the command that goes on ------------------------------------------------------------------------------------------

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with options": {"rule": "loss", "lr": 2e-3, "weight_decay": 0.0, "accumulate": 2, "augment": "flip-shift",
                     "class_quota": 0.5, "clip": True, "ratio": "0:0.5,5:0.2", "shadow": ("small_loss", "uniform"),
                     "eval_every": 3, "checkpoint_every": 4, "keep_checkpoints": 3, "seed": 5, "chunk": 20,
                     "batch_norm": "eval", "lanes": 4, "keep_holdout": True},
    "of the cascade": {"band": ":90%", "shortlist": "proxy:2", "proxy_model": "mlp-64"},
}  # fmt: skip


@pytest.mark.parametrize("how", [pytest.param("plain", marks=pytest.mark.slow), "with options", "of the cascade"])
def test_the_command_that_status_prints_goes_on_as_the_run_began(world: Path, tmp_path: Path, how: str) -> None:
    def stopped(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "my run"
    tests = sorted(str(p) for p in (world / "test").iterdir())
    with pytest.raises(Interrupted):
        go(world, run, 12, metrics=stopped, test_shards=tests, **CALLS[how])
    following = status_of(str(run))["next"]
    assert "(" not in following
    words = shlex.split(following)
    assert words[0] == "rhostream" and ("--lr" in following) == ("lr" in CALLS[how])
    command(*words[1:])
    found = status_of(str(run))
    assert found["complete"] and found["step"] == 12 and "complete" in found["next"]
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("select test_samples from steps order by step desc limit 1")[0].to_pylist() != [None]


def test_a_run_that_was_given_more_steps_ends_where_it_ends_now(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path, 4)
    go(world, tmp_path, 12)
    assert "12 of 12 (100.0%), complete" in render_status(status_of(str(tmp_path)))
    with rhostream.open_ledger(str(tmp_path)) as ledger:
        assert ledger.sql("select steps, last_step from runs").to_pylist() == [{"steps": 12, "last_step": 12}]
    note = tmp_path / "attempts" / "1.json"
    older = {name: value for name, value in json.loads(note.read_text()).items() if name != "settings"}
    note.write_text(json.dumps(older))  # as a version before wrote it: run.json says how it began
    assert status_of(str(tmp_path))["of"] == 4
    with rhostream.open_ledger(str(tmp_path)) as ledger:
        assert ledger.sql("select last_step from runs").to_pylist() == [{"last_step": 4}]
    note.unlink()
    assert status_of(str(tmp_path))["of"] == 4


def test_the_command_of_a_run_of_before_says_what_it_does_not_know_and_goes_on(world: Path, tmp_path: Path) -> None:
    def stopped(row: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(world, run, 6, metrics=stopped, lr=2e-3, keep_holdout=True)
    record = json.loads((run / "run.json").read_text())
    del record["arguments"]
    (run / "run.json").write_text(json.dumps(record))
    whole, _, rest = status_of(str(run))["next"].partition(" (")
    assert "--test-shards" in rest and "--lr 0.002" in whole
    command(*shlex.split(whole)[1:])
    assert status_of(str(run))["complete"]


def test_no_secret_of_a_url_is_in_the_command(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 2)
    path = tmp_path / "run" / "run.json"
    arguments = json.loads(path.read_text())["arguments"]
    assert arguments["shards"] == [str(world / "shards")] and "metrics" not in arguments and "lr" not in arguments


def test_the_command_that_fills_a_table_names_every_shard_whatever_is_missing(world: Path, tmp_path: Path) -> None:
    from tests.support.shards import make_shards

    shards = [str(p) for p in make_shards(tmp_path / "shards", [3] * 22)]
    rhostream.index(shards[1::2], str(tmp_path / "ix"))
    following = status_of(str(tmp_path / "ix"), [str(tmp_path / "shards")])["next"]
    assert "more)" not in following
    command(*shlex.split(following)[1:])
    assert status_of(str(tmp_path / "ix"), shards)["next"] == "nothing"


def test_a_number_of_proxy_batches_that_can_not_be_is_called_by_its_name() -> None:
    from rhostream.advisor.scoring import scoring_report

    with pytest.raises(UsageError, match="--proxy-batches -1"):
        scoring_report(proxy_batches=-1)
