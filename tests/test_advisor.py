"""The advisor: predictions equal hand-computed ones, agreement equals hand-made cases, the doctor keeps secrets."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rhostream import storage
from rhostream.advisor import agreement, cores, measure, predict
from rhostream.advisor.advice import advise
from rhostream.advisor.estimate import estimate, parse_band
from rhostream.advisor.il_share import il_share
from rhostream.advisor.parallel import parallel
from rhostream.advisor.predict import ILCost, Measured, Setting
from rhostream.advisor.render import duration, render
from rhostream.advisor.scoring import ScoringReport, recommend, render_scoring, scoring_report
from rhostream.cli import cli
from rhostream.doctor import examine_environment, probe_store, render_environment
from rhostream.errors import MismatchError, UsageError
from rhostream.models import build
from rhostream.own_code import MODEL_PREFIXES
from rhostream.runs.tensors import save_tensors
from rhostream.selection.hardware import bf16_supported
from tests.support.process import process as command
from tests.support.scoring import kept_of

# Round numbers, so that every expectation can be computed in the head: 100 of n_B, 10 of n_b.
S = Setting(buffer_size=100, batch_size=10, samples=10_000)
M = Measured(
    cores=4, on_cpu=True, read=1e-3, decode=8.5e-3, hand_over=5e-4, join=1e-3, log=1e-5, score=4e-3, train=0.1,
    proxy=1e-4, score_bf16=2e-3, view_decode={8: 3.5e-3}, view_score={8: 1e-3}, walk=1.5e-3, il_forward=1e-3,
    il_train=3e-3, macs=1000, proxy_macs=10, il_macs=100, view_macs={8: 250},
)  # fmt: skip


# -- predictions -----------------------------------------------------------------------------------------------------


def test_a_plain_step_loads_and_scores_the_buffer_and_trains_on_the_kept() -> None:
    cost = predict.plain(M, S)
    assert cost.load == pytest.approx(100 * 0.011)
    assert cost.score == pytest.approx(0.4) and cost.train == 0.1 and cost.log == pytest.approx(1e-3)
    assert cost.forwards == 130 and predict.uniform(M, S).forwards == 30
    assert cores.wall(cost, M, 0) == pytest.approx(1.1 + 0.4 + 0.1 + 0.001)


def test_scorers_pay_where_gradients_travel_slowly_and_never_where_they_cost_nothing() -> None:
    large = replace(M, parameters=10**7, row_bytes=1000)
    fast, slow = (parallel(large, S, 8, bandwidth) for bandwidth in (1e15, 1e9))
    assert fast is not None and slow is not None and parallel(large, S, 1, 1e9) is None
    assert fast.together == pytest.approx((0.4 + 0.1) / 8, rel=1e-5) and not fast.pays
    assert slow.together == pytest.approx(0.0625 + 0.08) and slow.pays and slow.scorers == 4
    # 100 old scores on four and the weights, beside 30 fresh ones and the step on four; then 30 rows on their way.
    assert slow.apart == pytest.approx(max(0.4 / 4 + 0.04, (0.12 + 0.1) / 4 + 0.08) + 3e-5)
    assert (slow.row_bytes, slow.weight_bytes) == (30_000, 40_000_000)


def test_uniform_decodes_what_it_trains_on_and_joins_what_it_plans() -> None:
    cost = predict.uniform(M, S)
    assert cost.load == pytest.approx(10 * 0.010 + 100 * 0.001) and cost.score == 0
    assert predict.everything(M, S).load == pytest.approx(10 * 0.011)


@pytest.mark.parametrize(
    ("cost", "load", "late", "score", "forwards"),
    [
        (predict.band(M, S), 70 * 0.010 + 0.1, 0.0, 70 * 4e-3, 70 + 30),
        (predict.proxy_shortlist(M, S), 1.1, 0.0, 100 * 1e-4 + 40 * 4e-3, 40 + 30 + 130 * 0.01),
        (predict.view(M, S, 8), 100 * 0.006, 10 * 0.0095, 100 * 1e-3, 25 + 30),
        (predict.view_shortlist(M, S, 8), 100 * 0.006, 40 * 0.0095, 100 * 1e-3 + 40 * 4e-3, 25 + 40 + 30),
        (predict.plain(M, S, "bfloat16", score=2e-3), 1.1, 0.0, 0.2, 130),
        (predict.plain(M, S, "half", buffer_size=50), 0.55, 0.0, 0.2, 80),
        (predict.together(M, S), 70 * 0.010 + 0.1, 0.0, 70 * 1e-4 + 40 * 2e-3, 40 + 30 + 100 * 0.01),
    ],
)
def test_each_lever_costs_what_its_parts_cost(
    cost: predict.StepCost, load: float, late: float, score: float, forwards: float
) -> None:
    assert (cost.load, cost.late, cost.score, cost.forwards) == pytest.approx((load, late, score, forwards))


def test_a_shortlist_is_never_longer_than_the_buffer_or_the_band() -> None:
    assert predict.proxy_shortlist(M, replace(S, shortlist=40)).score == pytest.approx(100 * 1e-4 + 100 * 4e-3)
    assert predict.together(M, replace(S, shortlist=40)).score == pytest.approx(70 * 1e-4 + 70 * 2e-3)


def test_a_lever_that_this_machine_lacks_is_not_offered() -> None:
    bare = replace(M, score_bf16=None, view_score={}, view_decode={})
    names = [cost.name for cost in predict.levers(bare, S)]
    assert names == [
        "rho",
        "band 20%:90%",
        "shortlist proxy:4",
        "ratio 10 of 50",
        "il alone (band 0%:10%)",
        "band 20%:90% + proxy:4",
    ]


def test_amdahls_law_meets_both_measured_points_and_bends_between() -> None:
    assert cores.slowdown(2.5, 1, 4) == pytest.approx(2.5) and cores.slowdown(2.5, 4, 4) == pytest.approx(1.0)
    assert cores.slowdown(2.5, 2, 4) == pytest.approx(1.5)  # 0.5 serial and 2 parallel: 0.5 + 2 / 2
    assert cores.slowdown(0.8, 1, 4) == 1 and cores.slowdown(3.0, 1, 1) == 1


def test_with_workers_the_slower_of_loading_and_model_decides() -> None:
    cost = predict.plain(M, S)  # load 1.1, model 0.501
    assert cores.wall(cost, M, 1) == pytest.approx(1.1) and cores.wall(cost, M, 2) == pytest.approx(0.55)
    assert cores.wall(cost, M, 3) == pytest.approx(0.501)
    assert cores.workers_needed(cost, M) == 3
    assert [cores.bottleneck(cost, M, workers) for workers in (0, 1, 3)] == ["loading", "loading", "scoring"]


def test_workers_take_threads_from_a_model_on_the_same_cores() -> None:
    threaded = replace(M, score_slowdown=2.5, train_slowdown=2.5)
    cost = predict.plain(threaded, S)
    # Three workers leave one thread: model 0.5 x 2.5 + 0.001; two leave two: 0.5 x 1.5 + 0.001.
    assert cores.wall(cost, threaded, 3) == pytest.approx(1.251)
    assert cores.wall(cost, threaded, 2) == pytest.approx(0.751)
    assert cores.best_split(cost, threaded) == predict.Split(workers=2, threads=2, seconds=pytest.approx(0.751))


def test_more_busy_processes_than_cores_share_them() -> None:
    one = replace(M, cores=1)
    assert cores.wall(predict.plain(one, S), one, 2) == pytest.approx(1.1 + 0.501)
    assert cores.workers_needed(predict.plain(one, S), one) is None


def test_on_a_gpu_workers_take_nothing_from_the_model() -> None:
    gpu = replace(M, on_cpu=False)
    assert cores.threads_beside(gpu, 3) == 1
    assert cores.wall(predict.plain(gpu, S), gpu, 3) == pytest.approx(0.501)


def test_selection_pays_from_the_steps_that_make_both_bills_equal() -> None:
    # 10 a step against 4, nothing paid before: 2.5 times fewer steps. With 100 paid before 50 steps: 10 / (4 - 2).
    assert predict.saving_needed(10, 4) == 2.5
    assert predict.saving_needed(10, 4, once=100, runs=1, steps=50) == 5
    assert predict.saving_needed(10, 4, once=100, runs=10, steps=50) == pytest.approx(10 / 3.8)
    assert predict.saving_needed(10, 4, once=200, runs=1, steps=50) is None


@given(
    step=st.floats(0.1, 100),
    baseline=st.floats(0.1, 100),
    once=st.floats(0, 100),
    runs=st.integers(1, 10),
    steps=st.integers(1, 1000),
)
def test_at_the_saving_needed_both_runs_cost_the_same(
    step: float, baseline: float, once: float, runs: int, steps: int
) -> None:
    saving = predict.saving_needed(step, baseline, once, runs, steps)
    if saving is None:
        assert once / runs >= baseline * steps * (1 - 1e-9)
    elif saving < 1e6:
        assert step * steps / saving + once / runs == pytest.approx(baseline * steps, rel=1e-6)


def test_the_il_costs_its_fit_and_its_table() -> None:
    il = ILCost(trained=1000, checked=100, pooled=500, scored=10_000)
    # Loading 11 ms a sample: 500 to learn from; 1000 x 3 ms; 100 x 1 ms; 10,000 x (11 + 1) ms.
    assert il.seconds(M) == pytest.approx(5.5 + 3 + 0.1 + 120)
    assert il.seconds(M, workers=2) == pytest.approx(2.75 + 3 + 0.1 + 55)
    assert il.units(M) == pytest.approx((3000 + 100 + 10_000) * 0.1)


def test_the_il_is_a_share_of_one_run_and_says_from_when_it_is_a_tenth() -> None:
    # S: 100 of 10 a step, 10,000 samples: 100 steps of 130; the IL model has a tenth of the multiply-adds.
    il = ILCost(trained=10_000, checked=1_000, pooled=10_000, scored=10_000)
    share = il_share(M, S, il)
    assert (share.steps, share.passes, share.units) == (100, 1.0, 13_000)
    assert share.fit == pytest.approx(3_000 / 13_000) and share.check == pytest.approx(100 / 13_000)
    assert share.score == pytest.approx(1_000 / 13_000) == pytest.approx(share.quotient)  # MACs(IL)/MACs(target)/1.3
    assert share.whole == pytest.approx(4_100 / 13_000)
    assert share.runs == 4 and share.longer == pytest.approx(share.whole / 0.1)
    # What it says brings it below a tenth does: another target, and more passes.
    larger = il_share(replace(M, macs=round(share.macs)), S, il)
    assert larger.whole == pytest.approx(0.1, rel=0.01) and larger.runs == 1
    more = il_share(M, replace(S, steps=math.ceil(100 * share.longer)), il)
    assert more.whole == pytest.approx(0.1, rel=0.01) and more.quotient == share.quotient


def test_the_advice_weighs_plain_rho_against_both_baselines() -> None:
    advice = advise(M, S, ILCost(trained=0, checked=0, pooled=0, scored=10_000))
    assert advice.break_even == pytest.approx(130 / 30) and advice.rho.forwards == pytest.approx(130 / 30)
    assert advice.rho.against_uniform == pytest.approx(1.601 / (0.2 + 0.1 + 0.001))
    assert advice.rho.against_everything == pytest.approx(1.601 / (0.11 + 0.1 + 0.0001))
    assert advice.rho.pass_seconds == pytest.approx(100 * 1.601)
    assert advice.everything.pass_seconds == pytest.approx(1000 * 0.2101)
    assert [p.runs for p in advice.payback] == [1, 3, 10]
    # 1,000 forwards of IL over 1,000 baseline steps of 30.
    assert advice.payback[0].forwards == pytest.approx(130 / 29)
    assert advice.payback[0].against_uniform == pytest.approx(1.601 / (0.301 - 120 / 1000))


# -- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured, however long a busy machine takes for it."""
    monkeypatch.setattr(measure.Budget, "reaches", lambda *_, **__: True)


@pytest.mark.usefixtures("patient")
def test_an_estimate_of_real_shards_has_every_part_and_orders_the_baselines(world: Path) -> None:
    found = estimate(
        [str(world / "shards")],
        model="small-cnn",
        il=str(world / "il"),
        buffer_size=64,
        batch_size=8,
        workers=1,
        seconds=3,
    )
    m = found.measured
    for field in fields(Measured):
        value = getattr(m, field.name)
        numbers = value.values() if isinstance(value, dict) else [value]
        assert all(n is None or (math.isfinite(n) and n >= 0) for n in numbers), field.name
    assert min(m.read, m.decode, m.walk, m.log, m.score, m.train, m.proxy, m.il_forward, m.il_train) > 0
    assert found.counted and found.setting.samples == 1003 and found.il_model == "mlp-64" and found.il_there
    assert found.classes == 4 and found.image_size == 16 and found.channels == 1
    # A step that scores costs more than one that doesn't, and the half of the buffer less than the whole.
    ways = {way.cost.name: way for way in found.advice.ways}
    assert found.advice.rho.cost.load > found.advice.uniform.cost.load >= found.advice.everything.cost.load
    assert found.advice.rho.seconds >= found.advice.uniform.seconds
    assert ways["ratio 8 of 32"].cost.score < found.advice.rho.cost.score
    assert set(m.view_decode) == {8} == set(m.view_score)  # a quarter would be 4 pixels, too small to mean anything
    json.dumps(found.as_json())
    text = render(found)
    assert found.il_share.score == pytest.approx(found.il_share.quotient * 1003 / (found.il_share.steps * 64))
    assert found.measured.il_macs == 20_736
    assert re.search(rf"together +{100 * found.il_share.whole:.1f}%", text)
    for word in (
        "Bottleneck",
        "What the IL model mlp-64 costs of one run of rho",
        "it is paid already",
        "band 20%:90%",
        "shortlist proxy:4",
        "When rho pays",
        "IL shared by 10 runs",
    ):
        assert word in text


@pytest.mark.usefixtures("patient")
def test_without_a_table_samples_are_guessed_from_the_shards_sizes(world: Path) -> None:
    found = estimate(str(world / "shards"), model="mlp-64", buffer_size=32, batch_size=4, seconds=2)
    assert not found.counted and not found.il_there and 900 < found.setting.samples < 1100
    assert "mlp-64 takes only 16 pixels: no view of 8 px for it" in found.notes
    assert "about" in render(found) and not found.measured.view_score
    assert "at most: it ends when the loss of others no longer falls" in render(found)


def test_an_il_model_is_priced_at_the_pixels_that_it_sees(world: Path, tmp_path: Path) -> None:
    shards = [str(world / "shards")]
    found = estimate(shards, model="small-cnn", il_model="mlp-64", il_size=18, image_size=24, seconds=1)
    assert found.measured.il_macs == 18 * 18 * 64 + 64 * 64 + 64 * 4 and found.image_size == 24
    there = estimate(shards, model="small-cnn", il=str(world / "il"), image_size=24, seconds=1)
    assert there.measured.il_macs == 16 * 16 * 64 + 64 * 64 + 64 * 4  # as its table says, whatever the model sees
    with pytest.raises(UsageError, match="--il-size 0: expected 1 or more"):
        estimate(shards, model="small-cnn", il_size=0, seconds=1)


class Slow(torch.nn.Module):
    """A model of which a sample takes 50 ms at least, whatever the machine, and a backward no more."""

    samples = 0  # that were looked at, by all of them

    def __init__(self, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(channels * image_size**2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05 * len(x))
        Slow.samples += len(x)
        return self.linear(x.flatten(1))


def test_an_estimate_of_a_slow_model_ends_within_its_seconds_and_names_what_they_did_not_reach(world: Path) -> None:
    Slow.samples = 0
    found = estimate(
        [str(world / "shards")], model="tests.test_advisor:Slow", il=str(world / "il"), buffer_size=64, batch_size=16,
        seconds=0.5,
    )  # fmt: skip
    # A call that has begun is not cut off; no clock, this machine is shared.
    assert 0.05 * Slow.samples < 0.5 + 16 * 0.05
    assert found.unmeasured and any(note.startswith("the seconds were over before") for note in found.notes)
    assert found.measured.score >= 0.05 and found.measured.train >= 16 * 0.05
    assert found.measured.il_forward > 0 and found.measured.il_train > 0 and found.measured.proxy > 0
    assert all(name in render(found) for name in found.unmeasured)


def test_work_that_takes_its_whole_share_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(time, "perf_counter", lambda: 0.01 * sum(sizes))  # 10 ms a sample

    took, n = measure.seconds_each(100, sizes.append, share=0.001)
    assert sizes == [measure.FIRST] == [n] and took == pytest.approx(0.01)


def test_the_models_threads_are_what_they_were_after_an_estimate(world: Path) -> None:
    before = torch.get_num_threads()
    estimate([str(world / "shards")], model="mlp-64", buffer_size=16, batch_size=4, seconds=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 40, "buffer_size": 32}, "1 <= n_b <= n_B"),
        ({"view_sizes": [64]}, "less than the full 16 pixels"),
        ({"band": (0.9, 0.2)}, "LO < HI"),
        ({"seconds": 0}, "--seconds above 0"),
        ({"device": "cuda:99"}, "can't be used here"),
        ({"model": "small-cmn"}, "did you mean"),
        ({"il": "/nowhere"}, "no IL table"),
    ],
)
def test_an_estimate_of_what_cannot_be_says_so(world: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        estimate([str(world / "shards")], **{"model": "mlp-64", "seconds": 1, **settings})


def test_an_estimate_of_broken_shards_names_one(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UsageError, match=r"no usable image in 1 of 1 shards.*a\.tar"):
        estimate([str(tmp_path / "a.tar")], model="mlp-64", seconds=1)


def test_a_measurement_takes_as_many_samples_as_its_share_allows() -> None:
    sizes: list[int] = []
    assert measure.fitting(100, sizes.append, share=10.0) == 100
    assert sizes[0] == measure.FIRST and max(sizes) < 100
    assert measure.fitting(100, lambda n: sum(range(200_000)), share=1e-9) == measure.FIRST
    assert measure.fitting(3, sizes.append, share=1.0) == 3


def test_bands_are_quantiles() -> None:
    assert parse_band("20%:90%") == (0.2, 0.9)
    for text in ("1:2", "20%", "a%:b%", "1.2.3%:4%"):
        with pytest.raises(UsageError, match="expected quantiles"):
            parse_band(text)


def test_durations_have_the_unit_that_suits() -> None:
    assert [duration(s) for s in (1.5e-6, 0.0123, 1.0, 90.0, 300.0, 9000.0, None)] == [
        "1.5 us",
        "12.3 ms",
        "1 s",
        "90 s",
        "5 min",
        "2.5 h",
        "-",
    ]


# -- agreement -------------------------------------------------------------------------------------------------------


def test_ranks_of_ties_are_their_mean() -> None:
    assert agreement.ranks(np.array([10.0, 20.0, 20.0, 5.0])).tolist() == [2.0, 3.5, 3.5, 1.0]
    assert agreement.ranks(np.array([7.0, 7.0, 7.0])).tolist() == [2.0, 2.0, 2.0]


def test_spearman_of_cases_done_by_hand() -> None:
    rising = np.arange(5.0)
    assert agreement.spearman(rising, np.exp(rising)) == pytest.approx(1)
    assert agreement.spearman(rising, -rising) == pytest.approx(-1)
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 x 4 / (5 x 24).
    assert agreement.spearman(rising, np.array([2.0, 1, 4, 3, 5])) == pytest.approx(0.8)
    # With ties: ranks 1 2.5 2.5 4 against 1 2 3 4, Pearson 4.5 / sqrt(4.5 x 5).
    assert agreement.spearman(np.array([1.0, 2, 2, 3]), np.arange(4.0)) == pytest.approx(4.5 / math.sqrt(22.5))


def test_spearman_leaves_out_what_either_did_not_score() -> None:
    one, other = np.array([1.0, 2, np.nan, 3, 4]), np.array([1.0, 2, 3, np.inf, 4])
    assert agreement.spearman(one, other) == pytest.approx(1)
    assert math.isnan(agreement.spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(agreement.spearman(np.array([np.nan, 1.0]), np.array([1.0, 2.0])))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_ranks_keep_their_sum_and_the_order(values: list[int]) -> None:
    scores = np.array(values, np.float32)
    found = agreement.ranks(scores)
    assert found.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)
    assert all((scores[i] < scores[j]) == (found[i] < found[j]) for i in range(len(values)) for j in range(len(values)))


def test_the_top_is_the_selectors_top() -> None:
    scores = np.array([1.0, np.nan, 3.0, 3.0, np.inf, 2.0, -np.inf], np.float32)
    for n in range(8):
        assert sorted(agreement.top_rows(scores, n)) == kept_of(scores, n)


def test_a_shortlist_is_as_long_as_it_takes_to_find_the_kept() -> None:
    full = np.arange(12.0)
    cheap = full.copy()
    cheap[[11, 10]] = cheap[[5, 4]] + 0.5  # the two best sink to ranks 6 and 7 from the top
    pairs = [(full, cheap)]
    assert [agreement.share_found(full, cheap, 2, factor) for factor in (1, 2, 3, 4)] == [0, 0, 0.5, 1]
    assert agreement.shortlist_factor(pairs, 2) == 4
    assert agreement.shortlist_factor([(full, full)], 2) == 1
    assert agreement.shortlist_factor([(full, -full)], 2) is None  # only the whole buffer would hold them


# -- doctor --scoring ------------------------------------------------------------------------------------------------


def test_cheap_scores_are_held_against_the_full_view_of_a_trained_run(
    world: Path, trained: Callable[..., Path]
) -> None:
    run = trained(model="small-cnn", steps=10)
    report = scoring_report(run=str(run), view_sizes=[8, 12], buffers=2, proxy_batches=3)
    ways = {way.way: way for way in report.ways}
    assert set(ways) - {"bfloat16"} == {"view 12 px", "view 8 px", "chunks of 20", "il alone", "proxy mlp-64"}
    assert (report.buffer_size, report.batch_size, report.model) == (40, 8, "small-cnn") and "step 10" in report.weights
    for way in ways.values():
        assert way.spearman is not None and -1 <= way.spearman <= 1
        found = [way.found[factor] for factor in agreement.FACTORS]
        assert found == sorted(found) and all(0 <= share <= 1 for share in found)
        assert way.shortlist is None or 1 <= way.shortlist < 5
    assert ways["il alone"].cost_ratio == 0 and ways["view 8 px"].forward_ratio > 0
    assert "untrained" not in render_scoring(report) and recommend(report)
    json.dumps(report.as_json())


def test_chunks_change_nothing_without_batch_norm(world: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    network = build("mlp-64", image_size=16, channels=1, classes=4)
    weights.write_bytes(save_tensors(network.state_dict()))
    report = scoring_report(
        [str(world / "shards")],
        str(world / "il"),
        model="mlp-64",
        weights=str(weights),
        buffer_size=40,
        batch_size=8,
        buffers=2,
        proxy_batches=0,
    )
    chunked = next(way for way in report.ways if way.way == "chunks of 20")
    assert chunked.spearman == pytest.approx(1, abs=1e-3) and chunked.found[1] > 0.9
    assert "no view of 8 px: mlp-64 takes only 16 pixels" in report.notes


def test_scoring_never_changes_the_run_it_examines(world: Path, trained: Callable[..., Path]) -> None:
    run = trained(steps=5)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    scoring_report(run=str(run), buffers=1, proxy_batches=2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_untrained_models_agreement_comes_with_a_warning(world: Path) -> None:
    report = scoring_report(
        [str(world / "shards")],
        str(world / "il"),
        model="small-cnn",
        buffer_size=40,
        batch_size=8,
        buffers=1,
        proxy_batches=1,
    )
    assert any("untrained" in note for note in report.notes)
    assert "No recommendation for an untrained model" in render_scoring(report)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"view_sizes": [8]}, "mlp-64 takes only 16 pixels"),
        ({"view_sizes": [16]}, "not smaller than the model's 16 pixels"),
        ({"view_sizes": [20], "image_size": 32, "model": "small-cnn"}, "larger than the images as stored"),
        ({"model": None}, "--scoring needs --model"),
        ({"rule": "uniform"}, "scores nothing"),
        ({"run": "/nowhere"}, "no run with a checkpoint"),
        ({"buffers": 0}, "--buffers"),
        ({"weights": "w", "run": "r"}, "give one"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_any_scoring(
    world: Path, settings: dict[str, object], says: str
) -> None:
    given = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        **settings,
    }
    with pytest.raises(UsageError, match=says):
        scoring_report(**given)


@pytest.mark.parametrize(
    ("way", "shortlist", "cost", "says"),
    [
        ("view 8 px", 3, 0.5, "--shortlist view:3 --view-size 8: 95%"),
        ("view 8 px", 1, 0.3, "Recommended: --view-size 8: 95%"),
        ("proxy mlp-64", 1, 0.3, "--shortlist proxy:2"),
        ("il alone", 2, 0.2, "the 2 x n_b of lowest il"),
        ("view 8 px", 9, 1.2, "No shortlist here"),
        ("view 8 px", None, None, "No shortlist here"),
        ("bfloat16", 1, 0.5, "No shortlist here"),
    ],
)
def test_the_recommended_shortlist_is_the_cheapest_that_finds_enough(
    way: str, shortlist: int | None, cost: float | None, says: str
) -> None:
    found = agreement.Agreement(
        way=way,
        spearman=0.5,
        found={},
        shortlist=shortlist,
        decode_ratio=1,
        forward_ratio=1,
        cost_ratio=1,
        cascade_ratio=cost,
    )
    report = ScoringReport(
        model="m",
        weights="w",
        rule="rho",
        image_size=16,
        buffer_size=320,
        batch_size=32,
        buffers=1,
        proxy_batches=0,
        ways=(found,),
        notes=(),
    )
    assert says in recommend(report)
    assert "untrained" in recommend(replace(report, weights=""))


def test_weights_of_another_model_are_named(world: Path, trained: Callable[..., Path]) -> None:
    with pytest.raises(MismatchError, match="don't fit"):
        scoring_report(run=str(trained(steps=2)), model="mlp-256")


# -- doctor ----------------------------------------------------------------------------------------------------------


def test_the_doctor_knows_the_installation_and_the_machine() -> None:
    there = examine_environment()
    assert there.versions["torch"] == torch.__version__ and there.versions["python"]
    assert there.decoder in there.decoders and "pillow" in there.decoders
    assert there.cores >= 1 and there.threads == torch.get_num_threads() and there.spool_free > 0
    assert set(there.extras) == {"s3", "gcs", "https", "jpeg", "png", "report", "tensorboard", "hf"}
    assert there.bfloat16["cpu"] == bf16_supported(torch.device("cpu")) and not bf16_supported(torch.device("meta"))
    for name, found in there.extras.items():
        assert found.startswith("pip install") == (f"'rhostream[{name}]'" in found)
    assert {*there.models} == {f"{library}:NAME" for library in MODEL_PREFIXES}
    shown = render_environment(there)
    for name, found in there.models.items():
        library = name.partition(":")[0].replace("hf", "transformers")
        assert found.startswith("pip install ") == (importlib.util.find_spec(library) is None) and found in shown


def test_the_doctor_knows_what_a_librarys_models_can_not_do_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('not imported for this')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [m for m in sys.modules if m.split(".")[0] in ("timm", "torchvision")]:
        monkeypatch.delitem(sys.modules, module)
    assert "doesn't load without torchvision: pip install timm" in examine_environment().models["timm:NAME"]


def test_the_doctor_names_credentials_and_never_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "c4n4ry"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", canary)
    monkeypatch.setenv("RHOSTREAM_API_TOKEN", canary)
    monkeypatch.setenv("RHOSTREAM_MIRROR", f"https://user:{canary}@host/path?sig={canary}")
    monkeypatch.setenv("RHOSTREAM_SPOOL", "/tmp/there")
    monkeypatch.setenv("RHOSTREAM_SPOOOL", "/tmp/typo")
    monkeypatch.setenv("https_proxy", f"http://user:{canary}@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", f"user:{canary}@proxy:1080")
    there = examine_environment()
    shown = render_environment(there) + json.dumps(there.as_json())
    assert canary not in shown
    for word in (
        "AWS_SECRET_ACCESS_KEY is set",
        "RHOSTREAM_MIRROR=https://host/path",
        "RHOSTREAM_SPOOL=/tmp/there",
        "https_proxy=http://proxy:3128",
        "ALL_PROXY=proxy:1080",
        "did you mean RHOSTREAM_SPOOL?",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        assert word in shown


def test_a_probe_of_a_good_store_leaves_nothing_behind(tmp_path: Path) -> None:
    assert probe_store(str(tmp_path / "new" / "deep")).usable
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert probe_store(str(tmp_path / "old")).usable and (tmp_path / "old").is_dir()
    memory = probe_store("memory://advisor-probe")
    assert memory.writable and storage.list_files("memory://advisor-probe", "") == []


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_exit_code_three(tmp_path: Path) -> None:
    out, _ = command("doctor", tmp_path / "runs", "--json")
    assert json.loads(out)["store"]["usable"] is True
    out, _ = command("doctor", "/proc/never", "--json", code=3)
    store = json.loads(out)["store"]
    assert store["usable"] is False and "can't write" in store["why"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("doctor", "pipe:rm x"), "shell command"),
        (("doctor", "--il", "x"), "--il needs --scoring"),
        (("doctor", "x", "--scoring"), "--scoring takes no URL"),
        (("doctor", "--scoring", "--model", "mlp"), "--scoring needs --shards, --il"),
        (("estimate", "--shards", "/nowhere/*.tar"), "no file matches"),
        (("estimate", "--shards", "x.tar", "--band", "1:2"), "expected quantiles"),
    ],
)
def test_mistakes_on_the_command_line_are_exit_code_two(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    refused = result.exception if isinstance(result.exception, UsageError) else None
    assert says in (str(refused) if refused else result.output)
    assert (refused.exit_code if refused else result.exit_code) == 2


@pytest.mark.slow
def test_estimate_and_scoring_answer_on_the_command_line(world: Path, trained: Callable[..., Path]) -> None:
    out, _ = command(
        "estimate",
        "--shards",
        world / "shards",
        "--il",
        world / "il",
        "--model",
        "mlp-64",
        "--buffer-size",
        32,
        "--batch-size",
        4,
        "--seconds",
        1,
        "--json",
    )
    assert json.loads(out)["advice"]["ways"][0]["cost"]["name"] == "rho"
    out, _ = command(
        "doctor",
        "--scoring",
        "--run",
        trained(model="small-cnn", steps=3),
        "--view-size",
        12,
        8,
        "--buffers",
        1,
        "--proxy-batches",
        2,
    )
    assert "view 12 px" in out and "view 8 px" in out and "proxy mlp-64" in out


def test_both_verbs_explain_themselves() -> None:
    for verb in ("estimate", "doctor"):
        shown = CliRunner().invoke(cli, [verb, "--help"]).output
        assert "Examples:" in shown and "--json" in shown
