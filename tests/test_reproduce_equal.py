"""What the evidence rests on: equal units, the IL charged; equal gradient steps; claims counted once; old and new."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jobs.reproduce import il_accuracy, table1, worlds
from jobs.reproduce.compare import EQUAL, compare, in_words, verdict
from jobs.reproduce.execute import Training
from jobs.reproduce.markdown import equal_tables
from jobs.reproduce.measure import IL_ACCURACY, Curve, measure
from jobs.reproduce.prepare import MakeIL
from jobs.reproduce.results import SCHEMA
from jobs.reproduce.settings import IL, Arm, Claim, Scale, Shards, World
from jobs.reproduce.suite import EXPERIMENTS
from jobs.reproduce.tables import filled, main, told_moved
from rhostream.errors import UsageError
from rhostream.models import build
from rhostream.runs import checkpoint, tensors
from shards.recipes import web
from tests.support.sampleset import many
from tests.support.shards import write_shard

WORLD = World(name="w", says="", train=Shards(("fashion-mnist",)), test=Shards(("fashion-mnist",)), samples=100,
              ils={"il": IL(fit={"model": "mlp-64"})}, keep={})  # fmt: skip


def _arm(name: str, **more: Any) -> Arm:
    return Arm(**{"name": name, "world": WORLD, "steps": 100, "eval_every": 10, "train": {"rule": "rho"}, **more})


def _curve(accuracy: list[float], unit: float, il_units: float = 0.0) -> Curve:
    steps = [10 * (i + 1) for i in range(len(accuracy))]
    return Curve(steps, accuracy, accuracy, accuracy, [unit * s for s in steps], il_units, 0.0, {}, {})


# -- equal units -------------------------------------------------------------------------------------------------------

LINE = [0.01 * (i + 1) for i in range(100)]  # accuracy .01 more every ten steps, for a thousand steps
SCALE = Scale(says="", seeds=1, arms=[_arm("uniform", baselines=()), _arm("longer", steps=1000, baselines=()),
                                      _arm("rho", equal=("longer",))])  # fmt: skip


def _equal(curves: dict[str, dict[int, Curve]]) -> dict[str, Any]:
    return {one.metric: one for one in compare(SCALE, curves) if one.baseline == "longer"}


def test_the_baseline_is_read_where_it_has_spent_what_the_arm_and_its_il_model_have() -> None:
    curves = {"w: uniform": {0: _curve(LINE[:10], 1.0)}, "w: longer": {0: _curve(LINE, 1.0)},
              "w: rho": {0: _curve([0.9] * 10, 4.0, il_units=250.0)}}  # fmt: skip
    found = _equal(curves)
    free, charged = found[EQUAL[False]], found[EQUAL[True]]
    # rho's last five evaluations are at 240 to 400 units, of which the baseline makes as many steps
    assert free.values == pytest.approx((0.9,)) and free.difference.mean == pytest.approx(0.9 - (0.24 + 0.40) / 2)
    assert charged.difference.mean == pytest.approx(0.9 - (0.49 + 0.65) / 2)


@pytest.mark.parametrize("every", [10, 20, 50])
def test_two_runs_of_one_curve_are_level_however_often_each_was_evaluated(every: int) -> None:
    mine = [Curve(list(range(every, 501, every)), [0.001 * s for s in range(every, 501, every)], [], [0.0],
                  [float(s) for s in range(every, 501, every)], 0.0, 0.0, {}, {})]  # fmt: skip
    found = _equal({"w: longer": {0: _curve(LINE, 1.0)}, "w: rho": dict(enumerate(mine))})
    assert found[EQUAL[False]].difference.mean == pytest.approx(0.0)


def test_a_baseline_that_ends_before_it_has_spent_as_much_is_never_read() -> None:
    curves = {"w: longer": {0: _curve(LINE, 1.0)}, "w: rho": {0: _curve([0.9] * 10, 4.0, il_units=601.0)}}
    assert set(_equal(curves)) == {EQUAL[False]}
    curves["w: rho"][0] = _curve([0.9] * 10, 4.0, il_units=600.0)
    assert set(_equal(curves)) == {EQUAL[False], EQUAL[True]}


def test_what_an_arm_is_charged_with_is_not_charged_twice_where_both_share_an_il_model() -> None:
    curves = {"w: longer": {0: _curve(LINE, 1.0, 250.0)}, "w: rho": {0: _curve([0.9] * 10, 4.0, il_units=250.0)}}
    found = _equal(curves)
    assert found[EQUAL[True]].difference == found[EQUAL[False]].difference


def test_the_published_arms_that_others_are_read_against_can_pay_for_run_and_il_model() -> None:
    """By the largest account that a fit can have: every epoch of it checked on as many samples as it learned from."""
    sizes = {"mlp-256": 784 * 256 + 256 * 256 + 2560, "mlp-64": 784 * 64 + 64 * 64 + 640}
    target = 784 * 512 + 512 * 512 + 5120
    for name in ("table2", "figure6", "figure8", "single_pass"):
        scale = EXPERIMENTS[name].scales["small"]
        for arm in scale.arms:
            for other in scale.equals(arm):
                il, s = arm.world.ils[arm.il], arm.settings
                pool = worlds.HELD if il.holdout else min(il.fit.get("fit_samples", 10**6), arm.world.samples)
                fit = il.fit["epochs"] * pool * (3 + 0.25) + arm.world.samples  # a quarter: what is kept back to check
                if il.holdout is None:
                    fit = il.fit["epochs"] * pool * (3 + 1) + arm.world.samples
                spent = arm.steps * (s["buffer_size"] + 3 * s["batch_size"])
                spent += fit * sizes[il.fit["model"]] / target
                assert other.steps * 3 * other.settings["batch_size"] >= spent, (arm.label, other.label)
                assert other.settings["buffer_size"] == other.settings["batch_size"]  # it looks at what it pays for


def test_the_table_at_equal_units_shows_the_baseline_both_ways_and_says_when_it_ends_before() -> None:
    common = {"world": "w", "arm": "rho", "experiment": "table2"}
    rows = [
        _row(kind="evaluation", **common, step=10, forward_units=400.0, il_units=200.0, test_accuracy=0.8),
        _row(kind="comparison", **common, baseline="longer", metric=EQUAL[False], middle=0.8, values=[0.8], seeds=[0],
             difference=0.1, low=0.05, high=0.15),
    ]  # fmt: skip
    (_, made) = equal_tables(rows)
    assert "| w | rho | 80.0 % | not known | 400 | 200 (0.50x) | longer | 70.0 % | +10.0 (+5.0 to +15.0) |" in made
    assert made.endswith("| ends before |  |")
    assert equal_tables([]) == []


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_counts_once_and_holds_where_all_its_settings_do() -> None:
    assert in_words([("a", "same direction"), ("b", "other direction")]) == "1 of 2 in the same direction"
    told = [("a", "same direction"), ("a", "undecided"), ("b", "same direction"), ("b", "same direction: none")]
    assert in_words(told) == "1 of 2 in the same direction in every setting (3 of 4 settings)"


def test_claims_of_the_grid_and_of_shares_are_one_claim_each() -> None:
    assert len({c.says for c in EXPERIMENTS["figure2"].claims}) == 4 and len(EXPERIMENTS["figure2"].claims) == 12
    assert len({c.says for c in EXPERIMENTS["figure8"].claims}) == 1


def test_rules_degrade_against_their_own_clean_runs() -> None:
    experiment = EXPERIMENTS["figure6"]
    own = {(c.world, c.arm): c.baseline for c in experiment.claims if "degrade" in c.says}
    assert own["structured", "loss"] == "clean: loss" and own["structured", "grad_norm"] == "clean: grad_norm"
    scale = Scale(says="", seeds=3, arms=[a for a in experiment.scales["small"].arms if a.name in ("uniform", "loss")])
    curves = {arm.label: {s: _curve([(0.8 if arm.world.name == "clean" else 0.7) - (arm.name == "loss") / 20] * 30, 1.0)
                          for s in range(3)} for arm in scale.arms}  # fmt: skip
    claim = next(c for c in experiment.claims if (c.world, c.arm) == ("structured", "loss"))
    assert verdict(claim, compare(scale, curves))[1] == "same direction"


# -- old and new -------------------------------------------------------------------------------------------------------


def _row(**cells: Any) -> dict[str, Any]:
    return {**dict.fromkeys(SCHEMA.names), "scale": "small", **cells}


def _published(folder: Path, middle: float, words: str = "it is ahead", state: str = "same direction") -> None:
    final = {"experiment": "table2", "world": "clean", "arm": "rho", "baseline": "uniform"}
    rows = [_row(kind="comparison", **final, metric="final accuracy (mean)", seeds=[0], values=[middle], middle=middle,
                 difference=middle - 0.5, low=0.05, high=0.5),
            _row(kind="claim", **final, metric="final accuracy", claim=words, paper="91 %", state=state)]  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "table2-small.parquet")


def test_what_moved_stands_with_both_figures_whatever_the_claim_is_called_now(tmp_path: Path) -> None:
    _published(tmp_path / "results", 0.75, "rho is ahead")
    _published(tmp_path / "old", 0.6, state="undecided")
    _published(tmp_path / "same", 0.75)
    said = told_moved(str(tmp_path), "small", str(tmp_path / "old"))
    assert (
        "| rho is ahead | 60.0 %, +10.0 (+5.0 to +50.0) against uniform: undecided | 75.0 %, +25.0 (+5.0 to +50.0) "
        "against uniform: same direction | table2, clean: rho |"
    ) in said
    assert said.endswith("\n\n0 settings of claims did not move.")
    command = CliRunner().invoke(main, ["--out", str(tmp_path), "--moved", str(tmp_path / "same")])
    assert command.exit_code == 0 and command.output.startswith("1 settings of claims did not move.")
    failed = CliRunner().invoke(main, ["--out", str(tmp_path), "--moved", str(tmp_path / "none")])
    assert failed.exit_code == 2 and "no results of scale small in" in failed.output


def test_the_blocks_of_a_page_are_made_and_the_rest_of_it_is_left_alone(tmp_path: Path) -> None:
    _published(tmp_path / "results", 0.75)
    _published(tmp_path / "results" / "old", 0.6)
    page = tmp_path / "page.md"
    page.write_text("A\n<!-- made: claims -->\nstale\n<!-- end -->\nB\n<!-- made: moved old -->\n<!-- end -->\n"
                    "<!-- made: arms table2; final accuracy -->\n<!-- end -->\nC\n")  # fmt: skip
    for _ in range(2):
        done = CliRunner().invoke(main, ["--out", str(tmp_path), "--page", str(page)])
        assert done.exit_code == 0, done.output
        said = page.read_text()
        assert "stale" not in said and said.startswith("A\n<!-- made: claims -->\n**The paper's claims: 1 of 1 in")
        assert "<!-- end -->\nB\n<!-- made: moved old -->\n| claim | before | now | from |" in said
        assert "**clean**\n\n| arm | final accuracy |" in said and said.endswith("<!-- end -->\nC\n")
    with pytest.raises(UsageError, match="made: tables: expected claims"):
        filled("<!-- made: tables -->\n<!-- end -->", str(tmp_path), "small")


# -- table 1, figure 3, table 4, Clothing-1M ---------------------------------------------------------------------------


@pytest.mark.parametrize("approximation", ["0", "1a", "1b"])
def test_before_each_buffer_every_approximation_has_made_as_many_gradient_steps(
    approximation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("N_B", 60), ("N_b", 6), ("MEMBERS", 2), ("TARGET", "tests.support.tiny:linear")):
        monkeypatch.setattr(table1, name, value)
    steps: list[int] = []  # the size of each batch
    monkeypatch.setattr(table1.Learner, "step", lambda self, x, y: steps.append(len(y)) or 0.0)
    monkeypatch.setattr(table1.Learner, "converge", lambda self, x, y, order, epochs: None)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(240, 1, 16, 16, generator=rng), torch.randint(0, 3, (240,), generator=rng)
    table1.scores(approximation, 0, (x, y), (x[:60], y[:60]), 4)
    # four buffers: five steps of the target on 6 points, and five of the IL on as many of D_ho beside them
    assert steps.count(6) == steps.count(12) == 4 * table1.EPOCHS and len(steps) == 2 * 4 * table1.EPOCHS


def test_relevant_classes_hang_on_the_seed_alone_and_are_four_fifths_of_the_samples() -> None:
    drawn = {}
    for seed in range(4):
        found = web.samples(many(10_000), noise="none", copies=0, relevant_classes=2, seed=seed)
        other = web.samples(many(3_000), noise="none", copies=0, relevant_classes=2, seed=seed)
        facts = [found.load(i) for i in range(0, len(found), 7)]
        drawn[seed] = {s.label for s in facts if s.facts["relevant"]}
        assert drawn[seed] == {s.label for i in range(len(other)) if (s := other.load(i)).facts["relevant"]}
        counts = np.bincount(found.labels, minlength=10)
        assert len(drawn[seed]) == 2 and all(counts[c] == (1000 if c in drawn[seed] else 60) for c in range(10))
    assert len({tuple(sorted(d)) for d in drawn.values()}) > 1
    for settings in ({"relevant_classes": 10}, {"relevant_classes": 2, "rare_share": 0.0},
                     {"relevant_classes": 2, "imbalance": 4.0}):  # fmt: skip
        with pytest.raises(UsageError):
            web.samples(many(100), noise="none", copies=0, **settings)  # type: ignore[arg-type]


def test_the_relevance_of_figure_3_is_told_by_the_samples_not_by_the_number_of_a_class() -> None:
    found = [w for w in EXPERIMENTS["figure3"].scales["small"].worlds if w.name.startswith("relevance")]
    assert len(found) == 3 and all("relevant" in world.keep for world in found)
    for world in found:
        holdout = world.ils["il"].holdout
        assert holdout is not None
        draws = {one.arguments[one.arguments.index("--seed") + 1] for one in (world.train, world.test, holdout)}
        assert len(draws) == 1  # one draw of the classes for all three


def test_clothing_1m_keeps_the_tenth_that_its_il_model_learned_from() -> None:
    for name in ("table2", "single_pass"):
        mine = [arm for arm in EXPERIMENTS[name].scales["full"].arms if arm.world.name == "clothing1m"]
        assert mine and all(arm.settings["keep_holdout"] for arm in mine)
    assert worlds.CLOTHING1M.ils["il"].fit["fit_samples"] >= 0.1 * worlds.CLOTHING1M.samples


@pytest.fixture(scope="module")
def along(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run whose IL model learns along at a rate that moves it, on images whose bright row tells the class."""
    out = tmp_path_factory.mktemp("along")
    world = replace(WORLD, samples=120, ils={"il": IL(fit={"model": "mlp-64", "epochs": 6}, holdout=Shards(("h",)))})
    for shards, count in ((world.train, 120), (Shards(("h",)), 60)):
        folder = out / "shards" / shards.folder
        folder.mkdir(parents=True)
        write_shard(folder / "a.tar", [_sample(n) for n in range(count)])
    MakeIL(str(out), world, "il")()
    arm = Arm(name="rho_updated", world=world, steps=40, eval_every=20, baselines=(), needs=("il_model",),
              train={"rule": "rho_updated", "il_lr_scale": 1.0, "buffer_size": 60, "batch_size": 6,
                     "model": "mlp-64"})  # fmt: skip
    training = Training(arm, 0, str(out))
    assert training()[0] == "complete"
    return training


def _pixels(rng: np.random.Generator, number: int) -> npt.NDArray[np.uint8]:
    """28 x 28, a bright row tells the class."""
    pixels = rng.integers(0, 90, (28, 28), dtype=np.uint8)
    pixels[2 * (number % 10) + 3] = 200
    return pixels


def _sample(number: int) -> dict[str, object]:
    sink = io.BytesIO()
    Image.fromarray(_pixels(np.random.default_rng(number), number)).save(sink, "PNG")
    return {"__key__": f"{number:05d}", "png": sink.getvalue(), "cls": str(number % 10)}


def test_an_il_model_that_learns_along_is_measured_on_the_test_set_pass_by_pass(along: Training) -> None:
    live = il_accuracy.by_pass(along)
    frozen = il_accuracy.by_pass(replace(along, arm=replace(along.arm, needs=())))
    assert len(live) == 20 and len(frozen) == 1  # 40 steps are 20 passes
    assert len({*live, *frozen}) > 1  # it does learn
    state = checkpoint.latest(along.folder)
    assert state is not None and state.step == 40
    network = build("mlp-64", image_size=28, channels=1, classes=10)
    network.load_state_dict(tensors.load_other(along.folder, state, "live-0")["model"])
    x = torch.from_numpy(np.stack([_pixels(np.random.default_rng(n), n) for n in range(120)])).float()[:, None]
    right = network.eval()(x / 127.5 - 1).argmax(1) == torch.arange(120) % 10
    assert live[-1] == pytest.approx(float(right.float().mean()))  # by hand
    curve = measure(along, (IL_ACCURACY,))
    assert curve.shares[IL_ACCURACY] == live[-1] and curve.by_pass[IL_ACCURACY] == live
    assert math.isfinite(curve.il_units) and curve.il_units > 0
    found = compare(Scale(says="", seeds=1, arms=[along.arm]), {along.arm.label: {0: curve}}, (IL_ACCURACY,))
    accurate = {one.arm: one for one in found if one.metric.startswith("IL model's")}
    assert accurate["rho_updated"].values == (live[-1],)
    claim = Claim(says="", paper="", world="w", arm="rho_updated", metric="IL model's accuracy", less=True)
    assert verdict(claim, list(accurate.values()))[1] == "not measured"  # there is nothing to hold it against


def test_the_tables_of_the_records_are_those_of_the_published_files() -> None:
    docs = Path(__file__).parents[1] / "docs"
    pages = [path.read_text() for path in sorted((docs / "results").glob("*.md"))]
    assert [filled(page, str(docs), "small") for page in pages] == pages
    assert sum(page.count("<!-- made: ") for page in pages) >= 20
