"""A fit that is given no number of epochs: it ends by itself, and what it keeps is an average of its weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rhostream.config.offline import FitILConfig
from rhostream.errors import MismatchError, UsageError
from rhostream.il_model import bounds
from rhostream.irreducible import compute_il, fit_il, index, until_flat
from tests.support.shards import make_shards
from tests.support.tables import rows

FIT: dict[str, Any] = {"model": "mlp-64", "lr": 3e-3, "classes": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three shards of four learnable classes, a fifth of the labels wrong."""
    return [str(p) for p in make_shards(tmp_path_factory.mktemp("stops") / "shards", [160, 120, 120])]


# -- when it is over -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("losses", "over"), [
    ([], False), ([1.0], False), ([1.0, 0.9, 0.8], False),
    ([1.0, 0.9, 0.9, 0.91], True), ([1.0, 0.9, 0.91, 0.85, 0.86], False), ([1.0, 0.9, 0.91, 0.85, 0.86, 0.85], True),
    ([1.0, 0.999, 0.998], True),  # it falls by less than counts
    ([1.0, 0.998, 0.994], False),  # two small falls together are one that counts
    ([float("nan")], False), ([float("nan"), float("nan")], True), ([float("nan"), 2.0, 1.0], False),
    ([2.0, float("inf"), float("nan")], True),
])  # fmt: skip
def test_it_is_over_when_two_looks_in_a_row_are_not_better(losses: list[float], over: bool) -> None:
    assert until_flat.over(losses) is over


@given(st.lists(st.floats(0.01, 10), max_size=12), st.floats(0.01, 100))
def test_the_unit_of_the_loss_changes_nothing(losses: list[float], unit: float) -> None:
    steps = [until_flat.over(losses[:n]) for n in range(len(losses) + 1)]
    power = 2.0 ** round(torch.tensor(unit).log2().item())  # exact in floats
    assert steps == [until_flat.over([loss * power for loss in losses[:n]]) for n in range(len(losses) + 1)]


def test_the_ceiling_is_in_epochs_of_few_samples_and_in_samples_of_many() -> None:
    assert [bounds.most_epochs(n) for n in (0, 1, 12_500, 50_000, 90_000, 10**7)] == [20, 20, 20, 5, 3, 1]
    assert [bounds.most_checked(n) for n in (10, 5_000, 16_000, 50_000)] == [1_000, 1_000, 3_200, 10_000]


def test_a_fit_ends_where_the_loss_of_others_no_longer_falls(
    shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rhostream"):
        info = fit_il(shards, str(tmp_path / "m"), **FIT)
    for fold in info.folds:
        losses = [look["val_loss"] for look in fold["curve"]]
        ended = until_flat.over(losses)
        assert ended or fold["curve"][-1]["epoch"] == bounds.MOST_EPOCHS
        assert not any(until_flat.over(losses[:n]) for n in range(len(losses)))
        assert fold["val_loss"] == min(losses)
        says = f"(epoch {fold['best_epoch']:.1f} of {fold['curve'][-1]['epoch']:.1f}, where it no longer fell)"
        assert (says in caplog.text) == ended
    learned, looked, macs = (info.cost[name] for name in ("fit_samples", "checked_samples", "macs"))
    passes = sum(f["curve"][-1]["epoch"] * f["train_samples"] for f in info.folds)
    assert learned == pytest.approx(passes, abs=2 * 64)  # the last batch of an epoch is a smaller one
    assert (
        f"it cost {learned:,} samples learned from and {looked:,} looked at, "
        f"{(3 * learned + looked) * macs:.2g} multiply-adds" in caplog.text
    )
    assert info.asked["epochs"] is None and fit_il(shards, str(tmp_path / "m"), **FIT) == info
    assert compute_il(shards, str(tmp_path / "m"), str(tmp_path / "t")).doubts == []


def test_what_learns_nothing_costs_no_more_than_its_ceiling(shards: list[str], tmp_path: Path) -> None:
    info = fit_il(shards, str(tmp_path / "m"), **{**FIT, "lr": 1e-12})
    assert all(fold["curve"][-1]["epoch"] <= 2 for fold in info.folds)  # it looks three times and ends
    with pytest.raises(UsageError, match="--epochs 0: expected 1 or more"):
        fit_il(shards, str(tmp_path / "x"), **FIT, epochs=0)


# -- what it keeps ---------------------------------------------------------------------------------------------------


def test_the_average_is_that_of_the_weights_by_polynomial_decay() -> None:
    """After t steps step s has the weight that its update gave it, times what each later one left of it."""
    torch.manual_seed(0)
    network, average = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), dict[str, torch.Tensor]()
    seen = []
    for step in range(1, 30):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        network(torch.randn(4, 3))
        seen.append({name: value.double().clone() for name, value in network.state_dict().items()})
        until_flat.averaged(average, network, step)
    weights: list[float] = []
    for step in range(1, 30):
        now = 1.0 if step == 1 else (until_flat.RECENT + 1) / (step + until_flat.RECENT)
        weights = [w * (1 - now) for w in weights] + [now]
    assert sum(weights) == pytest.approx(1) and sum(weights[-10:]) > 0.9  # the late ones
    for name, value in average.items():
        if value.is_floating_point():
            expected = sum(w * one[name] for w, one in zip(weights, seen, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    assert int(average["1.num_batches_tracked"]) == 29


def test_looking_through_the_average_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    own = {name: value.clone() for name, value in network.state_dict().items()}
    average = {name: value + 1 for name, value in own.items()}
    with pytest.raises(RuntimeError, match="inside"), until_flat.in_place(average, network):
        assert all(torch.equal(value, average[name]) for name, value in network.state_dict().items())
        raise RuntimeError("inside")
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    with until_flat.in_place({}, network):
        assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


# -- models and commands of before -----------------------------------------------------------------------------------


def test_a_model_of_the_old_default_is_complete_for_the_same_command(shards: list[str], tmp_path: Path) -> None:
    assert FitILConfig(shards=shards, out="m").epochs is None
    made = fit_il(shards, str(tmp_path / "m"), **FIT, epochs=5)
    assert fit_il(shards, str(tmp_path / "m"), **FIT) == made
    with pytest.raises(MismatchError, match="epochs 5, this job has 4"):
        fit_il(shards, str(tmp_path / "m"), **FIT, epochs=4)
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps(record | {"asked": record["asked"] | {"epochs": 6}}))
    with pytest.raises(MismatchError, match="epochs 6, this job has None"):
        fit_il(shards, str(tmp_path / "m"), **FIT)


# -- one walk --------------------------------------------------------------------------------------------------------


def test_one_walk_of_compute_il_fills_all_that_index_fills(world: Path, tmp_path: Path) -> None:
    """Whoever has an IL model indexes nothing first: keys, labels, statuses and kept fields are the same rows."""
    keep = {"is_noisy": "bool", "true_label": "int"}
    index([str(world / "shards")], str(tmp_path / "index"), keep=keep)
    indexed, scored = rows(tmp_path / "index"), rows(world / "il")
    assert len(indexed) == len(scored) == 1003 and {*indexed[0]} <= {*scored[0]}
    of_il = {"il", "predicted", "fold", "in_holdout"}
    assert [{name: row[name] for name in indexed[0] if name not in of_il} for row in scored] == [
        {name: value for name, value in row.items() if name not in of_il} for row in indexed
    ]
