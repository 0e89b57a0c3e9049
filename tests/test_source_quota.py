"""A floor and a cap of a source's share of each batch: what is kept, by which rule, on any ranks; what can't be."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rhostream
from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.config.train import TrainConfig
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models import build
from rhostream.selection.options import Options
from rhostream.selection.selector import Selector
from tests.support import ranks
from tests.support.process import run as command
from tests.support.scoring import buffer, scored
from tests.support.small_run import go

NAMES = ("a", "b", "c", "unknown")
WORLD: dict[str, Any] = {"sources": "true_label", "eval_every": 100}


def literal(
    score: np.ndarray, source: np.ndarray, n: int, floors: dict[str, float], caps: dict[str, float]
) -> set[int]:
    """The greedy choice, written as one would say it: the best of each floor first, then whoever comes next."""
    order = [int(row) for row in np.argsort(-score, kind="stable") if not np.isnan(score[row])]
    kept: list[int] = []
    for name, share in floors.items():
        own = [row for row in order if NAMES[source[row]] == name]
        kept += own[: int(np.floor(share * n + 1e-9))]
    for row in order:
        name = NAMES[source[row]]
        taken = sum(NAMES[source[other]] == name for other in kept)
        room = int(np.ceil(caps[name] * n - 1e-9)) if name in caps else n
        if len(kept) < n and row not in kept and taken < room:
            kept.append(row)
    return set(kept)


def choose(score: np.ndarray, source: np.ndarray, n: int, **options: Any) -> list[int]:
    from rhostream.selection.choice import largest

    held = scored(score, n, source_B=source, source_names=NAMES)
    return largest(held, Options(**options).adjusts).kept.tolist()


def test_what_is_kept_is_the_literal_greedy_choice_on_200_random_buffers() -> None:
    rng, held = np.random.default_rng(0), Counter[str]()
    for _ in range(200):
        size, n = int(rng.integers(1, 60)), int(rng.integers(1, 20))
        score = rng.choice([0.0, 0.5, 1.0, 2.0, np.nan], size) + rng.choice([0, 1e-3], size)
        source = rng.choice(4, size, p=[0.7, 0.2, 0.05, 0.05]).astype(np.int64)
        floors = {name: float(rng.choice([0.1, 0.25, 0.3])) for name in NAMES if rng.random() < 0.5}
        while sum(floors.values()) > 1:
            floors.popitem()
        caps = {name: float(rng.uniform(floors.get(name, 0), 1)) for name in NAMES[:3] if rng.random() < 0.4}
        kept = choose(score, source, n, source_floor=floors, source_cap=caps)
        assert set(kept) == literal(score, source, n, floors, caps)
        count = Counter(NAMES[source[row]] for row in kept)
        there = Counter(NAMES[s] for s, value in zip(source, score, strict=True) if not np.isnan(value))
        for name, share in floors.items():
            assert count[name] >= min(int(share * n + 1e-9), there[name])
            held["floor"] += count[name] > Counter(NAMES[source[r]] for r in choose(score, source, n))[name]
        assert all(count[name] <= np.ceil(share * n - 1e-9) for name, share in caps.items())
        held["cap"] += any(count[name] < there[name] for name in caps)
    assert min(held.values()) > 20  # they had something to do


def test_a_class_quota_holds_beside_a_floor() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        score, source, label = rng.random(40), rng.integers(0, 4, 40), rng.integers(0, 4, 40)
        held = scored(score, 8, source_B=source, source_names=NAMES, label_B=label)
        from rhostream.selection.choice import largest

        kept = largest(held, Options(source_floor={"c": 0.5}, class_quota=0.5).adjusts).kept
        assert np.bincount(label[kept]).max() <= 4 and len(kept) == 8


def with_sources(seed: int, **changes: Any) -> Candidates:
    source = np.random.default_rng(seed).choice(4, 40, p=[0.6, 0.2, 0.1, 0.1]).astype(np.int16)
    return buffer(seed=seed, source=source, source_names=NAMES, **changes)


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_a_selector_holds_its_bounds_by_any_rule_and_at_uniform_steps(rule: str) -> None:
    torch.manual_seed(0)
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    more = {} if rule == "uniform" else {"uniform_every": 2}
    selector = Selector(model, rule, 10, source_floor={"c": 0.2}, source_cap=["a=0.3"], **more)
    for seed in range(20):
        reason = np.full(40, CANDIDATE, np.uint8)
        reason[seed % 7 :: 7] = Reason.quarantined
        candidates = with_sources(seed, reason=reason)
        selection = selector(candidates)
        count = Counter(NAMES[s] for s in candidates.source[selection.kept])  # type: ignore[index]
        there = Counter(NAMES[s] for s in candidates.source[reason == CANDIDATE])  # type: ignore[index]
        assert count["c"] >= min(2, there["c"]) and count["a"] <= 3 and len(selection) == min(10, count.total())


def test_a_selector_is_told_that_its_stream_names_no_sources_or_others() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    with pytest.raises(UsageError, match=r"open_stream\(sources=\)"):
        Selector(model, "rho", 8, source_floor={"a": 0.5})(buffer())
    with pytest.raises(UnknownNameError, match="source of --source-cap"):
        Selector(model, "rho", 8, source_cap={"d": 0.5})(with_sources(0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source_floor": {"a": 0.6, "b": 0.5}}, "above 1"),
        ({"source_floor": {"a": 0.6}, "source_cap": {"a": 0.5}}, "source-cap 0.5"),
        ({"source_floor": {"a": 1.5}}, "between 0 and 1"),
        ({"source_cap": {"a": float("nan")}}, "between 0 and 1"),
        ({"source_cap": ["a"]}, "NAME=SHARE"),
        ({"source_cap": ["a=much"]}, "NAME=SHARE"),
        ({"source_floor": ["a=0.1", "a=0.2"]}, "twice"),
    ],
)
def test_bounds_that_no_batch_can_meet_are_refused_when_they_are_given(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options(**options)
    with pytest.raises(UsageError, match=says):
        TrainConfig(shards="s", il="i", run="r", **options)


def test_a_run_holds_its_bounds_pins_them_and_says_them(world: Path, tmp_path: Path) -> None:
    run, bounds = tmp_path / "run", {"source_floor": {"3": 0.5}, "source_cap": {"0": 0.125}}
    go(world, run, 6, **WORLD, **bounds, warm_up=2)
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql(
            "SELECT step, source, count(*) AS there, count(*) FILTER (kept) AS kept FROM selections GROUP BY ALL"
        ).to_pylist()
    there, kept = defaultdict[int, Counter[str]](Counter), defaultdict[int, Counter[str]](Counter)
    for row in rows:
        there[row["step"]][row["source"]], kept[row["step"]][row["source"]] = row["there"], row["kept"]
    assert len(kept) == 6  # the uniform ones among them
    assert all(of["3"] >= min(4, there[step]["3"]) and of["0"] <= 1 for step, of in kept.items())
    assert all(of.total() == 8 for of in kept.values())
    assert max(of["3"] for of in kept.values()) >= 4  # a buffer of 40 has enough of one in four
    with pytest.raises(MismatchError, match="source_floor"):
        go(world, run, 12, **WORLD, source_floor={"3": 0.25}, source_cap={"0": 0.125}, warm_up=2)
    go(world, run, 7, **WORLD, source_floor=["3=0.5"], source_cap=["0=0.125"], warm_up=2)
    for options, says in (
        ({"source_floor": {"9": 0.5}}, "'9'"),
        ({"source_cap": {name: 0.1 for name in ("0", "1", "2", "3", "unknown")}}, "room for"),
    ):
        with pytest.raises(UsageError, match=says):
            go(world, tmp_path / "none", **WORLD, **options)
    with pytest.raises(UsageError, match="--sources"):
        go(world, tmp_path / "none", source_floor={"3": 0.5})
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_bounds_hold_whatever_the_ranks_and_workers_and_on_the_command_line(world: Path, tmp_path: Path) -> None:
    with rhostream.open_ledger(str(world / "il")) as ledger:
        shards = ledger.sql("SELECT DISTINCT shard FROM samples WHERE ordinal = 8")["shard"].to_pylist()
    options = ["--buffer-size", "40", "--batch-size", "8", "--model", "mlp-64", "--steps", "6", "--threads", "1"]
    asked = ["--sources", "true_label", "--source-floor", "3=0.5", "1=0.25", "--source-cap", "0=0.125", "--lanes", "4"]
    (tmp_path / "deny.csv").write_text("shard,ordinal\n" + "".join(f"{row},{n}\n" for row in shards for n in range(9)))
    asked += ["--deny", str(tmp_path / "deny.csv")]
    where = ["--shards", str(world / "shards"), "--il", str(world / "il"), "--run", str(tmp_path / "one")]
    command("train", *where, *options, *asked, "--workers", "2", "--warm-up", "2")
    settings: dict[str, Any] = {
        "shards": str(world / "shards"), "il": str(world / "il"), "run": str(tmp_path / "two"), "model": "mlp-64",
        "buffer_size": 40, "batch_size": 8, "steps": 6, "sources": "true_label", "lanes": 4, "warm_up": 2,
        "deny": str(tmp_path / "deny.csv"), "source_floor": {"3": 0.5, "1": 0.25}, "source_cap": {"0": 0.125},
    }  # fmt: skip
    ranks.together(tmp_path, ranks.train, 2, [settings])
    decisions = []
    for run in ("one", "two"):
        with rhostream.open_ledger(str(tmp_path / run)) as ledger:
            question = "SELECT step, shard, ordinal, source, reason FROM selections ORDER BY ALL"
            decisions.append(ledger.sql(question).to_pylist())
    assert decisions[0] == decisions[1] and {"kept", "denied"} <= {row["reason"] for row in decisions[0]}
