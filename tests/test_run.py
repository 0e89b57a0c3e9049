"""A run in a loop of one's own: the ledger, commits, exact resume and cost account, rule by rule."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.alike import digest_of, setting_of
from rhostream.audit.runs import open_runs
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.cli import cli
from rhostream.errors import Interrupted, MismatchError, NonFiniteError, SupersededError, UsageError
from rhostream.runs import checkpoint
from rhostream.runs.state import read_states
from rhostream.runs.tensors import read_files
from tests.support.ledger import as_text, rows
from tests.support.own_loop import README, network, readme_loop, run_readme, small
from tests.support.tables import without_il

pytestmark = pytest.mark.usefixtures("one_thread")
BUFFERS = 25  # of 40 in a pass over the world's 1,003 samples
Make = Callable[..., tuple[rhostream.Run, nn.Module, torch.optim.Optimizer]]

TWELVE = """\
stream = rhostream.open_stream("shards", il="il", buffer_size=320)
selector = rhostream.Selector(model, rule="rho", batch_size=32)
run = rhostream.Run("runs/mine", stream, selector, state={"model": model, "optimizer": optimizer, "scheduler": scheduler})
for kept in run:                                         # draws n_B, scores, keeps n_b; resumes where the last commit was
    loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
    optimizer.zero_grad()
    kept.mean(loss_b).backward()                         # importance weights and unequal ranks are in it
    optimizer.step()
    run.step(loss_b)                                     # records the step
    scheduler.step()
"""  # noqa: E501  # word for word


@pytest.fixture
def make(world: Path, tmp_path: Path) -> Make:
    """A run of a small network in tmp_path/run, and what it learns with."""

    def made(
        folder: str = "run",
        rule: str = "rho",
        lr: float = 1e-2,
        stream: dict[str, Any] | None = None,
        model: nn.Module | None = None,
        selector: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[rhostream.Run, nn.Module, torch.optim.Optimizer]:
        model = model or network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        asked = {"il": str(world / "il"), "buffer_size": 40, **(stream or {})}
        buffers = rhostream.open_stream(str(world / "shards"), **asked)
        chosen = rhostream.Selector(model, rule, 8, **(selector or {}))
        options = {"state": {"model": model, "optimizer": optimizer}, **options}
        return rhostream.Run(str(tmp_path / folder), buffers, chosen, **options), model, optimizer

    return made


def learn(run: rhostream.Run, model: nn.Module, optimizer: torch.optim.Optimizer, until: int | None = None) -> int:
    """The loop; left by `break` after `until` batches. Returns how many there were."""
    batches = 0
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
        run.step(loss_b)
        batches += 1
        if batches == until:
            break
    return batches


def weights(folder: Path) -> dict[str, bytes]:
    latest = checkpoint.latest(str(folder))
    assert latest is not None
    return {
        name: hash_of
        for name, hash_of in ((path.rsplit("/", 1)[1], digest.encode()) for path, digest in latest.files.items())
        if name.endswith(".safetensors")
    }


# -- the twelve lines --------------------------------------------------------------------------------------------------


def test_the_twelve_lines_stand_in_the_readme_word_for_word_and_run(world: Path, tmp_path: Path) -> None:
    assert TWELVE in readme_loop() and "```python" in README.read_text()
    run_readme(str(world), str(tmp_path / "run"))
    once = as_text(tmp_path / "run")
    run_readme(str(world), str(tmp_path / "run"))  # complete: nothing is left to do
    assert as_text(tmp_path / "run") == once and len(once) == 1003
    for command in (["status"], ["verify"], ["report", "--out", str(tmp_path / "report")]):
        argv = [command[0], str(tmp_path / "run"), *command[1:]]
        assert CliRunner().invoke(cli, argv).exit_code == 0, argv
    (steps,) = rows(tmp_path / "run", "SELECT count(*) AS n, sum(kept) AS kept, min(learning_rate) AS low FROM steps")
    assert steps["n"] == BUFFERS and steps["kept"] == BUFFERS * 8 and steps["low"] < 1e-6
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["scored"] == BUFFERS * 40 and cost["trained"] == BUFFERS * 8 and cost["macs"] == 256 * 4


def test_a_run_that_died_goes_on_with_the_same_batches(make: Make, tmp_path: Path) -> None:
    assert learn(*make("whole", commit_every=4)) == BUFFERS
    assert learn(*make("cut", commit_every=4), until=11) == 11  # commits at 4 and 8, and dies
    assert [r["step"] for r in rows(tmp_path / "cut", "SELECT DISTINCT step FROM selections ORDER BY 1")] == [*range(8)]
    assert learn(*make("cut", commit_every=4)) == BUFFERS - 8
    assert as_text(tmp_path / "cut") == as_text(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert verify(str(tmp_path / "cut"))["problems"] == []


def test_status_says_how_a_loop_of_ones_own_goes_on(make: Make, tmp_path: Path) -> None:
    learn(*make(commit_every=4), until=6)
    told = status_of(str(tmp_path / "run"))
    assert told["step"] == 4 and told["of"] == BUFFERS and "script" in told["next"] and "step 4" in told["next"]
    assert "train" not in told["next"]


# -- empty buffers, steps ----------------------------------------------------------------------------------------------


def test_a_buffer_of_which_nothing_is_kept_is_logged_and_never_handed_out(
    world: Path, make: Make, tmp_path: Path
) -> None:
    table = without_il(world / "il", tmp_path / "few", {0, 1, 3, 5, 6})
    asked = {"il": str(table), "missing_il": "skip", "lanes": 1, "buffer_size": 50}
    run, model, optimizer = make(stream=asked)
    batches = learn(run, model, optimizer)
    counted = rows(tmp_path / "run", "SELECT count(DISTINCT step) AS steps, count(*) AS n FROM selections")[0]
    assert 0 < batches < 20 and counted == {"steps": 20, "n": 1003} and run.complete
    kept = rows(tmp_path / "run", "SELECT kept, loss_kept FROM steps ORDER BY step")
    assert sum(row["kept"] > 0 for row in kept) == batches
    assert all(row["loss_kept"] is None for row in kept if not row["kept"])


@pytest.mark.parametrize(("steps", "says"), [
    (lambda run, loss_b: None, "forgotten"),
    (lambda run, loss_b: (run.step(loss_b), run.step(loss_b)), "twice"),
    (lambda run, loss_b: run.step(loss_b[:3]), r"\(3,\), expected \(8,\)"),
    (lambda run, loss_b: run.step(loss_b.mean()), r"\(\), expected \(8,\)"),
    (lambda run, loss_b: run.step(0.5), "float"),
])  # fmt: skip
def test_a_step_that_is_forgotten_told_twice_or_of_another_length_is_an_error(
    make: Make, steps: Callable[[rhostream.Run, Tensor], object], says: str
) -> None:
    run, model, _ = make()
    with pytest.raises(UsageError, match=says):
        for kept in run:
            steps(run, cross_entropy(model(kept.input), kept.label, reduction="none"))
    assert checkpoint.latest(run.attempt.url) is None


def test_a_step_or_a_commit_where_no_batch_is_at_hand_is_an_error(make: Make) -> None:
    run, _model, _ = make()
    with pytest.raises(UsageError, match="without a batch"):
        run.step(torch.zeros(8))
    with pytest.raises(UsageError, match="body of the loop"):
        run.evaluated(accuracy=0.5)
    with pytest.raises(UsageError, match="after run"):
        for _ in run:
            run.commit()
    with pytest.raises(UsageError, match="in the middle of step 0"):
        next(iter(run))


def test_an_update_that_was_refused_keeps_nothing_and_says_so(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(steps=6)
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        refused = run.steps in (2, 4)
        if not refused:
            optimizer.step()
        run.step(loss_b, torch.tensor(False) if run.steps == 4 else not refused)
    found = rows(
        tmp_path / "run",
        "SELECT step, reason, count(*) AS n FROM selections WHERE reason != 'below' GROUP BY ALL ORDER BY 1",
    )
    assert found == [{"step": step, "reason": "unapplied" if step in (2, 4) else "kept", "n": 8} for step in range(6)]
    assert verify(str(tmp_path / "run"))["problems"] == []


def test_losses_that_are_not_finite_are_never_committed(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(commit_every=2)
    with pytest.raises(NonFiniteError, match="step 5"):
        for kept in run:
            loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
            if run.steps == 5:
                loss_b = loss_b * torch.nan
            optimizer.zero_grad()
            kept.mean(loss_b).backward()
            optimizer.step()
            run.step(loss_b)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 4
    assert learn(*make(commit_every=2)) == BUFFERS - 4  # the poisoned weights were never committed


def test_weights_that_are_not_finite_are_never_committed(make: Make, tmp_path: Path) -> None:
    run, model, _optimizer = make(commit_every=2)
    with pytest.raises(NonFiniteError, match="the model"):
        for kept in run:
            run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
            if run.steps == 3:
                with torch.no_grad():
                    next(model.parameters()).fill_(torch.nan)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 2


def test_samples_whose_loss_a_guard_skipped_are_named_nonfinite(make: Make, tmp_path: Path) -> None:
    run, model, _optimizer = make(steps=4)
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        broken = run.steps == 2
        if broken:
            loss_b = loss_b.clone()
            loss_b.data[1] = torch.inf
        run.step(loss_b, applied=not broken)
    found = rows(tmp_path / "run", "SELECT reason, count(*) AS n FROM selections WHERE step = 2 GROUP BY 1 ORDER BY 1")
    assert found == [{"reason": "below", "n": 39}, {"reason": "nonfinite", "n": 1}]


def test_updates_of_several_batches_are_committed_whole(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(accumulate=3, commit_every=4)
    closings, refused = [], []
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        (kept.mean(loss_b) / 3).backward()
        if run.closing:
            closings.append(run.steps)
            optimizer.step()
            optimizer.zero_grad()
        run.step(loss_b)
        if run.steps == 6:
            with pytest.raises(UsageError, match="3 batches"):
                run.commit()
            refused.append(run.steps)
        if run.steps == 14:
            break
    assert closings == [2, 5, 8, 11, 14] and refused == [7]
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 12  # at 4 and 8 an update was open
    assert {row["step"] for row in rows(tmp_path / "run")} == {*range(12)}


def test_batches_that_no_update_takes_any_more_are_not_called_kept(world: Path, make: Make, tmp_path: Path) -> None:
    run, model, _ = make(accumulate=2, steps=3)
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        run.step(loss_b, applied=run.closing and run.steps < 2)
    found = rows(
        tmp_path / "run",
        "SELECT step, reason FROM selections WHERE reason IN ('kept', 'unapplied') GROUP BY ALL ORDER BY 1",
    )
    assert found == [
        {"step": 0, "reason": "unapplied"},
        {"step": 1, "reason": "kept"},
        {"step": 2, "reason": "unapplied"},
    ]


# -- chance ------------------------------------------------------------------------------------------------------------


def test_a_runs_draws_are_a_function_of_the_step(make: Make) -> None:
    drawn: list[list[tuple[float, float, float]]] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        run, model, _optimizer = make(f"run{seed}", steps=3)
        drawn.append([])
        for kept in run:
            drawn[-1].append((float(torch.rand(1)), float(np.random.rand()), random.random()))
            run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
    assert drawn[0] == drawn[1] and len({*drawn[0]}) == 3


def test_a_run_that_seeds_nothing_records_it(make: Make, tmp_path: Path) -> None:
    learn(*make(seed_steps=False), until=2)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["fingerprints"]["seed_steps"] is False
    with pytest.raises(MismatchError, match="seed_steps"):
        learn(*make(seed_steps=True))


# -- commits -----------------------------------------------------------------------------------------------------------


def test_whoever_leaves_by_break_commits_by_hand(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make()
    learn(run, model, optimizer, until=5)
    assert checkpoint.latest(str(tmp_path / "run")) is None
    run.commit()
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 5 and not latest.complete
    assert learn(*make()) == BUFFERS - 5


def test_a_commit_of_what_is_committed_is_none(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(steps=2)
    run.commit()
    assert not (tmp_path / "run").exists()
    learn(run, model, optimizer)
    run.commit()
    again, *_ = make(steps=2)
    assert list(again) == []
    again.commit()
    assert again.state_dict()["step"] == 2 and verify(str(tmp_path / "run"))["problems"] == []


def test_a_commit_holds_the_whole_body_of_the_loop(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(steps=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    run.objects["scheduler"] = scheduler
    for kept in run:
        optimizer.step()
        run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
        scheduler.step()
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None
    files = read_files(str(tmp_path / "run"), latest)
    state = read_states(files)["scheduler"]
    assert state["last_epoch"] == 2


def test_a_commit_by_the_clock(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(commit_seconds=1e-9, keep_checkpoints=100)
    learn(run, model, optimizer, until=4)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        f"step={step:010d}" for step in (1, 2, 3)
    ]


def test_a_signal_commits_and_ends_the_loop(make: Make, tmp_path: Path) -> None:
    run, model, _optimizer = make()
    with pytest.raises(Interrupted) as stopped:
        for kept in run:
            if run.steps == 3:
                signal.raise_signal(signal.SIGTERM)
            run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
    assert stopped.value.exit_code == 143
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 4


def test_an_exception_of_the_users_leaves_the_run_resumable(make: Make, tmp_path: Path) -> None:
    run, model, _optimizer = make(commit_every=2)
    with pytest.raises(ZeroDivisionError):
        for kept in run:
            run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
            1 // (5 - run.steps)
    assert learn(*make(commit_every=2)) == BUFFERS - 4
    assert verify(str(tmp_path / "run"))["problems"] == []


class Closed:
    """A state that no checkpoint could give back."""

    def state_dict(self) -> dict[str, Any]:
        return {"function": test_a_commit_by_the_clock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError


def test_a_state_that_could_not_be_read_back_is_refused_at_the_first_commit(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(commit_every=1)
    run.objects["mine"] = Closed()
    with pytest.raises(UsageError, match=r"state\['mine'\]"):
        learn(run, model, optimizer)
    assert checkpoint.latest(str(tmp_path / "run")) is None


@pytest.mark.parametrize(("state", "says"), [
    ({"model": "weights"}, "state_dict"), ({"a b": nn.Linear(1, 1)}, "name"), ({"proxy": nn.Linear(1, 1)}, "proxy"),
    ({"live-0": nn.Linear(1, 1)}, "name"), ({3: nn.Linear(1, 1)}, "name"),
])  # fmt: skip
def test_what_has_no_state_or_no_name_is_refused(make: Make, state: dict[Any, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(state=state)


def test_names_of_weights_do_not_depend_on_compile(make: Make, tmp_path: Path) -> None:
    model = network()
    run, *_ = make(state={"model": torch.compile(model)}, model=model)
    assert run.objects["model"] is model


def test_a_run_that_saves_its_model_by_another_name_is_proved(make: Make, tmp_path: Path) -> None:
    model = network()
    learn(*make(state={"student": model, "plan": torch.optim.lr_scheduler.MultiStepLR(
        torch.optim.SGD(model.parameters()), [3])}, model=model, steps=3))  # fmt: skip
    assert verify(str(tmp_path / "run"))["problems"] == []


# -- attempts ----------------------------------------------------------------------------------------------------------


def test_a_run_is_claimed_at_the_first_draw_and_never_by_being_made(make: Make, tmp_path: Path) -> None:
    run, *_ = make()
    assert not (tmp_path / "run").exists()
    next(iter(run))
    assert [path.name for path in (tmp_path / "run" / "attempts").iterdir()] == ["0.json"]


def test_an_attempt_that_a_newer_one_superseded_commits_no_more(make: Make, tmp_path: Path) -> None:
    first, model, _optimizer = make(commit_every=2)
    with pytest.raises(SupersededError, match="attempt 1"):
        for kept in first:
            first.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
            if first.steps == 2:
                assert learn(*make(commit_every=2), until=3) == 3
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and (latest.attempt, latest.step) == (1, 4)


def test_a_second_loop_over_a_run_that_is_over_says_where_passes_come_from(make: Make) -> None:
    run, model, optimizer = make(steps=2)
    assert learn(run, model, optimizer) == 2
    with pytest.raises(UsageError, match="passes=N"):
        learn(run, model, optimizer)


def test_a_loop_that_was_left_after_its_step_goes_on(make: Make, tmp_path: Path) -> None:
    learn(*make("whole", commit_every=4))
    run, model, optimizer = make(commit_every=4)
    assert [
        learn(run, model, optimizer, until=5),
        learn(run, model, optimizer, until=1),
        learn(run, model, optimizer),
    ] == [5, 1, BUFFERS - 6]
    assert as_text(tmp_path / "run") == as_text(tmp_path / "whole") and run.complete


def test_a_loop_that_was_left_after_the_last_step_is_completed_by_the_next(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(steps=4)
    learn(run, model, optimizer, until=4)
    assert learn(run, model, optimizer) == 0
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete and latest.step == 4


def test_a_stream_that_was_moved_before_is_refused(make: Make) -> None:
    run, model, optimizer = make()
    run.stream.load_state_dict({"pass": 0, "buffer": 3})
    with pytest.raises(UsageError, match="buffer 3 of pass 0"):
        learn(run, model, optimizer)


# -- what it knows -----------------------------------------------------------------------------------------------------


def test_a_config_is_pinned_and_groups_runs(make: Make, tmp_path: Path) -> None:
    for name, lr, seed in (("a", 1e-2, 0), ("b", 1e-2, 1), ("c", 1e-3, 0)):
        learn(*make(name, config={"lr": lr}, stream={"seed": seed}, selector={"seed": seed}, steps=2))
    a, b, c = (digest_of(setting_of(run)) for run in open_runs([str(tmp_path / name) for name in "abc"]))
    assert a == b != c and a is not None
    with pytest.raises(MismatchError, match=r"config\.lr"):
        learn(*make("a", config={"lr": 1e-3}, steps=4))


def test_runs_that_say_nothing_of_themselves_are_never_seeds_of_one_setting(make: Make, tmp_path: Path) -> None:
    learn(*make("a", steps=2))
    (run,) = open_runs([str(tmp_path / "a")])
    assert setting_of(run)["config"] == "unknown" and digest_of(setting_of(run)) is None


@pytest.mark.parametrize("config", [{"f": print}, {"x": float("nan")}, {"m": {1, 2}}])
def test_a_config_that_cannot_be_written_down_is_refused(make: Make, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="config of a run"):
        make(config=config)


@pytest.mark.parametrize("change", [
    {"rule": "loss"}, {"stream": {"seed": 1}}, {"stream": {"buffer_size": 50}}, {"selector": {"gumbel": 0.1}},
    {"selector": {"seed": 4}}, {"accumulate": 2}, {"stream": {"keep_holdout": True}}, {"stream": {"band": "10%:90%"}},
    {"model": nn.Sequential(nn.Flatten(), nn.Linear(256, 4))},
])  # fmt: skip
def test_a_run_of_other_settings_is_refused(make: Make, tmp_path: Path, change: dict[str, Any]) -> None:
    learn(*make(commit_every=1), until=2)
    with pytest.raises(MismatchError):
        learn(*make(commit_every=1, **change))
    assert [path.name for path in (tmp_path / "run" / "attempts").iterdir()] == ["0.json"]


def test_evaluations_stand_at_their_step(make: Make, tmp_path: Path) -> None:
    run, model, _optimizer = make(steps=5)
    for kept in run:
        run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))
        if run.steps in (1, 3):
            run.evaluated(accuracy=run.steps / 10, loss=1.0, samples=120)
    found = rows(
        tmp_path / "run",
        "SELECT step, test_accuracy::DOUBLE AS accuracy, test_samples FROM steps WHERE test_accuracy IS NOT NULL",
    )
    assert found == [
        {"step": 1, "accuracy": pytest.approx(0.1), "test_samples": 120},
        {"step": 3, "accuracy": pytest.approx(0.3), "test_samples": 120},
    ]


def test_uniform_decodes_what_it_keeps(make: Make, tmp_path: Path) -> None:
    run, model, optimizer = make(rule="uniform")
    learn(run, model, optimizer)
    assert run.attempt.cost.decoded == BUFFERS * 8 and run.attempt.cost.scored == 0


def test_uniform_in_a_loop_of_ones_own_keeps_what_train_keeps(
    make: Make, trained: Callable[..., Path], tmp_path: Path
) -> None:
    learn(*make(rule="uniform"))
    theirs = trained("train", rule="uniform", steps=BUFFERS, seed=0)
    kept = "SELECT step, shard, ordinal FROM selections WHERE kept ORDER BY ALL"
    assert rows(tmp_path / "run", kept) == rows(theirs, kept)


@pytest.mark.parametrize(("given", "says"), [
    ({"accumulate": 0}, "accumulate"), ({"commit_every": 0}, "commit_every"), ({"steps": -1}, "steps"),
    ({"commit_seconds": 0}, "commit_seconds"), ({"keep_checkpoints": 1.5}, "keep_checkpoints"),
    ({"gradients": "average"}, "gradients"), ({"group": "all"}, "group"),
    ({"stream": {"rank": 0, "ranks": 2}}, "the stream has 2"),
])  # fmt: skip
def test_what_cannot_be_is_refused_when_the_run_is_made(make: Make, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(**given)


def test_a_stream_and_a_selector_in_each_others_place_are_refused(make: Make) -> None:
    run, *_ = make()
    with pytest.raises(UsageError, match="in this order"):
        rhostream.Run("runs/mine", run.selector, run.stream)  # type: ignore[arg-type]


def test_kept_names_its_fields(make: Make) -> None:
    run, model, _ = make(steps=1)
    for kept in run:
        assert kept.inputs is kept.input and kept.fields["pixels"] is kept.input
        assert kept.fields["label"] is kept.label and {*kept.fields} == {"pixels", "label"}
        run.step(cross_entropy(model(kept.input), kept.label, reduction="none"))


def test_a_model_that_no_counter_follows_has_an_unknown_cost(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise RuntimeError("not one sample")
            return self.inner(x)

    run, model, optimizer = make(model=Strange(), steps=2)
    learn(run, model, optimizer)
    assert run.attempt.cost.macs == 0 and run.attempt.cost.scored == 80 and "counts samples" in caplog.text


@pytest.fixture(autouse=True)
def generators_as_they_were() -> Iterator[None]:
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.random.set_rng_state(state[2])


def test_the_loop_is_shown_small_enough_to_be_read(world: Path, tmp_path: Path) -> None:
    assert len(TWELVE.splitlines()) <= 12 and "commit_every=3" in small(readme_loop(), world, tmp_path)
