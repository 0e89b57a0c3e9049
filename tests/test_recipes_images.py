"""The recipes of image sets, each on a small copy of the files that its authors give out, and on broken ones."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rhostream.errors import UnknownNameError, UsageError
from shards.check import check
from shards.key_lists import read_key_list, read_label_file
from shards.make import make
from shards.recipes import (
    BASES,
    cifar10,
    cifar10n,
    cifar100,
    cifar100_relevance,
    cinic10,
    clothing1m,
    qmnist,
)
from shards.sample import Sample, SampleSet
from tests.support import recipe_sources as sources

LAYOUTS = sorted(sources.CIFAR10_LAYOUTS)


def loaded(samples: SampleSet) -> list[Sample]:
    return [samples.load(i) for i in range(len(samples))]


def image(sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(sample.content)))


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_three_layouts_of_cifar10_make_the_same_shards_and_the_pixels_are_the_originals(tmp_path: Path) -> None:
    for layout, write in sources.CIFAR10_LAYOUTS.items():
        source = write(tmp_path / "source" / layout)
        for split in ("train", "test"):
            summary = make("cifar10", tmp_path / layout, source=source, split=split, samples_per_shard=40)
        assert summary.samples == 20
    assert tars(tmp_path / "python") == tars(tmp_path / "binary") == tars(tmp_path / "sheets")
    assert check([tmp_path / "python"], expect_samples=120).ok
    found = loaded(cifar10.samples(source=tmp_path / "source" / "python"))
    assert np.array_equal(np.stack([image(s) for s in found]), sources.TRAIN)
    assert [s.label for s in found] == sources.TRAIN_LABELS.tolist()
    assert found[12].key == "cifar10-train-0000012" and found[12].facts == {
        "true_label": found[12].label,
        "class_name": sources.CIFAR10_CLASSES[found[12].label],
        "index": 12,
        "group": "cifar10-train-0000012",
    }
    assert found[7].facts["group"] == found[3].key  # the same pixels


def test_an_unpacked_archive_is_found_in_its_own_folder(tmp_path: Path) -> None:
    sources.cifar10_python(tmp_path / "cifar-10-batches-py")
    assert len(cifar10.samples(source=tmp_path, split="test")) == 20


def test_a_holdout_by_skip_is_disjoint_and_clean_while_the_rest_is_noisy(tmp_path: Path) -> None:
    source = sources.cifar10_binary(tmp_path / "source")
    noisy = make("web", tmp_path / "d", base="cifar10", source=source, limit=60, seed=3, copies=0, noise_rate=0.9)
    clean = make("cifar10", tmp_path / "ho", source=source, skip=60, seed=3)
    assert (noisy.samples, clean.samples, clean.wrong) == (60, 40, 0) and noisy.wrong > 30
    train = {s.facts["index"] for s in loaded(cifar10.samples(source=source, limit=60, seed=3))}
    holdout = {s.facts["index"] for s in loaded(cifar10.samples(source=source, skip=60, seed=3))}
    assert not train & holdout and train | holdout == set(range(100))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["missing", "cut", "empty", "huge label"])
def test_a_broken_file_of_cifar10_is_named(layout: str, what: str, tmp_path: Path) -> None:
    source = sources.CIFAR10_LAYOUTS[layout](tmp_path / "source")
    path = source / {"python": "data_batch_3", "binary": "data_batch_3.bin", "sheets": "data_batch_3.png"}[layout]
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "empty":
        path.write_bytes(b"")
    elif layout == "binary":
        path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    elif layout == "python":
        record = {"labels": [10] * 20, "data": sources.planes(sources.TRAIN[:20])}
        path.write_bytes(sources.old_pickle(record))
    else:
        path = source / "train_lables.json"
        path.write_text(json.dumps([10] * 100))
    with pytest.raises(UsageError, match=path.name) as refused:
        cifar10.samples(source=source)
    expected = {"missing": "does not exist; unpack", "huge label": "label 10 found, expected 0 to 9"}
    assert expected.get(what, "") in str(refused.value)


def test_what_is_wrong_inside_a_batch_is_said(tmp_path: Path) -> None:
    source = sources.cifar10_python(tmp_path / "source")
    data = sources.planes(sources.TRAIN[:20])
    for record, message in (
        ({"labels": [1] * 20}, "holds no field 'data'"),
        ({"labels": [1] * 20, "data": data[:, :3000]}, r"data is uint8 of shape \(20, 3000\), expected uint8 of shape"),
        ({"labels": [1] * 19, "data": data}, "20 images and 19 labels"),
        ({"labels": b"1" * 20, "data": data}, "labels is not a list of integers"),
        ({"labels": [-1] * 20, "data": data}, "label -1 found"),
        ({"labels": ["1"] * 20, "data": data}, "labels is not a list of integers"),
    ):
        (source / "data_batch_2").write_bytes(sources.old_pickle(record))
        with pytest.raises(UsageError, match=message):
            cifar10.samples(source=source)
    (source / "data_batch_2").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match=r"data_batch_2 is a pickle that asks for os\.system"):
        cifar10.samples(source=source)
    shutil.rmtree(source)
    sources.cifar10_python(source)
    (source / "batches.meta").write_bytes(sources.old_pickle({"label_names": ["cat", *sources.CIFAR10_CLASSES[1:]]}))
    with pytest.raises(UsageError, match=r"names its classes cat, automobile, bird.*, expected airplane"):
        cifar10.samples(source=source)


def test_a_sheet_of_another_size_or_colour_and_labels_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    source = sources.cifar10_sheets(tmp_path / "source")
    good = (source / "test_batch.png").read_bytes()
    for size, mode in (((1000, 20), "RGB"), ((1024, 20), "L")):
        Image.new(mode, size).save(source / "test_batch.png")
        with pytest.raises(UsageError, match=rf"test_batch.png is {size[0]} x 20 {mode}, expected RGB rows of 1024"):
            cifar10.samples(source=source, split="test")
    (source / "test_batch.png").write_bytes(good)
    for labels, message in (("[1, 2", "can't be read as JSON"), ('["1"]', "not a list of integers"),
                            ("[true]", "not a list of integers"), ("[1]", "20 images and 1 labels"),
                            ("[" * 5000, "can't be read as JSON")):  # fmt: skip
        (source / "test_lables.json").write_text(labels)
        with pytest.raises(UsageError, match=message):
            cifar10.samples(source=source, split="test")


def test_a_note_says_whether_the_files_are_the_published_ones_and_an_option_insists(tmp_path: Path) -> None:
    source = sources.cifar10_python(tmp_path / "source")
    (note,) = cifar10.samples(source=source).notes
    assert note == "checksums: 5 of 5 files are not as published: data_batch_1, data_batch_2, data_batch_3 and others"
    with pytest.raises(UsageError, match=r"data_batch_1 is not the published file.*drop --require-checksums"):
        cifar10.samples(source=source, require_checksums=True)
    with pytest.raises(UsageError, match="no checksums are known for the binary version"):
        cifar10.samples(source=sources.cifar10_binary(tmp_path / "binary"), require_checksums=True)


# -- CIFAR-10N -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    return sources.cifar10_binary(tmp_path / "cifar")


@pytest.mark.parametrize(("level", "column", "wrong"), [("worse", "worse_label", 40), ("aggre", "aggre_label", 9),
                                                         ("random1", "random_label1", 17)])  # fmt: skip
def test_human_labels_are_given_at_their_level_and_the_truth_is_kept(
    cifar: Path, tmp_path: Path, level: str, column: str, wrong: int
) -> None:
    columns = sources.human_labels()
    (tmp_path / "CIFAR-10_human.pt").write_bytes(sources.human_file(columns))
    samples = cifar10n.samples(source=cifar, labels=tmp_path / "CIFAR-10_human.pt", noise_level=level)
    found = loaded(samples)
    assert [s.label for s in found] == columns[column].tolist() == samples.labels.tolist()
    assert [s.facts["true_label"] for s in found] == sources.TRAIN_LABELS.tolist()
    assert [s.facts["is_noisy"] for s in found] == (columns[column] != sources.TRAIN_LABELS).tolist()
    assert sum(s.facts["is_noisy"] for s in found) == wrong
    assert {s.facts["noise_level"] for s in found} == {level}
    plain = loaded(cifar10.samples(source=cifar))
    assert [(s.key, s.content) for s in found] == [(s.key, s.content) for s in plain]


def test_the_label_file_is_taken_as_it_is_from_its_zip_or_from_a_folder(cifar: Path, tmp_path: Path) -> None:
    columns = sources.human_labels()
    (tmp_path / "any.zip").write_bytes(sources.human_zip(columns))
    (cifar / "CIFAR-N.zip").write_bytes(sources.human_zip(columns))
    (tmp_path / "CIFAR-N").mkdir()
    (tmp_path / "CIFAR-N" / "CIFAR-10_human.pt").write_bytes(sources.human_file(columns))
    expected = columns["worse_label"].tolist()
    for labels in (tmp_path / "any.zip", None, tmp_path, tmp_path / "CIFAR-N"):
        assert cifar10n.samples(source=cifar, labels=labels, noise_level="worse").labels.tolist() == expected


def test_human_labels_of_another_order_or_form_are_refused(cifar: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.pt"
    good = sources.human_labels()

    def refused(content: bytes, message: str, **options: Any) -> None:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            cifar10n.samples(source=cifar, labels=path, **options)

    turned = {name: np.roll(labels, 1) for name, labels in good.items()}
    refused(sources.human_file(turned), r"not in the order of these images: its clean label of image \d+ is")
    refused(sources.human_file(good | {"random_label1": good["random_label1"] + 1}), "random_label1: label 10 found")
    refused(sources.human_file({name: labels[:99] for name, labels in good.items()}), "100 images and 99 labels")
    refused(sources.human_file({"clean_label": good["clean_label"]}), "holds no field 'random_label1'")
    refused(b"not a zip", "can't be read as a zip")
    refused(sources.human_file(good)[:-200], "can't be read as a zip")
    refused(sources.human_file(good), "did you mean 'worse'", noise_level="worst")
    refused(sources.human_file(good), "people labelled the training images alone", split="test")
    hostile = sources.human_file(good).replace(b"c_codecs\nencode\n", b"c_codecs\ndecode\n")
    refused(hostile, "Bad CRC-32|asks for _codecs.decode")
    with pytest.raises(UsageError, match=r"holds none of CIFAR-10_human.pt, CIFAR-N.zip; take"):
        cifar10n.samples(source=cifar)


def test_web_takes_a_noisy_base_and_keeps_its_truth(cifar: Path, tmp_path: Path) -> None:
    (cifar / "CIFAR-10_human.pt").write_bytes(sources.human_file(sources.human_labels()))
    summary = make("web", tmp_path / "out", base="cifar10n", source=cifar, noise="none", noise_level="worse", seed=1)
    assert (summary.samples, summary.duplicates, summary.wrong, summary.drawn) == (200, 100, 80, 0)
    more = make("web", tmp_path / "more", base="cifar10n", source=cifar, noise_level="worse", noise_rate=0.5, copies=0)
    assert more.wrong > 40 and more.drawn > 30


# -- CIFAR-100 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_has_fine_labels_and_says_the_superclass(binary: bool, tmp_path: Path) -> None:
    images, fine = sources.cifar100(tmp_path / "s", per_class=2, binary=binary)
    samples = cifar100.samples(source=tmp_path / "s", split="test")
    assert samples.labels.tolist() == fine.tolist() and len(samples.class_names) == 100
    assert np.array_equal(image(samples.load(123)), images[123])
    facts = samples.load(123).facts
    assert (facts["class_name"], facts["coarse_label"], facts["coarse_name"]) == (
        "cloud", 3, "food_containers")  # fmt: skip
    assert len(set(cifar100.CLASS_NAMES)) == 100 == len(cifar100.CLASS_NAMES)
    assert len(set(cifar100.SUPERCLASS_NAMES)) == 20 == len(cifar100.SUPERCLASS_NAMES)
    assert list(cifar100.CLASS_NAMES) == sorted(cifar100.CLASS_NAMES)


def test_cifar100_refuses_a_fine_or_coarse_label_beyond_its_classes(tmp_path: Path) -> None:
    sources.cifar100(tmp_path / "s", per_class=1, binary=True)
    good = (tmp_path / "s" / "train.bin").read_bytes()
    for at, value in ((0, 20), (1, 100)):
        (tmp_path / "s" / "train.bin").write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
        with pytest.raises(UsageError, match=f"train.bin: label {value} found, expected 0 to {value - 1}"):
            cifar100.samples(source=tmp_path / "s")


def test_relevance_keeps_20_classes_whole_and_6_percent_of_the_others_alike_in_train_and_test(tmp_path: Path) -> None:
    sources.cifar100(tmp_path / "s", per_class=50, binary=True)
    splits = ("train", "test")
    kept = {split: cifar100_relevance.samples(source=tmp_path / "s", split=split, seed=1) for split in splits}
    counts = {split: Counter(samples.labels.tolist()) for split, samples in kept.items()}
    relevant = {split: {c for c, n in counts[split].items() if n == 50} for split in counts}
    assert relevant["train"] == relevant["test"] == set(cifar100_relevance.relevant(1, 20))
    assert len(relevant["train"]) == 20 and sorted(counts["train"].values()) == [3] * 80 + [50] * 20
    for sample in map(kept["train"].load, range(0, len(kept["train"]), 40)):
        assert sample.facts["relevant"] == (sample.label in relevant["train"])
    assert set(cifar100_relevance.relevant(2, 20)) != relevant["train"]
    half = [cifar100_relevance.samples(source=tmp_path / "s", seed=1, limit=620),
            cifar100_relevance.samples(source=tmp_path / "s", seed=1, skip=620)]  # fmt: skip
    keys = [{part.load(i).key for i in range(len(part))} for part in half]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == len(kept["train"]) == 1240
    for options, message in (({"relevant_classes": 100}, "expected 1 to 99"), ({"others_share": 0.0}, "share is 0.0"),
                             ({"others_share": float("nan")}, "share is nan")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            cifar100_relevance.samples(source=tmp_path / "s", **options)


# -- QMNIST ----------------------------------------------------------------------------------------------------------


def test_qmnist_gives_digits_writers_and_its_lost_50k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sources.qmnist(tmp_path / "s", {"train": 60, "test": 50})
    smaller = {"test10k": ("test", slice(20)), "test50k": ("test", slice(20, None))}
    monkeypatch.setattr(qmnist, "SPLITS", qmnist.SPLITS | smaller)
    samples = qmnist.samples(source=tmp_path / "s")
    images, facts = made["train"]
    assert samples.labels.tolist() == facts[:, 0].tolist()
    assert np.array_equal(image(samples.load(33)), images[33])
    assert samples.load(33).facts == {"true_label": 3, "class_name": "3", "index": 33, "group": "writer-2006",
                                      "writer": 2006, "nist_series": 4}  # fmt: skip
    first, rest = (qmnist.samples(source=tmp_path / "s", split=split) for split in ("test10k", "test50k"))
    assert (len(first), len(rest)) == (20, 30) and np.array_equal(image(rest.load(0)), made["test"][0][20])
    assert rest.load(0).key == "qmnist-test50k-0000000"
    assert samples.notes == ("checksums: 2 of 2 files are not as published: qmnist-train-images-idx3-ubyte.gz, "
                             "qmnist-train-labels-idx2-int.gz",)  # fmt: skip
    for path in (tmp_path / "s").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert [s.content for s in loaded(qmnist.samples(source=tmp_path / "s"))] == [s.content for s in loaded(samples)]


def test_broken_files_of_qmnist_are_named(tmp_path: Path) -> None:
    sources.qmnist(tmp_path / "s", {"train": 60, "test": 50})
    labels = tmp_path / "s" / "qmnist-train-labels-idx2-int.gz"
    with pytest.raises(UsageError, match="no more than 10,000 digits, so test50k is empty"):
        qmnist.samples(source=tmp_path / "s", split="test50k")
    for content, message in (
        (sources.idx(np.zeros((60, 7), np.int64)), "has 7 numbers a digit, expected 8"),
        (sources.idx(np.full((60, 8), 10)), "label 10 found, expected 0 to 9"),
        (sources.idx(np.full((60, 8), -1)), "label -1 found"),
        (sources.idx(np.zeros((59, 8), np.int64)), "60 images and 59 labels"),
        (sources.idx(np.zeros((60, 8), np.uint8)), "magic number 00000802, expected 00000c02"),
        (sources.idx(np.zeros((60, 8), np.int64))[:-4], "1,916 bytes of data, expected 1,920"),
        (sources.idx(np.zeros((60, 8), np.int64)) + b"x", "more bytes than its header"),
    ):
        labels.write_bytes(gzip.compress(content))
        with pytest.raises(UsageError, match=message):
            qmnist.samples(source=tmp_path / "s")


# -- CINIC-10 --------------------------------------------------------------------------------------------------------


def test_cinic10_keeps_the_bytes_and_says_where_a_picture_is_from(tmp_path: Path) -> None:
    source = sources.cinic10(tmp_path / "s")
    cats = source / "valid" / "cat"
    (cats / "own.png").write_bytes((cats / "cifar10-train-300.png").read_bytes())
    samples = cinic10.samples(source=source, split="valid")
    assert np.bincount(samples.labels).tolist() == [3, 3, 3, 4] + [3] * 6
    assert samples.class_names == cifar10.CLASS_NAMES
    assert samples.notes == ("1 files have names that don't say their origin",)
    origins = Counter(s.facts["origin"] for s in loaded(samples))
    assert origins == {"cifar10": 20, "imagenet": 10, "unknown": 1}
    for sample in loaded(samples):
        assert sample.content == (source / "valid" / sample.facts["path"]).read_bytes()
        synset = f"n0212{sample.label:04d}" if sample.facts["origin"] == "imagenet" else None
        assert sample.facts.get("synset") == synset
    make("cinic10", tmp_path / "out", source=source, split="test")
    assert check([tmp_path / "out"], expect_samples=30).ok


def test_cinic10_wants_its_ten_classes_and_no_other(tmp_path: Path) -> None:
    source = sources.cinic10(tmp_path / "s")
    (source / "train" / "zebra").mkdir()
    with pytest.raises(UsageError, match="has a folder 'zebra', which is no class"):
        cinic10.samples(source=source)
    shutil.rmtree(source / "train" / "zebra")
    shutil.rmtree(source / "train" / "ship")
    with pytest.raises(UsageError, match="has no folder ship; expected airplane"):
        cinic10.samples(source=source)
    (source / "train" / "ship").mkdir()
    with pytest.raises(UsageError, match="ship holds no jpg"):
        cinic10.samples(source=source)
    shutil.rmtree(source / "valid")
    with pytest.raises(UsageError, match=r"valid is not a folder; unpack CINIC-10\.tar\.gz"):
        cinic10.samples(source=source, split="valid")


# -- Clothing-1M -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    sources.clothing1m(tmp_path / "c1m")
    return tmp_path / "c1m"


def test_clothing1m_is_its_three_lists_with_the_labels_that_belong_to_each(tmp_path: Path) -> None:
    made = sources.clothing1m(tmp_path / "s")
    samples = clothing1m.samples(source=tmp_path / "s")
    lists = ("clean_train", "clean_val", "noisy_train")
    expected = [(name, line, path, *made[name][path]) for name in lists for line, path in enumerate(made[name])]
    assert len(samples) == 14 + 7 + 28 == len(expected) and samples.class_names == tuple(sources.CLOTHING_CLASSES)
    for sample, (name, line, path, noisy, clean) in zip(loaded(samples), expected, strict=True):
        label = noisy if name == "noisy_train" else clean
        assert (sample.key, sample.label, sample.extension) == (f"clothing1m-{name}-{line:07d}", label, "jpg")
        assert sample.content == (tmp_path / "s" / path).read_bytes()
        assert sample.facts == {
            "true_label": clean, "is_noisy": None if clean is None else False, "noisy_label": noisy, "origin": name,
            "class_name": sources.CLOTHING_CLASSES[sample.label], "path": path, "group": path,
        }  # fmt: skip
    assert samples.confused == ((7, 6),)  # what the images with both labels show
    assert samples.notes == ("nobody has looked at the labels of 28 samples: is_noisy is null there",)
    assert len(clothing1m.samples(source=tmp_path / "s", split="test")) == 5
    assert make("clothing1m", tmp_path / "out", source=tmp_path / "s", samples_per_shard=10).samples == 49
    assert check([tmp_path / "out"], expect_samples=49).ok


def test_clothing1m_is_found_without_its_folder_images_and_with_its_lists_in_annotations(clothes: Path) -> None:
    expected = [s.content for s in loaded(clothing1m.samples(source=clothes))]
    (clothes / "annotations").mkdir()
    for path in clothes.glob("*.txt"):
        path.rename(clothes / "annotations" / path.name)
    for path in (clothes / "images").iterdir():
        path.rename(clothes / path.name)
    (clothes / "images").rmdir()
    assert [s.content for s in loaded(clothing1m.samples(source=clothes))] == expected


def test_web_over_clothing1m_knows_where_nobody_looked(clothes: Path, tmp_path: Path) -> None:
    from shards.recipes import web

    base = clothing1m.samples(source=clothes)
    found = loaded(web.samples(base, noise="structured", noise_rate=1.0, copies=0))
    assert {s.facts["is_noisy"] for s in found if s.facts["origin"] == "noisy_train"} == {None}
    moved = [s for s in found if s.facts["noise_drawn"]]
    assert moved and all((s.facts["true_label"], s.label, s.facts["is_noisy"]) == (7, 6, True) for s in moved)


Break = Callable[[Path], None]


def _append(name: str, text: str) -> Break:
    def change(folder: Path) -> None:
        with open(folder / name, "a") as file:
            file.write(text)

    return change


def _unlink(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def _repeat(name: str, line: int) -> Break:
    def change(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*lines, lines[line]]) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_append("clean_val_key_list.txt", "../../etc/passwd.jpg\n"), r"clean_val_key_list.txt, line 8, is '../../etc"),
        (_append("clean_val_key_list.txt", "images/../../x.jpg\n"), "line 8, is .* expected a path below the folder"),
        (_append("clean_val_key_list.txt", "/etc/passwd.jpg\n"), "line 8, is '/etc/passwd.jpg', expected a path below"),
        (_append("clean_val_key_list.txt", "images\\..\\x.jpg\n"), "line 8, is .* expected a path below"),
        (_append("clean_val_key_list.txt", "images/0/0/x\0.jpg\n"), "line 8, is .* expected a path below"),
        (_append("clean_val_key_list.txt", "images/0/0/x.pkl\n"), "expected a path below the folder that ends in jpg"),
        (_append("clean_val_key_list.txt", "\n\nimages/0/0/x.jpg\n"), "line 8, is '', expected a path"),
        (_append("clean_val_key_list.txt", "images/0/0/new.jpg\n"),
         "line 8: images/0/0/new.jpg has no label in clean_label_kv.txt, and 1 paths in all"),
        (_append("noisy_train_key_list.txt", "images/0/0/new.jpg\n"), "line 29: images/0/0/new.jpg has no label in no"),
        (_repeat("noisy_train_key_list.txt", 3), "noisy_train_key_list.txt, line 29, is .*, expected no path twice"),
        (_append("noisy_label_kv.txt", "images/0/0/new.jpg 14\n"), "line .*, expected a class from 0 to 13"),
        (_append("noisy_label_kv.txt", "images/0/0/new.jpg -1\n"), "expected a path and the number of a class"),
        (_append("noisy_label_kv.txt", "images/0/0/new.jpg\n"), "expected a path and the number of a class"),
        (_append("clean_label_kv.txt", "images/0/0/x.jpg 1\nimages/0/0/x.jpg 2\n"), "and an earlier line has another"),
        (_append("category_names_eng.txt", "Hat\n"), "names 15 classes in 15 lines, expected 14"),
        (_unlink("category_names_eng.txt"), "category_names_eng.txt does not exist; ask the authors"),
        (_unlink("clean_label_kv.txt"), "holds none of clean_label_kv.txt; ask the authors"),
        (_unlink("noisy_train_key_list.txt"), "noisy_train_key_list.txt does not exist; ask the authors"),
        (lambda folder: (folder / "clean_val_key_list.txt").write_bytes(b"images/\xff.jpg\n"), "is not UTF-8 text"),
        (lambda folder: (folder / "clean_val_key_list.txt").write_bytes(b"\n \n"), "is empty; ask the authors"),
        (lambda folder: (folder / "clean_val_key_list.txt").write_bytes(b"i" * 5000), "has more than 4,096 bytes"),
    ],
)  # fmt: skip
def test_a_broken_list_is_refused_by_its_line(clothes: Path, change: Break, message: str) -> None:
    change(clothes)
    with pytest.raises(UsageError, match=message):
        clothing1m.samples(source=clothes)


def test_an_image_that_is_not_there_is_named_with_the_line_that_wants_it(clothes: Path, tmp_path: Path) -> None:
    samples = clothing1m.samples(source=clothes)
    (clothes / samples.load(20).facts["path"]).unlink()
    with pytest.raises(UsageError, match=r"does not exist, and clean_val_key_list.txt names it in line 7; unpack all"):
        make("clothing1m", tmp_path / "out", source=clothes)


def test_lists_of_windows_are_read_alike(clothes: Path) -> None:
    before = [s.facts for s in loaded(clothing1m.samples(source=clothes))]
    for path in clothes.glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [s.facts for s in loaded(clothing1m.samples(source=clothes))] == before


def test_labels_are_joined_as_a_dict_joins_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    names = [f"a/x{'b' * int(n)} c,{i}.jpg" for i, n in enumerate(rng.integers(0, 40, 3000))]
    labels = {name: int(label) for name, label in zip(names[:2500], rng.integers(0, 14, 2500), strict=True)}
    keys = [names[i] for i in rng.permutation(3000)[:2000]]
    (tmp_path / "kv").write_text("\n".join(f"{name} {label}" for name, label in labels.items()))
    (tmp_path / "keys").write_text("\n".join(keys))
    found = read_label_file(tmp_path / "kv", 14, "").of(read_key_list(tmp_path / "keys", ""))
    assert found.tolist() == [labels.get(key, -1) for key in keys] and -1 in found


def test_a_label_that_is_said_twice_alike_is_taken_once(clothes: Path) -> None:
    before = clothing1m.samples(source=clothes).labels.tolist()
    _repeat("noisy_label_kv.txt", 0)(clothes)
    assert clothing1m.samples(source=clothes).labels.tolist() == before


# -- what all have in common -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BASES if name not in ("fashion-mnist", "captions")])
def test_a_recipe_without_its_files_says_what_it_needs(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--source"):
        make(name, tmp_path / "out")
    with pytest.raises(UsageError, match=r"is not a folder; .*--source|--source expects"):
        make(name, tmp_path / "out", source=tmp_path / "none")
    with pytest.raises(UsageError, match=r"--source|--labels"):
        (tmp_path / "empty").mkdir()
        make(name, tmp_path / "out", source=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["qmnist", "cifar10", "cifar100", "cifar100-relevance", "cinic10", "clothing1m"])
def test_an_unknown_split_is_answered_with_the_nearest(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        make(name, tmp_path / "out", source=tmp_path, split="trian")


# -- the real thing, where it is ---------------------------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[1] / "data"  # not in the repository: docs/recipes.md says how to get it


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar10").is_dir() or not (DATA / "cifar-n").is_dir(), reason="no CIFAR-10 in data")
def test_the_real_cifar10_and_its_human_labels_have_their_published_counts() -> None:
    test = cifar10.samples(source=DATA / "cifar10", split="test", require_checksums=True)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    for level, wrong in (("aggre", 4505), ("random1", 8617), ("random2", 9061), ("random3", 8820), ("worse", 20104)):
        samples = cifar10n.samples(
            source=DATA / "cifar10", labels=DATA / "cifar-n", noise_level=level, require_checksums=True
        )
        assert samples.truth is not None and np.bincount(samples.truth).tolist() == [5000] * 10
        assert int(np.sum(samples.labels != samples.truth)) == wrong


MEASURE = """
import resource, sys
from shards.recipes import clothing1m
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = clothing1m.samples(source=sys.argv[1])
print(len(samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_million_lines_of_clothing1m_are_read_in_bounded_memory(tmp_path: Path) -> None:
    def paths(start: int, count: int) -> list[str]:
        return [f"images/{i % 10}/{i % 97}/{2_000_000_000 + i},{i}.jpg" for i in range(start, start + count)]

    noisy, train, val = paths(0, 1_000_000), paths(1_000_000, 47_570), paths(1_047_570, 14_313)
    for name, lines in (("noisy_train", noisy), ("clean_train", train), ("clean_val", val)):
        (tmp_path / f"{name}_key_list.txt").write_text("\n".join(lines))
    (tmp_path / "noisy_label_kv.txt").write_text("\n".join(f"{path} {i % 14}" for i, path in enumerate(noisy)))
    (tmp_path / "clean_label_kv.txt").write_text("\n".join(f"{path} {i % 14}" for i, path in enumerate(train + val)))
    (tmp_path / "category_names_eng.txt").write_text("\n".join(sources.CLOTHING_CLASSES))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], cwd=DATA.parent, capture_output=True,
                          text=True, timeout=120, check=True)  # fmt: skip
    count, kilobytes = map(int, done.stdout.split())
    assert count == 1_061_883 and kilobytes < 450_000  # of 1.06 million Python strings alone: 100 MB each list
