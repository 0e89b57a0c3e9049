"""The paper's experiments: their statistics against other ways to compute them, their data, and one end to end."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jobs.reproduce import lag, paper, statistics, table1
from jobs.reproduce.__main__ import main as suite_main
from jobs.reproduce.available import missing
from jobs.reproduce.command import Asked, reproduce, require_scales
from jobs.reproduce.compare import GROWTH, Comparison, compare, line, verdict
from jobs.reproduce.execute import Training
from jobs.reproduce.figures import FIGURES
from jobs.reproduce.measure import SAYS, Curve, measure
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.single_pass import steps_within
from jobs.reproduce.statistics import Paired, censored_median, claim, interval, paired, ranks, ratios, spearman
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import UnknownNameError, UsageError
from rhostream.runs.cost import Cost, break_even

# -- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "p", "published"),
    [(1, 0.975, 12.706), (2, 0.975, 4.303), (4, 0.975, 2.776), (4, 0.95, 2.132), (9, 0.995, 3.250), (30, 0.975, 2.042),
     (120, 0.975, 1.980)],
)  # fmt: skip
def test_quantiles_of_t_are_those_of_the_printed_tables(df: int, p: float, published: float) -> None:
    assert statistics.t_quantile(p, df) == pytest.approx(published, abs=5e-4)
    assert statistics.t_quantile(1 - p, df) == pytest.approx(-published, abs=5e-4)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 20])
def test_the_distribution_of_t_is_the_integral_of_its_density(df: int) -> None:
    x = np.linspace(0, 2.5, 200_001)
    density = math.gamma((df + 1) / 2) / math.sqrt(df * math.pi) / math.gamma(df / 2)
    curve = density * (1 + x**2 / df) ** (-(df + 1) / 2)
    assert statistics.t_cdf(2.5, df) == pytest.approx(0.5 + np.trapezoid(curve, x), abs=1e-9)


def test_an_interval_of_95_per_cent_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        _, low, high = interval(rng.normal(0.3, 1.0, 4))
        inside += low <= 0.3 <= high
    assert abs(inside / 2000 - 0.95) < 0.015  # three standard errors


def test_paired_differences_keep_every_seed_and_cancel_what_seeds_share() -> None:
    found = paired([0.91, 0.81, 0.71], [0.90, 0.80, 0.70])
    assert found.values == pytest.approx((0.01, 0.01, 0.01)) and found.low == pytest.approx(found.high)
    assert math.isnan(paired([0.9], [0.8]).low)
    with pytest.raises(ValueError, match="2 values against 1"):
        paired([1.0, 2.0], [1.0])


def test_a_target_that_was_not_reached_never_becomes_a_number() -> None:
    assert censored_median([3, None, 1]) == 3
    assert censored_median([3, None, None]) is None
    assert censored_median([3, 1, None, 2]) == 2.5
    assert censored_median([3, 1, None, None]) is None  # the middle two are 3 and NR
    assert censored_median([]) is None
    assert censored_median([3, None, 4], more_is_better=True) == 3
    assert censored_median([3, 2, 4, None], more_is_better=True) == 2.5
    assert censored_median([3, None], more_is_better=True) is None
    assert ratios([10, 10, None], [5, None, 5]) == [2.0, None, None]
    assert statistics.shown(None) == "NR"


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.integers(0, 8))
def test_the_median_is_numpys_without_censoring_and_censoring_never_lowers_it(values: list[float], at: int) -> None:
    whole = censored_median(values)
    assert whole == pytest.approx(float(np.median(values)))
    some = [None if i == at % len(values) else v for i, v in enumerate(values)]
    less = censored_median(some)
    assert less is None or less >= whole - 1e-9


@given(st.lists(st.integers(0, 5), min_size=3, max_size=30))
def test_ranks_share_ties_and_spearman_is_their_correlation(values: list[int]) -> None:
    by_counting = [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    assert ranks(values).tolist() == by_counting
    others = [(7 * v + i) % 11 for i, v in enumerate(values)]
    counted = [sum(o < v for o in others) + (sum(o == v for o in others) + 1) / 2 for v in others]
    if len(set(values)) > 1 and len(set(others)) > 1:
        assert spearman(values, others) == pytest.approx(np.corrcoef(by_counting, counted)[0, 1], abs=1e-12)
    else:
        assert math.isnan(spearman(values, others))


def test_nothing_under_one_point_is_claimed_from_fewer_than_five_seeds() -> None:
    narrow = (0.004, 0.0041, 0.0039)
    assert claim(paired(narrow, [0.0] * 3)).startswith("no claim: under one point from 3 seeds")
    assert claim(paired([*narrow, 0.0042, 0.004], [0.0] * 5)) == "ahead"
    assert claim(paired([0.05, 0.051, 0.049], [0.0] * 3)) == "ahead"
    assert claim(paired([0.0] * 3, [0.05, 0.051, 0.049])) == "behind"
    assert claim(paired([0.2, -0.1, 0.0], [0.0] * 3)).startswith("undecided")
    assert claim(paired([0.2], [0.0])).startswith("no claim: 1 seed")


# -- the cost account --------------------------------------------------------------------------------------------------


def test_the_papers_cost_of_clothing_1m_comes_out_of_the_cost_account() -> None:
    uniform = Cost(trained=99_540 * 32, macs=4_100_000_000)
    il = {"fit_samples": 4_480 * 64, "scored_samples": 1_061_883, "macs": 1_800_000_000}
    rho = Cost(scored=6_636 * 320, trained=6_636 * 32, macs=4_100_000_000, il=il)
    assert uniform.forward_units / (rho.forward_units + rho.il_units) == pytest.approx(2.65, abs=0.005)
    assert uniform.forward_units / rho.forward_units == pytest.approx(3.46, abs=0.005)
    assert rho.forward_units / 6_636 == 320 + 3 * 32  # what a step costs
    assert break_even(320, 32) == pytest.approx(99_540 / 6_636 / (uniform.forward_units / rho.forward_units))


def test_a_budget_of_forwards_pays_so_many_steps_and_not_one_more() -> None:
    steps = steps_within(74_880, 160, 32, True, 10)
    assert steps == 290 and steps * 256 <= 74_880 < (steps + 10) * 256
    assert steps_within(74_880, 32, 32, False, 10) == 780


# -- the experiments as data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_states_all_scales_with_uniform_in_each_world(name: str) -> None:
    experiment = EXPERIMENTS[name]
    require_scales(experiment)
    assert experiment.name == name and experiment.figure in FIGURES and set(experiment.shares) <= set(SAYS)
    for scale in experiment.scales.values():
        for world in scale.worlds:
            mine = [arm for arm in scale.arms if arm.world.name == world.name]
            assert any(arm.settings.get("rule") == "uniform" for arm in mine), (name, world.name)
            assert world.says


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_is_about_an_arm_that_some_scale_has(name: str) -> None:
    experiment = EXPERIMENTS[name]
    labels = {(arm.world.name, arm.name, base) for scale in experiment.scales.values() for arm in scale.arms
              for base in (*arm.baselines, *arm.equal)}  # fmt: skip
    for one in experiment.claims:
        if one.metric == GROWTH:  # made of two speed-ups over uniform
            assert {(one.world, one.arm, "uniform"), ("clean", one.arm, "uniform")} <= labels, one
            assert one.baseline == f"clean: {one.arm}"
        else:
            assert (one.world, one.arm, one.baseline) in labels, one


def test_runs_are_known_by_their_content_and_more_steps_are_the_same_run() -> None:
    quick, small = EXPERIMENTS["table2"].scales["quick"], EXPERIMENTS["table2"].scales["small"]
    of = {arm.label: arm for arm in quick.arms}
    for arm in small.arms:
        if arm.label in of:
            assert arm.folder(0) == of[arm.label].folder(0) and arm.steps > of[arm.label].steps
    folders = [arm.folder(seed) for arm in small.arms for seed in range(2)]
    assert len(set(folders)) == len(folders)


def test_worlds_of_other_names_share_the_il_of_the_same_data() -> None:
    other = replace(WORLD, name="elsewhere", test=Shards(("fashion-mnist", "--split", "test")))
    assert other.il_folder("il") == WORLD.il_folder("il")
    assert replace(_arm("rho"), world=other).folder(0) != _arm("rho").folder(0)
    changed = replace(WORLD, ils={"il": IL(fit={"model": "mlp-64", "epochs": 9})})
    assert changed.il_folder("il") != WORLD.il_folder("il")


def test_a_cell_of_table_2_reads_as_it_is_printed() -> None:
    assert paper.printed("cifar10-noisy", "rho") == "27 / 49 epochs to 75 / 85 %"
    assert paper.printed("cifar10", "uniform") == "79 / NR epochs to 80 / 87.5 %"
    assert paper.TABLE2[1].final["rho"] == 91 and paper.targets("cola") == (0.75, 0.80)


# -- comparisons -------------------------------------------------------------------------------------------------------

WORLD = World(name="w", says="", train=Shards(("fashion-mnist",)), test=Shards(("fashion-mnist",)), samples=100,
              ils={"il": IL(fit={"model": "mlp-64"})})  # fmt: skip


def _arm(name: str, **more: object) -> Arm:
    settings: dict[str, object] = {"world": WORLD, "steps": 100, "eval_every": 10, "train": {"rule": name}, **more}
    return Arm(name=name, **settings)  # type: ignore[arg-type]


def _curve(accuracy: list[float], unit: float = 1.0) -> Curve:
    steps = [10 * (i + 1) for i in range(len(accuracy))]
    return Curve(steps, accuracy, accuracy, accuracy, [unit * s for s in steps], 0.0, 0.0, {}, {})


def test_speed_ups_and_targets_are_seed_by_seed_and_say_nr() -> None:
    arms = [_arm("uniform", baselines=()), _arm("rho")]
    scale = Scale(says="", arms=arms, seeds=2, targets={"w": (0.5, 0.99)})
    slow, fast = [0.1 * i for i in range(1, 10)], [min(0.2 * i, 0.95) for i in range(1, 10)]
    never = [0.05] * 9
    curves = {"w: uniform": {0: _curve(slow), 1: _curve(slow)}, "w: rho": {0: _curve(fast, 4.0), 1: _curve(never, 4.0)}}
    found = {(one.arm, one.metric): one for one in compare(scale, curves)}
    up = next(one for (arm, metric), one in found.items() if arm == "rho" and metric.startswith("times"))
    # uniform's best mean of five is that of .5 to .9, at step 90; rho's mean of five is .74 at 60 and .65 at 50
    assert up.values == (90 / 60, None) and up.middle is None
    assert found["rho", "steps to 50 %"].values == (50, None)
    assert found["uniform", "steps to 99 %"].values == (None, None) and "NR" in line(found["uniform", "steps to 99 %"])
    # at equal cost rho has made a quarter of the steps: 20 of uniform's 90 cost 80 units
    equal = next(one for (arm, metric), one in found.items() if arm == "rho" and "equal forward" in metric)
    assert equal.difference is not None and equal.difference.values[0] == pytest.approx(0.4 - 0.9)


def test_the_share_of_rhos_gain_is_a_ratio_of_means_and_its_cost_one_of_units() -> None:
    arms = [_arm("uniform", baselines=()), _arm("rho"), _arm("cheap", baselines=("rho", "uniform"))]
    curves = {"w: uniform": {0: _curve([0.5] * 9), 1: _curve([0.6] * 9)},
              "w: rho": {0: _curve([0.7] * 9, 416.0), 1: _curve([0.7] * 9, 416.0)},
              "w: cheap": {0: _curve([0.7] * 9, 208.0), 1: _curve([0.65] * 9, 208.0)}}  # fmt: skip
    found = {one.metric: one for one in compare(Scale(says="", arms=arms, seeds=2), curves) if one.arm == "cheap"}
    gain, cost = found["share of rho's gain over uniform"], found["share of rho's cost a step"]
    assert gain.values == pytest.approx((1.0, 0.5)) and gain.middle == pytest.approx(0.25 / 0.3)
    assert cost.middle == pytest.approx(0.5)
    claims = [
        Claim(says="", paper="", world="w", arm="cheap", metric="share of rho's gain", beyond=0.95),
        Claim(says="", paper="", world="w", arm="cheap", metric="share of rho's cost", beyond=0.55, less=True),
    ]
    told = [verdict(one, list(found.values()))[1] for one in claims]  # two seeds so far apart decide nothing
    assert told[0].startswith("undecided: the interval (") and told[1] == "same direction"


def test_a_verdict_needs_the_interval_and_a_target_that_is_missed_is_the_other_direction() -> None:
    arms = [_arm("uniform", baselines=()), _arm("rho")]
    scale = Scale(says="", arms=arms, seeds=3)
    curves = {"w: uniform": {s: _curve([0.5 + s / 100] * 9) for s in range(3)},
              "w: rho": {s: _curve([0.6 + s / 50] * 9) for s in range(3)}}  # fmt: skip
    found = compare(scale, curves)
    more = Claim(says="", paper="", world="w", arm="rho", metric="final accuracy")
    assert verdict(more, found)[1] == "same direction"
    assert verdict(Claim(says="", paper="", world="w", arm="rho", metric="final accuracy", less=True), found)[1] == (
        "other direction")  # fmt: skip
    assert verdict(Claim(says="", paper="", world="w", arm="loss", metric="final accuracy"), found)[1] == "not measured"
    one = [c for c in compare(scale, {**curves, "w: rho": {0: _curve([0.1] * 9)}}) if c.metric.startswith("times")]
    assert one[0].middle is None
    assert verdict(Claim(says="", paper="", world="w", arm="rho", metric="times", beyond=1), one)[1].startswith("other")


def test_a_misspelt_baseline_is_an_error_that_names_the_nearest() -> None:
    scale = Scale(says="", arms=[_arm("uniform", baselines=()), _arm("rho", baselines=("unifrom",))], seeds=1)
    with pytest.raises(UnknownNameError, match="did you mean 'uniform'"):
        scale.baselines(scale.arms[1])
    odd = _arm("rho", baselines=(), eval_every=30)
    experiment = Experiment(name="x", title="", where="", scales=dict.fromkeys(
        ("quick", "small", "full"), Scale(says="", arms=[odd], seeds=1)))  # fmt: skip
    with pytest.raises(UsageError, match="100 steps are no multiple of eval_every 30"):
        require_scales(experiment)


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (_arm("no_such_rule"), "w: no_such_rule: rule 'no_such_rule' is not available in this version"),
        (_arm("rho", train={"rule": "rho", "no_such": 1}), "option of train 'no_such' is not available"),
        (_arm("rho", train={"rule": "rho", "model": "no-such-net"}), "model 'no-such-net' is not available"),
    ],
)
def test_what_this_version_lacks_is_said_in_one_sentence(arm: Arm, says: str) -> None:
    why = missing(arm, {})
    assert why is not None and says in why and "\n" not in why


def test_files_that_only_the_user_has_are_asked_for_by_name() -> None:
    world = World(name="w", says="", train=Shards(("fashion-mnist",), "mine"), test=Shards(("fashion-mnist",)),
                  samples=100, ils={"il": IL(fit={"model": "mlp-64"})})  # fmt: skip
    why = missing(_arm("rho", world=world), {})
    assert why is not None and "--source mine=PATH" in why
    assert missing(_arm("rho", world=world), {"mine": "/somewhere"}) is None


# -- table 1 -----------------------------------------------------------------------------------------------------------


def _points(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (count,), generator=rng)
    x = torch.randn(count, 1, 16, 16, generator=rng)
    x[torch.arange(count), 0, label, :] += 2
    return x, label


def test_an_ensembles_loss_is_that_of_its_mean_probability_and_the_best_are_picked() -> None:
    x, y = _points(40, 0)
    learner = table1.Learner(0, 0, members=3, width="mlp-64", like=x[:1], classes=3)
    with torch.no_grad():
        p = torch.stack([n(x).softmax(1) for n in learner.networks]).mean(0)
    np.testing.assert_allclose(learner.loss(x, y), -np.log(p[torch.arange(40), y].numpy()), rtol=1e-5)
    target, il = torch.randn(1000), torch.randn(1000)
    best = np.sort(np.argsort(-(target - il).numpy(), kind="stable")[: table1.N_b])
    assert table1.picked(target, il).tolist() == best.tolist()


def test_approximations_begin_alike_and_part_as_they_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table1, "N_B", 60)
    for name, value in (("N_b", 6), ("MEMBERS", 2), ("TARGET", "mlp-64"), ("SMALL_IL", "tests.support.tiny:linear")):
        monkeypatch.setattr(table1, name, value)
    d, held = _points(240, 1), _points(60, 2)
    found = {name: table1.scores(name, 0, d, held, 3) for name in table1.APPROXIMATIONS}
    assert all(s.shape == (3, 60) and np.isfinite(s).all() for s in found.values())
    for name in ("1b", "1b alone", "2"):  # one target and one IL model to start from
        np.testing.assert_array_equal(found[name][0], found["1a"][0])
    assert not np.array_equal(found["1b"][1], found["2"][1])  # 1b's IL has learned
    assert not np.array_equal(found["1b"][1], found["1b alone"][1])
    assert not np.array_equal(found["3"][0], found["2"][0])  # a smaller IL model
    np.testing.assert_array_equal(table1.scores("2", 0, d, held, 3), found["2"])


# -- end to end --------------------------------------------------------------------------------------------------------


def _idx(folder: Path, prefix: str, count: int, seed: int) -> None:
    """Files of Fashion-MNIST's layout: a bright row tells the class."""
    rng = np.random.default_rng(seed)
    label = np.arange(count, dtype=np.uint8) % 10
    image = rng.integers(0, 90, (count, 28, 28), dtype=np.uint8)
    image[np.arange(count), 2 * label + 3] = 200
    folder.mkdir(exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte.gz", image), (f"{prefix}-labels-idx1-ubyte.gz", label)):
        head = struct.pack(">BBBB" + "I" * array.ndim, 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(head + array.tobytes(), 1))


def _tiny() -> Experiment:
    web = ("web", "--base", "fashion-mnist", "--copies", "0")
    world = World(
        name="tiny", says="generated", train=Shards((*web, "--noise-rate", "0.2", "--limit", "600"), "tiny"),
        test=Shards(("fashion-mnist", "--split", "test"), "tiny"), samples=600,
        ils={"il": IL(fit={"model": "mlp-64", "epochs": 2}, holdout=Shards(
            (*web, "--noise", "none", "--skip", "600"), "tiny"))})  # fmt: skip
    common = {"world": world, "steps": 20, "eval_every": 5}
    size = {"buffer_size": 60, "batch_size": 6, "model": "mlp-64"}
    arms = [
        Arm(name="uniform", train={"rule": "uniform", **size}, baselines=(), **common),  # type: ignore[arg-type]
        Arm(name="rho", train={"rule": "rho", **size}, **common),  # type: ignore[arg-type]
        Arm(name="missing", train={"rule": "no_such_rule", **size}, **common),
    ]  # type: ignore[arg-type]
    scale = Scale(says="tiny", arms=arms, seeds=2, targets={"tiny": (0.2, 0.999)}, after={"tiny": (10, 20)})
    return Experiment(name="tiny", title="A tiny experiment", where="nowhere",
                      shares=("noisy", "correct", "correct early", "less relevant"),
                      scales={"quick": scale, "small": scale, "full": scale},
                      claims=[Claim(says="rho keeps fewer wrong labels", paper="-", world="tiny", arm="rho", less=True,
                                    metric="kept with a wrong label")])  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asked, list[Comparison]]:
    """The tiny experiment, run once."""
    folder = tmp_path_factory.mktemp("reproduce")
    _idx(folder / "files", "train", 1000, 0)
    _idx(folder / "files", "t10k", 100, 1)
    asked = Asked(jobs=1, out=str(folder / "out"), sources={"tiny": str(folder / "files")})
    return asked, reproduce(_tiny(), asked)


@pytest.mark.slow
def test_an_experiment_runs_whole_says_what_is_missing_and_does_nothing_twice(
    done: tuple[Asked, list[Comparison]], capsys: pytest.CaptureFixture[str]
) -> None:
    (asked, found), tmp_path = done, Path(done[0].out).parent
    noisy = {one.arm: one for one in found if one.metric == "kept with a wrong label"}
    assert 0.05 < (noisy["uniform"].middle or 0) < 0.35 and len(noisy["rho"].values) == 2
    path = tmp_path / "out" / "results" / "tiny-small.parquet"
    rows = pq.read_table(path).to_pylist()
    settings = [row for row in rows if row["kind"] == "setting"]
    assert len(settings) == 6 and {r["state"] for r in settings if r["arm"] != "missing"} == {"complete"}
    assert all("not available" in r["state"] for r in settings if r["arm"] == "missing")
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert len(evaluations) == 2 * 2 * 4 and evaluations[-1]["step"] == 20 and evaluations[-1]["passes"] == 2.0
    units = {row["arm"]: row["forward_units"] for row in evaluations if row["step"] == 20}
    assert units == {"uniform": 20 * 18.0, "rho": 20 * (60 + 18.0)}
    nr = [row for row in rows if row["metric"] == "steps to 99.9 %" and row["arm"] == "uniform"]
    assert nr[0]["values"] == [None, None] and nr[0]["middle"] is None
    assert {row["state"] for row in rows if row["kind"] == "claim"} & {"same direction", "other direction"}
    assert (tmp_path / "out" / "figures" / "tiny-small.png").read_bytes().startswith(b"\x89PNG")

    checkpoints = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()
                   and "results" not in p.parts and "figures" not in p.parts}  # fmt: skip
    again = reproduce(_tiny(), asked)
    assert "left out: tiny: missing: rule 'no_such_rule' is not available" in capsys.readouterr().out
    assert str(again) == str(found)  # as text: a NaN is not equal to itself
    assert {p: p.stat().st_mtime_ns for p in checkpoints} == checkpoints
    assert str(pq.read_table(path).to_pylist()) == str(rows)


@pytest.mark.slow
def test_table_1_is_made_of_the_scores_that_are_there(
    done: tuple[Asked, list[Comparison]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, world = done[0], _tiny().scales["small"].worlds[0]
    holdout = world.ils["il"].holdout
    assert holdout is not None
    setting = table1.Setting(world.train, holdout, 3, 2, "tiny")
    monkeypatch.setattr(table1, "SETTINGS", {"small": setting})
    rng = np.random.default_rng(0)
    for seed in range(2):
        exact = rng.normal(size=(3, 50)).astype(np.float32)
        for worse, name in enumerate(table1.APPROXIMATIONS):
            job = table1.Approximate(setting, name, seed, asked.out)
            job.path.parent.mkdir(exist_ok=True)
            np.save(job.path, exact + worse * rng.normal(size=exact.shape).astype(np.float32))
    table1.reproduce(asked)
    said = capsys.readouterr().out
    assert "1a ranks more like 0 than 2 does; paper: 0.75 against 0.63; ours (table1): 1a Spearman" in said
    rows = pq.read_table(Path(asked.out) / "results" / "table1-small.parquet").to_pylist()
    means = {r["arm"]: r["middle"] for r in rows if r["kind"] == "comparison"}
    assert means["1a"] > means["1b"] > means["2"] > 0.05 and means["1a"] == pytest.approx(0.7, abs=0.1)
    assert len([r for r in rows if r["kind"] == "evaluation"]) == 5 * 2 * 3
    assert (Path(asked.out) / "figures" / "table1-small.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.slow
def test_a_longer_run_leaves_what_a_shorter_one_says_as_it_was(done: tuple[Asked, list[Comparison]]) -> None:
    asked, found = done
    longer = _tiny()
    more = [replace(arm, steps=40) for arm in longer.scales["small"].arms]
    longer = replace(longer, scales={"small": replace(longer.scales["small"], arms=more)})
    assert {one.budget for one in reproduce(longer, asked)} == {40}
    assert str(reproduce(_tiny(), asked)) == str(found)


@pytest.mark.slow
def test_what_is_complete_is_collected_without_training_and_an_arm_is_read_within_its_units(
    done: tuple[Asked, list[Comparison]],
) -> None:
    asked, found = done
    collected = replace(asked, collect=True)
    assert str(reproduce(_tiny(), collected)) == str(found)
    scale = _tiny().scales["small"]
    longer = replace(_tiny(), scales={"small": replace(scale, arms=[replace(a, steps=1000) for a in scale.arms])})
    assert reproduce(longer, collected) == []  # nothing has so many steps, and nothing was trained
    arm = next(arm for arm in scale.arms if arm.name == "rho")
    whole = measure(Training(arm, 0, asked.out))
    within = measure(Training(replace(arm, units=whole.units[1]), 0, asked.out))
    assert (within.steps, within.units) == (whole.steps[:2], whole.units[:2]) and len(whole.steps) > 2
    reproduce(_tiny(), asked)


@pytest.mark.slow
def test_stale_scores_begin_as_fresh_ones_and_part_with_the_second_step(
    done: tuple[Asked, list[Comparison]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = done[0].out
    of = {arm.name: arm for arm in _tiny().scales["small"].arms}["rho"]
    runs = {}
    for name in ("fresh", "1 step old", "1 step old picks 2 n_b, then fresh", "uniform"):
        loop = lag.Loop(replace(of, name=name, steps=4, eval_every=1), 0, out)
        assert loop() == (name, 0)
        runs[name] = json.loads(loop.path.read_text())
    first = {name: run["loss"][0] for name, run in runs.items()}
    assert first.pop("uniform") not in first.values()
    assert len(set(first.values())) == 1  # before the first step all weights are as old as each other
    assert runs["fresh"]["loss"][1:] != runs["1 step old"]["loss"][1:]
    assert [run["units"][-1] for run in runs.values()] == [4 * 78.0, 4 * 18.0, 4 * 30.0, 4 * 18.0]
    monkeypatch.setattr(lag, "_train", None)  # what is there is not done again
    lag.Loop(replace(of, name="fresh", steps=4, eval_every=1), 0, out)()


def test_the_suite_names_the_nearest_experiment_and_lists_without_work(tmp_path: Path) -> None:
    failed = CliRunner().invoke(suite_main, ["--only", "tabel2"])
    assert failed.exit_code == 2 and "did you mean 'table2'" in failed.output
    told = CliRunner().invoke(suite_main, ["--only", "figure8", "--list", "--out", str(tmp_path / "out")])
    assert told.exit_code == 0 and "rho, 20 %: 600 steps (3 passes), buffer_size=160" in told.output
    assert not (tmp_path / "out").exists()
    odd = CliRunner().invoke(suite_main, ["--source", "cifar10"])
    assert odd.exit_code == 2 and "expected NAME=PATH" in odd.output


def test_processes_of_a_command_that_was_killed_end_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, time\nfrom jobs.reproduce.execute import pool\nif __name__ == '__main__':\n"
                       "    with pool(1) as processes:\n"
                       "        print(processes.submit(os.getpid).result(), flush=True)\n"
                       "        processes.submit(time.sleep, 1000).result()\n")  # fmt: skip
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the process of the pool outlived its command by 30 s")


def test_a_shards_recipe_that_fails_is_one_sentence(tmp_path: Path) -> None:
    asked = Asked(jobs=1, out=str(tmp_path / "out"), sources={"tiny": str(tmp_path / "nothing")})
    with pytest.raises(UsageError, match=r"python -m shards\.make .* failed: "):
        reproduce(_tiny(), asked)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    only = paired([0.9], [0.8])
    assert isinstance(only, Paired) and only.mean == pytest.approx(0.1) and math.isnan(only.high)
