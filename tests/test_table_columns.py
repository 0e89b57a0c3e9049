"""Columns of a table as scores: a kept field travels with its sample through the join to the rule that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rhostream
from rhostream.candidates import Reason
from rhostream.errors import MissingPartError, UsageError
from tests.support.logs import rows_of
from tests.support.shards import png, write_shard


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 samples in two shards, of which three of the first have no quality."""
    root, rng = tmp_path_factory.mktemp("graded"), np.random.default_rng(0)
    for shard in range(2):
        samples = []
        for n in range(60):
            said = {"quality": float(n), "lang": "en", "good": n > 3}
            if n % 20 == 7 and not shard:
                del said["quality"]
            pixels = png(rng.integers(0, 255, (16, 16), np.uint8))
            samples.append({"__key__": f"{shard}-{n:03d}", "png": pixels, "cls": str(n % 4), "json": said})
        write_shard(root / "shards" / f"{shard}.tar", samples)
    keep = {"quality": "float", "lang": "str", "good": "bool"}
    rhostream.index([str(root / "shards")], str(root / "il"), keep=keep)
    return root


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kept_field_comes_with_its_sample_for_any_number_of_workers(graded: Path, workers: int) -> None:
    stream = rhostream.open_stream(
        str(graded / "shards"), str(graded / "il"), buffer_size=40, needs_il=False, workers=workers,
        columns=["quality", "good", "quality"], missing_il="skip",
    )  # fmt: skip
    missing = 0
    for buffer in stream:
        assert buffer.columns is not None and buffer.columns.names == ("quality", "good")
        quality, reached = buffer.columns["quality"].numpy(), buffer.candidate_rows
        missing += int((buffer.reason == Reason.missing_il).sum())
        np.testing.assert_array_equal(quality[reached], buffer.ordinal[reached])
        np.testing.assert_array_equal(buffer.columns["good"].numpy(), buffer.ordinal > 3)
        assert np.isnan(quality[buffer.reason == Reason.missing_il]).all()
    assert missing == 3


def test_a_run_by_a_column_keeps_its_largest_and_pins_its_name(graded: Path, tmp_path: Path) -> None:
    settings = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "threads": 1, "missing_il": "skip"}
    place = [str(graded / "shards")], str(graded / "il"), str(tmp_path / "run")
    rhostream.train(*place, rule="column", column="quality", passes=1, **settings)
    rows = rows_of(tmp_path / "run").to_pylist()
    for step in range(3):
        own = [row for row in rows if row["step"] == step]
        scored = sorted((row["score"] for row in own if row["score"] is not None), reverse=True)
        assert sorted((row["score"] for row in own if row["kept"]), reverse=True) == scored[:8]
        assert all(row["score"] == row["ordinal"] for row in own if row["score"] is not None)
    with pytest.raises(UsageError, match="column: was 'quality', now 'good'"):
        rhostream.train(*place, rule="column", column="good", passes=2, **settings)


def test_a_field_that_is_no_score_is_refused_saying_what_there_is(
    graded: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    def opened(**options: object) -> object:
        return rhostream.open_stream(
            str(graded / "shards"), str(graded / "il"), buffer_size=40, needs_il=False, **options
        )

    with pytest.raises(UsageError, match=r"beauty.*there are good, quality"):
        opened(columns=["beauty"])
    with pytest.raises(UsageError, match=r"lang.*keeps it as str"):
        opened(columns=["lang"])
    with pytest.raises(UsageError, match=r"similarity.*there are good, quality"):
        opened(columns=["similarity"])
    with pytest.raises(MissingPartError, match=r"no number in the column quality.*--missing-il skip"):
        list(opened(columns=["quality"]))
    with pytest.raises(UsageError, match="name them with --column"):
        trained(rule="column", steps=1)
