"""Options on any rule: each held against NumPy or a law of its own, exact over pieces, workers and ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rhostream
from rhostream.candidates import Reason
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.adjust.class_quota import Quota
from rhostream.selection.adjust.class_weights import ClassWeights
from rhostream.selection.adjust.duplicates import grey_views
from rhostream.selection.options import Options
from rhostream.selection.quota import ClassQuota, parse_quota
from rhostream.selection.rules import find_rule
from rhostream.selection.schedule import Schedule, parse_ratios
from rhostream.selection.selector import Selector
from tests.support.logs import rows_of, weights_of
from tests.support.scoring import buffer, kept_of, oracle, scored


@pytest.fixture
def trained(trained: Callable[..., Path]) -> Callable[..., Path]:
    """The same, on one thread."""
    return lambda name="run", **options: trained(name, **{"threads": 1, **options})


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("mlp-64", image_size=16, channels=1, classes=4)


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_the_schedule_is_a_function_of_the_step_alone() -> None:
    schedule = Schedule(warm_up=3, stop_after=10, uniform_every=4)
    assert [s for s in range(13) if schedule.is_uniform(s)] == [0, 1, 2, 3, 7, 10, 11, 12]
    ratios = Schedule(ratios=parse_ratios("2:0.5,5:0.1"))
    assert [ratios.kept(s, 7, 40) for s in range(7)] == [7, 7, 20, 20, 20, 4, 4]
    assert Schedule(ratios=parse_ratios(0.001)).kept(0, 7, 40) == 1
    assert ratios.sizes(7, 40) == [7, 20, 4] and Schedule().sizes(7, 40) == [7]


def test_uniform_steps_make_no_forward_and_decode_only_what_they_keep(trained: Callable[..., Path]) -> None:
    run = trained(warm_up=3, stop_after=8, uniform_every=3, ratio="0:0.2,6:0.1", steps=10)
    rows, cost = rows_of(run), json.loads((run / "cost.json").read_text())
    step, reached = rows["step"].to_numpy(), np.isfinite(rows["loss"].to_numpy())
    assert {int(s) for s in step[reached]} == {3, 4, 6, 7}
    assert [int(rows["kept"].to_numpy()[step == s].sum()) for s in range(10)] == [8] * 6 + [4] * 4
    assert cost["scored"] == 4 * 40 and cost["decoded"] == 4 * 40 + 4 * 8 + 2 * 4
    assert cost["forward_units"] == 160 + 3 * (6 * 8 + 4 * 4)


def test_on_uniform_steps_a_rule_keeps_what_the_rule_uniform_keeps(trained: Callable[..., Path]) -> None:
    run, uniform = trained(warm_up=5, steps=5, shortlist="proxy:2"), trained("uniform", rule="uniform", steps=5)
    assert rows_of(run)["kept"].equals(rows_of(uniform)["kept"])
    first, second = weights_of(run), weights_of(uniform)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert json.loads((run / "cost.json").read_text())["proxy_trained"] == 40  # it learns along meanwhile


def test_in_a_loop_of_ones_own_the_selector_counts_its_calls(model: torch.nn.Module) -> None:
    selector = Selector(model, "rho", 8, warm_up=2)
    scored = [selector(buffer(seed=s)).scored for s in range(4)]
    assert scored == [0, 0, 40, 40] and selector.state_dict() == {"calls": 4}
    other = Selector(model, "rho", 8, warm_up=2)
    other.load_state_dict({"calls": 1})
    assert [other(buffer(seed=s)).scored for s in range(2)] == [0, 40]
    assert other(buffer(), step=0).scored == 0


# -- scores ------------------------------------------------------------------------------------------------------------


def test_clipped_scores_are_ranked_by_chance_and_logged_as_they_were(model: torch.nn.Module) -> None:
    plain = Selector(model, "rho", 36)(buffer())
    above = int((plain.score > 0).sum())
    assert 0 < above < 36
    picks = [Selector(model, "rho", 36, clip=True, seed=seed)(buffer()) for seed in range(3)]
    for pick in picks:
        assert pick.score.tolist() == plain.score.tolist()
        assert set(np.flatnonzero(plain.score > 0)) <= set(pick.rows.tolist()) and len(pick) == 36
    assert picks[0].rows.tolist() != picks[1].rows.tolist()  # no lane comes first because it stands first
    few = Selector(model, "rho", above, clip=True)(buffer())
    assert few.rows.tolist() == oracle(plain.loss, buffer().il.numpy(), above)


def test_gumbel_top_k_draws_without_replacement_from_the_softmax(model: torch.nn.Module) -> None:
    """Frequencies of the sets of two among four, against Plackett-Luce's probabilities."""
    score, temperature = np.array([1.0, 0.2, -0.5, 0.7]), 0.7
    chooser = Selector(model, "rho", 2, gumbel=temperature).chooser
    rounds = 6000
    found: dict[tuple[int, ...], int] = {}
    for step in range(rounds):
        kept = tuple(chooser(scored(score, 2, step)).kept.tolist())
        found[kept] = found.get(kept, 0) + 1
    p = np.exp(score / temperature) / np.exp(score / temperature).sum()
    for a in range(4):
        for b in range(a + 1, 4):
            exact = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
            error = math.sqrt(exact * (1 - exact) / rounds)
            assert abs(found.get((a, b), 0) / rounds - exact) < 4 * error
    small = Selector(model, "rho", 8, gumbel=1e-6)(buffer())
    assert small.rows.tolist() == oracle(small.loss, buffer().il.numpy(), 8)


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_quotas_equal_a_greedy_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, label, n = rng.normal(size=50), rng.choice(5, 50, p=[0.6, 0.2, 0.1, 0.06, 0.04]), 20
    counts = np.bincount(label, minlength=5)
    level = next(c for c in range(51) if np.minimum(counts, c).sum() >= n)
    for quota, most in ((ClassQuota("share", 0.3), 6), (ClassQuota("balanced"), level), (None, 50)):
        taken, expected = [0] * 5, []
        for row in np.argsort(-score, kind="stable"):
            if taken[label[row]] < most and len(expected) < n:
                taken[label[row]] += 1
                expected.append(int(row))
        adjusts = () if quota is None else (Quota(quota),)
        assert kept_of(score, n, *adjusts, label_B=label) == sorted(expected)


def test_no_class_has_more_than_its_share_of_any_batch(trained: Callable[..., Path]) -> None:
    for name, options in (
        ("rho", {"class_quota": 0.25, "warm_up": 2}),
        ("uniform", {"rule": "uniform", "class_quota": "balanced"}),
    ):
        rows = rows_of(trained(name, steps=6, **options))
        label, kept = rows["label"].to_numpy(), rows["kept"].to_numpy()
        for step in range(6):
            here = rows["step"].to_numpy() == step
            offered, taken = (np.bincount(label[held], minlength=4) for held in (here, here & kept))
            most = next(c for c in range(9) if np.minimum(offered, c).sum() >= 8) if name == "uniform" else 2
            assert (taken <= np.minimum(offered, most)).all()  # nearly always two of each
            assert taken.sum() == min(8, np.minimum(offered, most).sum())


def test_class_weights_follow_the_excess_losses_and_are_resumed(trained: Callable[..., Path]) -> None:
    weights = ClassWeights(0.5)
    label = np.array([0, 0, 1, 2, 2])
    weights.update(label, np.array([1.0, 3.0, -4.0, np.nan, 1.0]))
    expected = 0.5 * np.array([2.0, 0.0, 1.0])
    np.testing.assert_allclose(weights.log, expected - expected.mean())
    score = weights.apply(np.array([1.0, -1.0, 1.0]), np.array([0, 0, 1]))
    factor = np.exp(weights.log)
    np.testing.assert_allclose(score, [factor[0], -1 / factor[0], factor[1]])
    for _ in range(1000):
        weights.update(label, np.full(5, 1.0) * (label == 0))
    assert np.abs(weights.log).max() <= math.log(100.0)
    options = {"class_quota": "reducr:2", "steps": 12}
    run = trained("whole", **options)
    for steps in (5, 12):
        pieces = trained("pieces", **{**options, "steps": steps})
    states = [checkpoint.latest(str(r)).selector["class_weights"] for r in (run, pieces)]
    assert rows_of(run).equals(rows_of(pieces)) and states[0] == states[1] and len(states[0]) == 4
    assert not rows_of(run)["kept"].equals(rows_of(trained("plain", steps=12))["kept"])


# -- duplicates --------------------------------------------------------------------------------------------------------


def test_of_near_duplicates_in_a_buffer_only_the_best_scored_is_kept(model: torch.nn.Module) -> None:
    rng = np.random.default_rng(0)
    image = buffer().image.clone()
    noise = torch.from_numpy(rng.integers(-6, 7, (3, 16, 16, 1)))
    image[[5, 17, 30]] = (image[[3, 3, 3]].int() + noise).clamp(0, 255).to(torch.uint8)
    candidates = buffer(image=image)
    plain = Selector(model, "rho", 39)(candidates)
    selection = Selector(model, "rho", 39, deduplicate=0.95)(candidates)
    copies = [3, 5, 17, 30]
    best = max(copies, key=lambda row: plain.score[row])
    assert len(plain) == 39 and selection.rows.tolist() == [r for r in range(40) if r not in copies or r == best]
    assert np.flatnonzero(selection.reason == Reason.duplicate).tolist() == [r for r in copies if r != best]
    # Against NumPy's own correlation, of means over blocks of two pixels by two.
    flat = image[:, :, :, 0].double().numpy().reshape(40, 8, 2, 8, 2).mean((2, 4)).reshape(40, -1)
    np.testing.assert_allclose(grey_views(image) @ grey_views(image).T, np.corrcoef(flat), atol=1e-4)
    exact = Selector(model, "rho", 39, deduplicate=1.0)(buffer(image=image[[0] * 20 + list(range(20))]))
    assert len(exact) == 20  # 21 copies of one picture are one
    assert grey_views(torch.full((1, 16, 16, 3), 7, dtype=torch.uint8)).abs().sum() == 0


# -- what can't be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": "0:1.5"}, "1.5 of a buffer can't be kept"),
        ({"ratio": "5:0.1,2:0.2"}, "2 comes after 5"),
        ({"ratio": "x"}, "STEP:SHARE"),
        ({"ratio": "0"}, "above 0"),
        ({"gumbel": 0.0}, "above 0"),
        ({"warm_up": -1}, "0 or more"),
        ({"uniform_every": 1}, "at least 2"),
        ({"warm_up": 5, "stop_after": 5}, "no step"),
        ({"deduplicate": 1.5}, "at most 1"),
        ({"mc_draws": 0}, "at least 1"),
        ({"class_quota": "balanced:2"}, "balanced"),
        ({"class_quota": "balancd"}, "did you mean 'balanced'"),
        ({"class_quota": 1.2}, "at most 1"),
        ({"class_quota": "reducr:-1"}, "ETA"),
        ({"class_quota": 0.05}, "less than one of a class"),
        ({"class_quota": 0.25, "ratio": "0:0.2,9:0.05"}, "0.25 of 2 samples is less than one of a class"),
        ({"class_quota": 0.13}, "can't fill a batch from 4 classes; give at least 0.25"),
        ({"class_quota": "balanced", "classes": 6}, "class 4 of 6 has no usable sample"),
        ({"tau": True}, "goes with --rule grad_norm_is"),
        ({"shadow": "bald"}, "doesn't make"),
        ({"shadow": "rho_updated"}, "doesn't have"),
        ({"shadow": "losss"}, "did you mean 'loss'"),
        ({"il_model": "x"}, "--rule rho_updated"),
        ({"loss": "tests.support.tiny:nothing"}, "module:function"),
        ({"rule": "uniform", "gumbel": 1.0}, "makes no forward"),
        ({"rule": "uniform", "shadow": "loss"}, "no forward"),
        ({"rule": "uniform", "class_quota": "reducr"}, "makes no forward"),
        *[
            ({"rule": "grad_norm_is", **one}, "would bias")
            for one in ({"gumbel": 1.0}, {"class_quota": 0.5}, {"deduplicate": 0.9}, {"shortlist": "proxy:2"})
        ],
        ({"rule": "rho_updated", "il_lr_scale": 0.0}, "above 0"),
    ],
)
def test_options_that_can_not_be_stop_before_any_work(
    trained: Callable[..., Path], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        trained(**options)
    assert not (tmp_path / "run").exists()


def test_an_option_nobody_knows_is_refused_with_a_guess_and_a_resume_names_what_changed(
    model: torch.nn.Module, trained: Callable[..., Path]
) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gumbel'"):
        Selector(model, "rho", 8, gumble=1.0)
    trained(steps=2, gumbel=0.5, class_quota=0.5)
    with pytest.raises(MismatchError, match=r"gumbel: was 0\.5, now 0\.25"):
        trained(steps=4, gumbel=0.25, class_quota=0.5)
    with pytest.raises(UsageError, match="--il-model DIR"):
        Selector(model, "rho_updated", 8)


def test_options_at_their_defaults_are_not_pinned_so_that_older_runs_go_on(trained: Callable[..., Path]) -> None:
    run = trained(steps=2)
    pinned = json.loads((run / "run.json").read_text())["fingerprints"]
    assert not {"clip", "gumbel", "loss", "shadow", "mc_draws", "il_lr_scale", "ratio"} & set(pinned)
    assert Options().changed() == {} and Options(shadow=["loss", "rho"]).changed() == {"shadow": "loss,rho"}
    assert parse_quota("reducr").value > 0 and find_rule("rho").name == "rho"


@pytest.mark.parametrize(
    "options",
    [
        {"gumbel": 0.5, "class_quota": 0.25, "ratio": "0:0.2,6:0.1", "uniform_every": 5, "shadow": "loss,grad_norm_is"},
        pytest.param({"rule": "grad_norm_is", "warm_up": 2}, marks=pytest.mark.slow),
        pytest.param({"clip": True, "deduplicate": 0.9, "class_quota": "reducr"}, marks=pytest.mark.slow),
    ],
)
def test_workers_and_pieces_change_nothing(trained: Callable[..., Path], options: dict[str, Any]) -> None:
    run = trained("whole", steps=12, threads=1, **options)
    for steps in (7, 12):
        pieces = trained("pieces", steps=steps, workers=steps % 2, threads=1, **options)
    assert rows_of(run).equals(rows_of(pieces))
    first, second = weights_of(run), weights_of(pieces)
    assert all(torch.equal(first[k], second[k]) for k in first)
    shadows = []
    for folder in (run, pieces):
        with rhostream.open_ledger(str(folder)) as ledger:
            shadows.append(ledger.sql("SELECT * EXCLUDE run FROM shadow ORDER BY ALL"))
    assert shadows[0].equals(shadows[1]) and (len(shadows[0]) > 0) == ("shadow" in options)


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_line_has_every_keyword_of_train_with_the_same_default() -> None:
    import inspect

    from rhostream.cli import train as command
    from rhostream.training.start import train

    offered = {p.name: p for p in command.params}
    only_python = {"metrics", "make_model"}
    for name, parameter in inspect.signature(train).parameters.items():
        if name in only_python:
            continue
        assert name in offered, name
        if parameter.default is not inspect.Parameter.empty and name not in ("test_shards", "roots"):
            assert offered[name].to_info_dict()["default"] in (parameter.default, None), name
    assert set(offered) <= set(inspect.signature(train).parameters) | {"help", "as_json", "log_format"}


def test_options_of_the_command_line_reach_the_run(world: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rhostream.cli import cli
    from rhostream.selection.rules import RULES

    arguments = [
        "train",
        "--shards",
        str(world / "shards"),
        "--il",
        str(world / "il"),
        "--run",
        str(tmp_path / "run"),
        "--model",
        "mlp-64",
        "--buffer-size",
        "40",
        "--batch-size",
        "8",
        "--steps",
        "4",
        "--threads",
        "1",
    ]
    options = [
        "--rule",
        "rho",
        "--clip",
        "--gumbel",
        "0.5",
        "--warm-up",
        "1",
        "--stop-after",
        "3",
        "--ratio",
        "2:0.1",
        "--class-quota",
        "0.5",
        "--deduplicate",
        "0.99",
        "--shadow",
        "loss,uniform",
    ]
    done = CliRunner().invoke(cli, [*arguments, *options])
    assert done.exit_code == 0, done.output
    pinned = json.loads((tmp_path / "run" / "run.json").read_text())["fingerprints"]
    expected = {
        "clip": True,
        "gumbel": 0.5,
        "warm_up": 1,
        "stop_after": 3,
        "ratio": "2:0.1",
        "class_quota": "0.5",
        "deduplicate": 0.99,
        "shadow": "loss,uniform",
    }
    assert {name: pinned[name] for name in expected} == expected
    shown = CliRunner().invoke(cli, ["train", "--help"]).output
    assert all(name in shown.replace("\n", " ") for name in RULES)
    headings = ["Options on the rule:", "Cheaper selection:", "This machine:", "What is written:"]
    assert [h for h in headings if h in shown] == headings
