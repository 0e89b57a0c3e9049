"""What chooses and judges an IL model: samples that it didn't learn from and that are like those it learned from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhostream import models
from rhostream.errors import BudgetError, QualityError, TableError, UsageError
from rhostream.il_model.info import ModelInfo
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import compute_il, fit_il, gate
from rhostream.irreducible.crossfit import kept_back
from rhostream.irreducible.marks import Places
from rhostream.irreducible.pool import Pool, fill
from rhostream.runs.cost import Cost
from rhostream.samples.image import ImageKind
from rhostream.stream.budget import Budget
from rhostream.stream.scan import ScanSettings
from rhostream.stream.shard_scan import ShardScan
from tests.support.shards import make_shards, sample, write_shard

FIT: dict[str, Any] = {"model": "mlp-64", "lr": 3e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


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
    info = fit_il([noisy], str(tmp_path / "m"), holdout=[clean], **FIT, epochs=6, roots={"x": str(tmp_path)})
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    return ModelInfo(
        architecture="mlp-64",
        classes=4,
        preprocess={},
        decoder="auto",
        split={"mode": "holdout"},
        folds=[],
        accuracy=0.8,
        val_loss=1.0,
        cost={},
        asked={},
        learned_from=[],
        judged={"on": "x", "samples": 9},
        quality={"largest_class": {"class": 2, "share": 0.4}, "loss": 1.0, **quality},
    )


def test_a_holdout_that_was_memorised_is_doubted_now_that_its_own_samples_judge() -> None:
    assert gate.doubts(judged_info(train_loss=0.51)) == []
    assert "has memorised" in "".join(gate.doubts(judged_info(train_loss=0.49)))


def test_a_loss_that_few_samples_measured_is_no_evidence_of_a_leak() -> None:
    rest = gate.Group(900, 0.3, 0.02)
    assert gate.leaks(gate.Group(0, 0.0, 0.0), rest, 0.6, "folds", 0.01) != []
    assert gate.leaks(gate.Group(0, 0.0, 0.0), rest, 0.6, "folds", 0.1) == []


@pytest.mark.parametrize(
    "change",
    [
        {"judged": 3},
        {"judged": {"on": 5, "samples": 1}},
        {"on_d": {"samples": 4}},
        {"on_d": [1]},
        {"on_d": {"samples": 1, "loss": "x"}},
    ],
)
def test_a_model_json_that_lies_about_its_judges_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    shards = [str(p) for p in make_shards(tmp_path / "s", [60])]
    fit_il(shards, str(tmp_path / "m"), **FIT, epochs=1)
    path = tmp_path / "m" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TableError, match=r"model\.json can't be understood"):
        load_il_model(str(tmp_path / "m"))


# -- a holdout that is part of D -------------------------------------------------------------------------------------


def random_labels(path: Path, n: int, seed: int) -> str:
    """n samples of which nothing can be learnt but by heart."""
    return shard(path, n, wrong=1.0, seed=seed)


@pytest.mark.parametrize("others", [0, 2])
def test_rows_that_a_network_learned_from_never_judge_it(tmp_path: Path, others: int) -> None:
    holdout = random_labels(tmp_path / "d" / "0.tar", 300, 0)
    data = [holdout, *(random_labels(tmp_path / "d" / f"{n}.tar", 50, n) for n in range(1, 1 + others))]
    roots = {"x": str(tmp_path)}
    info = fit_il(data, str(tmp_path / "m"), holdout=[holdout], **FIT | {"lr": 1e-2}, epochs=20, roots=roots)
    assert info.accuracy < 0.6 and info.val_loss > 1  # on what it learned from: 1.0 and next to nothing
    assert info.quality["samples"] == info.folds[0]["val_samples"] == info.judged["samples"] == 30
    assert info.on_d["samples"] == 50 * others and info.on_d["left_out"] == 300
    assert not others or info.on_d["accuracy"] < 0.6
    assert load_il_model(str(tmp_path / "m")).info == info
    doubts = compute_il(data, str(tmp_path / "m"), str(tmp_path / "t"), roots=roots).doubts
    assert others or any("learned from all of" in says for says in doubts)


def test_min_accuracy_asks_the_slice_and_not_the_rows_that_were_learned_from(tmp_path: Path) -> None:
    data = random_labels(tmp_path / "d" / "0.tar", 300, 0)
    with pytest.raises(QualityError):
        fit_il(
            [data],
            str(tmp_path / "m"),
            holdout=[data],
            **FIT | {"lr": 1e-2},
            epochs=20,
            min_accuracy=0.7,
            roots={"x": str(tmp_path)},
        )


# -- the sample ------------------------------------------------------------------------------------------------------


def filled(paths: list[str], samples: int, seed: int = 0, workers: int = 0, **more: Any) -> Pool:
    settings = ScanSettings(kind=ImageKind(image_size=16, channels=1, mean=(0.5,), std=(0.5,)))
    return fill(
        [(p, Path(p).name) for p in paths],
        settings,
        samples=samples,
        memory_bytes=1 << 30,
        seed=seed,
        workers=workers,
        title="reading",
        **more,
    )


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of 900, 50 and 50 samples; the labels tell the shards apart."""
    folder = tmp_path_factory.mktemp("unequal")
    rng, found = np.random.default_rng(0), []
    for number, n in enumerate((900, 50, 50)):
        rows = [sample(i, rng) | {"__key__": f"{i:05d}", "cls": str(number)} for i in range(n)]
        found.append(str(write_shard(folder / f"{number}.tar", rows)))
    return found


@pytest.mark.parametrize("samples", [1, 7, 750, 1000, 5000])
def test_a_pool_has_as_many_samples_as_asked_whatever_the_sizes_of_shards(unequal: list[str], samples: int) -> None:
    pool = filled(unequal, samples)
    assert len(pool) == min(samples, 1000) == pool.statuses["ok"] and sum(pool.statuses.values()) == len(pool)
    assert pool.seen == {"0.tar": 900, "1.tar": 50, "2.tar": 50} and pool.labels == {0: 900, 1: 50, 2: 50}


def test_every_sample_is_as_likely_to_be_drawn_whatever_its_shard(unequal: list[str]) -> None:
    counts = sum(torch.bincount(filled(unequal, 200, seed).label, minlength=3) for seed in range(20))
    assert isinstance(counts, torch.Tensor)
    # 4,000 draws, 3,600 and 200 and 200 expected; 4 standard deviations of draws without replacement
    assert abs(int(counts[0]) - 3600) < 4 * 17 and all(abs(int(counts[c]) - 200) < 4 * 13 for c in (1, 2))


@pytest.fixture(scope="module")
def damaged(unequal: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same, a shard of which every fourth image is none, and one that is cut."""
    folder, rng = tmp_path_factory.mktemp("damaged"), np.random.default_rng(1)
    rows = [sample(i, rng) | {"__key__": f"{i:05d}"} | ({"png": b"no image"} if i % 4 == 0 else {}) for i in range(400)]
    cut = folder / "4.tar"
    cut.write_bytes(Path(unequal[0]).read_bytes()[:200_000])
    return [*unequal, str(write_shard(folder / "3.tar", rows)), str(cut)]


BEARS = Budget(fraction=1, shards=1)


def test_the_sample_and_its_account_are_the_same_in_any_order_and_with_any_workers(damaged: list[str]) -> None:
    pools = [filled(damaged, 300, budget=BEARS), filled(damaged[::-1], 300, budget=BEARS),
             filled(damaged, 300, workers=2, budget=BEARS)]  # fmt: skip
    for pool in pools[1:]:
        assert torch.equal(pool.fields.only, pools[0].fields.only) and torch.equal(pool.label, pools[0].label)
        assert pool.statuses == pools[0].statuses and pool.shards == pools[0].shards
        assert pool.labels == pools[0].labels and pool.seen == pools[0].seen
    assert not torch.equal(filled(damaged, 300, seed=1, budget=BEARS).fields.only, pools[0].fields.only)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(unequal: list[str]) -> None:
    small, large = filled(unequal, 60), filled(unequal, 400)
    assert torch.equal(small.fields.only, large.fields.only[:60]) and torch.equal(small.label, large.label[:60])


def test_bad_samples_and_broken_shards_are_replaced_by_others_and_counted(damaged: list[str]) -> None:
    for samples, expected in ((500, 500), (5000, 1300)):
        pool = filled(damaged, samples, budget=BEARS)
        assert len(pool) == expected == pool.statuses["ok"] and list(pool.bad_shards) == ["4.tar"]
        broken = pool.statuses["decode:not_an_image"]
        assert broken == 100 if samples == 5000 else 10 < broken < 80
    with pytest.raises(BudgetError, match=r"3\.tar: .*decode:not_an_image"):
        filled(damaged[:4], 5000)


def test_of_a_large_shard_little_more_than_the_sample_is_decoded(
    unequal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    real = ShardScan.finish
    monkeypatch.setattr(
        ShardScan, "finish", lambda self, rows, *a: (decoded.append(len(rows.ordinal)), real(self, rows, *a))[1]
    )
    filled(unequal, 50)
    assert sum(decoded) < 50 * (1 + np.log(1000 / 50)) + 50


# -- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cls", "json"])
def test_a_rare_last_class_outside_the_sample_is_a_class_and_no_sample_of_it_is_quarantined(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(600):
        row = sample(i, rng) | {"__key__": f"{i:05d}"}
        label = 2 if i == 577 else i % 2
        del row["cls"]
        rows.append(row | ({"cls": str(label)} if how == "cls" else {"json": json.dumps({"label": label}).encode()}))
    data = str(write_shard(tmp_path / "d.tar", rows))
    info = fit_il([data], str(tmp_path / "m"), **FIT, epochs=1, fit_samples=50)
    assert info.classes == 3 and info.sample == {"taken": 50, "seen": 600}
    assert any("no sample of class 2 (1 of 600 samples of D)" in says for says in info.quality["empty_classes"])
    summary = compute_il([data], str(tmp_path / "m"), str(tmp_path / "t"))
    assert summary.ok == 600 and summary.quarantined == {}


def test_labels_beyond_the_classes_of_the_model_are_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit_il([shard(tmp_path / "d.tar", 100)], str(tmp_path / "m"), **FIT, epochs=1)
    rng = np.random.default_rng(0)
    rows = [sample(i, rng) | {"__key__": f"{i}"} | ({"cls": "9"} if i < 3 else {}) for i in range(100)]
    other = str(write_shard(tmp_path / "d.tar", rows))
    summary = compute_il([other], str(tmp_path / "m"), str(tmp_path / "t"))
    assert summary.quarantined == {"label:range": 3}
    assert any("3 samples have a label outside 0 to 3" in says for says in summary.doubts)
    assert "outside 0 to 3" in caplog.text


# -- the cost --------------------------------------------------------------------------------------------------------


def test_every_forward_of_a_fit_is_in_its_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, data = shard(tmp_path / "h" / "h.tar", 200), shard(tmp_path / "d" / "d.tar", 80, seed=1)
    passed: dict[bool, int] = {True: 0, False: 0}  # samples through a forward, by whether the network learns
    real = models.build

    def counted(*args: Any, **kwargs: Any) -> Any:
        network = real(*args, **kwargs)
        network.register_forward_pre_hook(
            lambda module, inputs: passed.__setitem__(module.training, passed[module.training] + len(inputs[0]))
        )
        return network

    monkeypatch.setattr(models, "build", counted)
    for name, split in {"h": {"holdout": [clean]}, "f": {"holdout_fraction": 0.5}, "k": {}}.items():
        passed.update({True: 0, False: 0})
        info = fit_il([data], str(tmp_path / name), **FIT, epochs=2, **split)  # type: ignore[arg-type]
        assert info.cost["fit_samples"] == passed[True]
        # One example before any work; of each network one proves its output and one counts its multiply-adds.
        examples = 1 + 2 * len(info.folds)
        assert info.cost["checked_samples"] == passed[False] - examples > 0
    assert info.figures()["checked_samples"] == info.cost["checked_samples"]


def test_the_il_is_charged_with_the_forwards_that_chose_it() -> None:
    account = {"fit_samples": 100, "scored_samples": 40, "macs": 5}
    assert Cost(macs=10, il=account).il_units == pytest.approx((300 + 40) / 2)
    assert Cost(macs=10, il=account | {"checked_samples": 60}).il_units == pytest.approx((300 + 100) / 2)
