"""`rhostream shards`: from a folder of images, wherever it lies, to shards of a training and a test set, and on."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import storage
from rhostream.cli import cli
from rhostream.errors import UsageError
from rhostream.making.split import split
from rhostream.tables.class_lists import read_class_list
from shards.check import check
from shards.make import make
from tests.support.folders import NAMES, photograph, photographs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 colour photographs of three classes and many sizes."""
    return photographs(tmp_path_factory.mktemp("making") / "my photos", NAMES[:3], 20, seed=5)


def samples_of(folder: Path | str, split: str) -> dict[str, dict[str, bytes]]:
    """{key: {extension: bytes}} of the shards of a set, as tarfile reads them."""
    found: dict[str, dict[str, bytes]] = {}
    for url in sorted(storage.list_files(storage.resolve(str(folder)), ".tar")):
        if url.rsplit("/", 1)[1].startswith(f"{split}-"):
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(url))) as tar:
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    found.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_every_image_is_in_one_set_with_its_bytes_its_label_and_its_path(photos: Path, tmp_path: Path) -> None:
    made = rhostream.make_shards(str(photos), str(tmp_path / "out"), test_fraction=0.2, samples_per_shard=20)
    train, test = samples_of(tmp_path / "out", "train"), samples_of(tmp_path / "out", "test")
    assert [(part.split, part.samples, part.shards) for part in made.parts] == [("train", 48, 3), ("test", 12, 1)]
    assert Counter(sample["cls"] for sample in test.values()) == {b"0": 4, b"1": 4, b"2": 4}
    paths = set[str]()
    for sample in [*train.values(), *test.values()]:
        facts = json.loads(sample["json"])
        paths.add(facts["path"])
        assert (photos / facts["path"]).read_bytes() == sample["jpg"]
        assert facts["label_name"] == NAMES[int(sample["cls"])] == facts["path"].split("/")[0]
    assert len(paths) == 60 and read_class_list(tmp_path / "out") == dict(enumerate(NAMES[:3]))
    assert check([tmp_path / "out"], expect_samples=60).ok
    labels = [int(sample["cls"]) for sample in train.values()]
    assert labels != sorted(labels)  # readers that don't shuffle get no class alone


def test_the_same_command_is_the_same_bytes_and_another_seed_another_split(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rhostream.make_shards(str(photos), str(tmp_path / name), seed=seed)
    a, b, c = (samples_of(tmp_path / name, "test") for name in "abc")
    assert a == b and a.keys() != c.keys()
    again = rhostream.make_shards(str(photos), str(tmp_path / "a"))
    assert [part.found for part in again.parts] == [1, 1]
    with pytest.raises(UsageError, match="exists already with other bytes"):
        rhostream.make_shards(str(photos), str(tmp_path / "a"), seed=1)
    with pytest.raises(UsageError, match="1 shards of another 'test' set"):
        rhostream.make_shards(str(photos), str(tmp_path / "a"), test_fraction=0.0)
    assert samples_of(tmp_path / "a", "test") == a


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
    st.integers(0, 5),
)
def test_a_split_is_whole_keeps_copies_together_and_takes_about_its_share_of_every_class(
    rows: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    classes = np.array([label for label, _ in rows])
    content = [what for _, what in rows]
    copy_of = np.array([content.index(what) for what in content])
    sides = split(classes, copy_of, fraction, seed)
    train, test = sides.train.tolist(), sides.test.tolist()
    assert sorted([*train, *test]) == list(range(len(rows)))
    assert not {content[row] for row in train} & {content[row] for row in test}
    for label in set(classes.tolist()):
        firsts = {first for first in copy_of.tolist() if classes[first] == label}
        own, taken = int((classes == label).sum()), sum(copy_of[row] in firsts for row in test)
        if fraction == 0 or len(firsts) < 2:
            assert not taken
        else:  # where copies allow: never the whole class, at least one of it
            assert taken > 0 and (taken <= max(1, round(fraction * own)) or taken == min(
                content.count(content[first]) for first in firsts
            ))  # fmt: skip


def test_copies_of_a_file_stay_on_one_side_and_those_of_two_labels_are_told(photos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photos, tmp_path / "d")
    for number in range(10):
        shutil.copy(root / "boot" / "000.jpg", root / "boot" / f"copy-{number}.jpg")
    shutil.copy(root / "boot" / "000.jpg", root / "coat" / "other.jpg")
    made = rhostream.make_shards(str(root), str(tmp_path / "out"), test_fraction=0.5)
    assert any("11 files with the same bytes" in note for note in made.notes)
    assert any("1 of these with another label" in note and "coat/other.jpg" in note for note in made.notes)
    sides = [{sample["jpg"] for sample in samples_of(tmp_path / "out", of).values()} for of in ("train", "test")]
    assert not sides[0] & sides[1]


def test_an_image_that_can_not_be_opened_is_kept_counted_and_a_row_with_a_status_then(
    photos: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(photos, tmp_path / "d")
    (root / "coat" / "page.jpg").write_bytes(b"<html>")
    (root / "coat" / "notes.txt").write_text("a note")
    (root / "coat" / ".hidden.jpg").write_bytes(b"?")
    (root / "__MACOSX").mkdir()
    made = rhostream.make_shards(str(root), str(tmp_path / "out"), test_fraction=0.0)
    assert (made.unreadable, made.first_unreadable) == (1, ["coat/page.jpg"]) and "coat/page.jpg" in made.text()
    assert made.parts[0].samples == 61 and any(note.startswith("1 files are not jpg") for note in made.notes)
    model = str(tmp_path / "m")
    rhostream.fit_il([str(tmp_path / "out")], model, model="mlp-64", epochs=1, image_size=16)
    done = rhostream.compute_il([str(tmp_path / "out")], model, str(tmp_path / "il"))
    assert (done.ok, done.quarantined) == (60, {"decode:not_an_image": 1})


def test_shards_are_no_larger_than_asked_but_for_one_large_image(photos: Path, tmp_path: Path) -> None:
    sizes = [file.stat().st_size for file in photos.rglob("*.jpg")]
    most = max(sizes) * 3
    made = rhostream.make_shards(str(photos), str(tmp_path / "out"), test_fraction=0.0, shard_bytes=most)
    held = []
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            held.append(sum(member.size for member in tar if member.name.endswith("jpg")))
    assert len(held) == made.parts[0].shards > 10 and max(held) <= most and sum(held) == sum(sizes)
    each = rhostream.make_shards(str(photos), str(tmp_path / "each"), test_fraction=0.0, shard_bytes=1)
    assert each.parts[0].shards == 60


TABLES = {
    "names": ("file,label", lambda name, label: f"{name},{label}"),
    "no header": ("", lambda name, label: f"{name},{label}"),
    "other columns": ("id,width,category", lambda name, label: f"{name.removesuffix('.jpg')},32,{label}"),
    "tabs": ("image\tclass", lambda name, label: f"{name}\t{label}"),
    "numbers": ("path,target", lambda name, label: f"{name},{NAMES.index(label)}"),
}


@pytest.mark.parametrize("table", TABLES)
def test_labels_can_stand_in_a_table(photos: Path, tmp_path: Path, table: str) -> None:
    (tmp_path / "flat").mkdir()
    rows = []
    for file in photos.rglob("*.jpg"):
        name = f"{file.parent.name}-{file.name}"
        shutil.copy(file, tmp_path / "flat" / name)
        rows.append((name, file.parent.name))
    head, line = TABLES[table]
    (tmp_path / "labels.csv").write_text("\n".join(filter(None, [head, *(line(*row) for row in rows)])))
    with pytest.raises(UsageError, match=r"it holds 60 images; .* --labels FILE"):
        rhostream.make_shards(str(tmp_path / "flat"), str(tmp_path / "out"))
    made = rhostream.make_shards(str(tmp_path / "flat"), str(tmp_path / "out"), labels=str(tmp_path / "labels.csv"))
    assert sum(part.samples for part in made.parts) == 60 and made.classes == 3
    for sample in samples_of(tmp_path / "out", "train").values():
        assert json.loads(sample["json"])["path"].startswith(NAMES[int(sample["cls"])])
    again = rhostream.make_shards(str(tmp_path / "flat"), str(tmp_path / "out"), labels=str(tmp_path / "labels.csv"))
    assert [part.found for part in again.parts] == [1, 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file,label\nnone.jpg,a\n", "1 files of 1 that are no images"),
        ("file,label\n../000.jpg,a\n", "no images below"),
        ("boot/000.jpg,a\nboot/000.jpg,b\n", "twice: one line a file"),
        ("boot/000.jpg\n", "expected lines of a file and its label"),
        ("boot/000.jpg,\n", "has no label"),
        ("file,size,label\nboot/000.jpg,3\n", "line 1 of its files has 2 values"),
        ("file,label\n", "lists no file"),
        ("", "expected lines"),
        ("boot/000.jpg,99999999\n", "has the label 99,999,999"),
    ],
)
def test_a_table_that_does_not_fit_the_folder_is_refused_by_what_is_wrong(
    photos: Path, tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=why):
        rhostream.make_shards(str(photos), str(tmp_path / "out"), labels=str(tmp_path / "labels.csv"))
    assert not (tmp_path / "out").exists()


def test_folders_of_sets_are_no_classes_and_the_error_is_the_two_commands(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path / "d" / "train", NAMES[:3], 6, seed=1)
    photographs(tmp_path / "d" / "test", ("boot", "sandal"), 4, seed=2)
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(cli, ["shards", "d", "--out", "out"])
    commands = str(refused.exception).split("`")[1::2]
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert {sample["cls"] for sample in samples_of("out", "test").values()} == {b"0", b"2"}  # as D numbers them
    assert len(samples_of("out", "train")) == 18


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"test_fraction": 1.0}, "expected a share from 0 to below 1"),
        ({"test_fraction": -0.1}, "expected a share"),
        ({"split": "test", "test_fraction": 0.2}, "give one"),
        ({"split": "../up"}, "can't name shards"),
        ({"samples_per_shard": 0}, "expected 1 or more"),
        ({"classes_from": "nowhere"}, "nowhere"),
        ({"folder": "nowhere"}, "is no folder on this machine"),
        ({"folder": "s3://bucket/photos"}, "is no folder on this machine"),
    ],
)
def test_what_can_not_be_made_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(Exception, match=why) as refused:
        rhostream.make_shards(**{"folder": str(photos), "out": str(tmp_path / "out"), **options})
    assert isinstance(refused.value, rhostream.RhostreamError) and not list(tmp_path.glob("out/*"))


def test_the_repositorys_maker_and_the_verb_make_of_a_folder_the_same_samples(photos: Path, tmp_path: Path) -> None:
    make("imagefolder", tmp_path / "maker", source=photos)
    rhostream.make_shards(str(photos), str(tmp_path / "verb"), test_fraction=0.0)
    assert samples_of(tmp_path / "maker", "train") == samples_of(tmp_path / "verb", "train")


def test_names_of_strangers_are_told_on_one_line_and_commands_survive_them(tmp_path: Path) -> None:
    root = photographs(tmp_path / "d", NAMES[:1], 3, seed=0)
    (root / "boot").rename(root / "b\noot\x1b[31m")
    photographs(tmp_path / "e", NAMES[1:2], 3, seed=0)
    (tmp_path / "e" / "coat").rename(root / "it's $(a) coat")
    made = rhostream.make_shards(str(root), str(tmp_path / "o ut; rm"), test_fraction=0.0)
    assert "\x1b" not in made.text() and made.classes == 2
    assert shlex.split(made.next[0])[3] == str(tmp_path / "o ut; rm" / "train-000000.tar")


def test_a_store_takes_the_shards_like_a_folder(photos: Path) -> None:
    made = rhostream.make_shards(str(photos), "memory://making/out", test_fraction=0.2)
    assert len(samples_of("memory://making/out", "train")) == 48
    assert made.parts[0].urls == "memory://making/out/train-000000.tar"


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_from_another_folder_finishes_it(photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--samples-per-shard", "1", "--seed", "3"]
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(rhostream.__file__).parents[1])}
    begun = subprocess.Popen(
        [sys.executable, "-c", "from rhostream.cli import main; main()", "shards", str(photos), "--out", str(out),
         *options],
        cwd=tmp_path / "elsewhere", env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(out.glob("train-*.tar"))) < 5 and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    rhostream.make_shards(str(photos), str(whole), samples_per_shard=1, seed=3)
    done = rhostream.make_shards(str(photos), str(out), samples_per_shard=1, seed=3)
    assert done.parts[0].found >= 5
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in out.iterdir() if not path.name.startswith("."))  # what was cut off
    assert all((whole / name).read_bytes() == (out / name).read_bytes() for name in names)


@pytest.mark.slow
def test_from_a_folder_of_photographs_to_a_report_by_the_commands_that_each_step_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(NAMES[:3]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(100):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(photograph(label, rng))
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(cli, ["shards", "photos", "--out", "data"])
    assert made.exit_code == 0, made.output
    commands = [line.strip() for line in made.output.splitlines() if line.startswith("    rhostream")]
    assert [command.split()[1] for command in commands] == ["fit-il", "compute-il", "train", "report"]
    for command in commands:
        done = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}: {done.output}"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES[:3])
    with rhostream.open_ledger("runs/rho") as ledger:
        (row,) = ledger.sql("select count(*) as planned, avg(kept::int) as share from selections").to_pylist()
    assert row["planned"] > 2000 and 0.05 < row["share"] < 0.15
