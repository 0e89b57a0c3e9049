"""Weights spread over the ranks: what one process keeps and learns, in commits that any number of ranks goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.audit.verify import verify
from tests.support import ranks
from tests.support.logs import weights_of

SLOW = pytest.mark.slow
FSDP: dict[str, Any] = {"parallel": "fsdp"}


@pytest.fixture
def settings(world: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "run"),
        "steps": 12,
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "checkpoint_every": 5,
        "test_shards": [str(world / "test")],
        "eval_every": 6,
    }


def close(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)


def test_two_ranks_with_half_of_the_weights_each_keep_and_learn_what_one_process_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    clipped = {"clip_gradient": 0.5, "accumulate": 3, "activation_checkpointing": True}
    kinds = {"plain": {}, "clipped": clipped, "sgd": {"optimizer": "sgd", "lr": 0.05, "steps": 6}}
    for name, kind in kinds.items():
        rhostream.train(**{**settings, **kind, "threads": 1, "run": str(tmp_path / f"one-{name}")})
    two = [{**settings, **FSDP, **kind, "run": str(tmp_path / f"two-{name}")} for name, kind in kinds.items()]
    ranks.together(tmp_path, ranks.train, 2, two)
    for name in kinds:
        one, other = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        assert ranks.assert_same_but_for_noise(one, other) == kinds[name].get("steps", 12)
        assert close(one, other) and verify(str(other))["problems"] == []
