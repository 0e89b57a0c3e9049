"""Mixup and label smoothing: of the gradient step's loss alone; scores and the il stay plain cross-entropy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import rhostream
from rhostream.config.train import TrainConfig
from rhostream.errors import MismatchError, UsageError
from rhostream.samples.image import ImageKind
from rhostream.samples.text import TextKind
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import SmoothedCrossEntropy, cross_entropy, squared_error
from rhostream.training.mixup import MixedLoss, mixed
from rhostream.training.settings import Settings
from tests.support import own_kinds
from tests.support.logs import ask, same
from tests.support.ranks import train_killed_at
from tests.support.small_run import go


def batch(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 4, 4, generator=rng), torch.randint(0, 4, (n,), generator=rng)


def partners(n: int, seed: int = 0, step: int = 0, rank: int = 0, alpha: float = 0.4) -> tuple[float, list[int]]:
    """The share of a step, and the row that each is mixed with."""
    _, pairs, loss = mixed(torch.zeros(n, 1), torch.arange(n), squared_error, alpha, seed=seed, step=step, rank=rank)
    assert isinstance(loss, MixedLoss) and pairs[:, 0].tolist() == list(range(n))
    return loss.share, pairs[:, 1].tolist()


@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 50))
def test_shares_go_by_the_step_and_partners_by_the_rank_beside(n: int, seed: int, step: int) -> None:
    share, order = partners(n, seed, step)
    assert 0 <= share <= 1 and sorted(order) == list(range(n))
    assert (share, order) == partners(n, seed, step)
    other = partners(n, seed, step, rank=1)
    assert other[0] == share and sorted(other[1]) == list(range(n))


def test_shares_are_those_of_a_beta_distribution_and_steps_differ() -> None:
    for alpha in (0.2, 1.0, 4.0):
        shares = np.array([partners(1, step=step, alpha=alpha)[0] for step in range(800)])
        assert len(set(shares.tolist())) > 700 or alpha == 0.2  # which comes near to 0 and 1
        assert abs(shares.mean() - 0.5) < 0.05 and abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.02
    assert len({tuple(partners(8, step=step)[1]) for step in range(20)}) > 15
    assert partners(8, rank=0)[1] != partners(8, rank=1)[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_mixed_targets(smoothing: float) -> None:
    x, label = batch()
    plain = SmoothedCrossEntropy(smoothing) if smoothing else cross_entropy
    mixed_x, pairs, loss = mixed(x, label, plain, 0.4, seed=0, step=3)
    share, order = partners(8, step=3)
    torch.testing.assert_close(mixed_x, share * x + (1 - share) * x[order])
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    soft = share * functional.one_hot(label, 4) + (1 - share) * functional.one_hot(label[order], 4)
    soft = (1 - smoothing) * soft + smoothing / 4
    torch.testing.assert_close(loss(logits, pairs), -(soft * logits.log_softmax(1)).sum(1))


def test_any_loss_and_any_target_may_be_mixed() -> None:
    x, target = torch.randn(6, 5), torch.randn(6, 3)
    _, pairs, loss = mixed(x, target, squared_error, 0.4, seed=1, step=2)
    share, order = partners(6, seed=1, step=2)
    output = torch.randn(6, 3)
    by_hand = share * (output - target).square().mean(1) + (1 - share) * (output - target[order]).square().mean(1)
    assert pairs.shape == (6, 2, 3)
    torch.testing.assert_close(loss(output, pairs), by_hand)
    with pytest.raises(UsageError, match="one loss for each sample"):
        mixed(x, target, functional.mse_loss, 0.4, seed=1, step=2)[2](output, pairs)


def test_a_split_and_weighted_step_is_that_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    (x, label), weight = batch(), torch.rand(8) + 0.5
    x, pairs, loss = mixed(x, label, cross_entropy, 0.4, seed=0, step=0)
    steps = []
    for accumulate in (1, 3):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        loss_b, mean = take_step(
            twin, optimizer, x, pairs, loss, accumulate=accumulate, weight=weight, total=10,
        )  # fmt: skip
        steps.append((twin[1].weight.detach(), loss_b))
        torch.testing.assert_close(mean, (loss(model(x), pairs) * weight).sum().detach() / 10)
    torch.testing.assert_close(steps[0], steps[1])


def test_only_the_gradient_step_learns_from_them(world: Path, tmp_path: Path) -> None:
    views = {"plain": {}, "mixed": {"mixup": 0.4}, "smooth": {"label_smoothing": 0.2}}
    scores, trained = {}, {}
    for name, options in views.items():
        go(world, tmp_path / name, steps=2, **options)
        columns = "SELECT shard, ordinal, loss, il, score, kept, reason FROM selections WHERE step = 0 ORDER BY ALL"
        scores[name] = ask(tmp_path / name, columns)
        trained[name] = ask(tmp_path / name, "SELECT loss_kept FROM steps ORDER BY step")[0]["loss_kept"]
        pinned = json.loads((tmp_path / name / "run.json").read_text())["fingerprints"]
        assert {key: pinned[key] for key in ("mixup", "label_smoothing") if key in pinned} == options
    assert scores["plain"] == scores["mixed"] == scores["smooth"]
    assert len(set(trained.values())) == 3
    with pytest.raises(MismatchError, match="mixup"):
        go(world, tmp_path / "mixed", steps=3)
    go(world, tmp_path / "plain", steps=3, change="mixup=0.4")
    assert json.loads((tmp_path / "plain" / "run.json").read_text())["fingerprints"].get("mixup") is None


def test_a_run_that_stopped_goes_on_as_in_one_piece(world: Path, tmp_path: Path) -> None:
    options = {"mixup": 0.4, "label_smoothing": 0.1, "accumulate": 2, "checkpoint_every": 2}
    go(world, tmp_path / "whole", steps=5, **options)
    go(world, tmp_path / "halves", steps=3, **options)
    go(world, tmp_path / "halves", steps=5, **options)
    assert same(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.slow
def test_killed_and_resumed_is_as_in_one_piece(world: Path, tmp_path: Path) -> None:
    options = {
        "shards": [str(world / "shards")], "il": str(world / "il"), "model": "mlp-64", "buffer_size": 40, "threads": 1,
        "batch_size": 8, "steps": 20, "checkpoint_every": 4, "mixup": 0.4,
    }  # fmt: skip
    rhostream.train(**options, run=str(tmp_path / "whole"))
    train_killed_at(9, {**options, "run": str(tmp_path / "killed")})
    rhostream.train(**options, run=str(tmp_path / "killed"))
    assert same(tmp_path / "whole", tmp_path / "killed")


def settings(**options: Any) -> Settings:
    return Settings.of_config(TrainConfig(shards="shards", il="il", run="run", steps=1, **options))


@pytest.mark.parametrize(
    ("options", "number"),
    [({"mixup": -0.1}, "-0.1"), ({"mixup": float("inf")}, "inf"), ({"mixup": float("nan")}, "nan"),
     ({"label_smoothing": 1.0}, "1"), ({"label_smoothing": -0.5}, "-0.5")],
)  # fmt: skip
def test_what_is_no_alpha_and_no_share_is_refused(options: dict[str, float], number: str) -> None:
    with pytest.raises(UsageError, match=number):
        settings(**options)


def test_samples_that_can_not_be_mixed_or_have_no_class_are_refused() -> None:
    text, language = TextKind(vocabulary=50, length=8), TextKind(vocabulary=50, length=8, task="language")
    images, heights = ImageKind(image_size=8), own_kinds.Heights()
    mixup, smoothing = settings(mixup=0.2), settings(label_smoothing=0.1)
    for kind in (text, language):
        with pytest.raises(UsageError, match=r"--mixup 0\.2"):
            mixup.require_fitting(kind)
    mixup.require_fitting(images)
    smoothing.require_fitting(images)
    smoothing.require_fitting(text)
    for fitting, kind in (
        (smoothing, language),
        (settings(label_smoothing=0.1, loss="squared_error"), heights),
        (settings(label_smoothing=0.1, loss="tests.support.own_kinds:absolute_error"), images),
    ):
        with pytest.raises(UsageError, match=r"--label-smoothing 0\.1"):
            fitting.require_fitting(kind)
