"""Ambiguous noise is a blend that says what it is made of; and what the command line offers for each recipe."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import rhostream
from rhostream.errors import UnknownNameError, UsageError
from shards import make as make_program
from shards.make import make
from shards.recipes import BASES, cifar10, cifar100, clothing1m, imagefolder, qmnist, web
from shards.sample import Sample, SampleSet, encode
from tests.support import recipe_sources as sources

CLASSES = 10


def base(count: int, *, size: tuple[int, int] = (6, 6), text: bool = False) -> SampleSet:
    """Class c is an even picture of grey 20 c + a little of the row's own."""
    labels = np.arange(count) % CLASSES

    def pixels(i: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.full(size, 20 * labels[i] + (i // CLASSES) % 10, np.uint8)

    def load(i: int) -> Sample:
        return Sample(key=f"k{i}", label=int(labels[i]), extension="png", content=encode(pixels(i), "png"), facts={})

    return SampleSet(split="train", labels=labels, class_names=tuple("abcdefghij"), load=load, pixels=pixels,
                     confused=((1, 5), (3, 5)))  # fmt: skip


def loaded(samples: SampleSet) -> list[Sample]:
    return [samples.load(i) for i in range(len(samples))]


def grey(sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(sample.content)))


def test_a_mixture_is_the_weighted_mean_of_two_images_of_confused_classes_and_says_so() -> None:
    plain = {s.key: grey(s).astype(float) for s in loaded(base(2000))}
    made = loaded(web.samples(base(2000), noise="ambiguous", copies=0, seed=1))
    mixed = [s for s in made if s.facts["ambiguous"]]
    # 1 and 3 are taken for 5; 5 has no pair of its own and gets the first one's.
    assert {(s.facts["true_label"], s.facts["second_label"]) for s in mixed} == {(1, 5), (3, 5), (5, 1)}
    assert len(mixed) == 600  # all of those classes: the default rate
    for sample in mixed:
        weight, partner = sample.facts["mix_weight"], sample.facts["mixed_with"]
        assert 0.5 <= weight <= 0.7 and int(partner[1:]) % CLASSES == sample.facts["second_label"]
        expected = np.round(weight * plain[sample.key] + (1 - weight) * plain[partner])
        assert np.abs(grey(sample) - expected).max() <= 1
        assert sample.label in (sample.facts["true_label"], sample.facts["second_label"])
        assert sample.facts["is_noisy"] == (sample.label != sample.facts["true_label"])
        assert sample.facts["noise_drawn"] and sample.facts["group"] == sample.key
    for sample in made:
        if not sample.facts["ambiguous"]:
            assert sample.label == sample.facts["true_label"] == int(sample.key[1:]) % CLASSES
            assert (sample.facts["second_label"], sample.facts["mixed_with"]) == (None, None)
            assert np.array_equal(grey(sample), plain[sample.key])


def test_the_label_of_a_mixture_is_drawn_by_its_weight() -> None:
    samples = web.samples(base(12_000, size=(1, 1)), noise="ambiguous", noise_rate=0.5, copies=0, seed=2)
    made = [s for s in loaded(samples) if s.facts["ambiguous"]]
    assert abs(len(made) - 1800) < 5 * np.sqrt(3600 * 0.25)
    weights = np.array([s.facts["mix_weight"] for s in made])
    kept = np.array([not s.facts["is_noisy"] for s in made])
    assert abs(kept.mean() - 0.6) < 5 * np.sqrt(0.24 / len(made))
    light, heavy = kept[weights < 0.55].mean(), kept[weights > 0.65].mean()
    assert abs(light - 0.525) < 0.1 and abs(heavy - 0.675) < 0.1


def test_a_copy_shows_its_originals_mixture_and_draws_its_own_label() -> None:
    made = {s.key: s for s in loaded(web.samples(base(1500, size=(1, 1)), noise="ambiguous", copies=1, seed=3))}
    pairs = [(s, made[s.facts["duplicate_of"]]) for s in made.values() if s.facts["duplicate_of"]]
    pairs = [(copy, original) for copy, original in pairs if original.facts["ambiguous"]]
    names = ("ambiguous", "second_label", "mix_weight", "mixed_with", "true_label", "group")
    assert all(copy.facts[name] == original.facts[name] for copy, original in pairs for name in names)
    assert 0.4 < np.mean([copy.label == original.label for copy, original in pairs]) < 0.6  # .6^2 + .4^2 = .52


def test_mixtures_are_made_of_the_set_alone_so_a_holdout_stays_unseen(tmp_path: Path) -> None:
    source = sources.cifar10_binary(tmp_path / "s")
    train = cifar10.samples(source=source, limit=70, seed=5)
    keys = {s.key for s in loaded(train)}
    mixed = [s for s in loaded(web.samples(train, noise="ambiguous", copies=0, seed=5)) if s.facts["ambiguous"]]
    assert mixed and {s.facts["mixed_with"] for s in mixed} <= keys
    again = loaded(web.samples(train, noise="ambiguous", copies=0, seed=5))
    assert {s.key: s.content for s in again if s.facts["ambiguous"]} == {s.key: s.content for s in mixed}


def test_images_of_other_sizes_and_colours_are_fitted_before_they_are_blended(tmp_path: Path) -> None:
    for name, size, mode in (("a", (30, 20), "RGB"), ("b", (10, 40), "L")):
        (tmp_path / "s" / name).mkdir(parents=True)
        Image.new(mode, size, 200 if mode == "L" else (100, 0, 0)).save(tmp_path / "s" / name / "x.png")
    samples = web.samples(imagefolder.samples(source=tmp_path / "s"), noise="ambiguous", confuse=[(0, 1)], copies=0)
    shapes = {s.facts["true_label"]: grey(s) for s in loaded(samples)}
    weights = {s.facts["true_label"]: s.facts["mix_weight"] for s in loaded(samples)}
    assert shapes[0].shape == (20, 30, 3) and shapes[1].shape == (40, 10)
    assert abs(float(shapes[0][0, 0, 0]) - (weights[0] * 100 + (1 - weights[0]) * 200)) <= 1


def test_ambiguous_noise_needs_pairs_that_are_there() -> None:
    few = base(10)
    with pytest.raises(UsageError, match=r"class 5 is to be mixed with class 9, of which there are no samples"):
        web.samples(base(9), noise="ambiguous", confuse=[(5, 9)], copies=0)
    with pytest.raises(UsageError, match="needs the classes that are confused"):
        web.samples(few, noise="ambiguous", confuse=[])
    with pytest.raises(UsageError, match=r"noise rate is 1\.1"):
        web.samples(few, noise="ambiguous", noise_rate=1.1)


@pytest.mark.parametrize("recipe", [qmnist, cifar10, cifar100])
def test_the_default_pairs_are_of_different_classes_one_a_class_and_none_both_ways(recipe: Any) -> None:
    pairs = recipe.CONFUSED
    classes = len(recipe.CLASS_NAMES)
    assert len(pairs) == 4 * classes // 10  # the four most confused of ten
    assert len({true for true, _ in pairs}) == len(pairs)
    assert all(0 <= a < classes and 0 <= b < classes and a != b and (b, a) not in pairs for a, b in pairs)


def test_structured_noise_flips_half_of_the_confused_classes_of_every_base(tmp_path: Path) -> None:
    source = sources.cifar10_binary(tmp_path / "s")
    made = loaded(web.samples(cifar10.samples(source=source), noise="structured", copies=0, seed=7))
    moved = {(s.facts["true_label"], s.label) for s in made if s.facts["is_noisy"]}
    assert moved and moved <= set(cifar10.CONFUSED)
    touched = [s for s in made if s.facts["true_label"] in (9, 3, 4, 0)]
    assert 0.25 < np.mean([s.facts["is_noisy"] for s in touched]) < 0.75
    sources.clothing1m(tmp_path / "c")
    assert clothing1m.samples(source=tmp_path / "c").confused  # its own labels show them


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folds_by_group_keep_a_writer_together(tmp_path: Path) -> None:
    sources.qmnist(tmp_path / "s", {"train": 120}, side=16)
    make("qmnist", tmp_path / "shards", source=tmp_path / "s", samples_per_shard=60)
    shards = [tmp_path / "shards"]
    rhostream.fit_il(shards, tmp_path / "il-model", model="mlp-256", group_by="group", epochs=1, workers=0)
    rhostream.compute_il(shards, tmp_path / "il-model", tmp_path / "il", keep={"group": "str"}, workers=0)
    rows = [row for part in sorted((tmp_path / "il").rglob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    folds: dict[str, set[int]] = {}
    for row in rows:
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(rows) == 120 and len(folds) == 24
    assert all(len(own) == 1 for own in folds.values()) and set.union(*folds.values()) == {0, 1}


# -- the command line ------------------------------------------------------------------------------------------------


def test_help_names_every_recipe_on_one_line_and_shows_an_option_where_it_belongs() -> None:
    run = CliRunner().invoke
    lines = run(make_program.main, ["--help"]).output.splitlines()
    for name in [*BASES, "web"]:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line) < 80 and not line.endswith("...")
    shown = {name: run(make_program.main, [name, "--help"]).output for name in [*BASES, "web"]}
    for flag, owners in (("--noise-level", {"cifar10n"}), ("--others-share", {"cifar100-relevance"}),
                         ("--noise-rate", {"web"}), ("--base", {"web"}), ("--labels", {"cifar10n"})):  # fmt: skip
        assert {name for name, text in shown.items() if f"{flag} " in text} == owners
    assert all("--split" in text and "--seed" in text and "--skip" in text for text in shown.values())


def test_the_command_line_passes_a_recipes_own_options_and_those_of_a_base(tmp_path: Path) -> None:
    run = CliRunner().invoke
    source = sources.cifar10_sheets(tmp_path / "s")
    labels = tmp_path / "CIFAR-N.zip"
    labels.write_bytes(sources.human_zip(sources.human_labels()))
    common = ["--source", str(source), "--labels", str(labels)]
    done = run(make_program.main, ["cifar10n", *common, "--noise-level", "worse", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0 and "40 (40.0%) wrong" in done.stdout, done.output
    web_common = ["web", "--base", "cifar10n", "--source", str(source), "--copies", "0", "--noise", "none"]
    given = [*web_common, "--set", f"labels={labels}", "--set", "noise-level=aggre"]
    done = run(make_program.main, [*given, "--out", str(tmp_path / "b")])
    assert done.exit_code == 0 and "9 (9.0%) wrong" in done.stdout, done.output
    for value, message in (("noise-level=loud", "'loud' is not one of"), ("nosie=1", "cifar10n has no option 'nosie'"),
                           ("noise-level", "expected NAME=VALUE"),
                           ("require-checksums=x", "not a valid boolean")):  # fmt: skip
        refused = run(make_program.main, [*web_common, "--set", value, "--out", str(tmp_path / "c")])
        assert refused.exit_code == 2 and message in refused.stderr, refused.output
    insist = ["cifar10", "--source", str(source), "--require-checksums"]
    strict = run(make_program.main, [*insist, "--out", str(tmp_path / "d")])
    assert strict.exit_code == 2 and "is not the published file" in strict.stderr
    assert not (tmp_path / "c").exists() and not (tmp_path / "d").exists()
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        member = tar.extractfile("cifar10-train-0000000.json")
        assert member is not None and json.load(member)["noise_level"] == "worse"


def test_an_option_that_a_recipe_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown option of cifar10 'noise_rate'"):
        make("cifar10", tmp_path, noise_rate=0.1)
    with pytest.raises(UnknownNameError, match="unknown option of cifar10n 'noise_levle'; did you mean 'noise_level'"):
        make("web", tmp_path, base="cifar10n", noise_levle="worse")


def test_the_page_of_recipes_names_every_recipe_split_option_and_pair() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    page = "".join((docs / name).read_text(encoding="utf-8") for name in ("recipes.md", "recipes-made.md"))
    for name, recipe in BASES.items():
        assert f"`{name}`" in page, name
        assert all(f"--{option.name.replace('_', '-')}" in page for option in recipe.options), name
    for recipe, pairs in ((qmnist, "3:5, 9:7, 4:9, 2:5"), (cifar10, "9:1, 3:5, 4:7, 0:8")):
        assert ", ".join(f"{a}:{b}" for a, b in recipe.CONFUSED) == pairs and pairs in page
    for split in (*qmnist.SPLITS, *clothing1m.LISTS):
        assert split in page
