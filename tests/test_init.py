"""`rhostream init`: what lies in a folder or in shards, what a cross-fit says of it, and commands that run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhostream import storage
from rhostream.config import ComputeILConfig, FitILConfig, ShardsConfig, TrainConfig
from rhostream.config.files import read_config
from rhostream.guide import look
from rhostream.guide.figures import BOTH, RHO, UNIFORM, Figures, advice, figures, warnings, wilson
from rhostream.guide.judge import FOLDS, Judged, judge, speed_of
from rhostream.making.sizes import sizes_for
from rhostream.samples.image import ImageKind
from tests.support.command import command
from tests.support.folders import NAMES, photographs
from tests.support.img2dataset import sample_rows, write_folder
from tests.support.made_worlds import SIDE, pictures
from tests.support.shards import make_shards

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS: dict[str, type[Any]] = {
    "shards": ShardsConfig, "fit-il": FitILConfig, "compute-il": ComputeILConfig, "train": TrainConfig,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 colour photographs of three classes, one of which can't be read, in a folder whose name has a blank."""
    root = photographs(tmp_path_factory.mktemp("init") / "my photos", NAMES[:3], 24, seed=5)
    (root / "boot" / "page one.jpg").write_bytes(b"<html>")
    shutil.copy(root / "boot" / "000.jpg", root / "boot" / "again.jpg")
    shutil.copy(root / "boot" / "000.jpg", root / "coat" / "other.jpg")
    return root


def asked(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    out, _ = command(capsys, "init", *words, "--seconds", 0, "--json", code=code)
    return dict(json.loads(out))


# -- what is there -----------------------------------------------------------------------------------------------------


def test_a_folder_of_images_is_counted_measured_and_its_bad_files_and_copies_are_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = asked(capsys, photos)["facts"]
    assert facts["classes"] == {"boot": 26, "coat": 25, "sandal": 24} and facts["samples"] == facts["looked"] == 75
    (bad,) = facts["bad"]
    assert (bad["status"], bad["samples"]) == ("decode:not_an_image", 1) and bad["first"][0].startswith("boot/page one")
    assert any("2 files with the same bytes" in note for note in facts["notes"])
    assert any("1 of these with another label" in note for note in facts["notes"])
    assert facts["sizes"][0]["least"] >= 20 and facts["sizes"][0]["most"] < 60
    text, _ = command(capsys, "init", photos, "--seconds", 0)
    assert "3: boot 26" in text and "not asked: --seconds 0" in text and "rhostream shards" in text


def test_a_large_folder_is_looked_at_in_part_and_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = asked(capsys, photos, "--samples", 20)["facts"]
    assert facts["samples"] == 75 and facts["looked"] == 20 and sum(facts["classes"].values()) == 75
    assert "20 samples, drawn by chance" in command(capsys, "init", photos, "--seconds", 0, "--samples", 20)[0]


def test_subfolders_that_are_sets_become_two_commands_and_a_list_of_labels_one(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test"):
        shutil.copytree(photos, tmp_path / "sets" / name)
    found = asked(capsys, tmp_path / "sets")
    first, second = (one["line"].replace("\\\n", "") for one in found["plan"]["commands"][:2])
    assert shlex.split(first)[2] == str(tmp_path / "sets" / "train") and "--test-fraction 0.0" in first
    assert "--split test" in second and "--classes-from data" in second
    assert found["facts"]["test_samples"] == 75 and found["plan"]["train_samples"] == 75
    flat = tmp_path / "listed"
    (flat / "images").mkdir(parents=True)
    lines = ["file,label"]
    for number, path in enumerate(sorted((photos / "coat").iterdir())):
        shutil.copy(path, flat / "images" / f"{number}.jpg")
        lines.append(f"images/{number}.jpg,{'even' if number % 2 == 0 else 'odd'}")
    (flat / "labels.csv").write_text("\n".join(lines))
    found = asked(capsys, flat)
    assert found["facts"]["classes"] == {"even": 13, "odd": 12}
    assert found["plan"]["commands"][0]["config"]["labels"] == str(flat / "labels.csv")


def test_shards_a_test_set_by_their_names_pairs_and_token_ids_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_shards(tmp_path / "tars", [60, 40, 30])
    made[2].rename(tmp_path / "tars" / "test-000000.tar")
    found = asked(capsys, tmp_path / "tars")
    facts, commands = found["facts"], {one["verb"]: one["config"] for one in found["plan"]["commands"] if one["name"]}
    assert (facts["samples"], facts["shards"], facts["test_shards"], facts["counted"]) == (100, 2, 1, True)
    assert commands["train"]["test_shards"] == [str(tmp_path / "tars" / "test-*.tar")] and "shards" not in commands
    assert [path for url in commands["fit-il"]["shards"] for path in storage.expand([url])] == [*map(str, made[:2])]
    write_folder(tmp_path / "laion", sample_rows(40), samples_per_shard=20)
    found = asked(capsys, tmp_path / "laion")
    pairs = {one["verb"]: one["config"] for one in found["plan"]["commands"] if one["name"]}
    assert (pairs["fit-il"]["content"], pairs["fit-il"]["model"]) == ("pair", "pair-small")
    assert pairs["train"]["loss"] == "siglip"
    ids = np.random.default_rng(0).integers(0, 40_000, 20_000).astype("<u2")
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / "a_train.bin").write_bytes(ids.tobytes())
    found = asked(capsys, tmp_path / "ids")
    tokens = next(one["config"] for one in found["plan"]["commands"] if one["verb"] == "fit-il")
    assert (tokens["tokenizer"], tokens["text_length"], tokens["model"]) == ("ids:50257", 1024, "text-lm")
    assert found["facts"]["samples"] == 19


# -- what is written ---------------------------------------------------------------------------------------------------


def test_config_files_are_what_config_reads_and_nothing_that_exists_is_replaced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "first run"
    text, _ = command(capsys, "init", photos, "--out", out, "--seconds", 0)
    assert sorted(path.name for path in out.iterdir()) == [
        "compute-il.toml", "fit-il.toml", "run.sh", "shards.toml", "train.toml",
    ]  # fmt: skip
    assert f"Written: {out / 'run.sh'}" in text and os.access(out / "run.sh", os.X_OK)
    for verb, config in CONFIGS.items():
        values = read_config(str(out / f"{verb}.toml"), config)
        assert config(**values, **({"run": "r"} if verb == "train" else {}))
    assert read_config(str(out / "shards.toml"), ShardsConfig)["folder"] == str(photos)
    script = (out / "run.sh").read_text()
    assert 'cd "$(dirname "$0")"' in script and script.index("runs/rho") < script.index("--against runs/uniform")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert "nothing is replaced" in command(capsys, "init", photos, "--out", out, "--seconds", 0, code=2)[1]
    (out / "run.sh").unlink()
    assert "shards.toml" in (err := command(capsys, "init", photos, "--out", out, "--seconds", 0, code=2)[1]) or err
    assert {path: path.read_bytes() for path in out.iterdir()} == {p: b for p, b in before.items() if p.exists()}


@pytest.mark.slow
def test_the_commands_of_a_script_train_both_runs_and_compare_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "boot" / "page one.jpg").rename(tmp_path / "page one.jpg")  # so that every image can be used
    try:
        command(capsys, "init", photos, "--out", tmp_path / "go", "--seconds", 0)
        monkeypatch.chdir(tmp_path / "go")
        (tmp_path / "go" / "train.toml").write_text(
            (tmp_path / "go" / "train.toml")
            .read_text()
            .replace("small-cnn", "mlp-64")
            .replace("passes = 20", "passes = 2")
        )
        fit = (tmp_path / "go" / "fit-il.toml").read_text()
        (tmp_path / "go" / "fit-il.toml").write_text(fit.replace("small-cnn", "mlp-64").replace("= 10", "= 1"))
        for line in (tmp_path / "go" / "run.sh").read_text().splitlines():
            if line.startswith("rhostream "):
                command(capsys, *shlex.split(line)[1:])
    finally:
        (tmp_path / "page one.jpg").rename(photos / "boot" / "page one.jpg")
    assert (tmp_path / "go" / "report.html").stat().st_size > 10_000
    rows = command(capsys, "sql", "runs/rho", "select count(*) n from selections where kept", "--format", "csv")[0]
    assert int(rows.split()[1]) > 0


def test_settings_suit_the_number_of_samples() -> None:
    for samples in (1, 50, 500, 6399, 6400, 1_000_000):
        sizes = sizes_for(samples)
        assert sizes.batch_size * 10 == sizes.buffer_size <= 320 and 1 <= sizes.passes <= 20 and sizes.steps >= 1
    assert sizes_for(1_000_000).passes == 1 and sizes_for(500).buffer_size == 40


# -- what can't be begun with ------------------------------------------------------------------------------------------


def test_each_place_that_is_no_data_is_one_sentence(
    photos: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed" / "a").mkdir(parents=True)
    shutil.copy(photos / "coat" / "000.jpg", tmp_path / "mixed" / "a" / "0.jpg")
    make_shards(tmp_path / "mixed", [3])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("words")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "loose").mkdir()
    shutil.copy(photos / "coat" / "000.jpg", tmp_path / "loose" / "0.jpg")
    (tmp_path / "notes.md").write_text("x")
    for place, word in {
        tmp_path / "empty": "is empty",
        tmp_path / "mixed": "1 images, such as a/0.jpg; 1 tar shards, such as",
        tmp_path / "texts": "1 .txt",
        tmp_path / "loose": "no subfolders",
        world / "il": "a table of compute-il",
        world / "il-model": "an IL model",
        tmp_path / "run": "is a run",
        photos / "coat" / "000.jpg": "is one image",
        tmp_path / "notes.md": "neither a tar shard",
        tmp_path / "gone": "isn't there",
    }.items():
        _, err = command(capsys, "init", place, "--seconds", 0, code=2)
        assert word in err and len([line for line in err.splitlines() if line.startswith("usage")]) == 1, (place, err)
    assert "FOLDER|SHARDS" in command(capsys, "init", code=2)[1]
    (tmp_path / "cut.tar").write_bytes(b"no tar at all")
    assert "end marker missing" in command(capsys, "init", tmp_path / "cut.tar", "--seconds", 0, code=3)[1]
    assert "one folder of images at a time" in command(capsys, "init", photos, photos / "coat", code=2)[1]


def test_a_disk_that_is_too_small_is_told_before_a_file_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert "NOT ENOUGH" in command(capsys, "init", photos, "--seconds", 0)[0]
    assert "1.0 kB free" in command(capsys, "init", photos, "--seconds", 0, "--out", tmp_path / "out", code=2)[1]
    assert not (tmp_path / "out").exists()


def test_samples_that_are_mostly_bad_end_with_3_after_all_was_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(photos, tmp_path / "d")
    for number in range(30):
        (root / "coat" / f"bad {number}.jpg").write_bytes(b"<html>")
    facts = asked(capsys, root, code=3)["facts"]
    assert facts["bad"][0]["samples"] == 31 and len(facts["bad"][0]["first"]) == 3


# -- would an il separate anything -------------------------------------------------------------------------------------


def said(right: float, sure: float, n: int = 2000, classes: int = 4, seed: int = 0) -> Figures:
    """Figures of networks that are right in a share of the samples and give what they name a probability."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    named = np.where(rng.random(n) < right, label, (label + rng.integers(1, classes, n)) % classes)
    p = np.full((n, classes), (1 - sure) / (classes - 1))
    p[np.arange(n), named] = sure * rng.uniform(0.98, 1, n)
    return figures(np.log(p / p.sum(1, keepdims=True)), label)


def test_the_advice_follows_the_figures() -> None:
    assert advice(said(0.995, 0.98))[0] == UNIFORM and "little to gain" in advice(said(0.995, 0.98))[1]
    assert advice(said(0.6, 0.6))[0] == RHO
    assert advice(said(0.25, 0.26))[0] == UNIFORM and "nothing can be learned" in advice(said(0.25, 0.26))[1]
    few = warnings(said(0.9, 0.9, n=300, classes=20))
    assert len(few) == 2 and "2,000" in few[0] and "15 samples a class" in few[1]


def test_an_interval_holds_the_share_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.4):
        held = [wilson(int(rng.binomial(400, share)), 400) for _ in range(1000)]
        assert 0.92 < np.mean([one.low <= share <= one.high for one in held]) < 0.98
    assert wilson(0, 400).low == 0 < wilson(0, 400).high < 0.02


def test_what_is_wrong_where_networks_are_less_sure_is_taken_for_difficulty() -> None:
    rng, n = np.random.default_rng(0), 4000
    label, sure = rng.integers(2, size=n), np.linspace(0.99, 0.5, n)
    named = np.where(rng.random(n) < np.clip(1.5 * (1 - sure), 0, 1), 1 - label, label)
    p = np.empty((n, 2))
    p[np.arange(n), named], p[np.arange(n), 1 - named] = sure, 1 - sure
    found = figures(np.log(p), label)
    assert found.rising and advice(found)[0] == BOTH


def judged(n: int, seed: int, seconds: float, **world: float) -> tuple[Judged, float]:
    """What is said of a made world, and the share of its labels that are wrong."""
    fields, label, strange = pictures(n, seed=seed, **world)  # type: ignore[arg-type]
    kind = ImageKind(image_size=SIDE, channels=1)
    found = judge(fields, label, [("s", str(row)) for row in range(n)], {}, kind, model="mlp-64",
                  speed=speed_of(kind, "mlp-64", 6, 0.05), seconds=seconds, seed=seed)  # fmt: skip
    return found, float(strange.mean())


def test_too_few_samples_are_not_judged(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = command(capsys, "init", photos, "--seconds", 1, "--json")
    found = json.loads(out)["advice"]
    assert found["rule"] is None and "too few" in found["why"]


def test_copies_are_judged_by_a_network_that_has_seen_neither() -> None:
    fields, _, _ = pictures(90, seed=1)
    fields["pixels"][60:] = fields["pixels"][:30]
    from rhostream.guide.judge import _folds

    fold, copies = _folds(fields, 90, 0)
    assert copies == 30 and (fold[60:] == fold[:30]).all() and {*fold.tolist()} == {*range(FOLDS)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_made_worlds_are_told_apart_over_seeds_and_intervals_hold_the_truth() -> None:
    """Clean, 40 % and 10 % wrong, meaningless and ambiguous labels; five draws of each."""
    held = 0
    for seed in range(5):
        clean, _ = judged(2000, seed, 6)
        assert advice(clean.figures)[0] == UNIFORM and clean.figures.wrong.high < 0.03 and clean.figures.learnable
        for wrong in (0.1, 0.4):
            noisy, truth = judged(2000, seed, 6, wrong=wrong)
            assert advice(noisy.figures)[0] == RHO
            held += noisy.figures.wrong.low <= truth <= noisy.figures.wrong.high
        random, _ = judged(2000, seed, 6, wrong=5 / 6)
        assert not random.figures.learnable and "nothing can be learned" in advice(random.figures)[1]
        mixed, _ = judged(2000, seed, 6, overlap=0.5)
        assert advice(mixed.figures)[0] == BOTH and mixed.figures.wrong.high < 0.1
    assert held >= 8, f"{held} of 10 intervals hold the share of wrong labels"


@pytest.mark.slow
def test_init_of_a_folder_finds_its_wrong_labels_within_its_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photographs(tmp_path / "d", NAMES[:3], 200, seed=1)
    rng = np.random.default_rng(0)
    for name in NAMES[:3]:
        for path in sorted((root / name).iterdir())[:60]:  # 30 % go to another class
            other = NAMES[(NAMES.index(name) + int(rng.integers(1, 3))) % 3]
            path.rename(root / other / f"{name} {path.name}")
    found = json.loads(command(capsys, "init", root, "--seconds", 20, "--json")[0])
    wrong = found["facts"]["judged"]["figures"]["wrong"]
    assert wrong["low"] <= 0.3 <= wrong["high"] and found["advice"]["rule"] == RHO
    assert found["facts"]["judged"]["seconds"] < 60
    suspect = found["facts"]["judged"]["suspects"][0]
    assert (root / suspect["key"]).is_file() and suspect["label"] == suspect["key"].split("/")[0]


def test_a_shard_is_looked_into_for_no_more_than_its_share(tmp_path: Path) -> None:
    made = make_shards(tmp_path, [50, 50, 50])
    data = [(str(path), path.name) for path in made]
    seen = look.sample(data, ImageKind(image_size=16, channels=1), look.LabelFrom(), 30, 10.0, 0)
    assert seen.shards == 3 and not seen.whole and len(seen.key) == len(seen.label) == 30
