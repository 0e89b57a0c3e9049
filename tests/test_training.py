"""The trainer: Algorithm 1, one log row per planned sample, and nothing lost when it is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rhostream
from rhostream.errors import Interrupted, MismatchError, NonFiniteError, UsageError
from rhostream.repair import repair
from rhostream.runs import checkpoint
from rhostream.tables import selections
from tests.support.logs import log_of, same
from tests.support.ranks import train_killed_at
from tests.support.shards import make_shards


def test_the_log_holds_one_row_per_planned_sample_and_every_pass(trained: Callable[..., Path]) -> None:
    run = trained(passes=2, steps=None)
    rows = log_of(run)
    for pass_index in range(2):
        mine = [(r["shard"], r["ordinal"]) for r in rows if r["pass"] == pass_index]
        assert len(mine) == len(set(mine)) == 1003
    for step in range(50):
        reasons = [r["reason"] for r in rows if r["step"] == step]
        assert len(reasons) == 40 and reasons.count("kept") == 8
    tail = [r for r in rows if r["reason"] == "tail"]
    assert len(tail) == 6 and all(r["step"] is None for r in tail)
    assert all(r["kept"] == (r["reason"] == "kept") for r in rows)


def test_logged_scores_are_loss_minus_il_and_the_kept_are_the_best(trained: Callable[..., Path]) -> None:
    run = trained()
    rows = selections.read(str(run), checkpoint.latest(str(run)).log)
    loss, il, score, kept = (rows[c].to_numpy() for c in ("loss", "il", "score", "kept"))
    steps = rows["step"].to_numpy()
    reached = np.isfinite(steps)
    np.testing.assert_array_equal(score[reached], (loss - il)[reached])
    assert np.isnan(score[~reached]).all() and (~reached).sum() == 3
    for step in range(30):
        at = steps == step
        assert score[at][kept[at]].min() >= score[at][~kept[at]].max()


def test_workers_change_neither_the_log_nor_the_weights(trained: Callable[..., Path]) -> None:
    runs = [trained(f"w{workers}", workers=workers) for workers in (0, 1, 2)]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_a_run_continued_in_pieces_equals_one_in_one_go(trained: Callable[..., Path]) -> None:
    whole = trained("whole", steps=30)
    for steps in (7, 19, 30):
        pieces = trained("pieces", steps=steps, workers=steps % 2)
    assert same(whole, pieces)
    assert checkpoint.latest(str(pieces)).attempt == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp-64", "small-cnn"])
def test_killed_at_any_moment_the_same_command_gives_the_same_weights_and_log(
    world: Path, tmp_path: Path, trained: Callable[..., Path], model: str
) -> None:
    settings = {
        "model": model,
        "steps": 24,
        "checkpoint_every": 5,
        "test_shards": [str(world / "test")],
        "eval_every": 10,
        "buffer_size": 40,
        "batch_size": 8,
    }
    whole = trained("whole", **settings)
    options = {"shards": [str(world / "shards")], "il": str(world / "il"), "run": str(tmp_path / "killed"), **settings}
    for stop in (3, 10, 17):
        train_killed_at(stop, options)
    rhostream.train(**options)
    assert same(whole, tmp_path / "killed")
    with rhostream.open_ledger(str(tmp_path / "killed")) as ledger:
        assert ledger.sql("SELECT count(*) FROM selections")[0].to_pylist() == [24 * 40]
        assert ledger.sql("SELECT list(step ORDER BY step) FROM steps")[0].to_pylist() == [list(range(24))]


def test_a_signal_commits_and_the_same_command_goes_on(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    whole = trained("whole", steps=40)
    options = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "stopped"),
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "steps": 40,
    }
    for number in (signal.SIGTERM, signal.SIGINT):

        def stop(row: dict[str, object], number: int = number) -> None:
            if row["step"] % 13 == 12:
                os.kill(os.getpid(), number)

        with pytest.raises(Interrupted, match="same command resumes") as error:
            rhostream.train(**options, metrics=stop)
        assert error.value.exit_code == 128 + number
    rhostream.train(**options)
    assert same(whole, tmp_path / "stopped")


def test_a_stranger_is_refused_naming_field_old_and_new(trained: Callable[..., Path]) -> None:
    trained()
    for change, says in (
        ({"buffer_size": 80}, "buffer_size: was 40, now 80"),
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"rule": "loss"}, "rule: was 'rho', now 'loss'"),
    ):
        with pytest.raises(MismatchError, match=says):
            trained(**change)


def test_a_start_that_was_refused_leaves_nothing_that_the_mended_one_must_agree_with(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", [50, 30, 60])
    table, run = tmp_path / "il", tmp_path / "run"
    rhostream.index([str(tmp_path / "shards")], str(table))
    (other,) = make_shards(tmp_path / "other", [40], seed=1)
    other.replace(shards[1])  # and its part is of what was there

    def train(**options: object) -> None:
        rhostream.train(
            [str(tmp_path / "shards")],
            str(table),
            str(run),
            model="mlp-64",
            rule="loss",
            buffer_size=40,
            batch_size=8,
            **options,
        )

    for _ in range(2):
        with pytest.raises(MismatchError, match="verify TABLE --repair --shards"):
            train()
    repair(str(table), shards=[str(tmp_path / "shards")])
    train()  # the same command
    assert len(log_of(run)) == 150
    with pytest.raises(MismatchError, match="seed"):
        train(seed=1)  # what was committed is settled


def test_rho_keeps_fewer_wrong_labels_than_loss(trained: Callable[..., Path]) -> None:
    share = {}
    for rule in ("rho", "loss", "uniform", "irreducible"):
        with rhostream.open_ledger(str(trained(rule, rule=rule, steps=50))) as ledger:
            share[rule] = ledger.sql(
                "SELECT avg(is_noisy::INT) FROM selections JOIN samples USING (shard, ordinal) WHERE kept"
            )[0].to_pylist()[0]
    assert share["irreducible"] < share["rho"] < share["loss"]


def test_uniform_makes_no_forward_and_costs_three_units_a_kept_sample(trained: Callable[..., Path]) -> None:
    run = trained(rule="uniform")
    cost = json.loads((run / "cost.json").read_text())
    assert cost["scored"] == 0 and cost["forward_units"] == 30 * 8 * 3 and cost["decoded"] == 30 * 8
    assert all(r["loss"] is None and r["score"] is None for r in log_of(run))
    rho = json.loads((trained("rho") / "cost.json").read_text())
    assert rho["forward_units"] == 30 * (40 + 3 * 8) and rho["il"]["scored_samples"] == 1003 and rho["il_units"] > 0


def test_evaluation_changes_nothing_but_the_steps_table(trained: Callable[..., Path], world: Path) -> None:
    plain = trained("plain", model="small-cnn", steps=10)
    tested = trained("tested", model="small-cnn", steps=10, test_shards=[str(world / "test")], eval_every=3)
    assert same(plain, tested)
    with rhostream.open_ledger(str(tested)) as ledger:
        rows = ledger.sql("SELECT step, test_samples, class_accuracy FROM steps WHERE test_accuracy IS NOT NULL")
    assert rows["step"].to_pylist() == [2, 5, 8, 9] and set(rows["test_samples"].to_pylist()) == {120}
    assert all(len(c) == 4 for c in rows["class_accuracy"].to_pylist())


def test_what_was_not_committed_is_invisible(trained: Callable[..., Path]) -> None:
    run = trained(steps=10)
    segment = next((run / "log").rglob("*.parquet"))
    (segment.parent / "9999999990-9999999999.parquet").write_bytes(segment.read_bytes())
    assert len(log_of(run)) == 400


def test_a_diverged_model_stops_with_advice(trained: Callable[..., Path]) -> None:
    with pytest.raises(NonFiniteError, match=r"learning rate|--lr"):
        trained(lr=1e30, steps=50)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 50}, "n_b <= n_B"),
        ({"rule": "rhoo"}, "did you mean 'rho'"),
        ({"model": "mpl"}, "unknown model"),
        ({"precision": "fp8"}, "expected one of"),
        ({"missing_il": "zero"}, "expected one of"),
        ({"lanes": 7}, "nearest"),
        ({"augment": "spin"}, "unknown augmentation"),
        ({"device": "abacus"}, "abacus"),
        ({"steps": 0}, "at least 1"),
        ({"buffer_size": 100_000, "batch_size": 1}, "can't be filled|split"),
    ],
)
def test_settings_that_can_not_be_stop_before_any_work(
    trained: Callable[..., Path], tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        trained(**change)
    assert not (tmp_path / "run" / "log").exists()


def test_the_newest_attempt_wins(world: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    run = str(tmp_path / "run")

    def take_over(row: dict[str, object]) -> None:
        if row["step"] == 3:
            checkpoint.claim_attempt(run, {})

    with pytest.raises(rhostream.errors.SupersededError, match="attempt 1 has taken over"):
        trained(metrics=take_over)
    assert checkpoint.latest(run) is None


def test_augmentation_keeps_shapes_and_is_a_function_of_the_seed() -> None:
    from rhostream.training.augment import augment

    x = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    for kind in ("flip", "shift", "flip-shift"):
        assert torch.equal(augment(x, kind, 1), augment(x, kind, 1)) and augment(x, kind, 1).shape == x.shape
    assert any(not torch.equal(augment(x, "shift", 0), augment(x, "shift", s)) for s in range(1, 5))


def test_a_row_of_the_log_takes_at_most_24_bytes(world: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from rhostream.candidates import Candidates

    rng, writer, n = np.random.default_rng(0), selections.LogWriter(str(tmp_path), 0), 320
    names = pa.array([f"bucket/train-{i:05d}.tar" for i in range(100)])
    for step in range(300):
        candidates = Candidates(
            0,
            step,
            np.sort(rng.integers(0, 100, n)).astype(np.int32),
            rng.integers(0, 10_000, n).astype(np.int32),
            pa.array([f"{k:09d}" for k in rng.integers(0, 10**6, n)]),
            torch.from_numpy(rng.integers(0, 14, n)),
            torch.from_numpy(rng.random(n, np.float32)),
            np.zeros(n, np.uint8),
            None,
            shard_names=names,
        )
        columns = {
            "loss": rng.random(n, np.float32),
            "score": rng.random(n, np.float32),
            "kept": rng.random(n) < 0.1,
            "correct": rng.random(n) < 0.5,
            "reason": (rng.random(n) < 0.9).astype(np.uint8),
            "weight": np.ones(n, np.float32),
        }
        writer.take(candidates, step, columns, step)
    segment = writer.flush()[0]
    assert segment["bytes"] / segment["rows"] < 24


def test_time_is_split_into_phases(trained: Callable[..., Path]) -> None:
    start = time.monotonic()
    seconds = json.loads((trained() / "cost.json").read_text())["seconds"]
    assert {"wait", "score", "train", "log"} <= set(seconds) and 0 < sum(seconds.values()) <= time.monotonic() - start
