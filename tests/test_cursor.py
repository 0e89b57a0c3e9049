"""The cursor of an own loop: what a second loop is, whose plan it is of, and other numbers of ranks."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.candidates import Candidates
from rhostream.errors import MismatchError, UsageError
from rhostream.stream.copying import ahead
from rhostream.stream.loader import Loader
from rhostream.stream.plan import Plan, choose_lanes
from tests.support import ranks
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (8 of unequal size, 700 samples) and an index of them, `index`."""
    root = tmp_path_factory.mktemp("cursor")
    make_shards(root / "shards", [100, 50, 97, 103, 50, 150, 49, 101])
    rhostream.index([str(root / "shards")], str(root / "index"))
    return root


def opened(data: Path, **options: Any) -> Loader:
    options = {
        "buffer_size": 320,
        "needs_il": False,
        "shards": str(data / "shards"),
        "table": str(data / "index"),
        **options,
    }
    return rhostream.open_stream(options.pop("shards"), options.pop("table"), **options)


def planned(candidates: Candidates) -> list[tuple[int, int]]:
    return list(zip(candidates.shard.tolist(), candidates.ordinal.tolist(), strict=True))


# -- loops over one stream ---


def test_a_second_loop_is_the_next_pass(data: Path) -> None:
    stream, whole = opened(data, buffer_size=50), opened(data, buffer_size=50, passes=3)
    expected = [planned(c) for c in whole]
    assert len(expected) == 3 * 14
    assert len(stream) == 14
    found = [[planned(c) for c in stream] for _ in range(3)]
    assert [len(one) for one in found] == [14, 14, 14] and [*found[0], *found[1], *found[2]] == expected
    assert found[0] != found[1] and len(stream) == 14


@pytest.mark.parametrize("inside", [True, False])
def test_a_loop_that_ended_is_resumed_as_it_would_have_gone_on(data: Path, inside: bool) -> None:
    """Saved in the body of the last buffer there is nothing left of that loop; saved after it comes the next pass."""
    stream = opened(data, buffer_size=350)
    for _ in stream:
        stream.consumed()
        state = stream.state_dict()
    if not inside:
        state = stream.state_dict()
    again = opened(data, buffer_size=350)
    again.load_state_dict(json.loads(json.dumps(state)))
    expected = [planned(c) for c in opened(data, buffer_size=350, passes=2)][2:]
    assert len(again) == (0 if inside else 2)
    if inside:
        assert [planned(c) for c in again] == []
    assert [planned(c) for c in again] == expected


def test_a_loop_inside_a_loop_over_the_same_stream_is_refused(data: Path) -> None:
    stream = opened(data, buffer_size=50)
    outer = iter(stream)
    next(outer)
    next(iter(stream))
    with pytest.raises(UsageError, match="a newer loop"):
        next(outer)


def two_passes(data: Path, **options: Any) -> Loader:
    return opened(data, **{"buffer_size": 100, "passes": 2, **options})


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_state_saved_in_the_body_of_any_buffer_goes_on_with_the_next(data: Path, workers: int) -> None:
    expected = [planned(c) for c in two_passes(data)]
    stream, other = two_passes(data, workers=workers), two_passes(data)
    states = [stream.state_dict()]
    for k, _ in enumerate(stream, 1):
        assert len(stream) == len(expected) - k
        states.append(stream.state_dict())
        assert stream.state_dict() == states[-1]
    assert len(states) == len(expected) + 1 == 15
    for k, state in enumerate(states):
        other.load_state_dict(json.loads(json.dumps(state)))
        assert [planned(c) for c in other] == expected[k:]
    assert (stream.state_dict()["pass"], stream.state_dict()["buffer"]) == (2, 0)  # the loop is over: the next passes


@pytest.mark.parametrize("saves", [True, False])
def test_a_loop_left_by_break_goes_on_with_the_next_buffer_whether_or_not_a_state_was_saved(
    data: Path, saves: bool
) -> None:
    expected = [planned(c) for c in two_passes(data)]
    for k in (1, 7, 13):  # within a pass, its last buffer, and the last but one of all
        stream, seen = two_passes(data), []
        for candidates in stream:
            seen.append(planned(candidates))
            if len(seen) == k:
                break
        if saves:
            again = two_passes(data)
            again.load_state_dict(stream.state_dict())
            assert [*seen, *(planned(c) for c in again)] == expected
        assert [*seen, *(planned(c) for c in stream)] == expected


def test_a_buffer_that_a_run_drew_and_its_loop_never_saw_is_in_no_commit_and_comes_again(data: Path) -> None:
    expected = [planned(c) for c in two_passes(data)]
    stream = two_passes(data)
    seen = iter(stream)
    next(seen)
    stream.consumed()
    next(seen)
    assert (stream.state_dict()["buffer"], stream.consumed_state_dict()["buffer"]) == (2, 1)
    stream.give_back()
    assert [planned(c) for c in stream] == expected[1:]


def test_states_of_two_ranks_go_on_with_the_next_buffer(data: Path) -> None:
    for rank in range(2):
        expected = [planned(c) for c in two_passes(data, rank=rank, ranks=2)]
        states = []
        for _ in (stream := two_passes(data, rank=rank, ranks=2)):
            states.append(stream.state_dict())
        for k, state in enumerate(states, 1):
            (again := two_passes(data, rank=rank, ranks=2)).load_state_dict(state)
            assert [planned(c) for c in again] == expected[k:]


def test_buffers_copied_ahead_are_no_part_of_the_state(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead:
        """What a GPU's copier does to the order of things."""

        start = finish = staticmethod(lambda candidates: candidates)

    buffers = Loader._buffers
    monkeypatch.setattr(Loader, "_buffers", lambda self, messages: ahead(buffers(self, messages), Ahead()))
    expected = [planned(c) for c in two_passes(data)]
    states = []
    for _ in (stream := two_passes(data)):
        states.append(stream.state_dict())
    assert [(s["pass"], s["buffer"]) for s in states] == [(k // 7, k % 7 + 1) for k in range(14)]
    (again := two_passes(data)).load_state_dict(states[4])
    assert [planned(c) for c in again] == expected[5:]


def test_a_bare_loop_that_saves_in_its_body_and_is_begun_again_makes_the_same_steps_and_weights(world: Path) -> None:
    """The loop without a run: the model, the optimizer, the stream and the selector are all of its state."""

    def loop(stop: int | None, saved: dict[str, Any] | None) -> tuple[list[list[int]], dict[str, Any]]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
        optimizer = torch.optim.AdamW(model.parameters())
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
        selector = rhostream.Selector(model, rule="rho", batch_size=8)
        parts = {"model": model, "optimizer": optimizer, "stream": stream, "selector": selector}
        for name, state in (saved or {}).items():
            parts[name].load_state_dict(state)
        steps = []
        for candidates in stream:
            kept = selector(candidates)
            loss = torch.nn.functional.cross_entropy(model(kept.input), kept.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(kept.label.tolist())
            saved = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
            if len(steps) == stop:
                break
        assert saved is not None
        return steps, saved

    steps, whole = loop(None, None)
    first, saved = loop(9, None)
    rest, resumed = loop(None, saved)
    assert len(steps) == 25 and first + rest == steps
    assert all(torch.equal(whole["model"][name], tensor) for name, tensor in resumed["model"].items())


# -- whose cursor it is ---


def cursor_of(data: Path, **options: Any) -> dict[str, Any]:
    stream = opened(data, **options)
    next(iter(stream))
    stream.consumed()
    return stream.state_dict()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"buffer_size": 300}, "buffer_size: was 320, now 300"),
        ({"lanes": 32}, "64 lanes.*asked for 32"),
    ],
)
def test_a_cursor_of_another_plan_is_refused_and_what_differs_is_named(
    data: Path, other: dict[str, Any], says: str
) -> None:
    with pytest.raises(MismatchError, match=says):
        opened(data, **other).load_state_dict(cursor_of(data))


def test_a_cursor_of_other_shards_or_another_table_is_refused(world: Path, data: Path) -> None:
    state = cursor_of(data)
    fewer = sorted(str(p) for p in (data / "shards").iterdir())[1:]
    with pytest.raises(MismatchError, match="the shards and their samples"):
        opened(data, shards=fewer).load_state_dict(state)
    rhostream.index([str(world / "shards")], str(data / "of-world"))
    other = cursor_of(data, shards=str(world / "shards"), table=str(data / "of-world"))
    with pytest.raises(MismatchError, match="the table's fingerprint"):
        opened(data, shards=str(world / "shards"), table=str(world / "il")).load_state_dict(other)


def test_a_cursor_of_the_same_shards_in_another_order_says_so_and_which(data: Path) -> None:
    shards = sorted(str(p) for p in (data / "shards").iterdir())
    backwards = shards[::-1]
    state = cursor_of(data, shards=backwards)
    with pytest.raises(MismatchError, match=r"same shards in another order.*first .*train-007.tar"):
        opened(data).load_state_dict(state)
    stream = opened(data, order=backwards)
    stream.load_state_dict(state)
    assert [planned(c) for c in stream] == [planned(c) for c in opened(data, shards=backwards)][1:]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"pass": 0},
        {"pass": "x", "buffer": 0},
        {"pass": 0, "buffer": 3},
        {"pass": 0, "buffer": -1},
        {"pass": 0, "buffer": 0, "plan": 7},
        {"pass": 0, "buffer": 0, "plan": {"version": 2}},
    ],
)
def test_what_is_no_cursor_is_refused(data: Path, state: dict[str, Any]) -> None:
    with pytest.raises(MismatchError, match="cursor"):
        opened(data).load_state_dict(state)


def test_a_cursor_of_before_cursors_named_their_plan_is_taken_as_it_is(data: Path) -> None:
    stream = opened(data)
    stream.load_state_dict({"pass": 0, "buffer": 1})
    assert [planned(c) for c in stream] == [planned(c) for c in opened(data)][1:]


def test_a_cursor_is_plain_values(data: Path) -> None:
    state = cursor_of(data)
    torch.save(state, sink := io.BytesIO())
    sink.seek(0)
    assert torch.load(sink, weights_only=True) == json.loads(json.dumps(state)) == state


# -- other ranks ---


@pytest.mark.parametrize("number", [2, 5, pytest.param(64, marks=pytest.mark.slow)])
def test_a_cursor_of_one_rank_goes_on_over_any_ranks_up_to_its_lanes(data: Path, number: int) -> None:
    state, rest = cursor_of(data), [planned(c) for c in opened(data)][1:]
    assert state["plan"]["lanes"] == 64 and len(rest) == 1
    found: list[list[tuple[int, int]]] = [[] for _ in rest]
    sizes = []
    for rank in range(number):
        stream = opened(data, rank=rank, ranks=number)
        stream.load_state_dict(state)
        for at, candidates in enumerate(stream):
            found[at] += planned(candidates)
            sizes.append(len(candidates))
            assert candidates.slice_of(rank, number).first == sum(sizes[:-1])
            assert max(sizes) <= candidates.slice_of(rank, number).most
    assert found == rest and max(sizes) - min(sizes) <= 5


def test_more_ranks_than_lanes_are_refused(data: Path) -> None:
    state = cursor_of(data, lanes=4)
    with pytest.raises(UsageError, match="8 ranks can't share 4 lanes"):
        opened(data, rank=0, ranks=8).load_state_dict(state)


def test_slices_of_any_ranks_up_to_the_lanes_make_up_the_buffer_and_the_tail() -> None:
    names, counts = ["a", "b", "c"], torch.tensor([50, 70, 33]).numpy()
    whole = Plan(names, counts, 28, 14, 3)
    for number in range(1, 15):
        parts = [Plan(names, counts, 28, 14, 3, 0, rank, number) for rank in range(number)]
        for at in range(whole.buffers):
            assert whole.buffer(at).ordinal.tolist() == [o for p in parts for o in p.buffer(at).ordinal.tolist()]
        assert sum(len(p.tail()) for p in parts) == len(whole.tail())
        assert len({len(p.own_lanes) for p in parts}) <= 2 and {p.buffers for p in parts} == {whole.buffers}
    assert choose_lanes(28, 3, carried=14) == 14


def test_a_run_keeps_its_lanes_over_ranks_that_do_not_divide_them(world: Path, tmp_path: Path) -> None:
    options = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "threads": 1,
        "run": str(tmp_path / "two"),
        "augment": "flip-shift",
    }
    rhostream.train(**options, steps=3, lanes=5)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    rhostream.train(**{**options, "run": str(tmp_path / "one")}, steps=7)
    ranks.together(tmp_path, ranks.train, 2, [{**options, "steps": 7}])
    assert ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two") == 7


# -- the order of the list ---


def test_a_run_goes_on_with_the_order_that_its_shards_had(data: Path, tmp_path: Path) -> None:
    shards = sorted(str(p) for p in (data / "shards").iterdir())
    random.Random(1).shuffle(shards)
    options = {"il": str(data / "index"), "rule": "loss", "model": "mlp-64", "buffer_size": 50, "batch_size": 5}
    rhostream.train(shards, run=str(tmp_path / "whole"), steps=20, **options)
    rhostream.train(shards, run=str(tmp_path / "run"), steps=9, **options)
    rhostream.train(sorted(shards), run=str(tmp_path / "run"), steps=20, **options)
    found = []
    for name in ("whole", "run"):
        with rhostream.open_ledger(str(tmp_path / name)) as ledger:
            found.append(ledger.sql("SELECT step, shard, ordinal, kept FROM selections ORDER BY ALL"))
    assert found[0].equals(found[1]) and len(found[0]) == 20 * 50
