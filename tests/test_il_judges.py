"""What chooses and judges an IL model: samples that it didn't learn from and that are like those it learned from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhostream.errors import TableError, UsageError
from rhostream.irreducible import ModelInfo, compute_il, fit_il, gate, load_il_model
from rhostream.irreducible.crossfit import kept_back
from rhostream.irreducible.folds import Places
from tests.conftest import make_shards, sample, write_shard

FIT: dict[str, Any] = {"model": "mlp-64", "lr": 3e-3}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shard(path: Path, n: int, wrong: float = 0.0, seed: int = 0) -> str:
    """n samples of four learnable classes, a share of the labels drawn anew."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        row = sample(i, rng)
        rows.append(row | {"__key__": f"{i:05d}"} | ({"cls": str(rng.integers(4))} if rng.random() < wrong else {}))
    return str(write_shard(path, rows))


# -- the slice that is kept back -------------------------------------------------------------------------------------


def test_a_tenth_is_kept_back_and_at_most_ten_thousand() -> None:
    for n, expected in ((1, 1), (10, 1), (11, 2), (1000, 100), (100_000, 10_000), (150_000, 10_000)):
        place = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        assert int(kept_back(place).sum()) == expected


def test_a_group_is_kept_back_whole() -> None:
    place = torch.tensor([Places(0)("s", f"{i}", f"g{i // 7}") for i in range(700)])
    back = kept_back(place)
    assert all(len(set(back[7 * g : 7 * g + 7].tolist())) == 1 for g in range(100)) and int(back.sum()) == 70


# -- what chooses ----------------------------------------------------------------------------------------------------


def test_a_noisy_d_does_not_choose_the_checkpoint_of_a_clean_holdout(tmp_path: Path) -> None:
    clean, noisy = shard(tmp_path / "h" / "h.tar", 400), shard(tmp_path / "d" / "d.tar", 400, wrong=0.5, seed=1)
    info = fit_il([noisy], str(tmp_path / "m"), holdout=[clean], **FIT, epochs=6)
    (fold,) = info.folds
    best = min(fold["curve"], key=lambda at: at["val_loss"])
    assert fold["best_epoch"] == best["epoch"] >= 4 and info.accuracy > 0.9 > 0.7 > info.on_d["accuracy"]
    assert info.on_d["loss"] > 3 * info.val_loss and info.on_d["samples"] == 400
    assert (fold["train_samples"], fold["val_samples"]) == (360, 40)
    assert info.judged == {"on": "a slice of the holdout, kept back", "samples": 40}
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    assert record["judged"] == info.judged and record["on_d"] == info.on_d


def test_the_same_holdout_gives_the_same_model_whatever_d_is(tmp_path: Path) -> None:
    clean = shard(tmp_path / "h" / "h.tar", 200)
    made = []
    for n, wrong in ((1, 0.0), (2, 0.9)):
        data = shard(tmp_path / f"d{n}" / "d.tar", 100, wrong, n)
        made.append(fit_il([data], str(tmp_path / f"m{n}"), holdout=[clean], **FIT, epochs=2))
    assert made[0].folds[0]["sha256"] == made[1].folds[0]["sha256"] and made[0].val_loss == made[1].val_loss


def test_d_outside_a_fraction_judges_it_and_a_fold_is_judged_by_the_samples_left_out(tmp_path: Path) -> None:
    shards = [str(p) for p in make_shards(tmp_path / "s", [150, 150])]
    fraction = fit_il(shards, str(tmp_path / "f"), holdout_fraction=0.5, **FIT, epochs=1)
    (fold,) = fraction.folds
    assert fraction.judged == {"on": "samples of D outside the fraction", "samples": 300 - fold["train_samples"]}
    assert fold["val_samples"] == fraction.judged["samples"] and fraction.on_d == {}
    folds = fit_il(shards, str(tmp_path / "k"), **FIT, epochs=1)
    assert folds.judged == {"on": "the fold it doesn't learn from", "samples": 300} and folds.on_d == {}


def test_a_holdout_too_small_to_keep_a_slice_back_is_an_error(tmp_path: Path) -> None:
    one, data = shard(tmp_path / "h" / "h.tar", 1), shard(tmp_path / "d" / "d.tar", 20)
    with pytest.raises(UsageError, match="0 samples to learn from and 1 to check on"):
        fit_il([data], str(tmp_path / "m"), holdout=[one], **FIT, epochs=1)


# -- models of before ------------------------------------------------------------------------------------------------


def test_a_model_that_d_chose_is_still_read_and_one_sentence_says_how_it_was_chosen(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clean, data = shard(tmp_path / "h" / "h.tar", 100), shard(tmp_path / "d" / "d.tar", 100, seed=1)
    asked: dict[str, Any] = {"holdout": [clean], **FIT, "epochs": 1}
    fit_il([data], str(tmp_path / "m"), **asked)
    path = tmp_path / "m" / "model.json"
    record = json.loads(path.read_text())
    for name in ("judged", "on_d"):
        del record[name]
    del record["cost"]["checked_samples"], record["quality"]["loss_error"]
    path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING, "rhostream"):
        info = fit_il([data], str(tmp_path / "m"), **asked)
        assert compute_il([data], str(tmp_path / "m"), str(tmp_path / "t")).made == 1
    assert info.judged == {} and caplog.text.count("chose this IL model's checkpoint by its loss on D") == 2
    assert load_il_model(str(tmp_path / "m")).info.figures()["macs"] > 0


def judged_info(**quality: Any) -> ModelInfo:
    """A holdout's model, judged by a slice of it."""
    return ModelInfo(architecture="mlp-64", classes=4, preprocess={}, decoder="auto", split={"mode": "holdout"},
                     folds=[], accuracy=0.8, val_loss=1.0, cost={}, asked={}, learned_from=[],
                     judged={"on": "x", "samples": 9},
                     quality={"largest_class": {"class": 2, "share": 0.4}, "loss": 1.0, **quality})


def test_a_holdout_that_was_memorised_is_doubted_now_that_its_own_samples_judge() -> None:
    assert gate.doubts(judged_info(train_loss=0.51)) == []
    assert "has memorised" in "".join(gate.doubts(judged_info(train_loss=0.49)))


def test_a_loss_that_few_samples_measured_is_no_evidence_of_a_leak() -> None:
    rest = gate.Group(900, 0.3, 0.02)
    assert gate.leaks(gate.Group(0, 0.0, 0.0), rest, 0.6, "folds", 0.01) != []
    assert gate.leaks(gate.Group(0, 0.0, 0.0), rest, 0.6, "folds", 0.1) == []


@pytest.mark.parametrize("change", [{"judged": 3}, {"judged": {"on": 5, "samples": 1}}, {"on_d": {"samples": 4}},
                                    {"on_d": [1]}, {"on_d": {"samples": 1, "loss": "x"}}])
def test_a_model_json_that_lies_about_its_judges_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    shards = [str(p) for p in make_shards(tmp_path / "s", [60])]
    fit_il(shards, str(tmp_path / "m"), **FIT, epochs=1)
    path = tmp_path / "m" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TableError, match=r"model\.json can't be understood"):
        load_il_model(str(tmp_path / "m"))
