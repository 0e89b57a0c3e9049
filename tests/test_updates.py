"""A kept batch in several updates: the same samples in each whatever the ranks, and a ledger that knows of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.verify import verify
from rhostream.config.train import TrainConfig
from rhostream.errors import MismatchError, NonFiniteError, UsageError
from rhostream.models import build
from rhostream.randomness import torch_seed
from rhostream.selection.deal import shares
from rhostream.selection.updates import first_row, most_updates, number_of_updates, samples_of
from rhostream.training.settings import Settings
from tests.support import ranks
from tests.support.ledger import rows
from tests.support.logs import log_of, same, weights
from tests.support.own_loop import network
from tests.support.small_run import go

pytestmark = pytest.mark.usefixtures("one_thread")


class Spoiled(nn.Module):
    """A model whose training loss is NaN for samples of one value of a pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        byte = ((x.flatten(1)[:, 5] + 1) * 127.5).round()
        return self.layers(x) + torch.where((byte.remainder(17) == 0) & self.training, torch.nan, 0.0)[:, None]  # type: ignore[no-any-return]


# -- which rows --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 7), st.sampled_from([1, 2]))
def test_every_rank_count_makes_the_same_updates_of_nearly_equal_size(
    total: int, size: int, of: int, least: int
) -> None:
    held = shares(total, of, least)
    number = number_of_updates(total, size, most_updates(held, least))
    made: list[list[int]] = [[] for _ in range(number)]
    for rank, rows_of_rank in enumerate(held):
        first = sum(held[:rank])
        for update in range(number):
            own = list(range(first, first + rows_of_rank))[first_row(update, number, first) :: number]
            made[update] += own
            assert not 0 < len(own) < least or rows_of_rank < least
    assert [sorted(update) for update in made] == [list(range(total))[update::number] for update in range(number)]
    lengths = [samples_of(update, number, total) for update in range(number)]
    assert lengths == [len(update) for update in made] and max(lengths) - min(lengths) <= 1
    assert max(lengths) <= size or least == 2


def selected(world: Path, rule: str = "rho", model: nn.Module | None = None, n: int = 8) -> rhostream.Selection:
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    return rhostream.Selector(model or network(), rule, n)(next(iter(stream)))


def test_parts_are_the_whole_each_row_once(world: Path) -> None:
    kept = selected(world)
    parts = kept.parts(3)
    assert [len(part) for part in parts] == [3, 3, 2] and [part.total for part in parts] == [3, 3, 2]
    assert kept.input is not None and kept.place is not None
    for update, part in enumerate(parts):
        assert part.position is not None and part.position.tolist() == list(range(8))[update::3]
        assert torch.equal(part.input, kept.input[part.position]) and torch.equal(part.label, kept.label[part.position])
        np.testing.assert_array_equal(part.place, kept.place[update::3])
    loss_b, back = torch.rand(8), torch.zeros(8)
    for part in parts:
        torch.testing.assert_close(part.mean(loss_b[part.position]), loss_b[part.position].mean())
        back[part.position] = loss_b[part.position]
    assert torch.equal(back, loss_b)
    (whole,) = kept.parts(8)
    assert torch.equal(whole.mean(loss_b), kept.mean(loss_b))
    with pytest.raises(UsageError, match="updates of 0 samples"):
        kept.parts(0)


def test_means_of_parts_weighed_by_their_samples_are_the_mean_of_the_whole_for_weighed_draws_too(world: Path) -> None:
    kept = selected(world, "grad_norm_is", n=16)
    assert kept.factors is not None and kept.draws == 16 >= kept.total
    loss_b, parts = torch.rand(len(kept)), kept.parts(5)
    together = sum(part.mean(loss_b[part.position]) * len(part) for part in parts) / len(kept)
    torch.testing.assert_close(together, kept.mean(loss_b))


def test_batch_norm_is_never_left_with_one_row(world: Path) -> None:
    norms = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4))
    parts = selected(world, model=norms).parts(1)
    assert [len(part) for part in parts] == [2, 2, 2, 2]


# -- in `train` --------------------------------------------------------------------------------------------------------


def by_hand(world: Path, folder: Path, steps: int, size: int) -> None:
    torch.manual_seed(torch_seed(0, "weights"))
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    model = build("mlp-64", classes=4, **stream.preprocess.model_arguments())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
    selector = rhostream.Selector(model, "rho", 8)
    run = rhostream.Run(str(folder), stream, selector, state={"model": model, "optimizer": optimizer}, steps=steps)
    for kept in run:
        number, losses = -(-len(kept) // size), torch.zeros(len(kept))
        assert kept.input is not None
        for update in range(number):
            loss_b = cross_entropy(model(kept.input[update::number]), kept.label[update::number], reduction="none")
            optimizer.zero_grad()
            (loss_b.sum() / len(loss_b)).backward()
            optimizer.step()
            losses[update::number] = loss_b.detach()
        run.step(losses)


def test_a_step_of_several_updates_is_the_same_updates_made_by_hand(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "split", steps=6, update_size=3)
    by_hand(world, tmp_path / "hand", 6, 3)
    mine, theirs = weights(tmp_path / "split"), weights(tmp_path / "hand")
    assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert log_of(tmp_path / "split") == log_of(tmp_path / "hand")
    asked = "SELECT step, kept, loss_kept FROM steps ORDER BY step"
    assert rows(tmp_path / "split", asked) == rows(tmp_path / "hand", asked)
    assert verify(str(tmp_path / "split"))["problems"] == []


def test_a_batch_that_is_one_update_is_the_step_of_before(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "plain", steps=4)
    go(world, tmp_path / "one", steps=4, update_size=8)
    assert same(tmp_path / "plain", tmp_path / "one")
    with pytest.raises(MismatchError, match="update_size"):
        go(world, tmp_path / "plain", steps=5, update_size=3)
    go(world, tmp_path / "plain", steps=5, change="update_size=3")


@pytest.mark.parametrize(
    "more",
    [
        {"mixup": 0.4, "accumulate": 2, "ema": 0.9, "clip_gradient": 0.5, "schedule": "cosine", "lr_warm_up": 2},
        pytest.param({"rule": "grad_norm_is", "augment": "flip-shift", "optimizer": "sgd"}, marks=pytest.mark.slow),
        {"model": "spoiled", "make_model": Spoiled, "ema": 0.9},
    ],
)
def test_a_run_that_stopped_goes_on_as_in_one_piece(world: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    options = {"update_size": 3, "checkpoint_every": 2, **more}
    go(world, tmp_path / "whole", steps=8, schedule_steps=8 if "schedule" in more else None, **options)
    go(world, tmp_path / "halves", steps=5, schedule_steps=8 if "schedule" in more else None, **options)
    go(world, tmp_path / "halves", steps=8, schedule_steps=8 if "schedule" in more else None, **options)
    assert same(tmp_path / "whole", tmp_path / "halves")


def test_each_update_of_a_step_mixes_by_draws_of_its_own(world: Path, tmp_path: Path) -> None:
    from rhostream.selection.losses import squared_error
    from rhostream.training.mixup import mixed

    drawn = [
        mixed(torch.zeros(6, 1), torch.arange(6), squared_error, 0.4, seed=0, step=step, update=update)[2].share  # type: ignore[attr-defined]
        for step in range(3) for update in range(3)
    ]  # fmt: skip
    assert len(set(drawn)) == 9


# -- an update that is left out ----------------------------------------------------------------------------------------


def test_the_samples_of_an_update_that_failed_are_not_called_learned(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", steps=8, update_size=3, model="spoiled", make_model=Spoiled)
    told = rows(
        tmp_path / "run",
        "SELECT step, count(*) FILTER (reason = 'kept') AS kept, count(*) FILTER (reason = 'unapplied') AS out, "
        "count(*) FILTER (reason = 'nonfinite' AND score IS NOT NULL) AS bad FROM selections GROUP BY 1 ORDER BY 1",
    )
    steps = {row["step"]: row for row in rows(tmp_path / "run", "SELECT step, kept, loss_kept FROM steps")}
    parted = [row for row in told if row["step"] is not None and 0 < row["kept"] < 8]
    assert parted  # a step of which one update failed and another didn't
    for row in told:
        if row["step"] is not None:
            assert row["kept"] == steps[row["step"]]["kept"]
    for row in parted:
        assert row["bad"] >= 1 and row["kept"] + row["out"] + row["bad"] == 8 and row["kept"] in (2, 3, 5, 6)
        assert np.isfinite(steps[row["step"]]["loss_kept"])
    assert verify(str(tmp_path / "run"))["problems"] == []


def own(world: Path, folder: Path, wrong: bool = False) -> None:
    """The second of each step's three updates is left out in step 1; `wrong`: it is said to be made."""
    model = network(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    state = {"model": model, "optimizer": optimizer}
    run = rhostream.Run(str(folder), stream, rhostream.Selector(model, "rho", 8), state=state, steps=3)
    for kept in run:
        losses, applied = torch.zeros(len(kept)), torch.ones(len(kept), dtype=torch.bool)
        for update, part in enumerate(kept.parts(3)):
            assert part.position is not None
            loss_b = cross_entropy(model(part.input), part.label, reduction="none")
            if run.steps == 1 and update == 1:
                loss_b = loss_b * torch.tensor([1.0, torch.inf, 1.0])
                applied[part.position] = wrong
            else:
                optimizer.zero_grad()
                part.mean(loss_b).backward()
                optimizer.step()
            losses[part.position] = loss_b.detach()
        run.step(losses, applied)


def test_a_loop_of_ones_own_says_of_each_sample_whether_it_was_learned_from(world: Path, tmp_path: Path) -> None:
    own(world, tmp_path / "run")
    asked = "SELECT step, reason, count(*) AS n FROM selections WHERE reason NOT IN ('below', 'tail') GROUP BY ALL"
    assert sorted((row["step"], row["reason"], row["n"]) for row in rows(tmp_path / "run", asked)) == [
        (0, "kept", 8), (1, "kept", 5), (1, "nonfinite", 1), (1, "unapplied", 2), (2, "kept", 8)
    ]  # fmt: skip
    steps = rows(tmp_path / "run", "SELECT kept, loss_kept, effective_classes FROM steps ORDER BY step")
    assert [row["kept"] for row in steps] == [8, 5, 8] and all(np.isfinite(row["loss_kept"]) for row in steps)
    assert [row["effective_classes"] is None for row in steps] == [False, True, False]
    assert verify(str(tmp_path / "run"))["problems"] == []
    with pytest.raises(NonFiniteError, match="step 1"):
        own(world, tmp_path / "wrong", wrong=True)


def test_an_applied_of_another_length_is_refused(world: Path, tmp_path: Path) -> None:
    model = network()
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    run = rhostream.Run(str(tmp_path / "run"), stream, rhostream.Selector(model, "rho", 8), state={"model": model})
    with pytest.raises(UsageError, match=r"shape \(3,\), expected a scalar, or \(8,\)"):
        for _ in run:
            run.step(torch.zeros(8), torch.ones(3, dtype=torch.bool))


# -- over ranks --------------------------------------------------------------------------------------------------------


def _train(rank: int, world: str, run: str, options: dict[str, Any]) -> None:
    options = {"model": "mlp-64", **options}
    if options["model"] == "spoiled":
        options["make_model"] = Spoiled
    rhostream.train(
        [f"{world}/shards"], f"{world}/il", run, buffer_size=40, batch_size=9, steps=6, threads=1,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("more", [pytest.param({}, marks=pytest.mark.slow), {"model": "spoiled"}])
def test_two_ranks_make_the_updates_of_one(world: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    options = {"update_size": 4, **more}
    ranks.together(tmp_path / "answers", _train, 2, str(world), str(tmp_path / "two"), options)
    _train(0, str(world), str(tmp_path / "one"), options)
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two")
    mine, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
    asked = "SELECT step, reason, count(*) AS n FROM selections GROUP BY ALL ORDER BY 1, 2"
    assert rows(tmp_path / "one", asked) == rows(tmp_path / "two", asked)
    assert verify(str(tmp_path / "two"))["problems"] == []


def _own(rank: int, world: str, folder: str, n: int) -> list[list[int]]:
    """A loop of one's own in DDP where there are ranks; the samples of each part, as many as all ranks have."""
    group, model = ranks.join_group(), network(dropout=0.0)
    wrapped = nn.parallel.DistributedDataParallel(model) if group is not None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = rhostream.open_stream(f"{world}/shards", f"{world}/il", buffer_size=40)
    state, told = {"model": wrapped, "optimizer": optimizer}, []
    run = rhostream.Run(folder, stream, rhostream.Selector(wrapped, "rho", n), state=state, config={"n": n}, steps=5)
    for kept in run:
        losses = torch.zeros(len(kept))
        for part in kept.parts(4):
            assert part.position is not None
            loss_b = cross_entropy(wrapped(part.input), part.label, reduction="none")
            optimizer.zero_grad()
            part.mean(loss_b).backward()
            optimizer.step()
            losses[part.position] = loss_b.detach()
            told.append([run.steps, part.total])
        run.step(losses)
    ranks.leave_group()
    return told


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 5, 9])
def test_parts_in_ddp_are_those_of_one_process_also_where_a_rank_has_none_of_one(
    world: Path, tmp_path: Path, n: int
) -> None:
    two = ranks.together(tmp_path / "answers", _own, 2, str(world), str(tmp_path / "two"), n)
    assert two[0] == two[1] == _own(0, str(world), str(tmp_path / "one"), n)
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two")
    mine, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)


# -- what can't be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"update_size": 0}, "--update-size 0: expected at least 1"),
        ({"update_size": 16, "loss": "clip", "content": "pairs", "model": "two-towers"}, "--update-size 16 splits"),
        ({"update_size": 16, "shortlist": "stale:3", "scorers": 1}, "--scorers 1 .* and not with --update-size"),
    ],
)
def test_what_can_not_be_split_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        made = Settings.of_config(TrainConfig(shards="shards", il="il", run="run", steps=1, **options))
        if "loss" in options:
            from rhostream.selection.losses import find_loss
            from rhostream.selection.pairs import require_whole_batch

            require_whole_batch(find_loss(made.loss), made.accumulate, made.update_size, made.shortlist)
