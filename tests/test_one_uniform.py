"""Uniform steps: the same in `train`, on one rank or two, as in a loop of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.errors import MismatchError
from rhostream.models import build
from rhostream.selection.selector import Selector
from tests.support.older import divide_logits
from tests.support.ranks import together, train

Kept = dict[int, list[tuple[str, int]]]


def network() -> torch.nn.Module:
    return build("mlp-64", image_size=16, channels=1, classes=4)


def kept_by_train(run: Path) -> Kept:
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT step, shard, ordinal FROM selections WHERE kept ORDER BY 1, 2, 3").to_pylist()
    found: Kept = {}
    for row in rows:
        found.setdefault(row["step"], []).append((row["shard"], row["ordinal"]))
    return found


def kept_by_a_loop(world: Path, steps: int, selector: Selector, seed: int) -> Kept:
    stream, kept = (
        rhostream.open_stream([str(world / "shards")], str(world / "il"), buffer_size=40, seed=seed, lanes=40),
        Kept(),
    )
    for step, candidates in zip(range(steps), stream, strict=False):
        names = candidates.shard_names.to_pylist()
        kept[step] = sorted(
            (names[candidates.shard[row]], int(candidates.ordinal[row])) for row in selector(candidates).rows
        )
    return kept


@pytest.mark.parametrize(
    ("options", "uniform"),
    [
        ({"rule": "rho", "warm_up": 2, "uniform_every": 4, "stop_after": 6}, {0, 1, 3, 6, 7}),
        ({"rule": "uniform", "ratio": "0:0.5,3:0.1"}, set(range(8))),
        ({"rule": "uniform", "class_quota": "balanced"}, set(range(8))),
        ({"rule": "rho", "class_quota": 0.25, "warm_up": 3}, {0, 1, 2}),
    ],
)
def test_uniform_steps_keep_the_same_in_the_trainer_and_in_a_loop_of_ones_own(
    world: Path, trained: Callable[..., Path], options: dict[str, Any], uniform: set[int]
) -> None:
    run = kept_by_train(trained(steps=8, seed=5, lanes=40, **options))
    own = kept_by_a_loop(world, 8, Selector(network(), batch_size=8, seed=5, **options), 5)
    assert {step: run[step] for step in uniform} == {step: own[step] for step in uniform}
    assert all(run[step] for step in uniform)


def test_uniform_ranks_keep_together_what_one_selector_keeps(world: Path, tmp_path: Path) -> None:
    asked = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "seed": 5,
        "model": "mlp-64",
        "lanes": 40,
        "buffer_size": 40,
        "batch_size": 8,
        "steps": 4,
        "rule": "uniform",
    }
    together(tmp_path / "ranks", train, 2, [{**asked, "run": str(tmp_path / "whole")}])
    assert kept_by_train(tmp_path / "whole") == kept_by_a_loop(world, 4, Selector(network(), "uniform", 8, seed=5), 5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rule": "rho", "loss_cap": True, "shadow": "loss"}, "loss_cap"),
        ({"rule": "rho_updated"}, "temperature"),
        ({"rule": "rho_updated", "plain": True}, None),
    ],
)
def test_an_older_run_whose_meaning_would_change_is_refused(
    world: Path, tmp_path: Path, options: dict[str, Any], named: str | None
) -> None:
    shards, plain = [str(world / "shards")], options.pop("plain", False)
    il = str(world / "il")
    if named == "temperature":
        il = str(tmp_path / "il")
        rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=2, lr=1e-2)
        divide_logits(tmp_path / "m", [1.3, 0.7])
        rhostream.compute_il(shards, str(tmp_path / "m"), il)
    asked = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, **options}
    rhostream.train(shards, il, str(tmp_path / "run"), **asked, steps=2)
    record = tmp_path / "run" / "run.json"
    written = json.loads(record.read_text())
    assert written["fingerprints"].pop("draws") == 2  # as a version wrote that had no editions
    record.write_text(json.dumps(written))
    if plain or named is None:
        assert rhostream.train(shards, il, str(tmp_path / "run"), **asked, steps=3).steps == 3
        return
    with pytest.raises(MismatchError, match=named):
        rhostream.train(shards, il, str(tmp_path / "run"), **asked, steps=3)
