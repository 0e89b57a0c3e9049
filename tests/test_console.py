"""What a person at a terminal is told: real figures of what is done, how far a job is, short pictures of objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_second_train_of_a_complete_run_and_its_status_give_the_figures_of_the_first(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    settings: dict[str, Any] = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "steps": 6,
                                "test_shards": [str(world / "test")], "eval_every": 4}  # fmt: skip
    run = str(tmp_path / "run")
    first, second = (rhostream.train(str(world / "shards"), str(world / "il"), run, **settings) for _ in range(2))
    assert first.test_accuracy is not None and second.test_accuracy == pytest.approx(first.test_accuracy, abs=1e-7)
    assert (second.steps, second.reasons, second.test_samples) == (6, first.reasons, first.test_samples)
    evaluation = status_of(run)["evaluation"]
    assert (evaluation["step"], evaluation["test_samples"]) == (5, first.test_samples)
    assert evaluation["test_accuracy"] == second.test_accuracy
    assert f"accuracy {first.test_accuracy:.4f}" in render_status(status_of(run))
    assert status_of(str(trained("untested", steps=2)))["evaluation"] is None


SHORT = 200
MANY = [f"https://me:hunter2@host/shard-{n:05d}.tar?token=hunter2" for n in range(1000)]


@pytest.mark.parametrize(
    "config",
    [
        rhostream.TrainConfig(shards=MANY, il=MANY[0], run="runs/a\x1b[31m", lr=0.5, test_shards=MANY, seed=7),
        rhostream.FitILConfig(shards=MANY[0], out="m" * 5000, epochs=3),
        rhostream.ComputeILConfig(shards=MANY, il_model=MANY[0], out="t" * 500, keep={"a": "int"}),
        rhostream.IndexConfig(shards=MANY[:1], out="t", roots={"a": MANY[0], "b": "https://[::1hunter2"}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_repr_of_a_config_is_one_short_line_of_what_was_asked_for_without_secrets(config: Any) -> None:
    text = repr(config)
    assert len(text) <= SHORT and text.isprintable() and text.startswith(f"{type(config).__name__}(")
    assert "hunter2" not in text and "max_bad_fraction" not in text
    assert "shards=" in text


def test_nothing_of_the_public_face_has_a_long_repr(trained: Callable[..., Path]) -> None:
    with rhostream.open_ledger(str(trained("run", steps=2))) as ledger:
        assert "step 2" in repr(ledger.runs[0])
        things = [ledger, ledger.runs[0], *(getattr(rhostream, name) for name in rhostream.__all__)]
        assert {repr(thing)[:40]: len(repr(thing)) for thing in things if len(repr(thing)) > SHORT} == {}
