"""What of a test set can't be used is counted, said and bounded, before a run begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhostream
from rhostream.audit.report import write_report
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.errors import BudgetError, UsageError
from tests.support import ranks
from tests.support.shards import make_shards, sample, write_shard


def spoilt(path: Path, count: int, start: int = 0) -> Path:
    """A test shard of `count` samples, the first few unusable: two labels beyond the classes, a word, half an image."""
    rng = np.random.default_rng(start)
    rows = [sample(number, rng) for number in range(start, start + count)]
    rows[0]["cls"], rows[1]["cls"], rows[2]["cls"] = "7", "9", "dog"
    rows[3]["png"] = bytes(rows[3]["png"])[:60]
    return write_shard(path, rows)


BAD = {"decode:truncated": 1, "label:invalid": 1, "label:range": 2}


def options(world: Path, run: Path, **more: Any) -> dict[str, Any]:
    return {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(run),
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "steps": 2,
        "threads": 1,
        "eval_every": 1,
        **more,
    }


def test_test_samples_that_can_not_be_used_are_counted_by_status(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = spoilt(tmp_path / "test" / "t.tar", 50)
    run = tmp_path / "run"
    with caplog.at_level("WARNING", "rhostream"):
        found = rhostream.train(**options(world, run, test_shards=[str(shard)]))
    assert found.test_samples == 46 and found.test_left_out == BAD
    assert "4 of 50 test samples can't be used, and test_accuracy is of the other 46" in caplog.text
    assert json.loads((run / "run.json").read_text())["test_set"] == {"ok": 46, **BAD}
    with rhostream.open_ledger(str(run)) as ledger:
        assert set(ledger.sql("SELECT test_samples FROM steps")["test_samples"].to_pylist()) == {46}
    status = status_of(str(run))
    assert status["test_set"] == {"ok": 46, **BAD}
    assert "46 of 50 samples can be used" in render_status(status) and "2 label:range" in render_status(status)
    page = Path(write_report([str(run)], str(tmp_path / "page.html"))).read_text()
    assert "4 of 50 test samples" in page and "label:range 2" in page
    again = rhostream.train(**options(world, run, test_shards=[str(shard)], steps=3))
    assert again.test_left_out == BAD


def test_too_many_of_them_stop_the_run_before_it_begins(world: Path, tmp_path: Path) -> None:
    shard = spoilt(tmp_path / "t.tar", 50)
    run = tmp_path / "run"
    with pytest.raises(BudgetError, match=r"4 of 50 samples can't be used, at most 3 are allowed.*label:range 2"):
        rhostream.train(**options(world, run, test_shards=[str(shard)], max_bad_samples=3))
    assert not run.exists() or not list(run.iterdir())
    rows = [sample(number, np.random.default_rng(0)) for number in range(90)]
    bad = write_shard(tmp_path / "bad.tar", [{**row, "cls": "7"} if at % 2 else row for at, row in enumerate(rows)])
    with pytest.raises(BudgetError, match="45 of 90"):
        rhostream.train(**options(world, run, test_shards=[str(bad)]))
    with pytest.raises(UsageError, match="--max-bad-fraction 2"):
        rhostream.train(**options(world, run, test_shards=[str(shard)], max_bad_fraction=2.0))


def test_a_test_set_of_nothing_usable_says_why(world: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "t.tar", [{"__key__": "a", "png": b"x", "cls": "9"}])
    with pytest.raises(BudgetError, match=r"no usable sample in the test shards .*label:range 1; first: .*'a'"):
        rhostream.train(**options(world, tmp_path / "run", test_shards=[str(shard)]))


def test_ranks_count_the_whole_test_set(world: Path, tmp_path: Path) -> None:
    shards = [str(spoilt(tmp_path / f"t{at}.tar", 30, 100 * at)) for at in range(3)]
    made = options(world, tmp_path / "run", test_shards=shards)
    ranks.together(tmp_path, ranks.train, 2, [made])
    expected = {"ok": 78, **{status: 3 * n for status, n in BAD.items()}}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test_set"] == expected
    refused = ranks.start(tmp_path, ranks.train, 2, [{**made, "run": str(tmp_path / "two"), "max_bad_samples": 11}])
    assert [(one["exit"], "12 of 90" in one["error"]) for one in refused.join()] == [(3, True), (3, True)]


def test_a_whole_test_set_is_recorded_too(world: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "test", [20])
    found = rhostream.train(**options(world, tmp_path / "run", test_shards=[str(tmp_path / "test")]))
    assert (found.test_samples, found.test_left_out) == (20, {})
