"""The account of a first run, as the demo prints it: the arithmetic of a tiny run, and who is said to pay."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from jobs import recipes
from jobs.demo import BASELINES, IL, MODEL, WAYS, curve, trainings
from jobs.first_run import Bill, account, in_words
from rhostream.audit.metrics import best, steps_to_reach
from rhostream.models import build
from rhostream.runs.macs import macs_per_sample

WINDOW = 2


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """uniform and rho on the world, two seeds of each."""
    root, made = tmp_path_factory.mktemp("first-run"), []
    for seed in range(2):
        for way, options in {"uniform": {"rule": "uniform", "steps": 24}, "rho": {"rule": "rho", "steps": 12}}.items():
            made.append(str(root / f"{way}-{seed}"))
            rhostream.train([str(world / "shards")], str(world / "il"), made[-1], model="mlp-256", buffer_size=40,
                            batch_size=8, seed=seed, test_shards=[str(world / "test")], eval_every=2,
                            smoothing=WINDOW, **options)  # fmt: skip
    return made


def test_the_account_is_the_arithmetic_of_the_runs(world: Path, runs: list[str]) -> None:
    with rhostream.open_ledger(runs) as ledger:
        uniform, rho = account(ledger, str(world / "il"), ["uniform"], ["rho"], range(2), WINDOW)
        steps: dict[str, list[float]] = {"uniform": [], "rho": []}
        for seed in range(2):
            curves = {}
            for way in steps:
                curves[way] = curve(ledger, f"{way}-{seed}")
            goal = best(curves["uniform"][1], WINDOW)
            for way, found in curves.items():
                steps[way].append(steps_to_reach(*found, goal, WINDOW) or math.inf)
        seconds = ledger.sql("SELECT run, sum(seconds) AS s FROM steps GROUP BY run ORDER BY run").to_pydict()["s"]
    assert uniform.steps == pytest.approx(sum(steps["uniform"]) / 2) and rho.steps == sum(steps["rho"]) / 2
    # 3 n_b a step of uniform, n_B + 3 n_b a step of rho.
    assert uniform.whole[0] == 24 * 3 * 8 and rho.whole[0] == 12 * (40 + 3 * 8)
    assert uniform.reach[0] == pytest.approx(uniform.steps * 3 * 8)
    assert rho.reach[0] == pytest.approx(rho.steps * (40 + 3 * 8))
    assert [rho.whole[1], uniform.whole[1]] == pytest.approx([sum(seconds[:2]) / 2, sum(seconds[2:]) / 2])
    assert 0 < uniform.reach[1] <= uniform.whole[1] + 1e-6
    # The IL model: its fit three times, its looks and all samples once, by its own multiply-adds; its seconds as told.
    model = json.loads((world / "il-model" / "model.json").read_text())
    told = [json.loads(path.read_text())["seconds"] for path in (world / "il" / "jobs").iterdir()]
    macs = 256 * 256 + 256 * 256 + 256 * 4
    spent = 3 * model["cost"]["fit_samples"] + model["cost"]["checked_samples"] + 1003
    assert rho.il == pytest.approx((spent * 20_736 / macs, model["cost"]["seconds"] + max(told)))
    assert uniform.il == (0, 0) and rho.il_share[0] == pytest.approx(rho.il[0] / rho.whole[0])
    assert rho.total == (rho.reach[0] + rho.il[0], rho.reach[1] + rho.il[1])
    assert in_words([uniform, rho])[3].split()[:2] == ["uniform", f"{uniform.reach[0]:,.0f}"]


def bill(way: str, steps: float, step: float, il: float = 0.0, ran: float = 100) -> Bill:
    """A bill in which seconds are a tenth of the forwards."""
    prices = [steps * step, ran * step, il]
    return Bill(way, steps, *((price, price / 10) for price in prices))


@pytest.mark.parametrize(("mine", "says"), [
    (bill("rho", 20, 4, il=10), "the first run pays: it costs 1.11 times less."),
    (bill("rho", 20, 4, il=30), "the first run doesn't pay, as its IL model costs 1.5 times what it saves; 2 runs that "
                                "share it do."),
    (bill("rho", 40, 4, il=10), "no run pays: it needs 2.50 times fewer steps, and each costs 4.00 times as much."),
    (bill("rho", math.inf, 4, il=10), "it doesn't pay: it never gets there in its 400 forwards."),
])  # fmt: skip
def test_who_pays_is_said_from_the_bills_alone(mine: Bill, says: str) -> None:
    uniform, everything = bill("uniform", 100, 1), bill("everything", math.inf, 1)
    lines = in_words([uniform, everything, mine])
    assert f"  rho against uniform, in forwards: {says}" in lines
    assert sum("against uniform" in line for line in lines) == 2 == sum("against everything" in line for line in lines)
    if math.isfinite(mine.steps):
        assert "  rho against everything, in seconds: the first run pays: everything never gets there." in lines
    assert lines[4].split() == ["everything", *2 * ["never", "-", "-", "never"]]


def test_the_demos_target_has_ten_times_its_il_models_multiply_adds() -> None:
    sized: dict[str, Any] = {"image_size": 28, "channels": 1, "classes": 10}
    target, il = (macs_per_sample(build(name, **sized), torch.zeros(1, 1, 28, 28)) for name in (MODEL, IL))
    assert target >= 10 * il and target // il == 258
    named = {one.name.rsplit("-", 1)[0] for one in trainings(2)}
    assert named == set(WAYS) > set(BASELINES) and len(trainings(2)) == 2 * len(WAYS)


def test_a_recipe_that_fails_has_said_why_and_ends_the_job_with_its_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        recipes.make(tmp_path / "shards", "fashion-mnist", "--source", str(tmp_path / "nowhere"))
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "nowhere" in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_files_that_cannot_be_fetched_end_the_job_before_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[2:])
        return subprocess.CompletedProcess(command, 7 if command[2] == "shards.fetch_fashion_mnist" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        recipes.make("out", "web", "--base", "fashion-mnist")
    assert ended.value.code == 7 and asked == [["shards.fetch_fashion_mnist"]]
    recipes.make("out", "cifar10", "--source", "mine")
    assert asked[1:] == [["shards.make", "cifar10", "--source", "mine", "--out", "out"]]
