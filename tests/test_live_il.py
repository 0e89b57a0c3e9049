"""rho_updated: the table's own IL model learns along, fold by fold, is charged, and is resumed bit by bit."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rhostream
from rhostream.errors import MismatchError, TableError, UntrustedCodeError, UsageError
from rhostream.models import build
from rhostream.runs import checkpoint, tensors
from rhostream.samples.image import ImageKind
from rhostream.selection.live import LiveIL
from rhostream.selection.selector import Selector
from tests.support.logs import rows_of, weights_of
from tests.support.scoring import buffer


@pytest.fixture
def trained(trained: Callable[..., Path]) -> Callable[..., Path]:
    """The same, on one thread."""
    return lambda name="run", **options: trained(name, **{"threads": 1, **options})


pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), build("mlp-64", image_size=16, channels=1, classes=4))


def losses(model: nn.Module, candidates: Any, rows: np.ndarray) -> torch.Tensor:
    return nn.functional.cross_entropy(model(candidates.input[rows]), candidates.label[rows], reduction="none")


def test_each_network_scores_its_fold_and_learns_from_the_kept_of_the_others() -> None:
    networks = [network(seed) for seed in range(3)]
    twins = [copy.deepcopy(n).eval() for n in networks]
    optimizers = [torch.optim.AdamW(t.parameters(), lr=1e-3, weight_decay=0.01, fused=True) for t in twins]
    fold = np.random.default_rng(0).integers(0, 3, 40).astype(np.int8)
    fold[7] = -1  # scored by nobody
    live, target = LiveIL(networks, ImageKind().inputs, lr=1e-3), build("mlp-64", image_size=16, channels=1, classes=4)
    selector = Selector(target, "rho_updated", 8, live=live, shadow="rho,rho_updated")
    for seed in range(4):
        candidates = buffer(seed=seed, fold=fold)
        with torch.no_grad():
            il = torch.stack([losses(t, candidates, np.arange(40)) for t in twins]).numpy()
        expected = np.where(fold >= 0, il[np.maximum(fold, 0), np.arange(40)], np.nan)
        selection = selector(candidates)
        np.testing.assert_allclose(selection.il, expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(selection.score, selection.loss - expected, atol=1e-5)
        assert 7 not in selection.rows and (selection.live_scored, len(selection)) == (40, 8)
        # A shadow of plain rho goes by the table's il, one of rho_updated by the live one.
        np.testing.assert_allclose(selection.shadow.score[0], selection.loss - candidates.il.numpy(), atol=1e-6)
        np.testing.assert_array_equal(selection.shadow.score[1], selection.score)
        learned = 0
        for number, (twin, optimizer) in enumerate(zip(twins, optimizers, strict=True)):
            rows = selection.rows[fold[selection.rows] != number]
            learned += len(rows)
            optimizer.zero_grad()
            losses(twin, candidates, rows).mean().backward()
            optimizer.step()
        assert selection.live_trained == learned == 16  # each is in the training set of two of three
    for one, twin in zip(networks, twins, strict=True):
        for name, value in twin.state_dict().items():  # statistics of batch norm have not moved
            torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-4, atol=1e-6)
            assert name not in ("0.running_mean", "0.num_batches_tracked") or torch.equal(one.state_dict()[name], value)


def test_candidates_without_a_fold_are_refused_where_there_are_several_networks() -> None:
    target = build("mlp-64", image_size=16, channels=1, classes=4)
    with pytest.raises(UsageError, match="carry no fold"):
        Selector(target, "rho_updated", 8, live=LiveIL([network(0), network(1)], ImageKind().inputs))(buffer())
    alone = Selector(target, "rho_updated", 8, live=LiveIL([network(0)], ImageKind().inputs))(buffer())
    assert len(alone) == 8 and alone.live_trained == 8


def test_before_its_first_step_the_live_il_is_the_tables_and_then_it_moves(
    world: Path, trained: Callable[..., Path]
) -> None:
    run, plain = trained(rule="rho_updated", steps=12, il_lr_scale=1.0), trained("plain", steps=12)
    rows, table = rows_of(run), rows_of(plain)
    step, live, il = rows["step"].to_numpy(), rows["il"].to_numpy(), table["il"].to_numpy()
    np.testing.assert_allclose(live[step == 0], il[step == 0], atol=1e-5)
    assert rows["kept"].to_pylist()[:40] == table["kept"].to_pylist()[:40]
    assert np.abs(live[step == 11] - il[step == 11]).max() > 1e-2
    np.testing.assert_allclose(rows["score"].to_numpy(), rows["loss"].to_numpy() - live, atol=1e-6)
    cost = json.loads((run / "cost.json").read_text())
    assert (cost["live_scored"], cost["live_trained"]) == (480, 96)
    assert cost["forward_units"] == pytest.approx(480 + 288 + (480 + 3 * 96) * cost["live_macs"] / cost["macs"])


def test_a_run_in_pieces_resumes_the_live_model_bit_by_bit_and_verifies(
    world: Path, trained: Callable[..., Path]
) -> None:
    options = {
        "rule": "rho_updated",
        "threads": 1,
        "il_model": str(world / "il-model"),
        "il_lr_scale": 0.5,
        "uniform_every": 4,
    }
    whole = trained("whole", steps=12, **options)
    for steps in (5, 12):
        pieces = trained("pieces", steps=steps, **options)
    assert rows_of(whole).equals(rows_of(pieces))
    first, second = weights_of(whole), weights_of(pieces)
    assert all(torch.equal(first[k], second[k]) for k in first)
    found = [checkpoint.latest(str(run)) for run in (whole, pieces)]
    assert tensors.others_of(found[0]) == ["live-0", "live-1"]
    for name in ("live-0", "live-1"):
        states = [
            tensors.load_other(str(run), one, name)["model"] for run, one in zip((whole, pieces), found, strict=True)
        ]
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    from rhostream.audit.verify import verify

    assert verify(str(pieces))["problems"] == []
    with pytest.raises(MismatchError, match=r"il_lr_scale: was 0\.5, now 0\.25"):
        trained("pieces", steps=13, **{**options, "il_lr_scale": 0.25})


def test_another_il_model_than_the_tables_is_refused(world: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    other = tmp_path / "other"
    rhostream.fit_il([str(world / "shards")], str(other), model="mlp-64", epochs=1, seed=1)
    with pytest.raises(MismatchError, match=r"the table was made with .*another IL model"):
        trained(rule="rho_updated", il_model=str(other))
    with pytest.raises(UsageError, match="no IL model"):
        trained(rule="rho_updated", il_model=str(world / "shards"))
    damaged = tmp_path / "damaged"
    shutil.copytree(world / "il-model", damaged)
    (damaged / "fold-1.safetensors").write_bytes((damaged / "fold-0.safetensors").read_bytes())
    with pytest.raises(TableError, match=r"fold-1\.safetensors.*sha256"):
        trained(rule="rho_updated", il_model=str(damaged))
    with pytest.raises(UsageError, match=r"takes 1 x 16 x 16, .*--image-size 16"):
        trained(rule="rho_updated", image_size=20)
    assert not (tmp_path / "run").exists()


def test_a_table_does_not_choose_what_code_runs(world: Path, tmp_path: Path) -> None:
    shards, model, table = [str(world / "shards")], str(tmp_path / "model"), str(tmp_path / "il")
    rhostream.fit_il(shards, model, model="tests.support.tiny:pooled", epochs=1)
    rhostream.compute_il(shards, model, table, model="tests.support.tiny:pooled")
    options = {"rule": "rho_updated", "model": "mlp-64", "steps": 2, "buffer_size": 40, "batch_size": 8}
    with pytest.raises(UntrustedCodeError, match=r"--il-code tests\.support\.tiny:pooled"):
        rhostream.train(shards, table, str(tmp_path / "run"), **options)
    rhostream.train(shards, table, str(tmp_path / "run"), **options, il_code="tests.support.tiny:pooled")
