"""Effective classes of kept batches: what they are, where they stand, and what is said when they are few."""

from __future__ import annotations

import itertools
import math
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rhostream
from rhostream.candidates import CANDIDATE
from rhostream.reasons import Reason
from rhostream.selection.balance import Balance, class_rows, effective_classes, uniform_classes

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.tar.gz"))
FROM_THE_LOG = """
WITH counts AS (SELECT step, label, count(*) AS n FROM selections WHERE kept GROUP BY ALL),
shares AS (SELECT step, n / sum(n) OVER (PARTITION BY step) AS p FROM counts)
SELECT step, exp(-sum(p * ln(p))) AS effective FROM shares GROUP BY step ORDER BY step
"""


def ask(run: Path | str, question: str) -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(run)) as ledger:
        return ledger.sql(question).to_pylist()


# -- the measure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_equal_shares_are_as_many_classes_as_there_are_and_rare_ones_count_for_less(classes: int) -> None:
    label = np.repeat(np.arange(classes), 6)
    assert effective_classes(label) == pytest.approx(classes)
    assert effective_classes(np.append(label, 500)) < classes + 1  # type: ignore[operator]
    assert effective_classes(np.zeros(0, np.int64)) is None
    assert effective_classes(np.array([0, 0, 0, 1])) == pytest.approx(4 / 27**0.25)  # of shares 3/4 and 1/4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_what_chance_would_keep_is_the_mean_entropy_over_every_draw(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    entropy = [math.log(effective_classes(np.array(draw)) or 0) for draw in itertools.combinations(labels, n)]
    assert uniform_classes(np.array(labels), n) == pytest.approx(math.exp(np.mean(entropy)))
    assert uniform_classes(np.array(labels), 0) is None


def test_a_target_that_is_no_class_has_none() -> None:
    assert not class_rows(torch.zeros(4)).any() and not class_rows(torch.zeros(4, 2)).any()
    assert class_rows(torch.tensor([0, -1, 3])).tolist() == [True, False, True]
    none = np.zeros(0, bool)
    assert Balance.of(np.zeros(0, np.int64), none, none) == Balance(None, None)
    assert CANDIDATE not in set(Reason)


# -- the steps table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"rule": "uniform"}, {"class_quota": "balanced", "warm_up": 3}, {"band": "20%:90%", "accumulate": 2}],
    ids=["rho", "uniform", "quota", "band"],
)
def test_the_steps_table_has_the_effective_classes_that_the_log_gives(
    trained: Callable[..., Path], options: dict[str, Any]
) -> None:
    run = trained(steps=8, **options)
    rows = ask(run, "SELECT step, effective_classes AS kept, effective_classes_uniform AS chance FROM steps")
    expected = {row["step"]: row["effective"] for row in ask(run, FROM_THE_LOG)}
    assert {row["step"]: row["kept"] for row in rows} == pytest.approx(expected, rel=1e-5)
    offered = "kept OR reason = 'below'"
    for step, labels in {
        row["step"]: row["labels"]
        for row in ask(run, f"SELECT step, list(label) AS labels FROM selections WHERE {offered} GROUP BY step")
    }.items():
        assert rows[step]["chance"] == pytest.approx(uniform_classes(np.array(labels), 8), rel=1e-5)
    if options.get("rule") == "uniform":  # drawn by chance, it differs from chance by noise alone
        assert np.mean([row["kept"] - row["chance"] for row in rows]) == pytest.approx(0, abs=0.3)


def test_a_run_of_before_has_nulls_there_wherever_it_lies(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN[0]) as tar:
        tar.extractall(tmp_path, filter="data")
    run = tmp_path / "golden" / "runs" / "rho"
    elsewhere = tmp_path / "not utf-8 \udcff" / "rho"  # read whole through storage, as from a store
    shutil.copytree(run, elsewhere)
    for place in (run, elsewhere):
        (row,) = ask(place, "SELECT count(*) AS n, count(effective_classes) AS known, sum(kept) AS kept FROM steps")
        assert row["n"] > 0 and row["known"] == 0 and row["kept"] > 0
