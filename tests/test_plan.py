"""The laws of the plan: exactly once, equal steps, resumable anywhere, and mixing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhostream.errors import UsageError
from rhostream.stream.plan import Plan, choose_lanes


def rows(plan: Plan) -> list[tuple[int, int]]:
    parts = [plan.buffer(i) for i in range(plan.buffers)] + [plan.tail()]
    return [pair for part in parts for pair in zip(part.shard.tolist(), part.ordinal.tolist(), strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([8, 12, 16]),
    st.integers(0, 99),
    st.integers(0, 2),
)
def test_every_sample_is_planned_exactly_once_over_any_ranks(
    counts: list[int], ranks: int, size: int, seed: int, pass_index: int
) -> None:
    names, numbers = [f"s{i}" for i in range(len(counts))], np.array(counts, np.int64)
    if numbers.sum() < size:
        return
    lanes = choose_lanes(size, 4)
    plans = [Plan(names, numbers, size, lanes, seed, pass_index, r, ranks) for r in range(ranks)]
    planned = [pair for plan in plans for pair in rows(plan)]
    assert sorted(planned) == [(s, o) for s, n in enumerate(counts) for o in range(n)]
    assert len({plan.buffers for plan in plans}) == 1
    assert all(len(plan.buffer(i)) == size // ranks for plan in plans for i in range(plan.buffers))
    assert sum(len(plan.tail()) for plan in plans) < size + lanes


def test_ranks_share_the_buffers_of_one_rank() -> None:
    names, counts = ["a", "b", "c"], np.array([50, 70, 33])
    whole = Plan(names, counts, 16, 8, 3)
    halves = [Plan(names, counts, 16, 8, 3, 0, r, 2) for r in range(2)]
    for i in range(whole.buffers):
        parts = [half.buffer(i) for half in halves]
        assert whole.buffer(i).ordinal.tolist() == [o for p in parts for o in p.ordinal.tolist()]


def test_a_buffer_is_a_function_of_its_index_alone() -> None:
    names, counts = [str(i) for i in range(9)], np.full(9, 40)
    forward, backward = Plan(names, counts, 20, 10, 1), Plan(names, counts, 20, 10, 1)
    ahead = [forward.buffer(i).ordinal.tolist() for i in range(forward.buffers)]
    assert ahead == [backward.buffer(i).ordinal.tolist() for i in reversed(range(backward.buffers))][::-1]


def test_seeds_and_passes_differ() -> None:
    names, counts = [str(i) for i in range(9)], np.full(9, 40)
    orders = {tuple(rows(Plan(names, counts, 20, 10, seed, p))) for seed in range(3) for p in range(3)}
    assert len(orders) == 9


def test_sixty_four_lanes_mix_class_sorted_shards() -> None:
    classes, shards, size = 14, 196, 320
    names, counts = [str(i) for i in range(shards)], np.full(shards, 200)
    distance = {}
    for lanes in (8, 64):
        plan = Plan(names, counts, size, lanes, 0)
        apart = []
        for i in range(0, plan.buffers, 5):
            share = np.bincount(plan.buffer(i).shard // (shards // classes), minlength=classes) / size
            apart.append(np.abs(share - 1 / classes).sum() / 2)
        distance[lanes] = float(np.mean(apart))
    assert distance[64] < 0.2 < distance[8]


def test_lanes_that_do_not_fit_name_the_nearest() -> None:
    assert choose_lanes(320) == 64 and choose_lanes(320, 2) == 64 and choose_lanes(30) == 30
    with pytest.raises(UsageError, match="nearest: 8"):
        choose_lanes(32, lanes=9)
    with pytest.raises(UsageError, match="can't be filled"):
        Plan(["a"], np.array([7]), 8, 8)
