"""Fits of the IL model: balance, what is measured, and when it is doubted; older ones with a temperature."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, QualityError, TableError, UnknownNameError, UsageError
from rhostream.il_model.info import ModelInfo
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import compute_il, fit_il, gate
from rhostream.irreducible.gate import Group, leaks
from rhostream.irreducible.learn import class_weights, drawn
from rhostream.irreducible.quality import Logits, measured, reliability
from tests.support.older import divide_logits, in_float16
from tests.support.shards import make_shards, sample, write_shard

FIT: dict[str, Any] = {"model": "mlp-64", "epochs": 3, "lr": 3e-3, "classes": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three shards of four learnable classes, a fifth of the labels wrong."""
    return [str(p) for p in make_shards(tmp_path_factory.mktemp("fits") / "shards", [160, 120, 120])]


@pytest.fixture(scope="module")
def plain(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ModelInfo]:
    folder = str(tmp_path_factory.mktemp("fits-plain") / "m")
    return folder, fit_il(shards, folder, **FIT)


def logits(n: int, classes: int, sharpness: float, seed: int = 0) -> Logits:
    """Logits whose true probabilities are softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, classes))
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    label = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    return Logits(true * sharpness, label)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_the_reliability_diagram_equals_a_loop_over_its_bins() -> None:
    found = logits(3000, 4, 2.5)
    p = torch.from_numpy(found.logit).softmax(1).numpy()
    diagram, ece = reliability([found]), 0.0
    assert sum(diagram["count"]) == 3000 and len(diagram["count"]) == 15
    for b in range(15):
        inside = (p.max(1) > b / 15) & (p.max(1) <= (b + 1) / 15)
        assert diagram["count"][b] == inside.sum()
        if inside.any():
            confidence, accuracy = p.max(1)[inside].mean(), (p.argmax(1) == found.label)[inside].mean()
            assert diagram["confidence"][b] == pytest.approx(confidence, abs=1e-6)
            assert diagram["accuracy"][b] == pytest.approx(accuracy, abs=1e-6)
            ece += inside.mean() * abs(accuracy - confidence)
    assert diagram["ece"] == pytest.approx(ece, abs=1e-6)
    assert reliability([logits(3000, 4, 1.0)])["ece"] < 0.03 < 0.1 < diagram["ece"]


def test_the_figures_of_a_model_are_those_of_its_logits_over_all_folds() -> None:
    folds = [logits(500, 3, 2.0, seed) for seed in (1, 2)]
    quality = measured(folds, [logits(500, 3, 1.0, 3)], 3)
    every = Logits(np.concatenate([f.logit for f in folds]), np.concatenate([f.label for f in folds]))
    right = every.logit.argmax(1) == every.label
    assert quality["accuracy"] == pytest.approx(right.mean())
    assert quality["loss"] == pytest.approx(F.cross_entropy(*map(torch.from_numpy, (every.logit, every.label))).item())
    by_class = [right[every.label == c].mean() for c in range(3)]
    assert quality["classes"]["accuracy"] == pytest.approx(by_class, abs=1e-6)
    assert quality["worst_class"]["class"] == int(np.argmin(by_class))
    assert quality["balanced_accuracy"] == pytest.approx(np.mean(by_class))


# -- temperature -----------------------------------------------------------------------------------------------------


def test_an_older_model_with_a_temperature_has_il_of_divided_logits_and_another_fingerprint(
    shards: list[str], plain: tuple[str, ModelInfo], tmp_path: Path
) -> None:
    shutil.copytree(plain[0], tmp_path / "m")
    divide_logits(tmp_path / "m", [1.25, 0.8])
    info = load_il_model(str(tmp_path / "m")).info
    without = plain[1].ingredients()
    assert "temperature" not in without and info.ingredients() == without | {"temperature": [1.25, 0.8]}
    x = torch.randn(5, 1, 16, 16)
    for one, other, t in zip(
        load_il_model(str(tmp_path / "m")).networks, load_il_model(plain[0]).networks, info.temperature, strict=True
    ):
        torch.testing.assert_close(one(x), other(x) / t)
        assert one.state_dict().keys() == other.state_dict().keys()
    compute_il(shards, str(tmp_path / "m"), str(tmp_path / "t"))
    with pytest.raises(MismatchError, match="temperature differ"):
        compute_il(shards, plain[0], str(tmp_path / "t"))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": [1.0]},
        {"temperature": [0, 1]},
        {"temperature": [1, "x"]},
        {"temperature": 5},
        {"temperature": [1.0, float("inf")]},
        {"quality": []},
        {"checkpoint": 3},
    ],
)
def test_a_model_json_that_lies_about_its_options_is_refused(
    plain: tuple[str, ModelInfo], tmp_path: Path, change: dict[str, object]
) -> None:
    record = json.loads((Path(plain[0]) / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(record | change))
    with pytest.raises(TableError, match=r"model\.json can't be understood"):
        load_il_model(str(tmp_path))


def test_a_folder_that_knows_none_of_these_options_is_still_read_and_complete(
    shards: list[str], plain: tuple[str, ModelInfo], tmp_path: Path
) -> None:
    record = json.loads((Path(plain[0]) / "model.json").read_text())
    for name in ("quality", "temperature", "checkpoint", "checkpoints"):
        del record[name]
    for file in Path(plain[0]).glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert load_il_model(str(tmp_path)).info.ingredients() == plain[1].ingredients()
    info = fit_il(shards, str(tmp_path), **FIT, min_accuracy=0.3)
    assert info.quality == {} and gate.doubts(info) == []


# -- balance ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> str:
    """1,000 samples, 25 of class 3, and noise that makes them hard to tell from class 2."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1000):
        label = 3 if number % 40 == 0 else number % 3
        row = sample(4 * number + label, rng)
        rows.append(row | {"__key__": f"s{number:06d}"})
    return str(write_shard(tmp_path_factory.mktemp("imbalanced") / "a.tar", rows))


def test_a_balanced_fit_is_better_at_its_worst_class(imbalanced: str, tmp_path: Path) -> None:
    # A shard's name is a word of every draw: one that doesn't hang on where the test runs.
    fit: dict[str, Any] = {"model": "mlp-64", "epochs": 1, "roots": {"imbalanced": str(Path(imbalanced).parent)}}
    found = {how: fit_il([imbalanced], str(tmp_path / how), **fit, balance=how)
             for how in ("none", "sample", "weight")}  # fmt: skip
    worst = {how: info.quality["worst_class"] for how, info in found.items()}
    assert worst["none"]["class"] == 3 and worst["none"]["accuracy"] < 0.5
    assert all(found[how].quality["classes"]["accuracy"][3] > worst["none"]["accuracy"] + 0.3
               for how in ("sample", "weight"))  # fmt: skip
    assert all(found[how].quality["balanced_accuracy"] > found["none"].quality["balanced_accuracy"]
               for how in ("sample", "weight"))  # fmt: skip
    best = min(found["weight"].folds[0]["curve"], key=lambda at: at["val_balanced_loss"])
    assert found["weight"].folds[0]["best_epoch"] == best["epoch"]
    with pytest.raises(MismatchError, match="balance 'weight', this job has None"):
        fit_il([imbalanced], str(tmp_path / "weight"), **fit)
    with pytest.raises(UnknownNameError, match="did you mean 'weight'"):
        fit_il([imbalanced], str(tmp_path / "x"), **fit, balance="weights")


def test_balanced_draws_take_every_class_as_often_and_weights_add_up_alike() -> None:
    label = torch.tensor([0] * 900 + [2] * 90 + [3] * 10)
    train = torch.arange(1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    rows = drawn(train, label, "sample", torch.Generator().manual_seed(1))
    counts = torch.bincount(label[rows], minlength=4)
    assert len(rows) == 1000 and counts[1] == 0 and all(abs(int(counts[c]) - 333) < 60 for c in (0, 2, 3))
    assert set(rows.tolist()) <= set(train.tolist()) and len(set(rows[label[rows] == 3].tolist())) == 10
    assert sorted(drawn(train, label, "none", torch.Generator()).tolist()) == list(range(1000))
    weight_C = class_weights(label, 5)
    per_class = [float(weight_C[c] * (label == c).sum()) for c in range(5)]
    assert per_class == pytest.approx([1000 / 3, 0, 1000 / 3, 1000 / 3, 0])
    assert float(weight_C[label].mean()) == pytest.approx(1)


# -- doubts ----------------------------------------------------------------------------------------------------------


def info_of(accuracy: float, mode: str = "folds", **quality: Any) -> ModelInfo:
    """A model.json with these figures."""
    largest = {"class": 2, "share": 0.4}
    return ModelInfo(
        architecture="mlp-64",
        classes=4,
        preprocess={},
        decoder="auto",
        split={"mode": mode},
        folds=[],
        accuracy=accuracy,
        val_loss=1.0,
        cost={},
        asked={},
        learned_from=[],
        quality={"largest_class": largest, "loss": 1.0, "train_loss": 0.9, **quality},
    )


@pytest.mark.parametrize(("info", "says"), [
    (info_of(0.41), ""), (info_of(0.40), "no better than always naming the largest class (2, 0.4000"),
    (info_of(0.8, train_loss=0.51), ""), (info_of(0.8, train_loss=0.49), "has memorised: its loss is 0.4900"),
    (info_of(0.99, train_loss=0.001, loss=0.04), ""),
    (info_of(0.8, "holdout", train_loss=0.3), ""),  # a clean holdout, and D that isn't
])  # fmt: skip
def test_a_model_is_doubted_on_one_side_of_each_threshold_and_not_on_the_other(info: ModelInfo, says: str) -> None:
    found = gate.doubts(info)
    assert len(found) == bool(says) and says in "".join(found)


def test_a_model_below_the_stated_accuracy_is_refused_and_kept(
    shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # the second time it is complete, and no better
        with pytest.raises(QualityError, match=r"at least 0\.999 was asked for"):
            fit_il(shards, str(tmp_path / "m"), **FIT, min_accuracy=0.999)
    with pytest.raises(QualityError, match=r"at least 0\.999"):
        compute_il(shards, str(tmp_path / "m"), str(tmp_path / "t"), min_accuracy=0.999)
    assert not (tmp_path / "t").exists()
    assert compute_il(shards, str(tmp_path / "m"), str(tmp_path / "t"), min_accuracy=0.3).made == 3
    with pytest.raises(UsageError, match="between 0 and 1"):
        compute_il(shards, str(tmp_path / "m"), str(tmp_path / "u"), min_accuracy=70)
    with pytest.raises(QualityError, match=r"always naming class 2 is right for 0\.4000"):
        gate.passed(info_of(0.4), 0.3, "m")
    assert "no better" in caplog.text and gate.passed(info_of(0.4), None, "m").accuracy == 0.4


@pytest.mark.parametrize(("holdout", "rest", "val", "says"), [
    ((100, 0.1, 0.02), (900, 0.6, 0.02), 0.6, "rows that the IL model learned from (in_holdout) is 0.1000"),
    ((100, 0.4, 0.02), (900, 0.6, 0.02), 0.6, ""),  # lower, as can be expected, and not by half
    ((100, 0.1, 0.2), (900, 0.6, 0.02), 0.6, ""),  # by less than 4 standard errors
    ((10, 0.1, 0.001), (900, 0.6, 0.02), 0.6, ""),  # too few to say
    ((0, math.nan, math.nan), (900, 0.3, 0.02), 0.6, "should not have learned from is 0.3000"),
    ((0, math.nan, math.nan), (900, 0.5, 0.02), 0.6, ""),
    ((0, math.nan, math.nan), (50, 0.3, 0.1), 0.6, ""),
    ((30, 0.1, 0.02), (0, math.nan, math.nan), 0.6, "learned from all of the 30 rows"),
    ((30, 0.9, 0.02), (1, 0.6, math.nan), 0.6, ""),
    ((29, 0.1, 0.02), (0, math.nan, math.nan), 0.6, ""),
])  # fmt: skip
def test_a_leak_is_found_on_one_side_of_each_threshold_and_not_on_the_other(
    holdout: Any, rest: Any, val: float, says: str
) -> None:
    found = leaks(Group(*holdout), Group(*rest), val, "folds")
    assert len(found) == bool(says) and says in "".join(found)


def random_labels(folder: Path, n: int, seed: int = 5) -> str:
    """A shard that nothing can be learnt from but by heart."""
    rng = np.random.default_rng(seed)
    rows = [sample(i, rng) | {"__key__": f"s{i:06d}", "cls": str(rng.integers(4))} for i in range(n)]
    return str(write_shard(folder / "random.tar", rows))


def test_an_il_model_that_memorised_its_holdout_is_found_out_at_the_end_of_compute_il(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rhostream.irreducible import crossfit

    shard = random_labels(tmp_path, 300)
    # The last state instead of the best one: what a fit without a choice of checkpoints would have ended with.
    real = crossfit.learn

    def to_the_end(*args: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        found = real(*args, **kwargs)
        return replace(found, state={k: v.clone() for k, v in args[0].state_dict().items()})

    monkeypatch.setattr(crossfit, "learn", to_the_end)
    other = random_labels(tmp_path / "other", 200, seed=6)
    fit_il([other], str(tmp_path / "h"), model="mlp-64", epochs=40, lr=1e-2, batch_size=32, holdout=[shard])
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(shard, tmp_path / "copy" / "renamed.tar")  # nothing says that these were learned from
    assert any(
        "should not have learned from" in says
        for says in compute_il([copy], str(tmp_path / "h"), str(tmp_path / "ht")).doubts
    )
    assert compute_il([other], str(tmp_path / "h"), str(tmp_path / "ot")).doubts == []
    info = fit_il([shard], str(tmp_path / "m"), model="mlp-64", epochs=40, lr=1e-2, batch_size=32, holdout_fraction=0.3)
    assert any("has memorised" in says for says in info.quality["doubts"])
    summary = compute_il([shard], str(tmp_path / "m"), str(tmp_path / "t"))
    assert any("with --keep-holdout" in says for says in summary.doubts)
    (account,) = (tmp_path / "t" / "jobs").iterdir()
    assert json.loads(account.read_text())["doubts"] == summary.doubts


def test_a_sound_fit_and_its_table_are_not_doubted(
    shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rhostream"):
        for name, split in {"folds": {}, "fraction": {"holdout_fraction": 0.5}}.items():
            info = fit_il(shards, str(tmp_path / name), **FIT, **split)  # type: ignore[arg-type]
            summary = compute_il(shards, str(tmp_path / name), str(tmp_path / f"{name}-t"))
            assert info.quality["doubts"] == summary.doubts == []
    assert caplog.text == ""


# -- classes that a split leaves empty -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"holdout_fraction": 0.1, "seed": 1}, "the holdout fraction has no sample of class 3"),
        ({"folds": 2}, r"what model \d of the folds learns from has no sample of class 3 \(1 of 401"),
    ],
)
def test_a_split_that_leaves_a_class_empty_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: dict[str, Any], says: str
) -> None:
    rng = np.random.default_rng(0)
    rows = [sample(4 * i + i % 3, rng) | {"__key__": f"s{i:06d}"} for i in range(400)]
    rows.append(sample(3, rng) | {"__key__": "rare"})
    shard = str(write_shard(tmp_path / "a.tar", rows))
    roots = {"d": str(tmp_path)}  # else the split would be another one in every folder
    with caplog.at_level(logging.WARNING, "rhostream"):
        info = fit_il([shard], str(tmp_path / "m"), model="mlp-64", epochs=1, roots=roots, **split)
    assert any(re.search(says, r.getMessage()) for r in caplog.records)
    assert info.classes == 4 and len(info.quality["empty_classes"]) == 1
    assert compute_il([shard], str(tmp_path / "m"), str(tmp_path / "t"), roots=roots).ok == 401


def test_a_holdout_without_the_last_class_does_not_quarantine_that_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    rows = [sample(4 * i + i % 3, rng) | {"__key__": f"{i}"} for i in range(60)]
    holdout = str(write_shard(tmp_path / "h.tar", rows))
    data = str(write_shard(tmp_path / "d.tar", [sample(i, rng) for i in range(80)]))
    info = fit_il([data], str(tmp_path / "m"), model="mlp-64", epochs=1, holdout=[holdout])
    assert "the holdout has no sample of class 3 (20 of 80 samples of D)" in caplog.text
    assert info.classes == 4
    summary = compute_il([data], str(tmp_path / "m"), str(tmp_path / "t"))
    assert summary.quarantined == {} and summary.ok == 80


def test_a_model_and_its_table_lie_in_an_object_store_as_well(shards: list[str]) -> None:
    fit_il(shards, "memory://il-fits/m", **FIT)
    assert in_float16(shards, "memory://il-fits/m", "memory://il-fits/t").made == 3
    assert [verify(f"memory://il-fits/{name}")["problems"] for name in ("m", "t")] == [[], []]
    assert compute_il(shards, "memory://il-fits/m", "memory://il-fits/t").present == 3  # as it is stored there
