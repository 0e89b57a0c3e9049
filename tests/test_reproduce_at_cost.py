"""Equal cost: curves read at a bill, the no-regret guard, unequal runs refused by the field, claims judged anew."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.reproduce import worlds
from jobs.reproduce.at_cost import (
    MEAN,
    NO,
    YES,
    Regret,
    after,
    cost_tables,
    regret_in_short,
    regret_table,
    verdict_of,
)
from jobs.reproduce.available import missing
from jobs.reproduce.command import unasked
from jobs.reproduce.compare import EQUAL, GROWTH, Comparison, derived, verdict
from jobs.reproduce.equal_cost import BASELINES, BUDGET, EXPERIMENT, TUNED
from jobs.reproduce.markdown import arm_tables, claim_tables, equal_tables, opposite
from jobs.reproduce.measure import IL_ACCURACY, SAYS, Curve
from jobs.reproduce.opening import curves_of
from jobs.reproduce.published import CLAIMS, comparison_of, judged, require_shared
from jobs.reproduce.results import SCHEMA, comparison_rows
from jobs.reproduce.settings import Arm, Claim, Scale
from jobs.reproduce.statistics import Paired, bounds
from jobs.reproduce.tables import main
from rhostream.errors import MismatchError, UnknownNameError

D, TEST = ["web", "--limit", "100"], ["fashion-mnist", "--limit", "50"]


def _row(**cells: Any) -> dict[str, Any]:
    return {**dict.fromkeys(SCHEMA.names), "experiment": "equal_cost", "scale": "small", "world": "w", **cells}


def _setting(arm: str, **changes: Any) -> dict[str, Any]:
    told = {"train": {"rule": "rho" if arm.startswith("rho") else "uniform"}, "shards": D, "test": TEST,
            "il": {"model": "mlp-64", "epochs": 2}, **changes}  # fmt: skip
    return _row(kind="setting", arm=arm, seed=0, state="complete", settings=json.dumps(told))


def _curve(arm: str, per_step: float, il_units: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    return [_row(kind="evaluation", arm=arm, seed=seed, step=10 * n, forward_units=10 * n * per_step, il_units=il_units,
                 test_accuracy=0.01 * n) for n in range(1, 31)]  # fmt: skip


ROWS = [_setting("everything, longer"), _setting("rho, 10 %"), *_curve("everything, longer", 1.0),
        *_curve("rho, 10 %", 1.0, il_units=100.0)]  # fmt: skip


# -- curves at a bill --------------------------------------------------------------------------------------------------


def test_a_curve_with_its_il_model_on_the_bill_is_read_so_much_earlier_and_never_beyond_its_end() -> None:
    run = curves_of(ROWS)["w"]["rho, 10 %"][0]
    assert after(run, 200.0, 60.0, charged=False) == pytest.approx(0.17)  # the mean of .14 to .20
    assert after(run, 200.0, 60.0, charged=True) == after(run, 100.0, 60.0, charged=False) == pytest.approx(0.07)
    assert after(run, 300.0, 60.0, charged=False) == pytest.approx(0.27)
    assert after(run, 30.0, 60.0, charged=False) == pytest.approx(0.02)  # of what there is
    for units, charged in ((100.0, True), (311.0, False), (5.0, False)):  # nothing begun, ended before, no evaluation
        assert math.isnan(after(run, units, 60.0, charged))


@pytest.mark.parametrize("every", [10.0, 20.0, 50.0])
def test_a_point_of_a_curve_is_the_same_however_often_it_was_evaluated(every: float) -> None:
    units = np.arange(every, 301.0, every).tolist()
    run = Curve(units, [one / 1000 for one in units], [], [], units, 0.0, 0.0, {}, {})
    assert after(run, 300.0, 60.0, charged=False) == pytest.approx(0.27)


def test_an_arm_with_a_comma_in_its_name_can_be_asked_for() -> None:
    scale = EXPERIMENT.scales["small"]
    left = unasked(scale, "structured,uniform, everything, longer,rho, 10 %,auto")
    chosen = {arm.name for arm in scale.arms if arm.label not in left}
    assert chosen == {"uniform", "everything, longer", "rho, 10 %", "auto"}
    assert {arm.world.name for arm in scale.arms if arm.label not in left} == {"structured"}
    with pytest.raises(UnknownNameError, match="11 %"):
        unasked(scale, "rho, 10 %, 11 %")


def test_the_table_at_equal_cost_has_both_bills_the_il_models_accuracy_and_the_best_share() -> None:
    accuracy = _row(kind="comparison", arm="rho, 10 %", metric=SAYS[IL_ACCURACY], middle=0.8, values=[0.8], seeds=[0])
    title, made, best = cost_tables([*ROWS, accuracy])
    assert (
        title == "### w, 1 seed" and "| rho, 10 % | 80.0 % | 100 | 7.0 | not begun | 17.0 | 7.0 | 27.0 | 17.0 |" in made
    )
    assert "| everything, longer | none | 0 | 7.0 | 7.0 | 17.0 | 17.0 | 27.0 | 27.0 |" in made
    assert "IL free: rho, 10 %, 27.0 %; IL charged: rho, 10 %, 17.0 %" in best
    assert "| rho, 10 % | not known | 100 |" in cost_tables(ROWS)[1]
    dear = [{**row, "il_units": 900.0} if row.get("il_units") else row for row in ROWS]
    assert "IL charged: none spends so much" in cost_tables(dear)[2]


# -- no regret ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "low", "seeds", "holds"),
    [(0.01, -0.019, 3, YES), (0.01, -0.021, 3, MEAN), (-0.021, -0.05, 3, NO), (-0.02, -0.02, 5, YES),
     (0.01, 0.0, 2, "2 of 3 seeds"), (-0.03, -0.03, 1, NO)],
)  # fmt: skip
def test_two_points_are_held_by_the_interval_and_a_mean_alone_is_said_to_be_one(
    difference: float, low: float, seeds: int, holds: str
) -> None:
    one = Regret("w", "auto", BASELINES[0], True, (difference,) * seeds, difference, low, 2 * difference - low)
    assert one.holds == holds
    fine = replace(one, baseline=BASELINES[1], difference=0.1, low=0.09, values=(0.1,) * 3)
    failed = f"**no**: {BASELINES[0]}, IL charged" + ("" if seeds >= 3 else f" ({seeds} of 3 seeds)")
    assert verdict_of([fine, one]) == (failed if holds == NO else holds)


def _equal(arm: str, baseline: str, charged: bool, differences: list[float]) -> dict[str, Any]:
    mean = sum(differences) / len(differences)
    return _row(kind="comparison", arm=arm, baseline=baseline, metric=EQUAL[charged], seeds=[0, 1, 2],
                values=[0.8] * 3, middle=0.8, differences=differences, difference=mean, low=mean - 0.005,
                high=mean + 0.005)  # fmt: skip


def test_a_world_where_selection_is_regretted_is_printed_as_one_with_the_bill_that_does_it() -> None:
    rows = [*ROWS, _equal("rho, 10 %", BASELINES[1], False, [0.01] * 3),
            _equal("rho, 10 %", BASELINES[1], True, [-0.04, -0.03, -0.05])]  # fmt: skip
    made = regret_table({"equal_cost": rows, "figure8": rows})
    assert made.startswith("Of 1 settings 0 hold by the interval, 0 in the mean, 1 fail.")  # a shared run stands once
    assert (
        "**no**: everything, longer, IL charged" in made
        and "-4.0 (-4.5 to -3.5)" in made
        and "mlp-64, 2 epochs" in made
    )


def test_the_paragraph_names_the_worlds_of_every_guarded_arm_and_marks_those_it_was_tuned_on() -> None:
    rows = [_equal("auto", base, charged, [-0.001] * 3) for base in BASELINES for charged in (False, True)]
    rows = [{**row, "world": TUNED[0]} for row in [*ROWS, *rows, _setting("auto", train={"rule": "rho"})]]
    said = regret_in_short({"equal_cost": rows, "table2": []})
    assert said.startswith("Of 1 settings **1 hold by the interval**, **0 in the mean**, **0 fail**.\n\n")
    assert said.endswith(f"- auto, with a cheap IL model: yes: {TUNED[0]} (tuned on it).")


# -- what doesn't share D or the test set ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"shards": ["web", "--limit", "200"]}, r"share D \(shards: web --limit 100 against web --limit 200\)"),
     ({"test": ["fashion-mnist"]}, r"share the test set \(test: fashion-mnist --limit 50 against fashion-mnist\)")],
)  # fmt: skip
def test_tables_at_equal_cost_of_runs_that_do_not_share_d_or_the_test_set_are_refused_naming_the_field(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    rows = [_setting("rho, 10 %"), _setting("everything, longer", **changes), *ROWS[2:],
            _equal("rho, 10 %", "everything, longer", True, [0.0] * 3)]  # fmt: skip
    for made in (cost_tables, equal_tables, lambda told: regret_table({"x": told})):
        with pytest.raises(MismatchError, match="share"):
            made(rows)
    with pytest.raises(MismatchError, match=says):
        require_shared(rows, ("w", "rho, 10 %"), ("w", "everything, longer"))
    (tmp_path / "results").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "results" / "equal_cost-small.parquet")
    failed = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert failed.exit_code == MismatchError.exit_code and "they don't share" in failed.output
    assert "Traceback" not in failed.output


def test_other_seeds_and_settings_are_no_reason_to_refuse() -> None:
    rows = [
        _setting("rho, 10 %"),
        _setting("everything, longer", steps=9),
        *ROWS[2:],
        *_curve("rho, 10 %", 1.0, seed=1),
    ]
    assert "1 to 2 seeds" in cost_tables(rows)[0]
    require_shared([], ("w", "rho, 10 %"), ("w", "everything, longer"))  # nothing is stated


def test_an_arm_is_never_set_against_one_of_another_test_set_nor_at_equal_units_against_one_of_another_d() -> None:
    def scale(**changes: Any) -> Scale:
        common: dict[str, Any] = {"steps": 10, "eval_every": 10}
        other = Arm(name="longer", world=replace(worlds.CLEAN, name="other", **changes), baselines=(), **common)
        mine = Arm(name="rho", world=worlds.CLEAN, baselines=("other: longer",), equal=("other: longer",), **common)
        return Scale(says="", seeds=1, arms=[other, mine])

    tested, trained = scale(test=worlds.TEST_2000), scale(train=worlds.NOISE10.train)
    with pytest.raises(MismatchError, match=r"the test set \(test: "):
        tested.baselines(tested.arms[1])
    assert trained.baselines(trained.arms[1])  # a rule against its own clean run: another D, the same test
    with pytest.raises(MismatchError, match=r"share D \(train: "):
        trained.equals(trained.arms[1])


# -- the experiment ----------------------------------------------------------------------------------------------------


def test_every_arm_of_a_world_has_the_same_budget_and_its_baselines_can_pay_its_il_model_too() -> None:
    scale = EXPERIMENT.scales["small"]
    for world in scale.worlds:
        mine = {arm.name: arm for arm in scale.arms if arm.world.name == world.name}
        rho = {name: arm.steps * (arm.settings["buffer_size"] + 96) for name, arm in mine.items() if "%" in name}
        assert max(rho.values()) <= BUDGET and min(rho.values()) >= 0.9 * max(rho.values())
        assert {mine[name].steps for name in BASELINES} == {mine["uniform"].steps}
        assert mine["uniform"].steps * 96 > 1.05 * max(rho.values())
        for arm in mine.values():
            assert (arm.equal == BASELINES) == (arm.name not in BASELINES)
    assert len({world.name for world in scale.worlds} - {*TUNED}) >= 2 and {*TUNED} < {w.name for w in scale.worlds}


def test_an_option_of_a_later_version_leaves_its_arm_out_in_one_sentence() -> None:
    arm = EXPERIMENT.scales["small"].arms[0]
    later = replace(arm, train={"rule": "rho", "ratio": "by the moon"})
    assert "'by the moon'" in str(missing(later, {})) and missing(arm, {}) is None


# -- claims ------------------------------------------------------------------------------------------------------------


def _ups(world: str, values: list[float | None], metric: str = "times fewer steps to the best") -> Comparison:
    return Comparison(world, "rho", "uniform", metric, tuple(range(len(values))), tuple(values), 1.0)


@pytest.mark.parametrize(
    ("values", "beyond", "says"),
    [([3.0, 3.2, 3.6], 1, "same"), ([1.06, 1.89, 2.94, 2.0, 1.44], 2, "undecided: the interval"),
     ([3.0, 3.2, 3.6], 5, "other"), ([1.2, None, 1.1], 1, "undecided: not reached by 1 of 3"),
     ([None, None], 1, "other direction: none"), ([3.0], 1, "no claim: 1 seed")],
)  # fmt: skip
def test_speed_ups_are_judged_by_the_interval_of_their_seeds_not_by_a_middle(
    values: list[float | None], beyond: float, says: str
) -> None:
    claim = Claim(says="", paper="", world="w", arm="rho", metric="times fewer", beyond=beyond)
    assert verdict(claim, [_ups("w", values)])[1].startswith(says)
    low, high = bounds([2.0, 8.0], logarithmic=True)
    assert low * high == pytest.approx(16.0)  # around the geometric mean


def test_whether_a_speed_up_grows_with_noise_is_made_of_the_two_seed_by_seed() -> None:
    (one,) = derived([_ups("clean", [2.0, 4.0, None]), _ups("noise10", [4.0, 4.0, 4.0])])
    assert (one.metric, one.baseline, one.values) == (GROWTH, "clean: rho", (2.0, 1.0, None))


def test_claims_are_judged_anew_from_the_values_that_stand_in_the_file_whatever_its_claims_say() -> None:
    """A file of before keeps its values; what was claimed of them, and by which rule, is today's."""
    final = Comparison("clean", "loss", "uniform", "final accuracy (mean of the last 5 evaluations)", (0, 1, 2),
                       (0.7,) * 3, 0.7, Paired((-0.1,) * 3, -0.1, -0.11, -0.09), "behind")  # fmt: skip
    stale = {"kind": "claim", "claim": "an old sentence", "paper": "1 %", "state": "same direction", "metric": "x"}
    rows = [_row(**{**one, "experiment": "table2"}) for one in (*comparison_rows([final]), stale)]
    assert comparison_of(rows[0]) == final
    told = judged(rows)
    states = {row["claim"]: row["state"] for row in told if row["kind"] == "claim"}
    assert "an old sentence" not in states and states["loss ends higher than uniform, clean"] == "other direction"
    assert "| loss ends higher than uniform, clean | 90 against 87 % (CIFAR-10) |" in opposite(told)
    own = [_row(**{**stale, "experiment": "of ones own", "world": "w", "arm": "rho"})]
    assert judged(own) == own


def test_the_papers_list_has_nothing_of_ours_and_a_sentence_counts_once() -> None:
    papers = [c for claims in CLAIMS.values() for c in claims if c.paper != "not in the paper"]
    assert not [c.arm for c in papers if "loss_cap" in c.arm or "cascade" in c.arm or "longer" in c.baseline]
    rows = [_row(kind="claim", arm="rho", metric="m", claim="it is so", paper="1", state=state, experiment=name)
            for name, state in (("table2", "same direction"), ("figure6", "other direction"))]  # fmt: skip
    assert "0 of 1 in the same direction in every setting (1 of 2 settings)" in claim_tables(rows)[0]


# -- how right the IL model is -----------------------------------------------------------------------------------------


def test_no_table_shows_a_target_without_its_il_models_accuracy_or_that_it_is_not_known() -> None:
    final = {"kind": "comparison", "metric": "final accuracy (mean of the last 5 evaluations)", "values": [0.7],
             "middle": 0.7, "seeds": [0]}  # fmt: skip
    rows = [*ROWS, _row(arm="rho, 10 %", **final), _row(arm="everything, longer", **final)]
    (_, made) = arm_tables(rows, ["final accuracy"])
    assert "| rho, 10 % | 70.0 % | not known |" in made and "| everything, longer | 70.0 % | none |" in made
    assert "running the experiment again measures them" in made
    known = _row(kind="comparison", arm="rho, 10 %", metric=SAYS[IL_ACCURACY], middle=0.8, values=[0.8], seeds=[0])
    (_, made) = arm_tables([*rows, known], ["final accuracy"])
    assert "| rho, 10 % | 70.0 % | 80.0 % |" in made and "running the experiment again" not in made
