"""Several ranks: one of them dies, they hold unlike shares, or the run goes on with another number of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rhostream
from rhostream.runs import checkpoint, tensors
from rhostream.selection.forward import Forward
from rhostream.selection.ranks import Ranks
from tests.support import ranks
from tests.support.logs import same, weights_of
from tests.support.shards import make_shards
from tests.support.tables import without_il

SETTINGS: dict[str, Any] = {
    "buffer_size": 40,
    "batch_size": 8,
    "model": "mlp-64",
    "steps": 20,
    "checkpoint_every": 5,
    "threads": 1,
    **ranks.SGD,
}


@pytest.fixture
def options(world: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def of(name: str = "run", **changes: Any) -> dict[str, Any]:
        return {
            "shards": [str(world / "shards")],
            "il": str(world / "il"),
            "run": str(tmp_path / name),
            **SETTINGS,
            **changes,
        }

    return of


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., ranks.Started]]:
    """`ranks.start`, and nothing of it left behind."""
    found: list[ranks.Started] = []

    def start(target: Callable[..., Any], size: int, *arguments: Any, **environment: str) -> ranks.Started:
        found.append(ranks.start(tmp_path / "answers", target, size, *arguments, **environment))
        return found[-1]

    yield start
    for one in found:
        one.kill()


def close(one: Path, other: Path, noise: float = 1e-4) -> bool:
    first, second = weights_of(one), weights_of(other)
    return all(torch.allclose(first[k], second[k], atol=noise) for k in first)


# -- E11 ---


def falls(
    options: Callable[..., dict[str, Any]],
    started: Callable[..., ranks.Started],
    folder: Path,
    victim: int,
    number: signal.Signals,
) -> None:
    """Send a signal to one of two ranks in the middle of a run; the other one ends, and the same command goes on."""
    settings = options(steps=40)
    # Who is gone is noticed at once; only who hangs is waited for.
    patience = 60.0 if number == signal.SIGKILL else 8.0
    run = started(ranks.train, 2, [{**settings, "rank_timeout": patience}], None, 12)
    ranks.wait_for_step(folder / "run", 12)
    os.kill(run.processes[victim].pid or 0, number)
    fallen = time.monotonic()
    other = run.processes[1 - victim]
    other.join(120)
    assert time.monotonic() - fallen < 55  # a bound, not a speed: torch alone waits for half an hour
    assert other.exitcode == 3
    said = json.loads(run.answers[1 - victim].read_text())["error"]
    assert said.startswith(f"RankLostError: rank {1 - victim} of 2") and "gone or stuck" in said
    assert "the same command on all ranks resumes" in said and "--rank-timeout" in said
    run.kill()
    found = checkpoint.latest(str(folder / "run"))
    assert found is not None and found.step >= 10
    assert [one["exit"] for one in started(ranks.train, 2, [settings]).join()] == [0, 0]
    rhostream.train(**options("whole", steps=40))
    assert ranks.assert_same_but_for_noise(folder / "whole", folder / "run") == 40


def test_E11_a_rank_that_dies_ends_the_others_and_the_same_command_resumes(
    options: Callable[..., dict[str, Any]], started: Callable[..., ranks.Started], tmp_path: Path
) -> None:
    """When a rank dies or hangs, the others end within `--rank-timeout` with exit code 3 and one sentence that says so; the same command resumes from the newest checkpoint, and the log is that of a run in which nothing happened."""  # noqa: E501
    falls(options, started, tmp_path, 1, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_E11_any_rank_may_die_or_hang(
    options: Callable[..., dict[str, Any]],
    started: Callable[..., ranks.Started],
    tmp_path: Path,
    victim: int,
    number: signal.Signals,
) -> None:
    """The same holds for the first rank, and for a rank that hangs."""
    falls(options, started, tmp_path, victim, number)


class Breaks(nn.Module):
    """A model that raises on one rank only, at its n-th forward."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layers, self.left = nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        self.left -= 1
        if self.left == 0 and os.environ["RANK"] == "1":
            raise ValueError("a cosmic ray")
        return self.layers(x)  # type: ignore[no-any-return]


def train_breaking(rank: int, options: dict[str, Any]) -> None:
    """Train a model that breaks on rank 1."""
    rhostream.train(**options, make_model=lambda: Breaks(9))


def test_E11_an_error_on_one_rank_is_what_the_others_report(
    options: Callable[..., dict[str, Any]], started: Callable[..., ranks.Started]
) -> None:
    """An error on one rank ends the others at once, and they report that error."""
    told = started(train_breaking, 2, options(rank_timeout=60.0)).join(40)
    own = "the forward of Breaks on a batch of shape"
    assert told[1]["exit"] == 2 and own in told[1]["error"] and "ValueError: a cosmic ray" in told[1]["error"]
    assert told[0]["exit"] == 3 and f"rank 1 stopped with UsageError: {own}" in told[0]["error"]
    assert "ValueError: a cosmic ray" in told[0]["error"]


def train_dying(rank: int, options: dict[str, Any], place: str, at: int) -> None:
    """Train; rank 1 kills itself in the middle of its `at`-th scoring, or with its kept rows on their way."""
    owner, name = (Forward, "__call__") if place == "scoring" else (Ranks, "exchange")
    original, left = getattr(owner, name), [at]

    def dying(*arguments: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if rank == 1 and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, dying)
    rhostream.train(**options, rank_timeout=60.0)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["scoring", "dealing"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_E11_a_rank_that_dies_while_it_scores_or_while_rows_are_dealt(
    options: Callable[..., dict[str, Any]],
    started: Callable[..., ranks.Started],
    tmp_path: Path,
    place: str,
    parallel: str,
) -> None:
    """So it is in the middle of scoring and of the exchange of kept rows, with weights that are spread over the ranks too."""  # noqa: E501
    settings = options(parallel=parallel)
    told = started(train_dying, 2, settings, place, 9).join()
    assert told[1]["exit"] == -signal.SIGKILL and told[0]["exit"] == 3, told
    assert told[0]["error"].startswith("RankLostError: rank 0 of 2") and "resumes" in told[0]["error"]
    assert [one["exit"] for one in started(ranks.train, 2, [settings]).join()] == [0, 0]
    rhostream.train(**options("whole"))
    assert ranks.assert_same_but_for_noise(tmp_path / "whole", tmp_path / "run") == 20


def test_E11_a_rank_that_never_comes_is_reported(
    options: Callable[..., dict[str, Any]], started: Callable[..., ranks.Started]
) -> None:
    """A rank that never starts is reported after `--rank-timeout`."""
    run = started(ranks.train, 1, [options(rank_timeout=2.0)], WORLD_SIZE="2")
    told = run.join(40)
    assert told[0]["exit"] == 3 and "could not join the others" in told[0]["error"]


# -- E13 ---


def killed_and_resumed(
    started: Callable[..., ranks.Started], settings: dict[str, Any], pieces: list[tuple[int, int, int | None]]
) -> None:
    """Train in pieces of (ranks, workers, step after which rank 0 is killed)."""
    for size, workers, die_at in pieces:
        told = started(ranks.train, size, [{**settings, "workers": workers}], die_at).join()
        assert told[0]["exit"] == (0 if die_at is None else -signal.SIGKILL), told
        assert all(one["exit"] == (0 if die_at is None else 3) for one in told[1:]), told


@pytest.mark.slow
def test_E13_a_run_goes_on_with_other_numbers_of_workers(
    options: Callable[..., dict[str, Any]], started: Callable[..., ranks.Started], tmp_path: Path
) -> None:
    """A run that was killed goes on with another number of workers: the log and the weights are, bit for bit, those of a run in one piece."""  # noqa: E501
    rhostream.train(**options("whole", workers=1))
    killed_and_resumed(started, options(), [(1, 1, 6), (1, 2, 12), (1, 4, None)])
    assert same(tmp_path / "whole", tmp_path / "run")
    assert checkpoint.latest(str(tmp_path / "run")).attempt == 2


def test_E13_a_run_goes_on_with_other_numbers_of_ranks(
    options: Callable[..., dict[str, Any]], started: Callable[..., ranks.Started], tmp_path: Path
) -> None:
    """A run that was killed goes on with another number of ranks, more or fewer: the same buffers in every step and the same kept keys, but where scores differ by less than float noise."""  # noqa: E501
    rhostream.train(**options("whole"))
    killed_and_resumed(started, options(), [(1, 0, 6), (2, 0, 12), (1, 0, None)])
    assert ranks.assert_same_but_for_noise(tmp_path / "whole", tmp_path / "run") == 20
    assert close(tmp_path / "whole", tmp_path / "run")


# -- E12, E16 ---


def steps_of_ranks(run: Path) -> dict[int, list[int]]:
    """rank -> the steps in its own segments."""
    from rhostream.tables import selections

    latest, found = checkpoint.latest(str(run)), {}
    for rank in range(2):
        mine = [s for s in latest.log if f"/rank={rank}/" in s["path"]]
        found[rank] = sorted({s for s in selections.read(str(run), mine)["step"].to_pylist() if s is not None})
    return found


def test_E12_ranks_with_shards_of_unlike_size_take_the_same_steps(
    options: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """However unlike the shards are, every rank takes the same number of steps, by the plan; what fills no buffer is logged once, as the tail."""  # noqa: E501
    sizes = {"steps": None, "passes": 2, "lr": 1e-5}  # so slow that 50 steps don't make float noise grow
    told = ranks.together(tmp_path, ranks.train, 2, [options(**sizes)])
    rhostream.train(**options("whole", **sizes))
    assert steps_of_ranks(tmp_path / "run") == {0: list(range(50)), 1: list(range(50))}
    assert ranks.assert_same_but_for_noise(tmp_path / "whole", tmp_path / "run") == 50
    assert told[0][0] | {"cost": 0} == told[1][0] | {"cost": 0} and told[0][0]["planned"] == 2 * 1003
    assert told[0][0]["reasons"] == {"kept": 50 * 8, "below": 50 * 32, "tail": 6}
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        rows = ledger.sql("SELECT step, candidates, kept, forward_units FROM steps ORDER BY step")
        tails = ledger.sql("SELECT pass, count(*) AS n FROM selections WHERE step IS NULL GROUP BY pass ORDER BY pass")
    assert rows["step"].to_pylist() == list(range(50)) and set(rows["candidates"].to_pylist()) == {40}
    assert set(rows["kept"].to_pylist()) == {8} and rows["forward_units"].to_pylist()[-1] == 50 * (40 + 3 * 8)
    assert tails.to_pylist() == [{"pass": 0, "n": 3}, {"pass": 1, "n": 3}]


def refusals(rank: int, cases: list[dict[str, Any]]) -> list[str]:
    """What `train` says to each of the options."""
    found = []
    for case in cases:
        try:
            rhostream.train(**case)
            found.append("nothing")
        except rhostream.errors.UsageError as exc:
            found.append(str(exc))
    return found


def test_E16_sizes_that_ranks_can_not_share_are_refused_and_the_tail_is_counted(
    options: Callable[..., dict[str, Any]], tmp_path: Path, trained: Callable[..., Path]
) -> None:
    """A buffer that the ranks can't share equally, or a batch larger than the buffer, stops before any work and names the nearest size that works; samples that fill no buffer are logged with the reason `tail` and counted."""  # noqa: E501
    cases = [
        options(buffer_size=41),
        options(batch_size=41),
        options(lanes=5),
        options(steps=0),
        options(device="cuda:0"),
    ]
    for said in ranks.together(tmp_path, refusals, 2, cases):
        assert "--buffer-size 41 can't be split over 2 ranks" in said[0] and "nearest: 40" in said[0]
        assert "1 <= n_b <= n_B" in said[1]
        assert "5 lanes" in said[2] and "nearest: 4" in said[2]
        assert "at least 1" in said[3] and "of 2 ranks of this" in said[4]
    assert not (tmp_path / "run").exists()
    assert checkpoint.latest(str(trained(steps=None))).counts["tail"] == 1003 - 25 * 40


# -- E18 ---


def test_E18_a_buffer_without_one_il_is_a_step_without_an_update(world: Path, tmp_path: Path) -> None:
    """With `--missing-il skip`, a buffer of which no sample has an il is a counted step that changes no weight; over ranks, one that has no candidate takes part in the step of the others."""  # noqa: E501
    shards = make_shards(tmp_path / "shards", [120, 120])
    roots = {"here": str(tmp_path / "shards")}  # an order that is the same in any folder: float noise has a long tail
    with pytest.warns(UserWarning, match="seen by fit-il"):
        rhostream.compute_il([str(s) for s in shards], str(world / "il-model"), str(tmp_path / "il"), roots=roots)
    tables = {
        "half": without_il(tmp_path / "il", tmp_path / "half", {0}),
        "none": without_il(tmp_path / "il", tmp_path / "none", {0, 1}),
    }
    settings = {
        **SETTINGS,
        "shards": [str(s) for s in shards],
        "missing_il": "skip",
        "roots": roots,
        "steps": 4,
        "lanes": 2,
        "buffer_size": 20,
        "batch_size": 4,
    }
    # With and without batch norm, which refuses a forward of nothing.
    cases = [(table, model) for table in tables for model in ("mlp-64", "small-cnn")]
    each = {
        size: [
            {**settings, "il": str(tables[table]), "model": model, "run": str(tmp_path / f"{size}-{table}-{model}")}
            for table, model in cases
        ]
        for size in (1, 2)
    }
    for one in each[1]:
        rhostream.train(**one)
    told = ranks.together(tmp_path, ranks.train, 2, each[2])[0]
    for (table, model), summary in zip(cases, told, strict=True):
        one, two = (tmp_path / f"{size}-{table}-{model}" for size in (1, 2))
        kept = [sum(k for k, _, _ in rows.values()) for rows in ranks.decisions(two).values()]
        assert all(torch.isfinite(v).all() for v in weights_of(two).values())
        if table == "none":
            latest = checkpoint.latest(str(two))
            assert latest.step == 4 and tensors.load_tensors(str(two), latest)[1]["state"] == {}
            assert summary["reasons"] == {"missing_il": 4 * 20} and summary["cost"]["forward_units"] == 0
            assert kept == [0] * 4 and close(one, two, noise=0.0)
        else:  # one of the two ranks has nothing but samples without an il
            assert summary["reasons"] == {"missing_il": 4 * 10, "kept": 4 * 4, "below": 4 * 6}
            assert kept == [4] * 4
        if table == "none" or model == "mlp-64":
            assert ranks.assert_same_but_for_noise(one, two) == 4 and close(one, two)
