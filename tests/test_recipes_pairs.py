"""The recipes of image and caption: what a caption says is in the picture, and what was swapped is written down."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rhostream.errors import MissingExtraError, UnknownNameError, UsageError
from shards import make as make_program
from shards.attributes import BRIGHTNESS, RANGES, ROTATIONS, every_caption
from shards.check import check
from shards.icons import read_icons, read_sets
from shards.make import make
from shards.pairs import draw_swaps
from shards.recipes import captions, icons
from shards.sample import Sample, SampleSet
from tests.support import recipe_sources as sources

TURNS = {0: None, 90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 training and 40 test images of noise in the four files of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 400), ("t10k", 40)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for what, values in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{prefix}-{what}-ubyte.gz").write_bytes(gzip.compress(sources.idx(values), 1))
    return folder


def loaded(samples: SampleSet) -> list[Sample]:
    return [samples.load(i) for i in range(len(samples))]


def image(sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(sample.content)))


def said(facts: dict[str, Any]) -> str:
    """The caption that the attributes in a json make, put together a second time."""
    kind = "negative" if facts["inverted"] else "picture"
    light = "" if facts["brightness"] == "plain" else f"{facts['brightness']} "
    name = captions.FASHION[facts["true_label"]]
    turned = ROTATIONS[facts["rotation"] // 90]
    framed = ", framed" if facts["framed"] else ""
    return f"a {light}{kind} of {name}, {turned}, marked at the {facts['corner']}{framed}"


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


# -- captions --------------------------------------------------------------------------------------------------------


def test_every_attribute_that_a_caption_says_was_done_to_the_picture(fashion: Path) -> None:
    plain = captions.IMAGES["fashion-mnist"].samples(source=fashion)
    assert plain.pixels is not None
    for row, sample in enumerate(loaded(captions.samples(source=fashion, swap=0, limit=400))):
        facts = sample.facts
        assert sample.caption == facts["caption"] == facts["true_caption"] == said(facts)
        turned = Image.fromarray(plain.pixels(row))
        turn = TURNS[facts["rotation"]]
        turned = turned if turn is None else turned.transpose(turn)
        turned = ImageOps.invert(turned) if facts["inverted"] else turned
        low, high = RANGES[BRIGHTNESS.index("" if facts["brightness"] == "plain" else facts["brightness"] + " ")]
        expected = np.asarray(turned.point([low + v * (high - low) // 255 for v in range(256)]))
        changed = np.argwhere(image(sample) != expected)  # (pixels, 2)
        top, left = (3 if side in facts["corner"] else 21 for side in ("top", "left"))
        marked = ((changed >= (top, left)) & (changed < (top + 4, left + 4))).all(1)
        framed = ((changed == 0) | (changed == 27)).any(1)
        assert marked.any() and (marked | framed).all() and framed.any() == facts["framed"]


def test_the_captions_of_a_set_are_192_a_class_and_all_of_them_differ() -> None:
    every = every_caption(captions.FASHION)
    assert len(every) == len(set(every)) == 1920
    assert len(set(every_caption(captions.PHOTOGRAPHS))) == 1920
    assert "a dark negative of an ankle boot, upside down, marked at the top left, framed" in every


def test_a_share_of_the_captions_is_another_samples_and_the_json_says_whose(fashion: Path, tmp_path: Path) -> None:
    summary = make("captions", tmp_path / "d", source=fashion, limit=300, swap=0.4, seed=3, samples_per_shard=100)
    assert (summary.shards, summary.samples, summary.wrong) == (3, 300, 120)
    assert "120 (40.0%) are of another sample" in summary.text() and "label" not in summary.text()
    assert check([tmp_path / "d"], expect_samples=300).ok
    assert not (tmp_path / "d" / "classes.json").exists()
    written = members(tmp_path / "d")
    facts = {name[:-5]: json.loads(data) for name, data in written.items() if name.endswith(".json")}
    assert set(written) == {f"{key}.{extension}" for key in facts for extension in ("png", "txt", "json")}
    swapped = 0
    for key, fact in facts.items():
        caption = written[f"{key}.txt"].decode()
        assert caption == fact["caption"] and fact["key"] == key and fact["true_caption"] == said(fact)
        assert fact["swapped"] == fact["is_noisy"] == (caption != fact["true_caption"])
        assert (fact["caption_of"] is not None) == fact["swapped"]
        if fact["swapped"]:
            swapped += 1
            assert facts[fact["caption_of"]]["true_caption"] == caption
    assert swapped == 120


def test_a_holdout_and_a_test_set_are_clean_disjoint_and_of_the_same_world(fashion: Path) -> None:
    train = {s.key: s for s in loaded(captions.samples(source=fashion, limit=300, seed=3))}
    held = {s.key: s for s in loaded(captions.samples(source=fashion, skip=300, seed=3, swap=0))}
    whole = {s.key: s for s in loaded(captions.samples(source=fashion, seed=3, swap=0))}
    assert not set(train) & set(held) and set(train) | set(held) == set(whole)
    for key, sample in (train | held).items():
        assert sample.content == whole[key].content
        assert sample.facts["true_caption"] == whole[key].caption
    assert not any(s.facts["swapped"] for s in held.values())
    assert len(captions.samples(source=fashion, split="test", swap=0)) == 40


def test_the_same_arguments_give_the_same_bytes_another_seed_others_and_jpeg_is_jpeg(
    fashion: Path, tmp_path: Path
) -> None:
    for name, seed, form in (("a", 0, "png"), ("b", 0, "png"), ("c", 1, "png"), ("d", 0, "jpg")):
        make("captions", tmp_path / name, source=fashion, limit=50, seed=seed, image_format=form)
    first, again, other, jpeg = (members(tmp_path / name) for name in "abcd")
    assert first == again and set(first) != set(other)
    assert {name.rpartition(".")[2] for name in jpeg} == {"jpg", "txt", "json"}
    assert {name: data for name, data in jpeg.items() if name[-4:] != ".jpg"} == {
        name: data for name, data in first.items() if name[-4:] != ".png"
    }
    assert Image.open(io.BytesIO(next(data for name, data in jpeg.items() if name[-4:] == ".jpg"))).format == "JPEG"


def test_photographs_have_attributes_too(tmp_path: Path) -> None:
    source = sources.cifar10_binary(tmp_path / "source")
    sample = captions.samples(source=source, images="cifar10", swap=0).load(0)
    assert image(sample).shape == (32, 32, 3) and sample.key == "captions-cifar10-train-0000000"
    name = captions.PHOTOGRAPHS[sample.facts["true_label"]]
    assert sample.caption is not None and f" of {name}, " in sample.caption and "group" in sample.facts
    with pytest.raises(UsageError, match="give that folder as --source"):
        make("captions", tmp_path / "out", images="cifar10")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        make("captions", tmp_path / "out", images="cifar-10")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap": 1.5}, r"1\.5, expected 0 to 1"),
        ({"swap": float("nan")}, "nan"),
        ({"image_format": "gif"}, "'gif'"),
        ({"limit": 1}, "--swap 0"),
        ({"split": "dev"}, "'dev'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(
    fashion: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make("captions", tmp_path / "out", source=fashion, **{"swap": 1.0} | options)
    assert not (tmp_path / "out").exists()


def test_labels_of_pairs_cannot_be_redrawn(fashion: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--swap of their own"):
        make("web", tmp_path / "out", base="captions", source=fashion)


def test_the_command_line_makes_pairs(fashion: Path, tmp_path: Path) -> None:
    given = ["captions", "--source", str(fashion), "--limit", "20", "--swap", "0.5", "--image-format", "jpg"]
    done = CliRunner().invoke(make_program.main, [*given, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "10 (50.0%) are of another sample" in done.stdout, done.output


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 5))
def test_so_many_captions_are_swapped_as_asked_and_none_of_them_stays_true(
    words: list[str], share: float, seed: int
) -> None:
    wanted = round(share * len(words))
    if wanted and len(set(words)) < 2:
        with pytest.raises(UsageError, match="--swap 0"):
            draw_swaps(words, share, seed)
        return
    givers = draw_swaps(words, share, seed)
    assert sum(words[giver] != words[i] for i, giver in enumerate(givers)) == wanted
    assert sum(giver != i for i, giver in enumerate(givers)) == wanted
    assert np.array_equal(givers, draw_swaps(words, share, seed))


def test_which_captions_are_swapped_and_whose_they_are_is_drawn_evenly() -> None:
    givers = draw_swaps([str(i % 7) for i in range(7000)], 0.4, 1)
    swapped = np.flatnonzero(givers != np.arange(7000))
    assert abs(np.mean(swapped) - 3500) < 150 and abs(np.mean(givers[swapped]) - 3500) < 150
    assert all(300 < count < 500 for count in Counter((swapped % 7).tolist()).values())


# -- icons -----------------------------------------------------------------------------------------------------------

WORDS = {("plain", "2fa"): "2fa", ("plain", "arrow-left"): "arrow left", ("plain", "box-16"): "box",
         ("plain", "box-24-fill"): "box fill", ("wide", "box"): "box", ("wide", "flag-red"): "flag red"}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return sources.icons(tmp_path / "node_modules" / "@iconify" / "json")


def test_icons_of_free_licences_have_their_names_in_words_and_what_cannot_be_shown_is_counted(package: Path) -> None:
    records, folder = read_sets(package, ["MIT", "Apache-2.0"], [])
    assert sorted(records) == ["plain", "wide"] and folder == package
    found, notes = read_icons(folder, records)
    assert {(icon.set, icon.name): icon.words for icon in found} == WORDS
    (note,) = notes
    for said in ("1 hidden", "1 of another form", "1 saying what another", "2 with text or other files inside"):
        assert said in note
    assert {icon.name: icon.box for icon in found if icon.set == "wide"} == {
        "box": (0, 0, 16, 10), "flag-red": (0, 0, 40, 10)
    }  # fmt: skip


def test_sets_and_licences_are_chosen_by_name_and_no_set_comes_in_without_its_licence(package: Path) -> None:
    top = package.parents[2]
    assert sorted(read_sets(top, ["MIT", "GPL-3.0"], [])[0]) == ["other", "plain"]  # found where npm puts it
    assert sorted(read_sets(top, ["MIT", "GPL-3.0"], ["other"])[0]) == ["other"]
    with pytest.raises(UsageError, match=r"other are GPL-3\.0, not MIT.*--licences"):
        read_sets(top, ["MIT"], ["other"])
    with pytest.raises(UnknownNameError, match="did you mean 'plain'"):
        read_sets(top, ["MIT"], ["plian"])
    with pytest.raises(UnknownNameError, match=r"did you mean 'Apache-2\.0'"):
        read_sets(top, ["Apache 2.0"], [])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("collections.json", "[1]", "collections.json is not a JSON object"),
        ("collections.json", "{}", "unknown licence"),
        ("json/plain.json", None, "plain.json does not exist; unpack"),
        ("json/plain.json", "{" * 9, "can't be read as JSON"),
        ("json/plain.json", '{"icons": {"a": {"body": 3}}}', "'?a'? has no body"),
        ("json/plain.json", '{"icons": {"a": 3}}', "has no body"),
        ("json/plain.json", '{"icons": []}', "has no icons"),
    ],
)
def test_a_broken_package_is_refused_by_the_file(package: Path, file: str, content: str | None, message: str) -> None:
    path = package / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UsageError, match=message):
        records, folder = read_sets(package, ["MIT"], [])
        read_icons(folder, records)


def test_without_what_draws_the_extra_is_named_and_nothing_is_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rhostream\[icons\]'"):
        make("icons", tmp_path / "out", source=package)
    assert not (tmp_path / "out").exists()


def test_icons_are_drawn_as_they_are(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra [icons] is not installed")
    summary = make("icons", tmp_path / "out", source=package, size=24)
    assert summary.samples == 6 and "sets by licence: MIT 1, Apache-2.0 1" in summary.notes
    assert check([tmp_path / "out"], expect_samples=6).ok
    drawn = {(s.facts["set"], s.facts["icon"]): s for s in loaded(icons.samples(source=package, size=24))}
    assert {name: sample.caption for name, sample in drawn.items()} == WORDS
    left = np.full((24, 24, 3), 255, np.uint8)
    left[:, :12] = 0
    assert np.array_equal(image(drawn["plain", "arrow-left"]), left)
    assert np.array_equal(image(drawn["plain", "2fa"])[:12], np.zeros((12, 24, 3)))
    flag = image(drawn["wide", "flag-red"])  # 40 x 10 in 24 x 24: a band of six rows
    assert flag[:9].min() == flag[15:].min() == 255 and flag[10:14].tolist() == [[[255, 0, 0]] * 24] * 4
    facts = drawn["wide", "flag-red"].facts
    assert (facts["licence"], facts["author"], facts["set_name"]) == ("Apache-2.0", "A. Person", "Wide")
    assert drawn["plain", "box-16"].facts["group"] == drawn["plain", "box-24-fill"].facts["group"]
    swapped = loaded(icons.samples(source=package, swap=0.5))
    assert sum(s.facts["swapped"] for s in swapped) == 3
    with pytest.raises(UsageError, match=r"size 5, expected 8"):
        icons.samples(source=package, size=5)
    (package / "json" / "wide.json").write_text('{"icons": {"a": {"body": "<path d=\'M0 0"}}}')
    with pytest.raises(UsageError, match="wide:a can't be drawn"):
        icons.samples(source=package, sets="wide").load(0)
