"""What a step of `train` is made of is the user's choice, and a resume goes on with it bit for bit."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional

import rhostream
from rhostream.audit.alike import differing, setting_of
from rhostream.audit.report import write_report
from rhostream.audit.runs import open_runs, read_record
from rhostream.audit.status import status_of
from rhostream.errors import Interrupted, MismatchError, UnknownNameError, UsageError
from rhostream.runs import checkpoint
from rhostream.runs.state import load_objects
from rhostream.runs.tensors import read_files
from rhostream.selection.gradient import step_if_finite, take_step
from rhostream.training.optimizers import Average, make_optimizer, make_schedule
from tests.support import ranks
from tests.support.logs import log_of, rates
from tests.support.small_run import go

pytestmark = pytest.mark.usefixtures("one_thread")
MINE = "tests.support.own_training"


def files_of(run: Path) -> dict[str, bytes]:
    """Everything that the newest commit holds of the state."""
    latest = checkpoint.latest(str(run))
    assert latest is not None
    return read_files(str(run), latest)


def interrupted(world: Path, run: Path, at: int, steps: int, **more: Any) -> None:
    """Train until that step is entered, then stop by a signal."""

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(world, run, steps, metrics=stop, **more)


def steps_of(run: Path, column: str) -> list[Any]:
    with rhostream.open_ledger(str(run)) as ledger:
        return ledger.sql(f"select {column} from steps order by step")[0].to_pylist()


# -- exact resume ------------------------------------------------------------------------------------------------------

MADE: dict[str, dict[str, Any]] = {
    "adamw, cosine": {"schedule": "cosine", "lr_warm_up": 3, "ema": 0.9, "clip_gradient": 0.5, "no_decay": True},
    "sgd, linear": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.8, "schedule": "linear", "clip_gradient": 0.1},
    "adafactor, steps left out": {"optimizer": "adafactor", "schedule": "linear", "lr_warm_up": 8, "ema": 0.99,
                                  "rule": "loss", "loss": f"{MINE}:sometimes_nan"},
    "fused, steps left out": {"schedule": "cosine", "ema": 0.99, "clip_gradient": 0.5, "rule": "loss",
                              "loss": f"{MINE}:sometimes_nan"},
    "of one's own": {"optimizer": f"{MINE}:grouped", "schedule": f"{MINE}:in_two_parts", "ema": 0.5,
                     "clip_gradient": 1.0},
}  # fmt: skip


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] if "adafactor" in how else []) for how in MADE]
)
def test_a_run_that_is_gone_on_with_equals_one_in_one_go(world: Path, tmp_path: Path, how: str) -> None:
    more = {**MADE[how], "evaluate": f"{MINE}:weighed", "eval_every": 4}
    go(world, tmp_path / "once", 12, **more)
    interrupted(world, tmp_path / "twice", 3, 12, **more)
    interrupted(world, tmp_path / "twice", 8, 12, **more)
    go(world, tmp_path / "twice", 12, **more)
    once, twice = files_of(tmp_path / "once"), files_of(tmp_path / "twice")
    assert set(once) == {"model.safetensors", "optimizer.pt", "scheduler.pt"} | (
        {"ema.safetensors"} if "ema" in more else set()
    )
    left_out = {row["step"] for row in log_of(tmp_path / "once") if row["reason"] == "nonfinite"}
    assert bool(left_out) == ("steps left out" in how) and len(left_out) < 12
    assert once == twice and log_of(tmp_path / "once") == log_of(tmp_path / "twice")
    assert rates(tmp_path / "once") == rates(tmp_path / "twice")
    assert steps_of(tmp_path / "once", "test_loss") == steps_of(tmp_path / "twice", "test_loss")
    assert checkpoint.latest(str(tmp_path / "twice")).attempt == 2  # type: ignore[union-attr]


def test_a_run_without_the_new_settings_pins_and_keeps_nothing_new(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 2)
    assert set(files_of(tmp_path / "run")) == {"model.safetensors", "optimizer.pt"}
    assert not {"optimizer", "schedule", "schedule_steps", "ema", "clip_gradient"} & {
        *read_record(str(tmp_path / "run"))["fingerprints"]
    }


def test_the_command_of_status_says_the_optimizer_and_what_a_run_pins_of_it_groups_runs(
    world: Path, tmp_path: Path
) -> None:
    go(world, tmp_path / "a", 2)
    go(world, tmp_path / "b", 2, optimizer="sgd", schedule="linear")
    interrupted(world, tmp_path / "c", 1, 4, optimizer="sgd", schedule="cosine", clip_gradient=2.0)
    a, b = (setting_of(run) for run in open_runs([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert differing(a, b) == ["optimizer", "schedule", "schedule_steps"]
    following = status_of(str(tmp_path / "c"))["next"]
    assert all(one in following for one in ("--optimizer sgd", "--schedule cosine", "--clip-gradient 2.0"))
    assert "--schedule-steps" not in following
    assert read_record(str(tmp_path / "c"))["fingerprints"]["schedule_steps"] == 4


# -- schedules ---------------------------------------------------------------------------------------------------------


def expected(name: str, warm_up: int, steps: int, base: float = 1e-3) -> list[float]:
    """By the definition: a rise by equal steps, then down to 0 where the run ends."""
    found = [base * (s + 1) / (warm_up + 1) for s in range(warm_up)]
    for step in range(steps - warm_up):
        part = step / (steps - warm_up)
        found.append(base * {"cosine": 0.5 + 0.5 * math.cos(math.pi * part), "linear": 1 - part, "constant": 1.0}[name])
    return [round(rate, 7) for rate in found]


@pytest.mark.parametrize(("name", "warm_up"), [("cosine", 0), ("linear", 4), ("constant", 3)])
def test_the_rates_are_those_of_the_definition(name: str, warm_up: int) -> None:
    config = rhostream.TrainConfig(shards="s", il="i", run="r", schedule=name, lr_warm_up=warm_up)
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(config, model)
    schedule, found = make_schedule(config, optimizer, 10), []
    for step in range(10):
        schedule.reach(step)
        found.append(round(optimizer.param_groups[0]["lr"], 7))
    assert found == expected(name, warm_up, 10)
    schedule.reach(11)  # a longer run stays where the schedule ended
    assert optimizer.param_groups[0]["lr"] == (1e-3 if name == "constant" else 0.0)


def test_the_schedule_ends_with_the_run_and_the_steps_table_has_its_rates(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 10, schedule="cosine", lr_warm_up=2)
    assert rates(tmp_path / "run") == expected("cosine", 2, 10)


def test_a_run_that_goes_on_for_longer_keeps_its_schedule_or_says_what_it_makes_of_it(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    go(world, run, 6, schedule="linear")
    with pytest.raises(MismatchError, match="schedule_steps: was 6, now 12") as refused:
        go(world, run, 12, schedule="linear")
    assert any("--change schedule_steps=12" in note for note in refused.value.__notes__)
    go(world, run, 9, schedule="linear", change="schedule_steps=12")
    go(world, run, 12, schedule="linear")  # it is in force now
    assert rates(run) == expected("linear", 0, 6) + expected("linear", 0, 12)[6:]
    go(world, run, 13, schedule="linear", schedule_steps=6)
    assert rates(run)[12] == 0.0


@pytest.mark.parametrize("schedule", ["cosine", f"{MINE}:annealed"])
def test_a_changed_rate_is_the_base_of_the_same_curve_from_there_on(world: Path, tmp_path: Path, schedule: str) -> None:
    curve = expected("cosine", 0, 12)
    for name in ("once", "twice"):
        interrupted(world, tmp_path / name, 5, 12, schedule=schedule)
    done = len(rates(tmp_path / "once"))
    go(world, tmp_path / "once", 12, schedule=schedule, change="lr=0.01")
    interrupted(world, tmp_path / "twice", 8, 12, schedule=schedule, change="lr=0.01")
    go(world, tmp_path / "twice", 12, schedule=schedule)
    faster = expected("cosine", 0, 12, 0.01)
    np.testing.assert_allclose(rates(tmp_path / "once"), curve[:done] + faster[done:], atol=1e-6)
    assert files_of(tmp_path / "once") == files_of(tmp_path / "twice")


def test_a_changed_rate_reaches_every_group_as_its_function_makes_it(world: Path, tmp_path: Path) -> None:
    more = {"optimizer": f"{MINE}:grouped"}
    go(world, tmp_path / "run", 2, **more)
    go(world, tmp_path / "run", 4, change={"lr": 0.02, "weight_decay": 0.5}, **more)
    body, head = groups(tmp_path / "run")
    assert (body["lr"], body["weight_decay"]) == (0.02, 0.5) and (head["lr"], head["weight_decay"]) == (0.002, 0.0)


def groups(run: Path) -> list[dict[str, Any]]:
    state = torch.load(io.BytesIO(files_of(run)["optimizer.pt"]), weights_only=True)
    return list(state["param_groups"])


def test_clipping_can_begin_after_a_spike_and_end_again(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, 2)
    go(world, run, 4, change="clip_gradient=0.01")
    go(world, run, 6)
    go(world, run, 8, change="clip_gradient=none")
    found = [(c["old"], c["new"]) for c in checkpoint.latest(str(run)).changes]  # type: ignore[union-attr]
    assert found == [(None, 0.01), (0.01, None)]
    with pytest.raises(UsageError, match="no such setting"):
        go(world, run, 10, change="schedule_steps=20")
    with pytest.raises(UsageError, match="--change optimizer: it is part"):
        go(world, run, 10, change="optimizer=sgd")


# -- the step ----------------------------------------------------------------------------------------------------------


def stepped(clip: float | None, scale: float = 1.0, optimizer: Any = torch.optim.SGD) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x, label = nn.Linear(6, 3), torch.randn(8, 6) * scale, torch.arange(8) % 3

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(logits, functional.one_hot(label, 3).float() * scale, reduction="none").sum(1)

    _, mean = take_step(model, optimizer(model.parameters(), lr=0.1), x, label, loss, clip=clip)
    return model, mean


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_gradient_is_clipped_by_its_norm_over_all_parameters(clip: float) -> None:
    torch.manual_seed(0)
    start = nn.Linear(6, 3)
    moved, free, before = (
        nn.utils.parameters_to_vector(model.parameters()).detach()
        for model in (stepped(clip)[0], stepped(None)[0], start)
    )
    norm = float((free - before).norm()) / 0.1
    assert norm > 0.1
    torch.testing.assert_close(moved - before, (free - before) * min(1.0, clip / norm), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, lambda p, lr: torch.optim.AdamW(p, lr, fused=True)])
def test_a_gradient_whose_norm_overflows_makes_no_step(optimizer: Any) -> None:
    model, mean = stepped(1.0, 1e15, optimizer)  # each number is finite, the sum of their squares isn't
    start, _ = stepped(None, math.nan)
    assert math.isnan(float(mean))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_an_average_is_that_of_the_definition_and_a_step_that_was_not_made_leaves_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias = model[1].bias  # tied: it is averaged once
    average, own = Average(model, 0.5), 0.0
    with torch.no_grad():
        model[1].bias.zero_()
        average.model[1].bias.zero_()
        for step in range(6):
            model[1].bias += 1
            model[1].running_mean += 1
            model[1].num_batches_tracked += 1
            if step == 3:
                average.update(step, torch.tensor(False))
                continue
            average.update(step, torch.tensor(True))
            own += (1 - min(0.5, (step + 1) / (step + 10))) * (step + 1 - own)
    assert average.model[0].bias is average.model[1].bias
    assert float(average.model[1].bias[0]) == pytest.approx(own, rel=1e-6)
    assert float(average.model[1].running_mean[0]) == pytest.approx(own, rel=1e-6)
    assert int(average.model[1].num_batches_tracked) == 6
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())


def test_without_decay_are_biases_and_norms() -> None:
    config = rhostream.TrainConfig(shards="s", il="i", run="r", no_decay=True, optimizer="sgd")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    decayed, other = make_optimizer(config, model).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 2] and [p.ndim for p in other["params"]] == [1] * 4
    assert (decayed["weight_decay"], other["weight_decay"], decayed["momentum"]) == (0.01, 0.0, 0.9)


@pytest.mark.parametrize("fused", [True, False])
def test_how_an_optimizer_computes_its_steps_is_no_state(fused: bool) -> None:
    """A run of sharded weights, for which torch has no fused SGD, goes on where they are whole, and the other way."""
    weights = [torch.ones(3), torch.ones(3)]
    before, after = (
        torch.optim.SGD([{"params": [w.requires_grad_()], "lr": lr}], momentum=0.9, fused=way)
        for w, way, lr in zip(weights, (fused, not fused), (0.5, 0.1), strict=True)
    )
    for weight in weights:
        weight.grad = torch.ones(3)
    before.step()
    load_objects({"optimizer": after}, {"optimizer": before.state_dict()})
    assert after.param_groups[0]["fused"] is not fused and after.param_groups[0]["lr"] == 0.5
    step_if_finite(after, torch.tensor(math.nan))
    assert torch.equal(weights[1], torch.ones(3))
    step_if_finite(after, torch.tensor(1.0))
    assert torch.allclose(weights[1], 1 - 0.5 * torch.full((3,), 1.9))  # with the momentum of before


# -- the evaluation ----------------------------------------------------------------------------------------------------


def test_an_evaluation_of_ones_own_is_of_the_averaged_weights_and_stands_in_the_steps_table(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = go(world, run, 6, evaluate=f"{MINE}:weighed", eval_every=4, ema=0.9, checkpoint_every=2)
    assert steps_of(run, "test_accuracy") == [None] * 3 + [0.25, None, 0.25]
    assert steps_of(run, "test_samples")[-1] == 7 and steps_of(run, "class_accuracy")[-1] == [0.5, None, 0.0, 1.0]
    assert (summary.test_accuracy, summary.test_samples, summary.cost["evaluated"]) == (0.25, 7, 14)
    ema, model = (load(files_of(run)[f"{name}.safetensors"]) for name in ("ema", "model"))
    total = sum(float(tensor.double().sum()) for tensor in ema.values())
    assert steps_of(run, "test_loss")[-1] == pytest.approx(total, abs=1e-4)
    assert max(float((ema[name] - model[name]).abs().max()) for name in model) > 1e-4
    page = Path(write_report(str(run), str(tmp_path / "r.html"))).read_text()
    assert "Accuracies of run are of the averaged weights, decay 0.9." in page
    assert f"Accuracies of run are what {MINE}:weighed gave." in page


def test_an_evaluation_changes_nothing(world: Path, tmp_path: Path) -> None:
    for name, more in (("with", {"evaluate": f"{MINE}:weighed", "eval_every": 2, "ema": 0.9}), ("without", {})):
        go(world, tmp_path / name, 6, model="mlp-512-dropout", **more)
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")
    with_, without = files_of(tmp_path / "with"), files_of(tmp_path / "without")
    assert with_["model.safetensors"] == without["model.safetensors"]


# -- what can't be -----------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": f"{MINE}:nothing"}, r"nothing' returned nothing \(None\), expected a torch.optim.Optimizer"),
    ({"optimizer": f"{MINE}:strange"}, r"holds 1 of 7 parameters that the model hasn't .*\(3, 5\)"),
    ({"optimizer": f"{MINE}:closure"}, "LBFGS, whose step.. needs an argument"),
    ({"optimizer": f"{MINE}:without_decay"}, "raised TypeError.*weight_decay"),
    ({"optimizer": f"{MINE}:absent"}, "expected package.module:function"),
    ({"optimizer": "adam"}, "did you mean 'adamw'"),
    ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ({"schedule": f"{MINE}:a_rate"}, "returned a function, expected a scheduler"),
    ({"schedule": f"{MINE}:plateau"}, "ReduceLROnPlateau, whose step.. needs an argument"),
    ({"schedule": f"{MINE}:nothing"}, "raised TypeError"),
    ({"schedule": "linear", "lr_warm_up": 9}, "9 of 6 steps leaves none"),
    ({"schedule_steps": 9}, "a constant rate doesn't"),
    ({"schedule": f"{MINE}:annealed", "lr_warm_up": 2}, "makes its own"),
    ({"lr_warm_up": -1}, "at least 0"),
    ({"momentum": 0.5}, "--optimizer sgd, and this run has adamw"),
    ({"momentum": 1.0, "optimizer": "sgd"}, "--momentum 1: expected"),
    ({"no_decay": True, "optimizer": f"{MINE}:grouped"}, "makes its own groups"),
    ({"clip_gradient": 0.0}, "norm above 0"),
    ({"ema": 1.0}, "between 0 and 1"),
    ({"evaluate": "accuracy"}, r"expected your package.module:function\(model\)"),
    ({"evaluate": f"{MINE}:of_two"}, "can't be called with the model alone .*loader"),
    ({"evaluate": f"{MINE}:weighed", "test_shards": "test"}, "fill the same columns"),
]


def test_what_can_not_step_or_evaluate_is_refused_before_any_work(world: Path, tmp_path: Path) -> None:
    for more, says in REFUSED:
        with pytest.raises(UsageError, match=says):
            go(world, tmp_path / "run", 6, **more)
        assert not (tmp_path / "run" / "run.json").exists(), more
    with pytest.raises(UnknownNameError):
        go(world, tmp_path / "run", 6, optimizer="adam")


@pytest.mark.parametrize(("more", "says"), [
    ({"optimizer": f"{MINE}:falling"}, "the optimizer Falling raised ValueError: no third step .*in step"),
    ({"schedule": f"{MINE}:tired"}, "schedule .*tired' raised ValueError: tired"),
    *(({"evaluate": f"{MINE}:{name}", "eval_every": 2}, f"evaluate '{MINE}:{name}' {says}") for name, says in {
        "percent": "returned accuracy 93.1, expected a share from 0 to 1", "misnamed": "returned 'acc'",
        "empty": "returned neither accuracy nor loss", "a_number": "returned a float, expected a mapping",
        "half_a_sample": "returned samples 2.5, expected a whole", "broken": "raised KeyError: 'images'"}.items()),
])  # fmt: skip
def test_what_a_users_function_does_wrong_in_the_loop_names_it_and_the_run_goes_on_from_its_commit(
    world: Path, tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        go(world, tmp_path / "run", 4, checkpoint_every=1, **more)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == (2 if "eval_every" not in more else 1)


def test_parameters_that_an_optimizer_leaves_alone_are_warned_of_with_their_number(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rhostream"):
        go(world, tmp_path / "run", 2, optimizer=f"{MINE}:some")
    assert any("leaves 3 of the model's 6 parameters alone" in record.getMessage() for record in caplog.records)


# -- several ranks -----------------------------------------------------------------------------------------------------


def test_two_ranks_clip_average_and_schedule_as_one(world: Path, tmp_path: Path) -> None:
    options = {
        "shards": str(world / "shards"),
        "il": str(world / "il"),
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "steps": 8,
        "checkpoint_every": 4,
        "optimizer": "sgd",
        "lr": 0.05,
        "schedule": "cosine",
        "clip_gradient": 0.05,
        "ema": 0.9,
        "evaluate": f"{MINE}:weighed",
        "eval_every": 2,
    }
    sums = {}
    for count in (1, 2):
        (tmp_path / f"sums-{count}").mkdir()
        ranks.together(
            tmp_path, started, count, str(tmp_path / f"sums-{count}"), [{**options, "run": str(tmp_path / str(count))}]
        )
        sums[count] = [file.read_text().split() for file in sorted((tmp_path / f"sums-{count}").iterdir())]
    assert len(sums[2]) == 2 and sums[2][0] == sums[2][1]  # the same bits on both ranks
    np.testing.assert_allclose([*map(float, sums[1][0])], [*map(float, sums[2][0])], atol=1e-3)
    assert ranks.assert_same_but_for_noise(tmp_path / "1", tmp_path / "2") == 8
    assert rates(tmp_path / "1") == rates(tmp_path / "2") == expected("cosine", 0, 8, 0.05)


def started(rank: int, folder: str, options: list[dict[str, Any]]) -> Any:
    os.environ["SUMS"] = folder
    return ranks.train(rank, options)
