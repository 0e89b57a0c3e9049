"""Two ranks decide and learn what one does: the same buffers, the same kept keys, the same weights but for noise."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import rhostream
from rhostream import storage
from rhostream.errors import UsageError
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.gradient import take_step
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import Selector
from rhostream.tables.il import open_table
from tests.support import ranks
from tests.support.ledger import FROM_THE_LOG
from tests.support.logs import weights_of
from tests.support.ranks import join_group, leave_group
from tests.support.scoring import buffer
from tests.support.tables import without_il

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uniform": {"rule": "uniform"},
    "loss": {"rule": "loss", "accumulate": 3, "loss_cap": True},
    "band": {"band": "20%:90%", "augment": "flip-shift"},
    "proxy": {"shortlist": "proxy:2"},
    "own": {"rule": "tests.support.tiny:middle"},
    "view": {"model": "tests.support.tiny:pooled", "view_size": 8},
    "view-list": {"model": "tests.support.tiny:pooled", "view_size": 8, "shortlist": "view:2"},
    "again": {"model": "tests.support.tiny:pooled", "view_size": 8, "augment": "random_resized_crop-flip"},
    "transform": {"shortlist": "proxy:2", "augment": "tests.support.own_augments:noise"},
    "importance": {"rule": "grad_norm_is", "shadow": "loss,rho,uniform"},
    "gumbel": {"gumbel": 0.5, "class_quota": 0.25, "uniform_every": 5, "shadow": "grad_norm_is"},
    "reducr": {"clip": True, "deduplicate": 0.9, "class_quota": "reducr", "warm_up": 2, "ratio": "0:0.2,6:0.1"},
    "live": {"rule": "rho_updated", "il_lr_scale": 0.5},
    "quota": {"rule": "uniform", "class_quota": "balanced"},
    "keep-list": {"keep_list": "list.csv"},
}


@pytest.fixture(scope="module")
def settings(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("two")
    return {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        **ranks.SGD,
        "steps": 12,
        "threads": 1,
        "run": str(folder / "run"),
        "test_shards": [str(world / "test")],
        "eval_every": 6,
    }


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any]) -> Path:
    """Every kind of run, as one rank and as two (`one-KIND`, `two-KIND`)."""
    folder = Path(settings["run"]).parent
    table = open_table(settings["il"], storage.expand(settings["shards"]))
    half = [f"{name},{at}\n" for name, n in zip(table.names, table.counts, strict=True) for at in range(0, n, 2)]
    (folder / "list.csv").write_text("shard,ordinal\n" + "".join(half))
    KINDS["keep-list"]["keep_list"] = str(folder / "list.csv")
    one, two = (
        [{**settings, **kind, "run": str(folder / f"{name}-{key}")} for key, kind in KINDS.items()]
        for name in ("one", "two")
    )
    ranks.together(folder, ranks.train, 1, one)
    drawn = {**settings, "rule": "bald", "model": "tests.support.tiny:dropping", "mc_draws": 2, "steps": 3}
    ranks.together(
        folder,
        ranks.train,
        2,
        [*two, {**drawn, "run": str(folder / "drawn")}],
    )
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_keep_what_one_keeps(runs: Path, kind: str) -> None:
    one, two = runs / f"one-{kind}", runs / f"two-{kind}"
    assert ranks.assert_same_but_for_noise(one, two) == 12
    first, second = weights_of(one), weights_of(two)
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)
    costs = [{**json.loads((run / "cost.json").read_text()), "seconds": 0} for run in (one, two)]
    assert costs[0] == costs[1]
    assert checkpoint.latest(str(one)).counts == checkpoint.latest(str(two)).counts
    tables = []
    for run in (one, two):
        with rhostream.open_ledger(str(run)) as ledger:
            tables.append(
                ledger.sql(
                    "SELECT step, candidates, kept, loss_kept, loss_candidates, accuracy_candidates, "
                    "effective_classes, effective_classes_uniform, test_loss, test_samples FROM steps ORDER BY step"
                )
            )
    for column in tables[0].column_names:
        np.testing.assert_allclose(*(np.array(t[column].to_pylist(), float) for t in tables), atol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "uniform"])
def test_the_effective_classes_of_a_step_are_those_of_the_batch_that_both_ranks_made(runs: Path, kind: str) -> None:
    with rhostream.open_ledger(str(runs / f"two-{kind}")) as ledger:
        known = ledger.sql("SELECT effective_classes FROM steps ORDER BY step")[0].to_pylist()
        assert known == pytest.approx(ledger.sql(FROM_THE_LOG)["effective"].to_pylist(), rel=1e-5)


@pytest.mark.parametrize("kind", ["importance", "gumbel"])
def test_two_ranks_shadow_what_one_shadows(runs: Path, kind: str) -> None:
    found = []
    for name in ("one", "two"):
        with rhostream.open_ledger(str(runs / f"{name}-{kind}")) as ledger:
            found.append(ledger.sql("SELECT step, shard, ordinal, rule, kept, score FROM shadow ORDER BY ALL"))
    assert found[0].drop_columns("score").equals(found[1].drop_columns("score")) and len(found[0]) > 0
    scores = [np.array(table["score"].fill_null(0).to_numpy()) for table in found]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_ranks_draw_dropout_of_their_own_and_make_one_choice(runs: Path) -> None:
    latest = checkpoint.latest(str(runs / "drawn"))
    assert latest.counts == {"kept": 3 * 8, "below": 3 * 32} and latest.cost["scored"] == 2 * 3 * 40
    for rows in ranks.decisions(runs / "drawn").values():
        scores = sorted(score for _, score, _ in rows.values())
        assert sorted(score for kept, score, _ in rows.values() if kept) == scores[-8:]
        assert len(scores) == 40 and len(set(scores)) > 36  # of two draws some pairs can be equal to the last bit


# -- the gradient ---


class Forked(nn.Module):
    """Two heads of which only one is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.used, self.unused = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) to (B, 3)."""
        return self.used(self.body(x).relu())  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy(logits, label, reduction="none")


def steps(rank: int, cases: list[tuple[list[int], int, bool]]) -> list[Any]:
    """After a step on each split of eight samples over the ranks: own losses, mean, weights; with a NaN if `poison`."""
    group = join_group()
    rng = torch.Generator().manual_seed(1)
    found = []
    for split, accumulate, poison in cases:
        model = Forked()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        x, label = torch.randn(8, 6, generator=rng), torch.randint(0, 3, (8,), generator=rng)
        if poison:
            x[-1] = torch.nan
        start = sum(split[:rank])
        own = slice(start, start + split[rank])
        losses, mean = take_step(
            model, optimizer, x[own], label[own], cross_entropy, accumulate=accumulate, ranks=Ranks(group), total=8
        )
        found.append([len(losses), float(mean), *(p.detach().flatten().tolist() for p in model.parameters())])
    leave_group()
    return found


SPLITS = [[4, 4], [5, 3], [1, 7], [8, 0], [0, 8]]
CASES = [(split, accumulate, poison) for accumulate, poison in ((1, False), (3, False), (1, True)) for split in SPLITS]


def test_the_gradient_is_the_mean_over_all_kept_however_they_are_spread(tmp_path: Path) -> None:
    one = steps(0, [([8], accumulate, poison) for _, accumulate, poison in CASES])
    two = ranks.together(tmp_path, steps, 2, CASES)
    fresh = [p.detach().flatten().tolist() for p in Forked().parameters()]
    for at, (split, _, poison) in enumerate(CASES):
        assert [told[at][0] for told in two] == split
        for a, b, c, before in zip(one[at][2:], two[0][at][2:], two[1][at][2:], fresh, strict=True):
            assert b == c  # the same bits on both ranks
            np.testing.assert_allclose(a, b, atol=1e-6)
            assert not poison or b == before
        assert one[at][-2:] == fresh[-2:] == two[0][at][-2:]  # no gradient, so no weight decay either


# -- batch norm over all ranks ---


class SynchronizedNorm(nn.SyncBatchNorm):
    """Batch norm over the rows of all ranks, which torch has for GPUs alone; as exacting: all ranks or none."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if not self.training:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        sums = torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        if dist.is_initialized():
            from torch.distributed.nn.functional import all_reduce

            sums = all_reduce(sums)
        total, squares, count = sums[: x.shape[1]], sums[x.shape[1] : -1], sums[-1].clamp(min=1)
        mean = total / count
        variance = (squares / count - mean * mean).clamp(min=0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(variance, 0.1)
        normal = (x - mean[:, None, None]) * (variance[:, None, None] + self.eps).rsqrt()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]  # type: ignore[no-any-return]


def with_norm() -> nn.Module:
    """A small CNN with it; a bias before it would get noise as its gradient, and Adam would make steps of that."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        SynchronizedNorm(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 4),
    )


def train_with_norm(rank: int, options: list[dict[str, Any]]) -> None:
    """`train` such a model with each of the options."""
    for one in options:
        rhostream.train(**one, make_model=with_norm, rank_timeout=20.0)


def test_with_batch_norm_over_all_ranks_the_number_of_ranks_changes_nothing(
    settings: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    few = {**settings, "steps": 8, "model": "with_norm"}
    # Ranks of which one has no candidate, or no kept sample, make as many forwards as the others all the same.
    table = without_il(world / "il", tmp_path / "half", {0, 1, 2, 3})
    empty = {**few, "il": str(table), "missing_il": "skip", "lanes": 2, "accumulate": 3, "run": str(tmp_path / "empty")}
    train_with_norm(0, [{**few, "run": str(tmp_path / "one")}])
    ranks.together(tmp_path, train_with_norm, 2, [{**few, "run": str(tmp_path / "two")}, empty])
    assert ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two", noise=1e-3) == 8
    kept = [[k for k, v in rows.items() if v[0]] for rows in ranks.decisions(tmp_path / "empty").values()]
    assert len(kept) == 8 and any(len(rows) in (0, 8) for rows in kept)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert all(torch.allclose(first[k].float(), second[k].float(), atol=1e-3) for k in first)


def test_a_shortlist_needs_a_proxy_or_a_view() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    with pytest.raises(UsageError, match=r"view_size=.*proxy=Proxy"):
        Selector(model, "rho", 4, shortlist=2)(buffer())


# -- together ---


def test_a_signal_to_one_rank_stops_all_at_the_same_step(settings: dict[str, Any], tmp_path: Path) -> None:
    run = {**settings, "run": str(tmp_path / "run"), "steps": 200}
    started = ranks.start(tmp_path, ranks.train, 2, [run], None, 10)
    ranks.wait_for_step(tmp_path / "run", 10)
    os.kill(started.processes[1].pid or 0, signal.SIGTERM)
    told = started.join()
    assert [one["exit"] for one in told] == [143, 143], told
    assert told[0]["error"] == told[1]["error"] and "the same command resumes" in told[0]["error"]
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert not latest.complete and f"after step {latest.step} " in told[0]["error"]
    assert len(ranks.decisions(tmp_path / "run")) >= latest.step


def train_differently(rank: int, options: dict[str, Any]) -> None:
    """Each rank with a seed of its own."""
    rhostream.train(**options, seed=rank)


def test_ranks_that_were_started_differently_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    started = ranks.start(tmp_path, train_differently, 2, {**settings, "run": str(tmp_path / "run")})
    for one in started.join():
        assert one["exit"] == 2 and "seed: 0 on rank 0, 1 here" in one["error"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "says"),
    [({"WORLD_SIZE": "two"}, "number of ranks"), ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT")],
)
def test_half_a_launcher_is_refused(
    trained: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        trained()
