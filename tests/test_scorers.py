"""Parallel selection: ranks that score while others train keep what one process keeps, and log every row once."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import UsageError
from rhostream.selection import scorers
from rhostream.selection.lagged import Lagged
from tests.support import ranks
from tests.support.ledger import as_text, rows
from tests.support.logs import weights_of

SHORTLISTS = {"predicted": {"shortlist": "predicted:2"}, "stale": {"shortlist": "stale:3", "rule": "loss"}}


def options(world: Path, run: Path, **more: Any) -> dict[str, Any]:
    return {"shards": [str(world / "shards")], "il": str(world / "il"), "buffer_size": 40, "batch_size": 8,
            "model": "mlp-64", **ranks.SGD, "steps": 12, "threads": 1, "eval_every": 6,
            "test_shards": [str(world / "test")], "run": str(run), **more}  # fmt: skip


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process (`one-KIND`), and by two ranks that train beside one or two that score."""
    folder = tmp_path_factory.mktemp("scorers")
    one = [options(world, folder / f"one-{name}", **kind) for name, kind in SHORTLISTS.items()]
    ranks.together(folder, ranks.train, 1, one)
    three = [
        {**given, "run": str(folder / f"three-{name}"), "scorers": 1}
        for name, given in zip(SHORTLISTS, one, strict=True)
    ]
    ranks.together(folder, ranks.train, 3, [*three, {**one[0], "run": str(folder / "two-scorers"), "scorers": 2}])
    return folder


@pytest.mark.parametrize(("one", "other"), [("one-predicted", "three-predicted"), ("one-stale", "three-stale"),
                                            ("one-predicted", "two-scorers")])  # fmt: skip
def test_they_keep_what_one_process_keeps(runs: Path, one: str, other: str) -> None:
    assert ranks.assert_same_but_for_noise(runs / one, runs / other) == 12
    first, second = weights_of(runs / one), weights_of(runs / other)
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)
    assert verify(str(runs / other))["problems"] == []
    costs = [{**json.loads((runs / run / "cost.json").read_text()), "seconds": 0} for run in (one, other)]
    assert costs[0] == costs[1]
    counts = "SELECT step, kept, shortlist_recall FROM steps ORDER BY step"
    assert rows(runs / one, counts) == rows(runs / other, counts)
    losses = "SELECT loss_kept, coalesce(test_loss, -1) AS test FROM steps ORDER BY step"
    for a, b in zip(rows(runs / one, losses), rows(runs / other, losses), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_the_ranks_that_score_read_and_log_every_row(runs: Path) -> None:
    read = {path.parent.name for path in (runs / "three-predicted" / "log").rglob("*.parquet")}
    assert read == {"rank=2"}


def killed(rank: int, given: dict[str, Any], die_at: int | None) -> Any:
    return ranks.train(rank, [given], die_at=die_at)


def test_killed_and_resumed_they_are_the_uninterrupted_run(world: Path, runs: Path, tmp_path: Path) -> None:
    given = options(world, tmp_path / "run", shortlist="predicted:2", scorers=1, checkpoint_every=3)
    started = ranks.start(tmp_path, killed, 3, given, 7)
    ends = [one["exit"] for one in started.join()]
    assert ends[0] == -9 and ends[1:] == [3, 3]  # whoever waits for a rank that is gone
    ranks.together(tmp_path, killed, 3, given, None)
    assert as_text(tmp_path / "run") == as_text(runs / "three-predicted")
    first, second = weights_of(tmp_path / "run"), weights_of(runs / "three-predicted")
    assert all(torch.equal(first[k], second[k]) for k in first)


def behind(rank: int, given: dict[str, Any]) -> dict[str, Any]:
    scorers.BEHIND, scorers.PATIENCE = 0.0, 3  # every step counts as one behind
    with warnings.catch_warnings(record=True):
        ranks.train(rank, [given])
    return {}


def test_scorers_that_stay_behind_are_left_out(world: Path, tmp_path: Path) -> None:
    ranks.together(tmp_path, behind, 2, options(world, tmp_path / "run", shortlist="predicted:2", scorers=1))
    told = rows(
        tmp_path / "run",
        "SELECT step, count(*) AS n FROM selections WHERE reason = 'shortlist' GROUP BY ALL ORDER BY 1",
    )
    assert [(row["step"], row["n"]) for row in told] == [(step, 24) for step in range(3)]
    kept = rows(
        tmp_path / "run", "SELECT count(*) FILTER (kept) AS kept, count(loss) AS scored FROM selections WHERE step = 5"
    )
    assert kept == [{"kept": 8, "scored": 40}]
    assert verify(str(tmp_path / "run"))["problems"] == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"scorers": 1}, "--shortlist predicted:3"),
        ({"scorers": 1, "shortlist": "proxy:2"}, "--shortlist predicted:3"),
        ({"scorers": -1, "shortlist": "stale:2"}, "0 or more"),
        ({"scorers": 1, "shortlist": "stale:2", "gumbel": 0.5}, "--gumbel"),
        ({"scorers": 1, "shortlist": "stale:2", "rule": "grad_norm_is"}, "grad_norm_is"),
        ({"scorers": 1, "shortlist": "stale:2", "augment": "random_resized_crop"}, "--augment"),
        ({"scorers": 1, "shortlist": "stale:2"}, "of 1 ranks"),
        ({"shortlist": "predicted:2", "optimizer": "sgd", "momentum": 0.0}, "momentum"),
        ({"shortlist": "predicted:2", "optimizer": "adafactor"}, "Adafactor"),
    ],
)
def test_what_cannot_go_together_is_refused(world: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rhostream.train(**options(world, tmp_path / "run", **more))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_of_a_gradient_that_stays_the_predicted_update_is_the_one_that_comes(kind: Any) -> None:
    model, gradient = nn.Linear(4, 3), torch.randn(3, 4)
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.0 if kind is torch.optim.Adam else 0.1)
    lagged = Lagged(model, optimizer)
    for _ in range(3):
        lagged.learn()
        predicted = lagged.model.weight.clone()
        model.weight.grad, model.bias.grad = gradient.clone(), torch.ones(3)
        optimizer.step()
        if len(optimizer.state[model.weight]) and optimizer.state[model.weight]["step"] > 1:
            np.testing.assert_allclose(predicted.detach(), model.weight.detach(), atol=1e-6)


def test_a_copy_of_before_is_what_the_model_was(world: Path) -> None:
    model = nn.Linear(4, 3)
    lagged = Lagged(model)
    with torch.no_grad():
        before = model.weight.clone()
        lagged.learn()
        model.weight.add_(1.0)
    assert torch.equal(lagged.model.weight, before) and not lagged.learns and lagged.kind == "stale"


def test_a_buffer_of_which_a_rank_reads_nothing_is_handed_out_though_somebody_peeked(world: Path) -> None:
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40, rank=0, ranks=2, readers=1)
    handed_out = []
    for candidates in stream:
        handed_out.append((candidates.index, len(candidates)))
        stream.peek()
    assert handed_out == [(index, 0) for index in range(stream.stream.buffers_per_pass)]
