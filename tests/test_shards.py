"""What `shards.make` promises about the sets it makes, and `shards.check` about those it passes."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rhostream.errors import UsageError
from rhostream.making.write import pack, write
from shards import check as check_program
from shards import make as make_program
from shards.check import check
from shards.fetch_fashion_mnist import SHA256, SYSTEM, fetch, find_or_download
from shards.idx import read_idx
from shards.make import make
from shards.recipes import fashion_mnist, imagefolder, web
from shards.sample import Sample, SampleSet, seeded_rows
from tests.support.sampleset import many

CLASSES = 10
REPOSITORY = Path(__file__).resolve().parents[1]
IDX_NAMES = sorted(SHA256)
BROKEN_IDX = {
    "magic": gzip.compress(struct.pack(">4BI", 0, 0, 9, 1, 3) + b"abc"),
    "header": gzip.compress(b"\0\0\x08"),
    "data": gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 5) + b"abc"),
    "more bytes": gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 2) + b"abc"),
    "shape": gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 0)),
    "gzip": b"not gzip at all",
    "gzip ": gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 9) + bytes(9))[:-9],
}

# -- small sources ----------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 training and 50 test images, a bright square on black, in idx.gz files of the usual names."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 400), ("t10k", 50)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 6:22, 6:22] = rng.integers(60, 250, (count, 16, 16))
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(count) % CLASSES).astype(np.uint8))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes in four formats, one image a folder deeper, and two files that are no images."""
    root = tmp_path / "my photos"
    for number, name in enumerate(("cat/a.jpg", "cat/deep/b.PNG", "dog/c.webp", "dog/d.e.jpeg")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40 + number, 30), 50).convert("RGB").save(path)
    (root / "dog" / "notes.txt").write_text("woof")
    (root / "LICENSE").write_text("free")
    return root


def loaded(samples: SampleSet) -> list[Sample]:
    return [samples.load(i) for i in range(len(samples))]


def truth(samples: SampleSet) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([s.facts["true_label"] for s in loaded(samples)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


# -- bytes ------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(idx: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make("web", tmp_path / name, base="fashion-mnist", source=idx, samples_per_shard=100, seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    one, other = files(tmp_path / "one"), files(tmp_path / "other")
    assert one.pop("classes.json") == other.pop("classes.json")  # the classes are the same
    assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)


def test_shards_are_named_and_filled_in_order_and_their_headers_are_plain(idx: Path, tmp_path: Path) -> None:
    summary = make("fashion-mnist", tmp_path, source=idx, split="test", samples_per_shard=20)
    assert json.loads((tmp_path / "classes.json").read_bytes())[:2] == ["T-shirt/top", "Trouser"]
    (tmp_path / "classes.json").unlink()
    assert list(files(tmp_path)) == ["test-000000.tar", "test-000001.tar", "test-000002.tar"]
    assert (summary.shards, summary.samples, summary.bytes) == (
        3,
        50,
        sum(map(len, files(tmp_path).values())),
    )
    for data in files(tmp_path).values():
        # A pax or long-name header would be a block of its own: each member has one header block and no more.
        blocks = sum(1 + -(-member.size // 512) for member in members(data))
        assert data[: blocks * 512].rstrip(b"\0") == data.rstrip(b"\0")
        assert {(m.type, m.mtime, m.uname, m.uid, m.pax_headers == {}) for m in members(data)} == {
            (tarfile.REGTYPE, 0, "rhostream", 0, True)
        }
    names = [member.name for member in members(files(tmp_path)["test-000001.tar"])]
    assert names[:3] == [f"fashion-test-0000020.{extension}" for extension in ("cls", "json", "png")]


def test_what_is_read_back_is_what_was_in_the_idx_file(idx: Path, tmp_path: Path) -> None:
    make("fashion-mnist", tmp_path, source=idx, split="test")
    images = read_idx(idx / "t10k-images-idx3-ubyte.gz", 3)
    with tarfile.open(tmp_path / "test-000000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert content["fashion-test-0000013.cls"] == b"3"
    facts = {"true_label": 3, "class_name": "Dress", "index": 13, "label_name": "Dress"}
    assert json.loads(content["fashion-test-0000013.json"]) == facts
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content["fashion-test-0000013.png"]))), images[13])


def test_the_same_command_again_finishes_a_stopped_run_and_then_changes_nothing(idx: Path, tmp_path: Path) -> None:
    whole = make("fashion-mnist", tmp_path, source=idx, samples_per_shard=100)
    before = files(tmp_path)
    (tmp_path / "train-000002.tar").unlink()
    again = make("fashion-mnist", tmp_path, source=idx, samples_per_shard=100)
    assert files(tmp_path) == before
    assert (whole.found, again.found, again.samples) == (0, 3, 400)


def test_another_set_under_the_same_names_is_refused_and_left_as_it_is(idx: Path, tmp_path: Path) -> None:
    make("fashion-mnist", tmp_path, source=idx, samples_per_shard=100)
    before = files(tmp_path)
    with pytest.raises(UsageError, match="exists already with other bytes"):
        make("web", tmp_path, base="fashion-mnist", source=idx, copies=0, samples_per_shard=100)
    with pytest.raises(UsageError, match=r"holds 2 shards of another 'train' set, such as train-000002\.tar"):
        make("fashion-mnist", tmp_path, source=idx, limit=200, samples_per_shard=100)
    assert files(tmp_path) == before


def test_an_object_store_takes_a_set_like_a_folder(idx: Path) -> None:
    url = "memory://test-shards/set"
    for found in (0, 4):
        summary = make("fashion-mnist", url, source=idx, samples_per_shard=100)
        assert summary.found == found
    report = check([f"{url}/train-{{000000..000003}}.tar"], expect_samples=400)
    assert report.ok, report.text()


# -- subsets ----------------------------------------------------------------------------------------


def test_subsets_of_one_seed_are_nested_and_what_is_skipped_is_disjoint() -> None:
    small = seeded_rows(1000, limit=100, skip=0, seed=5)
    large = seeded_rows(1000, limit=400, skip=0, seed=5)
    rest = seeded_rows(1000, limit=None, skip=400, seed=5)
    assert set(small) < set(large) and sorted([*large, *rest]) == list(range(1000))
    assert set(small) != set(seeded_rows(1000, limit=100, skip=0, seed=6))


@pytest.mark.parametrize(("limit", "skip"), [(0, 0), (11, 0), (5, 6), (-1, 0), (5, -1), (None, 10)])
def test_a_subset_that_is_empty_or_too_large_is_refused(limit: int | None, skip: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to the 10 of the source"):
        seeded_rows(10, limit=limit, skip=skip, seed=0)


# -- the web's faults -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_uniform_noise_is_drawn_at_its_rate_and_leaves_one_in_c_right(rate: float) -> None:
    count = 20_000
    samples = loaded(web.samples(many(count), noise_rate=rate, copies=0, seed=1))
    drawn = sum(s.facts["noise_drawn"] for s in samples)
    wrong = sum(s.facts["is_noisy"] for s in samples)
    assert abs(drawn - count * rate) < 5 * np.sqrt(count * rate * (1 - rate))
    expected = rate * (1 - 1 / CLASSES)
    assert abs(wrong - count * expected) < 5 * np.sqrt(count * expected * (1 - expected))
    assert all(s.facts["is_noisy"] == (s.label != s.facts["true_label"]) for s in samples)
    assert all(s.facts["noise_drawn"] for s in samples if s.facts["is_noisy"])
    # Every wrong label is as likely as every other.
    spread = Counter((s.label - s.facts["true_label"]) % CLASSES for s in samples if s.facts["is_noisy"])
    assert all(abs(n - wrong / 9) < 5 * np.sqrt(wrong / 9) for n in spread.values()) and len(spread) == 9


def test_structured_noise_touches_the_confused_classes_alone() -> None:
    samples = loaded(web.samples(many(20_000), noise="structured", confuse=[(3, 5), (9, 7)], copies=0))
    moved = Counter((s.facts["true_label"], s.label) for s in samples if s.facts["is_noisy"])
    assert set(moved) == {(3, 5), (9, 7)}
    assert all(abs(n - 1000) < 5 * np.sqrt(500) for n in moved.values())  # half of 2,000 by default
    default = loaded(web.samples(many(200), noise="structured", noise_rate=1.0, copies=0))
    assert {(s.facts["true_label"], s.label) for s in default if s.facts["is_noisy"]} == {(6, 0)}


def test_a_copys_noise_is_drawn_independently_of_its_originals() -> None:
    samples = {s.key: s for s in loaded(web.samples(many(8000), noise_rate=0.5, seed=2))}
    both = sum(
        s.facts["noise_drawn"] and samples[s.facts["duplicate_of"]].facts["noise_drawn"]
        for s in samples.values()
        if s.facts["duplicate_of"]
    )
    assert abs(both - 2000) < 5 * np.sqrt(8000 * 0.25 * 0.75)


def test_each_copy_names_its_original_and_both_name_their_group(idx: Path) -> None:
    base = fashion_mnist.samples(source=idx)
    samples = {s.key: s for s in loaded(web.samples(base, copies=2, duplicate_fraction=0.25))}
    assert len(samples) == 400 + 2 * 100  # so keys are unique as well
    copied = Counter(s.facts["duplicate_of"] for s in samples.values())
    assert copied.pop(None) == 400 and set(copied.values()) == {2} and len(copied) == 100
    for key, sample in samples.items():
        original = sample.facts["duplicate_of"] or key
        assert original in samples and samples[original].facts["duplicate_of"] is None
        assert sample.facts["group"] == original
        assert sample.facts["true_label"] == samples[original].facts["true_label"]
        assert key == original or key in (f"{original}-copy1", f"{original}-copy2")


def test_copies_are_near_their_original_but_differ_from_it_and_from_each_other(idx: Path) -> None:
    samples = web.samples(fashion_mnist.samples(source=idx, limit=20), copies=2, noise="none")
    pixels = {samples.load(i).key: samples.pixels(i).astype(float) for i in range(len(samples))}
    for key, image in pixels.items():
        if "-copy" not in key:
            copies = [pixels[f"{key}-copy{number}"] for number in (1, 2)]
            assert all(copy.shape == image.shape and not np.array_equal(copy, image) for copy in copies)
            assert not np.array_equal(copies[0], copies[1])
            assert all(np.corrcoef(copy.ravel(), image.ravel())[0, 1] > 0.6 for copy in copies)
            assert all(copy[0, 0] == 0 for copy in copies)  # the black background stays black


@pytest.mark.parametrize("ratio", [2.0, 10.0, 50.0])
def test_the_smallest_class_has_one_in_ratio_of_the_largest(ratio: float) -> None:
    counts = np.bincount(truth(web.samples(many(10_000), imbalance=ratio, copies=0)))
    assert list(counts) == sorted(counts, reverse=True) and counts[0] == 1000
    assert counts[9] == round(1000 / ratio)


def test_imbalance_holds_for_a_source_that_is_uneven_already() -> None:
    uneven = web.samples(many(10_000), imbalance=4.0, noise="none", copies=0)
    counts = np.bincount(truth(web.samples(uneven, imbalance=10.0, noise="none", copies=0)))
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.02)


def test_the_order_is_shuffled_over_all_shards_or_sorted_by_the_label_as_given() -> None:
    shuffled = web.samples(many(1000), copies=1, seed=1)
    by_class = web.samples(many(1000), copies=1, seed=1, order="class-sorted")
    assert list(by_class.labels) == sorted(shuffled.labels)
    assert [s.label for s in loaded(by_class)] == list(by_class.labels)
    assert sorted(s.key for s in loaded(by_class)) == sorted(s.key for s in loaded(shuffled))
    copy_share = np.mean(["-copy" in s.key for s in loaded(shuffled)[:200]])
    assert 0.35 < copy_share < 0.65


def test_one_purposes_draws_do_not_depend_on_anothers_settings() -> None:
    few = {s.key: s.label for s in loaded(web.samples(many(500), noise_rate=0.2, copies=0))}
    more = {s.key: s.label for s in loaded(web.samples(many(500), noise_rate=0.2, order="class-sorted", copies=0))}
    assert few == more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_rate": 1.5}, "noise rate is 1.5, expected 0 to 1"),
        ({"noise_rate": float("nan")}, "noise rate is nan"),
        ({"noise": "none", "noise_rate": 0.4}, "without noise"),
        ({"noise": "loud"}, "unknown noise 'loud'"),
        ({"confuse": [(3, 5)]}, "belong to structured noise"),
        ({"noise": "structured", "confuse": [(3, 10)]}, "from 0 to 9"),
        ({"noise": "structured", "confuse": [(3, 3)]}, "two different classes"),
        ({"noise": "structured", "confuse": [(3, 5), (3, 6)]}, "confused twice"),
        ({"noise": "structured", "confuse": []}, "--confuse 3:5,9:7"),
        ({"copies": -1}, "copies is -1"),
        ({"duplicate_fraction": 1.1}, "duplicate fraction is 1.1"),
        ({"imbalance": 0.5}, "imbalance is 0.5"),
        ({"order": "sorted"}, "unknown order 'sorted'"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        web.samples(many(100), **settings)


# -- sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BROKEN_IDX)
def test_an_idx_file_is_read_strictly(what: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(BROKEN_IDX[what])
    with pytest.raises(UsageError, match=f"labels.gz has .*{what.strip()}.*, expected .*; copy the file again"):
        read_idx(path, 1)


def test_a_source_that_is_not_fashion_mnist_is_refused_by_what_is_wrong(idx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz does not exist; give the folder"):
        fashion_mnist.samples(source=tmp_path)
    with pytest.raises(UsageError, match="no split 'val'; expected train or test"):
        fashion_mnist.samples(source=idx, split="val")
    shutil.copytree(idx, tmp_path / "copy")
    shutil.copy(idx / "t10k-labels-idx1-ubyte.gz", tmp_path / "copy" / "train-labels-idx1-ubyte.gz")
    with pytest.raises(UsageError, match="400 images and 50 labels"):
        fashion_mnist.samples(source=tmp_path / "copy")
    write_idx(tmp_path / "copy" / "train-labels-idx1-ubyte.gz", np.full(400, 11, np.uint8))
    with pytest.raises(UsageError, match="label 11 found, expected 0 to 9"):
        fashion_mnist.samples(source=tmp_path / "copy")


def test_fashion_mnist_is_looked_for_in_its_places_and_then_one_sentence_names_the_ways_out(
    idx: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert find_or_download(nowhere, system=idx) == idx
    assert find_or_download(idx, system=nowhere) == idx
    refused = "http://127.0.0.1:9"  # nobody listens on the discard port
    for look in (find_or_download, lambda *a, **k: fetch(*a, apt=False, **k)):
        with pytest.raises(UsageError, match=r"apt-get install dataset-fashion-mnist.*--source"):
            look(tmp_path / "data", system=nowhere, web=refused)


def test_a_download_with_a_wrong_checksum_is_refused_and_leaves_nothing(idx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has SHA-256 .* expected"):
        find_or_download(tmp_path / "data", system=tmp_path, web=idx.as_uri())
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_files_give_the_real_set_and_a_download_of_them_passes_its_checksums(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert find_or_download(data, system=tmp_path, web=SYSTEM.as_uri()) == data
    assert sorted(path.name for path in data.iterdir()) == IDX_NAMES
    whole = fashion_mnist.samples(source=data)
    assert len(whole) == 60_000 and list(np.bincount(whole.labels)) == [6000] * CLASSES
    summary = make("web", tmp_path / "web", base="fashion-mnist", source=data, limit=300, samples_per_shard=200)
    assert (summary.shards, summary.samples, summary.duplicates) == (3, 600, 300)
    assert check([tmp_path / "web"], expect_samples=600).ok


def test_imagefolder_keeps_the_bytes_sorts_the_classes_and_counts_what_it_leaves_out(
    photos: Path, tmp_path: Path
) -> None:
    samples = imagefolder.samples(source=photos, split="val")
    assert samples.class_names == ("cat", "dog")
    assert samples.notes == ("2 files are not jpg, jpeg, png, webp and were left out",)
    found = [(s.key, s.label, s.extension, s.facts["path"]) for s in loaded(samples)]
    assert found == [
        ("my-photos-val-0000000", 0, "jpg", "cat/a.jpg"),
        ("my-photos-val-0000001", 0, "png", "cat/deep/b.PNG"),
        ("my-photos-val-0000002", 1, "webp", "dog/c.webp"),
        ("my-photos-val-0000003", 1, "jpeg", "dog/d.e.jpeg"),
    ]
    assert all((photos / s.facts["path"]).read_bytes() == s.content for s in loaded(samples))
    assert loaded(samples)[2].facts["class_name"] == "dog" and loaded(samples)[2].facts["true_label"] == 1
    summary = make("web", tmp_path / "out", base="imagefolder", source=photos, noise="none")
    assert (summary.samples, summary.duplicates, summary.wrong) == (8, 4, 0)
    assert "2 files are not" in summary.text()
    assert check([tmp_path / "out"]).ok


def test_imagefolder_refuses_what_has_no_classes_and_classes_without_images(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no subfolders"):
        imagefolder.samples(source=photos / "dog")
    with pytest.raises(UsageError, match="is not a folder"):
        imagefolder.samples(source=tmp_path / "none")
    with pytest.raises(UsageError, match="needs --source"):
        imagefolder.samples()
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no jpg, jpeg, png, webp; remove it or fill it"):
        imagefolder.samples(source=photos)


def test_a_file_that_cannot_be_decoded_can_be_kept_but_not_copied(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"can't decode .*bad.png .*--copies 0"):
        make("web", tmp_path / "copies", base="imagefolder", source=photos)
    make("imagefolder", tmp_path / "kept", source=photos)
    report = check([tmp_path / "kept"])
    assert list(report.problems) == ["bad images"] and "decode:not_an_image" in report.text()


def test_a_file_name_that_is_not_utf8_becomes_readable_json(photos: Path) -> None:
    try:
        (photos / "cat" / os.fsdecode(b"z\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    names = [s.facts["path"] for s in loaded(imagefolder.samples(source=photos))]
    assert "cat/z\\udcff.jpg" in names


# -- check ------------------------------------------------------------------------------------------


def good(key: str) -> Sample:
    out = io.BytesIO()
    Image.new("L", (8, 8), 100).save(out, "PNG")
    return Sample(key=key, label=1, extension="png", content=out.getvalue(), facts={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of two samples, all well."""
    for number in range(3):
        (tmp_path / f"t-{number}.tar").write_bytes(pack([good(f"k{number}a"), good(f"k{number}b")]))
    return tmp_path


def test_a_set_that_is_well_passes(folder: Path) -> None:
    report = check([folder], expect_samples=6)
    assert report.ok and (report.shards, report.samples, report.members, report.ignored) == (3, 6, 18, 0)
    assert report.labels == {1} and report.text().endswith("all well")


def test_a_tar_cut_at_any_block_is_found_and_the_other_shards_are_checked_still(folder: Path) -> None:
    whole = (folder / "t-1.tar").read_bytes()
    used = len(whole.rstrip(b"\0"))
    for cut in range(0, used, 512):
        (folder / "t-1.tar").write_bytes(whole[:cut])
        report = check([folder])
        assert list(report.problems) == ["unreadable shards"], cut
        assert report.shards == 3 and "t-1.tar" in report.text()


@pytest.mark.parametrize(
    ("shard", "kind", "words"),
    [
        (lambda: pack([good("k0a")]), "duplicate keys", "k0a in "),
        (lambda: pack([good("x"), good("x")]), "duplicate keys", "x in "),
        (lambda: plain({"x.png": good("x").content[:50], "x.cls": b"1"}), "bad images", "decode:"),
        (lambda: plain({"x.cls": b"1"}), "bad images", "0 images, expected one"),
        (lambda: plain({"x.png": good("x").content}), "bad labels", "no .cls member"),
        (lambda: plain({"x.png": good("x").content, "x.cls": b"one"}), "bad labels", "expected a number"),
        (
            lambda: plain({"x.png": good("x").content, "x.cls": b"1", "x.json": b"[1]"}),
            "bad json",
            "not a JSON object",
        ),
    ],
)
def test_what_is_wrong_with_a_sample_is_found_and_named(folder: Path, shard: Any, kind: str, words: str) -> None:
    (folder / "t-3.tar").write_bytes(shard())
    report = check([folder])
    assert list(report.problems) == [kind] and len(report.problems[kind]) == 1
    assert words in report.text() and "t-3.tar" in report.text() and report.text().endswith("NOT well")


def plain(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_a_missing_shard_is_found_by_its_number_by_its_name_or_by_the_count(folder: Path) -> None:
    (folder / "t-1.tar").unlink()
    assert check([folder]).problems["gaps in the numbering"][0].endswith("1 missing, the first is number 1")
    assert "missing shards" in check([f"{folder}/t-{{0..2}}.tar"]).problems
    (folder / "t-2.tar").unlink()
    assert check([folder]).ok
    assert check([folder], expect_samples=6).problems == {"wrong number of samples": ["got 2, expected 6"]}


def test_only_the_first_five_of_a_kind_are_shown_and_terminals_are_not_obeyed(folder: Path) -> None:
    (folder / "t-3.tar").write_bytes(plain({f"\x1b[31m{n}.cls": b"1" for n in range(9)}))
    text = check([folder]).text()
    assert "bad images: 9" in text and "... and 4 more" in text
    assert "\x1b" not in text and "\\x1b[31m4" in text and "\\x1b[31m5" not in text


# -- the command line -------------------------------------------------------------------------------


def test_the_command_line_makes_checks_and_answers_with_exit_codes(idx: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    out = tmp_path / "out"
    arguments = ["web", "--base", "fashion-mnist", "--source", str(idx), "--limit", "100", "--out", str(out)]
    made = run(make_program.main, [*arguments, "--noise", "structured", "--confuse", "3:5,9:7"])
    assert made.exit_code == 0, made.output
    for line in ("shards      1", "samples     200", "duplicates  100 (50.0%)", "T-shirt/top"):
        assert line in made.stdout
    refused = run(make_program.main, arguments)
    assert refused.exit_code == 2 and refused.stderr.startswith("error: ") and refused.stdout == ""
    for confuse in ("3-5", "3:5:7", "a:b"):
        result = run(make_program.main, [*arguments, "--confuse", confuse])
        assert result.exit_code == 2 and "such as 3:5,9:7" in result.stderr
    assert run(check_program.main, [str(out), "--expect-samples", "200"]).exit_code == 0
    assert run(check_program.main, [str(out), "--expect-samples", "201"]).exit_code == 3
    for nothing in ([], [str(tmp_path / "*.tar")], ["pipe:cat x"]):
        assert run(check_program.main, nothing).exit_code == 2


def test_the_modules_run_as_programs_and_keep_stdout_for_the_result(idx: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards.make", "fashion-mnist", "--split", "test", "--source", str(idx)]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("shards      1\n"), done.stderr


def test_unknown_names_are_refused_with_the_nearest_known_one(idx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'fashion-mnist'"):
        make("fashion-minst", tmp_path)
    with pytest.raises(UsageError, match="unknown base recipe 'web'"):
        make("web", tmp_path, base="web")
    with pytest.raises(UsageError, match="only web has a base"):
        make("fashion-mnist", tmp_path, base="imagefolder")
    with pytest.raises(UsageError, match="can't name shards"):
        write(imagefolder_named("../up", tmp_path), tmp_path)
    with pytest.raises(UsageError, match="0 samples a shard"):
        write(many(10), tmp_path, samples_per_shard=0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file; --out expects a folder"):
        write(many(10), tmp_path / "file")


def imagefolder_named(split: str, folder: Path) -> SampleSet:
    (folder / "source" / "class").mkdir(parents=True)
    (folder / "source" / "class" / "a.png").write_bytes(b"x")
    return imagefolder.samples(source=folder / "source", split=split)
