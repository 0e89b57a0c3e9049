"""Effective classes of kept batches: what they are, where they stand, and what is said when they are few."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
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
from rhostream.advisor.estimate import setting_doubts
from rhostream.advisor.predict import Setting
from rhostream.audit.questions import run_question
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.errors import RhostreamError
from rhostream.runs.cost import Cost
from rhostream.runs.doubts import EARLY, Plan, of_balance
from rhostream.selection.balance import Balance, class_rows, effective_classes, uniform_classes
from rhostream.selection.quota import limited, parse_quota
from tests.support.ledger import FROM_THE_LOG
from tests.support.own_loop import network

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.tar.gz"))


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


# -- the steps table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"rule": "uniform"}, {"class_quota": "balanced", "warm_up": 3}, {"band": "20%:90%", "accumulate": 2}],
    ids=["rho", "uniform", "quota", "band"],
)
def test_the_steps_table_has_the_effective_classes_that_the_log_gives(
    trained: Callable[..., Path], options: dict[str, Any]
) -> None:
    run = trained(steps=24 if options.get("rule") == "uniform" else 8, **options)
    rows = ask(run, "SELECT step, effective_classes AS kept, effective_classes_uniform AS chance FROM steps")
    expected = {row["step"]: row["effective"] for row in ask(run, FROM_THE_LOG)}
    assert {row["step"]: row["kept"] for row in rows} == pytest.approx(expected, rel=1e-5)
    offered = "kept OR reason = 'below'"
    for step, labels in {
        row["step"]: row["labels"]
        for row in ask(run, f"SELECT step, list(label) AS labels FROM selections WHERE {offered} GROUP BY step")
    }.items():
        assert rows[step]["chance"] == pytest.approx(uniform_classes(np.array(labels), 8), rel=1e-5)
    if options.get("rule") == "uniform":  # drawn by chance, the entropy is chance's but for noise (of 24 steps: 0.03)
        entropy = [math.log(row["kept"] / row["chance"]) for row in rows]
        assert np.mean(entropy) == pytest.approx(0, abs=0.09)


def test_a_run_of_before_has_nulls_there_wherever_it_lies(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN[0]) as tar:
        tar.extractall(tmp_path, filter="data")
    run = tmp_path / "golden" / "runs" / "rho"
    elsewhere = tmp_path / "not utf-8 \udcff" / "rho"  # read whole through storage, as from a store
    shutil.copytree(run, elsewhere)
    for place in (run, elsewhere):
        (row,) = ask(place, "SELECT count(*) AS n, count(effective_classes) AS known, sum(kept) AS kept FROM steps")
        assert row["n"] > 0 and row["known"] == 0 and row["kept"] > 0


# -- a mild quota ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(1, 3), st.data())
def test_a_mild_quota_bounds_each_class_by_its_share_and_fills_every_batch(
    labels: list[int], times: float, data: st.DataObject
) -> None:
    label, n = np.array(labels), data.draw(st.integers(1, len(labels)))
    quota = parse_quota(f"mild:{times}")
    assert quota is not None
    order = np.array(data.draw(st.permutations(range(len(labels)))))
    kept = label[limited(order, label, n, quota)]
    assert len(kept) == n
    for c in set(labels):
        assert (kept == c).sum() <= math.ceil(times * n * (label == c).mean() - 1e-9)


@pytest.mark.parametrize("text", ["mild:0.9", "mild:nan", "mild:x", "mild:"])
def test_a_mild_quota_that_no_batch_could_be_filled_by_is_refused(text: str) -> None:
    assert parse_quota("mild") == parse_quota("mild:1.5")
    with pytest.raises(RhostreamError, match="quota"):
        parse_quota(text)


@pytest.mark.parametrize("rule", ["tests.support.tiny:one_class_first", "uniform"])
def test_a_run_with_a_mild_quota_keeps_no_class_more_often_than_that(trained: Callable[..., Path], rule: str) -> None:
    run = trained(steps=5, rule=rule, class_quota="mild:1.2")
    counts = ask(
        run,
        "SELECT step, label, count(*) AS n, count(*) FILTER (kept) AS kept FROM selections "
        "WHERE reason IN ('kept', 'below') GROUP BY step, label",
    )
    offered = {step: sum(row["n"] for row in counts if row["step"] == step) for step in range(5)}
    assert len({row["step"] for row in counts}) == 5
    assert all(row["kept"] <= math.ceil(1.2 * 8 * row["n"] / offered[row["step"]]) for row in counts)


# -- doubts ------------------------------------------------------------------------------------------------------------

# The demo: 60,000 samples, 32 of 320, 400 steps; its IL model cost nearly three such runs with the MLP (docs/results).
DEMO = {"samples": 60_000, "buffer_size": 320, "batch_size": 32, "lanes": 64, "buffers": 187, "last_step": 400}


def test_a_sound_run_is_not_doubted_and_an_il_dearer_than_the_run_is() -> None:
    spent = Cost(macs=1).planned_units(400, 320, 32)
    assert spent == 400 * (320 + 3 * 32) == 166_400
    assert Plan(**DEMO, scores=True, il_units=22_686, run_units=spent).doubts() == []
    (doubt,) = Plan(**DEMO, scores=True, il_units=482_389, run_units=spent).doubts()
    assert "2.9 times this run" in doubt
    everything = {**DEMO, "buffer_size": 32, "buffers": 1875, "last_step": 1875, "lanes": 32}
    assert Plan(**everything, scores=False).doubts() == []
    cascade = Cost(macs=100, shortlist_macs=10).planned_units(400, 320, 32, shortlist=4, proxy=True)
    assert cascade == pytest.approx(400 * (4 * 32 + 3 * 32 + (320 + 3 * 32) / 10))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"last_step": 40}, ["40 steps in all, 187 a pass"]),
        ({"last_step": 40, "scores": False}, []),
        ({"samples": 2_900, "buffers": 9}, ["9 a pass"]),
        ({"samples": 1_187, "buffers": 3}, ["37 of the same samples", r"19.1%.*--buffer-size 296"]),
        ({"samples": 1_187, "buffers": 3, "scores": False}, ["19.1%"]),
        ({"auto": True}, [r"up to 5 updates of 32 from one look at 320 .* --buffer-size of about 160, .* decides 2"]),
        ({"auto": True, "batch_size": 64}, []),
        ({"cheap": "the proxy mlp-64 makes the shortlist"}, [r"mlp-64.*doctor --scoring"]),
    ],
)
def test_what_keeps_selection_from_paying_is_said_before_work(change: dict[str, Any], says: list[str]) -> None:
    doubts = Plan(**{**DEMO, "scores": True, **change}).doubts()
    assert len(doubts) == len(says)
    for doubt, part in zip(doubts, says, strict=True):
        assert re.search(part, doubt), doubt


def test_doubts_of_a_run_are_logged_once_and_stand_in_its_record_status_and_report(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, asked = tmp_path / "run", {"buffer_size": 280, "batch_size": 8, "model": "mlp-64", "shortlist": "proxy:2"}
    for steps in (2, 4):
        summary = rhostream.train([str(world / "shards")], str(world / "il"), str(run), steps=steps, **asked)
    doubts = json.loads((run / "run.json").read_text())["doubts"]
    assert len(doubts) == 4 == len(summary.doubts)
    for doubt, says in zip(doubts, ["2 steps in all", "163 of 1,003", "times this run", "mlp-64"], strict=True):
        assert says in doubt and sum(doubt in record.getMessage() for record in caplog.records) == 1
        assert doubt in render_status(status_of(str(run)))
    page = Path(rhostream.write_report(str(run), str(tmp_path / "report.html"))).read_text()
    assert all(doubt in html.unescape(page) for doubt in doubts)


@pytest.mark.parametrize(
    ("ratio", "units"), [(None, 40 + 3 * 8), ("0.5", 40 + 3 * 20), ("0:0.1,1:0.5", 40 + 3 * 20), ("auto", 3 * 40)]
)
def test_an_il_model_is_doubted_beside_the_most_that_the_run_may_cost(
    trained: Callable[..., Path], ratio: str | None, units: int
) -> None:
    doubts = json.loads((trained(steps=3, ratio=ratio) / "run.json").read_text())["doubts"]
    (doubt,) = (doubt for doubt in doubts if "times this run" in doubt)
    assert f"forward units against {3 * units:,})" in doubt


def test_a_loop_of_ones_own_is_doubted_like_train(world: Path, tmp_path: Path) -> None:
    model = network()
    stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=280)
    optimizer = torch.optim.AdamW(model.parameters())
    objects = {"model": model, "optimizer": optimizer}
    run = rhostream.Run(str(tmp_path / "run"), stream, rhostream.Selector(model, "rho", 8), state=objects)
    for kept in run:
        loss_b = torch.nn.functional.cross_entropy(model(kept.input), kept.label, reduction="none")
        kept.mean(loss_b).backward()
        run.step(loss_b)
    doubts = json.loads((tmp_path / "run" / "run.json").read_text())["doubts"]
    assert [says in doubt for doubt, says in zip(doubts, ["3 a pass", "163 of 1,003"], strict=True)] == [True, True]
    rows = ask(tmp_path / "run", "SELECT effective_classes AS kept, effective_classes_uniform AS chance FROM steps")
    assert len(rows) == 3 and all(1 <= row["kept"] <= 4 and 2 < row["chance"] < 4 for row in rows)


def test_batches_of_one_class_are_doubted_by_their_number_with_the_option_that_mends_them(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"buffer_size": 40, "batch_size": 8, "model": "mlp-64", "steps": 50}
    for name, more in {
        "one": {"rule": "tests.support.tiny:one_class_first"},
        "quota": {"rule": "tests.support.tiny:one_class_first", "class_quota": "balanced"},
        "rho": {"rule": "rho"},
        "uniform": {"rule": "uniform"},
    }.items():
        caplog.clear()
        run = str(tmp_path / name)
        summary = rhostream.train([str(world / "shards")], str(world / "il"), run, **asked, **more)
        told = [one for one in summary.doubts if "effective classes" in one]
        assert len(told) == (name == "one"), told
        if name in ("one", "rho"):
            page = Path(rhostream.write_report(run, str(tmp_path / f"{name}.html"))).read_text()
            assert "Effective classes of a kept batch" in page
            assert ("effective classes in the mean of" in page) == bool(told)
        assert sum("--class-quota" in record.getMessage() for record in caplog.records) == len(told)
        with rhostream.open_ledger(run) as ledger:
            slices = run_question(ledger, "effective_classes").to_pylist()
        assert len(slices) == 20
        assert (sum(one["of_chance"] for one in slices) / 20 < 0.7) == (name == "one")


def test_few_steps_or_a_batch_that_chance_could_give_are_no_doubt() -> None:
    assert of_balance([(EARLY - 1, 1.0, 2.0), (0, None, None)]) == ""
    assert of_balance([(EARLY, 1.5, 1.97), (400, 6.7, 8.6)]) == ""
    assert "1.10 effective" in of_balance([(EARLY, 1.10, 1.97), (400, 1.9, 1.97)])
    assert "400 steps" in of_balance([(EARLY, 1.8, 1.97), (400, 1.2, 1.97)])


def test_an_estimate_has_the_doubts_that_its_sizes_bring() -> None:
    sizes = {"buffer_size": 320, "batch_size": 32}
    assert setting_doubts(Setting(**sizes, samples=60_000)) == []
    few, tail = setting_doubts(Setting(**sizes, samples=1_187))
    assert few.startswith("3 a pass") and "19.1%" in tail
