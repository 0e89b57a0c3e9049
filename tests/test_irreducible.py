"""The offline wing: folds that don't leak, models whole or absent, parts that no kill and no worker can change."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rhostream import models
from rhostream.errors import BudgetError, MismatchError, NotWritableError, ShardError, TableError, UsageError
from rhostream.il_model.folds import FoldRule, fold_of
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import compute_il, fit_il, index
from rhostream.irreducible.decoded import count_classes
from rhostream.tables import il
from tests.support.hostile_members import HOSTILE, hostile_shard, write_tar

SIZE, CLASSES, SHARDS, ROWS = 16, 4, 5, 60
KEEP = {"is_noisy": "bool", "n": "int"}


def sample(i: int, label: int) -> bytes:
    """A 16x16 grey PNG whose brightest quarter is its label."""
    pixels = np.random.default_rng(i).integers(0, 120, (SIZE, SIZE), dtype=np.uint8)
    pixels[4 * label : 4 * label + 4] += 100
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def make_shards(folder: Path, shards: int = SHARDS, rows: int = ROWS) -> Path:
    """Shards of learnable images; from the third shard on, every third sample is a copy of one in the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    for s in range(shards):
        members = []
        for i in range(s * rows, (s + 1) * rows):
            source = i % 3 == 2 and i >= 2 * rows
            original = i % (2 * rows) if source else i
            record = {"is_noisy": bool(i % 2), "n": i, "duplicate_of": f"k{original:05d}" if source else None}
            key, label = f"k{i:05d}", original % CLASSES
            members += [
                (f"{key}.png", sample(original, label)),
                (f"{key}.cls", str(label).encode()),
                (f"{key}.json", json.dumps(record).encode()),
            ]
        write_tar(folder / f"train-{s:03d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards") / "web")


@pytest.fixture(scope="module")
def model(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "il"
    fit_il([str(shards)], str(out), model="mlp-64", group_by="duplicate_of", epochs=2, lr=3e-3)
    return out


def parts(table: Path) -> dict[str, bytes]:
    return {str(p.relative_to(table)): p.read_bytes() for p in sorted(table.rglob("*.parquet"))}


def rows(table: Path) -> list[dict[str, object]]:
    return [r for p in sorted(table.rglob("*.parquet")) for r in pq.ParquetFile(p).read().to_pylist()]


# -- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_even_and_groups_stay_together_across_shards() -> None:
    counts = Counter(fold_of(0, 4, "s", f"k{i}") for i in range(8000))
    assert set(counts) == set(range(4)) and all(abs(c - 2000) < 200 for c in counts.values())
    assert all(fold_of(0, 4, "a", f"{i}", "g") == fold_of(0, 4, "b", "x", "g") for i in range(20))
    assert fold_of(0, 2**62, "s", "k") != fold_of(1, 2**62, "s", "k") != fold_of(1, 2**62, "t", "k")


def test_a_fraction_takes_about_that_share() -> None:
    rule = FoldRule(mode="fraction", folds=1, fraction=0.1)
    assert abs(sum(rule("s", f"k{i}", None) for i in range(10_000)) - 1000) < 120


def test_the_fold_of_a_known_sample_never_changes() -> None:
    assert [fold_of(0, 100, "shard", "key"), fold_of(7, 100, "", "", "group")] == [59, 7]


def test_copies_are_scored_by_the_model_that_saw_neither_them_nor_their_original(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    compute_il([str(shards)], str(model), str(tmp_path / "t"), keep={"duplicate_of": "str"})
    table = rows(tmp_path / "t")
    fold = {r["key"]: r["fold"] for r in table}
    copies = [r for r in table if r["duplicate_of"] is not None]
    assert len(copies) == 60 and all(fold[r["key"]] == fold[r["duplicate_of"]] for r in copies)
    assert set(fold.values()) == {0, 1}


# -- the model -------------------------------------------------------------------------------------------------------


def test_the_model_records_its_making_and_its_cost(shards: Path, model: Path) -> None:
    info = load_il_model(str(model)).info
    assert (info.classes, info.preprocess["image_size"], info.preprocess["channels"]) == (CLASSES, SIZE, 1)
    assert sum(f["val_samples"] for f in info.folds) == SHARDS * ROWS
    assert info.cost["fit_samples"] == 2 * sum(f["train_samples"] for f in info.folds) == 2 * SHARDS * ROWS
    for fold in info.folds:
        best = min(fold["curve"], key=lambda at: at["val_loss"])
        assert (fold["val_loss"], fold["best_epoch"]) == (best["val_loss"], best["epoch"])
    assert info.accuracy > 0.5 and len(info.learned_from) == SHARDS and info.cost["macs"] > 0


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(shards: Path, tmp_path: Path) -> None:
    made = [
        fit_il(
            [str(shards)],
            str(tmp_path / f"{w}"),
            model="mlp-64",
            group_by="duplicate_of",
            epochs=1,
            fit_samples=100,
            workers=w,
            augment="shift-flip",
        )
        for w in (0, 2)
    ]
    other = fit_il(
        [str(shards)], str(tmp_path / "s"), model="mlp-64", group_by="duplicate_of", epochs=1, fit_samples=100, seed=1
    )
    assert [f["sha256"] for f in made[0].folds] == [f["sha256"] for f in made[1].folds]
    assert made[0].folds[0]["sha256"] != other.folds[0]["sha256"]
    assert sum(f["val_samples"] for f in made[0].folds) == 100


def test_a_complete_model_is_not_made_again_and_another_setting_is_refused(shards: Path, model: Path) -> None:
    before = (model / "model.json").stat().st_mtime_ns
    options = {"model": "mlp-64", "group_by": "duplicate_of", "epochs": 2, "lr": 3e-3}
    fit_il([str(shards)], str(model), **options)  # type: ignore[arg-type]
    assert (model / "model.json").stat().st_mtime_ns == before
    with pytest.raises(MismatchError, match="epochs 2, this job has 3"):
        fit_il([str(shards)], str(model), **options | {"epochs": 3})  # type: ignore[arg-type]


def test_copies_without_a_group_are_warned_of_once(shards: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="60 samples are marked as duplicates") as caught:
        fit_il([str(shards)], str(tmp_path / "m"), model="mlp-64", epochs=1)
    assert len(caught) == 1


def test_a_sparse_set_of_labels_asks_for_the_number_of_classes() -> None:
    assert count_classes(torch.tensor([0, 3, 9])) == 10
    with pytest.raises(UsageError, match=r"largest label is 9,999.*--classes"):
        count_classes(torch.tensor([0, 1, 2, 9999]))


def test_damaged_weights_are_named(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "m")
    data = bytearray((copy / "fold-1.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "fold-1.safetensors").write_bytes(data)
    with pytest.raises(TableError, match=r"fold-1\.safetensors.*sha256"):
        load_il_model(str(copy))


@pytest.mark.parametrize("how", ["fraction", "holdout"])
def test_rows_that_the_model_learned_from_are_flagged(shards: Path, tmp_path: Path, how: str) -> None:
    data = [str(shards / f"train-{i:03d}.tar") for i in range(SHARDS)]
    chosen = {"holdout": data[:1]} if how == "holdout" else {"holdout_fraction": 0.3}
    fit_il(data, str(tmp_path / "m"), model="mlp-64", epochs=1, group_by="duplicate_of", **chosen)  # type: ignore[arg-type]
    assert (tmp_path / "m" / "weights.safetensors").exists()
    compute_il(data, str(tmp_path / "m"), str(tmp_path / "t"))
    flagged = [r["in_holdout"] for r in rows(tmp_path / "t")]
    assert all(r["il"] is not None and r["fold"] == 0 for r in rows(tmp_path / "t"))
    if how == "holdout":
        assert flagged == [True] * ROWS + [False] * ROWS * (SHARDS - 1)
    else:
        assert 0.15 < np.mean(flagged) < 0.45
        assert load_il_model(str(tmp_path / "m")).info.folds[0]["train_samples"] == sum(flagged)


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-64", "small-cnn"])
def test_il_equals_that_of_a_plain_loop_over_tarfile_and_pillow(shards: Path, tmp_path: Path, name: str) -> None:
    fit_il([str(shards)], str(tmp_path / "m"), model=name, group_by="duplicate_of", epochs=1, fit_samples=80)
    compute_il([str(shards)], str(tmp_path / "m"), str(tmp_path / "t"), keep=KEEP)
    images, expected = [], []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for key in sorted({file.split(".")[0] for file in files}):
            record = json.loads(files[f"{key}.json"])
            fold = fold_of(0, 2, "", "", record["duplicate_of"] or key)
            images.append(np.array(Image.open(io.BytesIO(files[f"{key}.png"]))))
            expected.append((key, int(files[f"{key}.cls"]), fold, record["is_noisy"], record["n"]))
    x = (torch.from_numpy(np.stack(images)).float()[:, None] / 255 - 0.5) / 0.5
    fold_B, label_B = (torch.tensor([e[i] for e in expected]) for i in (2, 1))
    logits_B = torch.empty(len(expected), CLASSES)
    for fold in range(2):
        network = models.build(name, image_size=SIZE, channels=1, classes=CLASSES)
        network.load_state_dict(load_file(tmp_path / "m" / f"fold-{fold}.safetensors"))
        with torch.no_grad():
            logits_B[fold_B == fold] = network.eval()(x[fold_B == fold])
    table = rows(tmp_path / "t")
    assert [(r["key"], r["label"], r["fold"], r["is_noisy"], r["n"]) for r in table] == expected
    assert [r["predicted"] for r in table] == logits_B.argmax(1).tolist()
    loss_B = torch.nn.functional.cross_entropy(logits_B, label_B, reduction="none")
    np.testing.assert_allclose([r["il"] for r in table], loss_B, atol=1e-5)


def test_workers_change_no_byte_of_a_part(shards: Path, model: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 2):
        compute_il([str(shards)], str(model), str(tmp_path / f"{workers}"), workers=workers)
    assert len(parts(tmp_path / "0")) == SHARDS
    assert parts(tmp_path / "0") == parts(tmp_path / "1") == parts(tmp_path / "2")


def test_a_second_run_makes_only_what_is_missing(shards: Path, model: Path, tmp_path: Path) -> None:
    data = [str(shards / f"train-{i:03d}.tar") for i in range(SHARDS)]
    first = compute_il(data[:3], str(model), str(tmp_path))
    longer = compute_il(data, str(model), str(tmp_path))
    before = parts(tmp_path)
    (next(tmp_path.rglob("train-001.tar.parquet"))).unlink()
    again = compute_il(data, str(model), str(tmp_path))
    assert [(s.made, s.present, s.samples) for s in (first, longer, again)] == [(3, 0, 180), (2, 3, 300), (1, 4, 300)]
    assert parts(tmp_path) == before and again.scored == ROWS


def test_a_job_killed_midway_and_run_again_leaves_the_same_bytes(model: Path, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "many", shards=12, rows=200)
    program = (
        f"from rhostream.irreducible import compute_il\n"
        f"compute_il([{str(folder)!r}], {str(model)!r}, {str(tmp_path / 'killed')!r})"
    )
    there = os.environ | {"PYTHONPATH": ".", "RHOSTREAM_CRASH_POINT": "compute-il: part committed@3"}
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=there, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert 0 < len(parts(tmp_path / "killed")) < 12
    compute_il([str(folder)], str(model), str(tmp_path / "killed"))
    compute_il([str(folder)], str(model), str(tmp_path / "whole"))
    assert parts(tmp_path / "killed") == parts(tmp_path / "whole")


def test_bad_samples_are_rows_without_il_and_the_part_keeps_its_laws(model: Path, tmp_path: Path) -> None:
    path, statuses = hostile_shard(tmp_path / "a.tar")
    summary = compute_il([str(path)], str(model), str(tmp_path / "t"), keep={"n": "int"}, max_bad_fraction=1)
    table = rows(tmp_path / "t")
    # This model has 4 classes, the hostile shard is made for 14.
    expected = [
        "label:range" if k == "label-in-json" or k == "newline-label" else s
        for k, s in zip([*HOSTILE, "twice", "twice", "good"], statuses, strict=True)
    ]
    assert [r["status"] for r in table] == expected
    assert all((r["il"] is None) == (r["status"] != "ok") == (r["predicted"] is None) for r in table)
    assert summary.quarantined == {k: v for k, v in Counter(expected).items() if k != "ok"}
    assert summary.samples == summary.ok + sum(summary.quarantined.values()) == len(table)
    assert summary.members_seen == summary.members_used + summary.members_ignored
    part = il.read_part(next(str(p) for p in (tmp_path / "t").rglob("*.parquet")))
    assert int(part.usable.sum()) == summary.ok


def test_too_many_bad_samples_stop_the_job_and_the_shard_gets_no_part(model: Path, tmp_path: Path) -> None:
    members = [
        (f"{i}.{e}", d) for i in range(50) for e, d in (("png", sample(i, 0) if i >= 11 else b"x"), ("cls", b"0"))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(BudgetError, match=r"a\.tar: 11 of 50 samples.*decode:not_an_image 11; first: '0'"):
        compute_il([str(path)], str(model), str(tmp_path / "t"))
    assert not parts(tmp_path / "t")
    assert compute_il([str(path)], str(model), str(tmp_path / "t"), max_bad_fraction=0.3).ok == 39


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_bad_shard_is_named_and_the_others_go_on(shards: Path, model: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    bad = folder / "train-001.tar"
    data = bytearray(bad.read_bytes())
    bad.write_bytes(data[: 1024 * 20] if damage == "cut" else data[:5120] + b"\xff" * 5120 + data[10240:])
    summary = compute_il([str(folder)], str(model), str(tmp_path / "t"))
    with pytest.raises(ShardError):
        compute_il([str(folder)], str(model), str(tmp_path / "t2"), fail_fast=True)
    assert list(summary.bad_shards) == [str(bad)] and summary.made == SHARDS - 1 == len(parts(tmp_path / "t"))
    assert len(parts(tmp_path / "t2")) == 1


def test_two_models_never_mix_in_one_table(shards: Path, model: Path, tmp_path: Path) -> None:
    compute_il([str(shards)], str(model), str(tmp_path / "t"))
    fit_il([str(shards)], str(tmp_path / "m"), model="mlp-64", group_by="duplicate_of", epochs=1, seed=3)
    with pytest.raises(MismatchError, match=r"fingerprint \w+ != \w+: split, weights differ"):
        compute_il([str(shards)], str(tmp_path / "m"), str(tmp_path / "t"))


def test_a_shard_that_changed_after_it_was_scored_is_named(shards: Path, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    compute_il([str(folder)], str(model), str(tmp_path / "t"))
    with (folder / "train-002.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(MismatchError, match=r"train-002\.tar"):
        compute_il([str(folder)], str(model), str(tmp_path / "t"))


def test_shards_that_moved_are_the_same_shards_by_their_root(shards: Path, tmp_path: Path) -> None:
    there, here = {"data": str(shards)}, {"data": str(tmp_path / "moved")}
    fit_il([str(shards)], str(tmp_path / "m"), model="mlp-64", group_by="duplicate_of", epochs=1, roots=there)
    compute_il([str(shards)], str(tmp_path / "m"), str(tmp_path / "t"), roots=there)
    shutil.copytree(shards, tmp_path / "moved")
    again = compute_il([str(tmp_path / "moved")], str(tmp_path / "m"), str(tmp_path / "t"), roots=here)
    assert (again.made, again.present) == (0, SHARDS)


def test_shards_under_names_that_fitting_never_saw_are_warned_of(shards: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="duplicate"):
        fit_il([str(shards)], str(tmp_path / "m"), model="mlp-64", epochs=1)
    with pytest.warns(UserWarning, match="none of these shards was seen by fit-il"):
        compute_il([str(shards)], str(tmp_path / "m"), str(tmp_path / "t"), roots={"other": str(shards)})


def test_a_loss_that_is_not_finite_is_a_status_and_never_an_il(shards: Path, model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "m")
    state = load_file(copy / "fold-0.safetensors")
    name = next(reversed(state))
    state[name] = state[name] * torch.inf
    save_file(state, copy / "fold-0.safetensors")
    info = json.loads((copy / "model.json").read_text())
    info["folds"][0]["sha256"] = hashlib.sha256((copy / "fold-0.safetensors").read_bytes()).hexdigest()
    (copy / "model.json").write_text(json.dumps(info))
    summary = compute_il([str(shards)], str(copy), str(tmp_path / "t"), max_bad_fraction=1)
    table = rows(tmp_path / "t")
    assert summary.quarantined == {"nonfinite": sum(r["fold"] == 0 or r["il"] is None for r in table)}
    assert all((r["il"] is None) == (r["status"] == "nonfinite") for r in table) and summary.ok > 0


def test_an_index_is_the_same_table_but_for_il(shards: Path, model: Path, tmp_path: Path) -> None:
    compute_il([str(shards)], str(model), str(tmp_path / "il"), keep=KEEP)
    index([str(shards)], str(tmp_path / "index"), keep=KEEP)
    blank = {"il": None, "predicted": None, "fold": None}
    assert [r | blank for r in rows(tmp_path / "il")] == rows(tmp_path / "index")
    assert il.open_info(str(tmp_path / "index")).kind == "index"
    assert sum(il.read_part_facts(str(p)).il_rows for p in (tmp_path / "index").rglob("*.parquet")) == 0


def test_an_empty_shard_has_a_part_without_rows_and_a_warning(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [])
    with pytest.warns(UserWarning, match="holds no sample"):
        summary = index([str(path)], str(tmp_path / "t"))
    assert (summary.made, summary.samples) == (1, 0) and rows(tmp_path / "t") == []


def test_a_place_that_cannot_be_written_is_refused_before_any_work(shards: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritableError):
        compute_il([str(shards)], str(model), str(tmp_path / "file" / "t"))
    with pytest.raises(NotWritableError):
        fit_il([str(shards)], str(tmp_path / "file" / "m"), model="mlp-64")


def test_a_part_has_the_columns_that_the_table_promises(shards: Path, model: Path, tmp_path: Path) -> None:
    compute_il([str(shards / "train-000.tar")], str(model), str(tmp_path), keep=KEEP)
    schema = pq.read_schema(next(tmp_path.rglob("*.parquet"))).remove_metadata()
    assert schema == pa.schema([*il.SCHEMA, ("is_noisy", pa.bool_()), ("n", pa.int64())])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_il_of_a_certain_prediction_is_stored_as_zero_without_a_sign(dtype: str) -> None:
    loss = torch.nn.functional.cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([0]), reduction="none").numpy()
    assert np.signbit(loss).all()  # as torch gives it
    stored = il.stored_il(np.array([*loss, -1e-12, 0.25, np.nan], np.float32), dtype)
    assert stored.dtype == dtype and not np.signbit(stored[0]) and stored[0] == 0
    assert not np.signbit(stored[1]) or dtype == "float32"
    assert stored[2] == 0.25 and np.isnan(stored[3])
