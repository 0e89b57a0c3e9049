"""Kept rows are dealt out over the ranks: the gradient of one rank, as much to do for each, and batch norm lives."""

from __future__ import annotations

import os
import re
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
from rhostream.audit.verify import verify
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import UsageError
from rhostream.runs import checkpoint
from rhostream.samples.image import ImageKind
from rhostream.selection.deal import overlaps, shares
from rhostream.selection.selector import Selector
from rhostream.training.parallel import compiled, sharded
from tests.support import ranks
from tests.support.logs import weights_of
from tests.support.ranks import join_group, leave_group
from tests.support.scoring import buffer

PAGE = (Path(__file__).parent.parent / "docs" / "distributed.md").read_text()
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 2))
def test_shares_differ_by_at_most_one_and_none_is_below_the_least(total: int, size: int, least: int) -> None:
    found = shares(total, size, least)
    some = [n for n in found if n]
    assert sum(found) == total and len(found) == size and found == sorted(found, reverse=True)
    assert not some or max(some) - min(some) <= 1
    assert total < least * size or len(some) == size or total == 0
    assert total < least or all(n >= least for n in some)


@given(COUNTS, st.integers(1, 2))
def test_what_is_sent_arrives_and_the_order_of_the_rows_stays(held: list[int], least: int) -> None:
    size, total = len(held), sum(held)
    wanted = shares(total, size, least)
    plans = [overlaps(held, wanted, rank) for rank in range(size)]
    rows = np.split(np.arange(total), np.cumsum(held)[:-1])
    packets = [np.split(own, np.cumsum(sent)[:-1]) for own, (sent, _) in zip(rows, plans, strict=True)]
    arrived = [np.concatenate([packets[source][rank] for source in range(size)]) for rank in range(size)]
    assert [len(own) for own in arrived] == wanted and np.concatenate(arrived).tolist() == list(range(total))
    for rank, (_, received) in enumerate(plans):
        assert received == [len(packets[source][rank]) for source in range(size)]


# -- kept.mean ---


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 4))


RULES = ("uniform", "rho", "grad_norm_is")
LEFT = (40, 40, 3, 1, 0)  # candidates of each buffer: fewer than n_b, fewer than ranks, none


def means(rank: int, size: int) -> list[Any]:
    """Of each rule and buffer: inputs, rows logged, the mean, every gradient, and what NumPy makes of the losses."""
    group = join_group()
    found = []
    for rule in RULES:
        for seed, left in enumerate(LEFT):
            model = network()
            wrapped = model if group is None else nn.parallel.DistributedDataParallel(model)
            selector = Selector(wrapped, rule, 8, group=group, seed=5)
            reason = np.full(40, CANDIDATE, np.uint8)
            reason[np.random.default_rng(seed).permutation(40)[left:]] = Reason.quarantined
            own = np.arange(rank * 40 // size, (rank + 1) * 40 // size)
            kept = selector(buffer(seed=seed, reason=reason).take(own), step=seed)
            if not kept.total:
                found.append({"inputs": 0, "rows": 0, "none": kept.input is None})
                continue
            assert kept.input is not None
            loss_b = functional.cross_entropy(wrapped(kept.input), kept.label, reduction="none")
            mean = kept.mean(loss_b)
            mean.backward()
            weight = np.ones(len(kept)) if kept.factors is None else kept.factors.numpy().astype(np.float64)
            found.append({
                "inputs": len(kept), "rows": len(kept.rows), "none": False, "mean": float(mean.detach()),
                "expected": float((weight * loss_b.detach().numpy()).sum() / kept.draws), "total": kept.total,
                "grads": [p.grad.flatten().tolist() for p in model.parameters()], "place": kept.place.tolist(),
            })  # fmt: skip
    leave_group()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_of_kept_mean_is_that_of_one_rank_for_every_rule(tmp_path: Path, size: int) -> None:
    alone, several = means(0, 1), ranks.together(tmp_path, means, size, size)
    for at, one in enumerate(alone):
        each = [told[at] for told in several]
        assert sum(told["rows"] for told in each) == sum(told["inputs"] for told in each) == one["rows"]
        assert [told["inputs"] for told in each] == shares(one["rows"], size)
        assert all(told["none"] == one["none"] for told in each)
        if one["none"]:
            continue
        assert one["mean"] == pytest.approx(one["expected"], rel=1e-5)
        assert sum(told["mean"] for told in each) / size == pytest.approx(one["expected"], rel=1e-5)
        assert [place for told in each for place in told["place"]] == one["place"]
        for told in each:
            for mine, theirs in zip(told["grads"], one["grads"], strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_mean_of_losses_of_another_shape_or_of_unknown_gradients_is_refused() -> None:
    kept = Selector(network(), "rho", 8)(buffer())
    for wrong in (torch.tensor(1.0), torch.zeros(7)):
        with pytest.raises(UsageError, match=r"expected \(8,\)"):
            kept.mean(wrong)
    with pytest.raises(UsageError, match="reduced"):
        rhostream.selection.selector.Selection(**{**vars(kept), "ranks": 2}).mean(torch.zeros(8))
    summed = rhostream.selection.selector.Selection(**{**vars(kept), "ranks": 2, "reduced": "sum"})
    assert float(summed.mean(torch.ones(8))) == 1
    with pytest.raises(UsageError, match="gradients"):
        Selector(network(), "rho", 8, gradients="max")


# -- batch norm ---


def with_norm(classes: int = 4) -> nn.Module:
    """A CNN whose last features are 1 x 1, so that its batch norm can't learn from one sample."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def loop_of_the_page(rank: int, world: str, passes: int, run: str) -> list[Any]:
    """docs/distributed.md's loop, of 8 of 80: inputs of each batch, and the weights."""
    from torch import distributed as dist

    match = re.search(r"<!-- run by tests/test_dealing.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    text = match[1].replace("buffer_size=320", f"buffer_size=80, passes={passes}").replace('"runs/mine"', repr(run))
    text = text.replace("batch_size=32", "batch_size=8") + "    steps.append(len(kept))\n"
    os.chdir(world)
    names: dict[str, Any] = {
        "dist": dist, "DistributedDataParallel": nn.parallel.DistributedDataParallel, "torch": torch, "steps": [],
        "rhostream": rhostream, "network": with_norm(), "cross_entropy": functional.cross_entropy}  # fmt: skip
    exec(text, names)
    leave_group()
    return [names["steps"], [p.detach().flatten().tolist() for p in names["model"].parameters()]]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_loop_of_the_page_trains_a_model_with_batch_norm(world: Path, tmp_path: Path, size: int) -> None:
    told = ranks.together(tmp_path, loop_of_the_page, size, str(world), 1, str(tmp_path / "run"))
    assert all(steps == [8 // size] * 12 for steps, _ in told)  # no rank is ever idle, or left with one row
    assert all(weights == told[0][1] for _, weights in told)
    assert all(np.isfinite(w).all() for w in told[0][1])
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete and latest.counts["kept"] == 12 * 8
    assert sum(segment["rows"] for segment in latest.log) == 1003 and verify(str(tmp_path / "run"))["problems"] == []


def train_with_norm(rank: int, *options: dict[str, Any]) -> list[str]:
    """Train with each of the options in turn; what those that were refused said."""
    said = []
    for one in options:
        try:
            rhostream.train(**one, make_model=with_norm, model="with_norm", threads=1, rank_timeout=30.0)
        except UsageError as exc:
            said.append(str(exc))
    return said


@pytest.fixture
def settings(world: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "run"),
        "steps": 6,
        "buffer_size": 80,
        "batch_size": 8,
    }


def test_train_with_batch_norm_on_ranks_and_refuses_one_sample_a_rank(settings: dict[str, Any], tmp_path: Path) -> None:
    few = {**settings, "batch_size": 2, "run": str(tmp_path / "few")}
    for said in ranks.together(tmp_path, train_with_norm, 2, few, settings):
        assert "--batch-size 2 over 2 ranks" in said[0] and "batch norm" in said[0] and len(said) == 1
    assert not (tmp_path / "few").exists()
    latest = checkpoint.latest(settings["run"])
    assert latest is not None and latest.step == 6 and latest.counts["kept"] == 48 == latest.cost["trained"]
    assert all(t.isfinite().all() for t in weights_of(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("more", "named"), [({"batch_size": 1}, "--batch-size 1 "), ({"accumulate": 8}, "--accumulate 8")]
)
def test_a_batch_of_one_is_refused_where_batch_norm_cannot_learn_from_it(
    settings: dict[str, Any], tmp_path: Path, more: dict[str, Any], named: str
) -> None:
    (said,) = train_with_norm(0, {**settings, **more})
    assert named in said and "more than one value a channel" in said and not (tmp_path / "run").exists()


def test_a_selector_refuses_a_batch_of_one_for_such_a_model_and_no_other() -> None:
    with pytest.raises(UsageError, match="batch_size 1 on 1 rank "):
        Selector(with_norm(), "rho", 1)(buffer())
    roomy = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(392, 4))
    assert len(Selector(roomy, "rho", 1)(buffer())) == 1


def buffers_of_one(rank: int) -> list[int]:
    join_group()
    roomy = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(392, 4))
    selector = Selector(roomy, "loss", 1, gradients="mean")
    kept = [len(selector(buffer(20, seed=step))) for step in range(3)]
    leave_group()
    return kept


def test_a_rank_that_never_has_a_sample_asks_with_the_others_or_not_at_all(tmp_path: Path) -> None:
    assert ranks.together(tmp_path, buffers_of_one, 2) == [[1, 1, 1], [0, 0, 0]]


def test_a_lone_candidate_is_scored_and_learned_by_running_statistics(settings: dict[str, Any], tmp_path: Path) -> None:
    reason = np.full(40, Reason.quarantined, np.uint8)
    reason[7] = CANDIDATE
    model = with_norm().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = Selector(model, "rho", 8)(buffer(reason=reason))
    assert kept.rows.tolist() == [7] and np.isfinite(kept.loss[7]) and all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    from rhostream.selection.gradient import take_step

    assert kept.input is not None
    losses, mean = take_step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        kept.input,
        kept.label,
        lambda logits, label: functional.cross_entropy(logits, label, reduction="none"),
    )
    assert len(losses) == 1 and bool(mean.isfinite()) and not torch.equal(before["8.bias"], model[8].bias)
    assert all(m.training for m in model.modules())


# -- the log ---


class Spoiled(nn.Module):
    """A model whose training loss is NaN for a batch with one of few samples, told by a pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.steps = nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        byte = ((x.flatten(1)[:, 5] + 1) * 127.5).round()
        self.steps += self.training
        bad = (byte.remainder(3) == 0) & (self.training and self.steps % 4 == 3)
        return self.layers(x) + torch.where(bad[:, None], torch.nan, 0.0)  # type: ignore[no-any-return]


def train_spoiled(rank: int, options: dict[str, Any]) -> None:
    rhostream.train(**options, make_model=Spoiled, model="spoiled", threads=1, rank_timeout=30.0)


def test_the_rank_that_read_a_row_logs_that_another_got_no_finite_loss_of_it(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    options = {**settings, "steps": 12, "buffer_size": 40, "rule": "uniform"}
    train_spoiled(0, {**options, "run": str(tmp_path / "one")})
    ranks.together(tmp_path, train_spoiled, 2, {**options, "run": str(tmp_path / "two")})
    assert ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two") == 12
    counts = [checkpoint.latest(str(tmp_path / name)).counts for name in ("one", "two")]
    assert counts[0] == counts[1] and counts[0]["nonfinite"] > 0 and counts[0]["kept"] < 12 * 8


@pytest.mark.slow
def test_four_ranks_with_batch_norm_train_two_hundred_steps(world: Path, tmp_path: Path) -> None:
    told = ranks.together(tmp_path, loop_of_the_page, 4, str(world), 17, str(tmp_path / "run"))
    assert all(steps == [2] * 204 for steps, _ in told) and all(weights == told[0][1] for _, weights in told)


def odd(rank: int, size: int) -> dict[str, Any]:
    """One row a rank, of pictures whose bytes fill no whole number of words."""
    group = join_group()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (8, 15, 15, 3), dtype=np.uint8))
    model = nn.Sequential(nn.Flatten(), nn.Linear(675, 4))
    own = np.arange(rank * 8 // size, (rank + 1) * 8 // size)
    reason = np.full(8, Reason.quarantined, np.uint8)
    reason[:size] = CANDIDATE  # the first rank reads them all
    candidates = buffer(n=8, image=pixels, reason=reason).take(own)
    kept = Selector(model, "loss", size, group=group, gradients="mean")(candidates)
    leave_group()
    assert kept.input is not None and kept.place is not None
    same = torch.equal(kept.input, ImageKind().normalize(pixels[torch.from_numpy(kept.place)]))
    return {"rows": len(kept), "same": same}


def test_a_lone_row_of_an_odd_number_of_bytes_arrives_whole(tmp_path: Path) -> None:
    assert ranks.together(tmp_path, odd, 2, 2) == [{"rows": 1, "same": True}] * 2


def test_a_stream_and_a_selector_of_different_ranks_are_refused(world: Path) -> None:
    stream = rhostream.open_stream([str(world / "shards")], str(world / "il"), buffer_size=40)
    candidates = next(iter(stream))
    with pytest.raises(UsageError, match="1 of the 2 ranks"):
        candidates.slice_of(1, 2)
    assert candidates.slice_of(0, 1).planned == 40


# -- under compile and FSDP ---


def compiled_steps(rank: int, size: int, is_spread: bool, steps: int, short: int) -> dict[str, Any]:
    """Score 320 and train on the 32 best in a compiled model with batch norm: rows of each step, and dynamo's counts.

    One buffer in the middle has `short` candidates only.
    """
    import torch._dynamo as dynamo

    join_group()
    torch.manual_seed(0)
    graphs = []

    def counted(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    dynamo.reset()
    model = forward = with_norm()
    if is_spread:
        model = forward = sharded(compiled(model, counted), torch.device("cpu"))
    else:
        forward = torch.compile(model, backend=counted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    selector = Selector(model, "rho", 32, gradients="mean")
    rows, before = [], 0
    for step in range(steps):
        reason = np.full(320, CANDIDATE, np.uint8)
        if step == steps // 2 and short:
            before = len(graphs)
            reason[short:] = Reason.quarantined
        own = np.arange(rank * 320 // size, (rank + 1) * 320 // size)
        kept = selector(buffer(320, seed=step, reason=reason).take(own), step=step)
        assert kept.input is not None
        optimizer.zero_grad()
        model.train()
        kept.mean(functional.cross_entropy(forward(kept.input), kept.label, reduction="none")).backward()
        optimizer.step()
        rows.append([len(kept), len(kept.rows)])
    finite = all(
        bool(p.isfinite().all()) for p in (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters())
    )
    norms = [float(m.running_var.sum()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    leave_group()
    return {"rows": rows, "graphs": len(graphs), "first": before, "finite": finite, "norms": norms}


@pytest.mark.slow
@pytest.mark.parametrize("is_spread", [False, True], ids=["whole", "sharded"])
def test_dealt_rows_have_one_shape_and_compile_once(tmp_path: Path, is_spread: bool) -> None:
    told = ranks.together(tmp_path, compiled_steps, 4, 4, is_spread, 200, 0)
    rows = np.array([one["rows"] for one in told])  # ranks, steps, (trained, read)
    assert (rows[:, :, 0] == 8).all() and (rows[:, :, 1].sum(0) == 32).all()
    assert rows[:, :, 1].max(0).mean() / 8 > 1.2  # where they stay, the fullest rank has so many times its share
    assert len({one["graphs"] for one in told}) == 1 and all(one["finite"] for one in told)
    # No step after the first compiles anything again.
    fewer = ranks.together(tmp_path, compiled_steps, 4, 4, is_spread, 2, 0)
    assert fewer[0]["graphs"] == told[0]["graphs"] > 0


@pytest.mark.slow
def test_a_shorter_step_is_a_new_shape_once_and_never_padded(tmp_path: Path) -> None:
    told = ranks.together(tmp_path, compiled_steps, 4, 4, False, 12, 30)
    assert [one["rows"][6][0] for one in told] == [8, 8, 7, 7]  # 30 candidates are all kept: four ranks, no filler
    graphs = [(one["first"], one["graphs"]) for one in told]
    # A rank with a row less compiles once more, for any number of rows; a rank with as many as ever doesn't.
    assert graphs[0] == graphs[1] and graphs[0][0] == graphs[0][1]
    assert graphs[2] == graphs[3] and 0 < graphs[2][1] - graphs[2][0] <= graphs[0][0]
    assert all(one["finite"] for one in told)
