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
