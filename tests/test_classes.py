"""A set's classes have names, and two sets that meet agree about them or stop: by the names, never by the numbers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream.audit.il_quality import write_il_report
from rhostream.audit.questions import run_question
from rhostream.audit.report import write_report
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, RhostreamError, TableError, UsageError
from rhostream.il_model.info import read_info
from rhostream.storage import resolve
from rhostream.tables import il, parquet
from rhostream.tables.class_lists import read_class_list
from rhostream.tables.classes import ClassNames, named, require_same_classes
from shards.make import make
from tests.support import own_loop
from tests.support.folders import NAMES, photographs
from tests.support.shards import png, sample, write_shard

LACKING = ("boot", "sandal", "shirt")  # coat has no folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """d/ of four classes and few/ of three, as folders; shards/, shifted/ (few, numbered by itself), right/ (few,
    numbered as d); an IL model and a table."""
    root = tmp_path_factory.mktemp("photos")
    photographs(root / "d", NAMES, 30, seed=0)
    photographs(root / "few", LACKING, 10, seed=1)
    make("imagefolder", root / "shards", source=root / "d", samples_per_shard=60)
    make("imagefolder", root / "shifted", source=root / "few", split="test")
    make("imagefolder", root / "right", source=root / "few", split="test", classes_from=str(root / "d"))
    shards, roots = [str(root / "shards")], {"photos": str(root)}  # draws go by names
    rhostream.fit_il(shards, str(root / "il-model"), model="mlp-64", epochs=6, image_size=16, roots=roots)
    rhostream.compute_il(shards, str(root / "il-model"), str(root / "il"), roots=roots)
    return root


def train(root: Path, run: Path, test: str, **options: Any) -> Any:
    settings = {"buffer_size": 20, "batch_size": 5, "model": "mlp-64", "steps": 8, "threads": 1, **options}
    shards, tests = [str(root / "shards")], [str(root / test)]
    return rhostream.train(shards, str(root / "il"), str(run), test_shards=tests, **settings)


def test_a_test_folder_without_a_class_is_refused_before_work_unless_it_is_numbered_as_the_training_set(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=r"label 1 is 'coat' in the training set and 'sandal' in test shard .*--cl"):
        train(photos, tmp_path / "run", "shifted")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    found = train(photos, tmp_path / "run", "right", rule="uniform", lr=0.01)
    assert found.test_samples == 30 and found.test_accuracy > 0.9
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        (row,) = ledger.sql("SELECT class_accuracy FROM steps WHERE test_samples > 0").to_pylist()
        assert len(row["class_accuracy"]) == 4 and row["class_accuracy"][1] is None  # no fewer classes
        assert ledger.sql("SELECT label, name FROM classes ORDER BY label").to_pylist() == [
            {"label": label, "name": name} for label, name in enumerate(NAMES)
        ]
        (coat,) = [one for one in run_question(ledger, "kept_by_class").to_pylist() if one["label"] == 1]
        assert coat["class"] == "coat" and coat["planned"] > 0
        assert {"coat", "boot"} <= set(run_question(ledger, "worst_classes")["class"].to_pylist())
        assert "predicted_class" in run_question(ledger, "suspected_label_errors").column_names
    page = Path(write_report(str(tmp_path / "run"), str(tmp_path / "page.html"))).read_text()
    assert "1 coat</th>" in page  # of the classes' table
    assert any(f"label {label} {name}" in page for label, name in enumerate(NAMES))  # beside a picture


@pytest.mark.parametrize("place", ["d", "shards", "il", "il-model", "names.txt", "names.json", "by-label.json"])
def test_a_folder_is_numbered_as_another_set_whatever_says_its_classes(
    photos: Path, tmp_path: Path, place: str
) -> None:
    for name, text in {
        "names.txt": "\n".join(NAMES) + "\n",
        "names.json": json.dumps(NAMES),
        "by-label.json": json.dumps(dict(enumerate(NAMES))),
    }.items():
        (tmp_path / name).write_text(text)
    listed = tmp_path / place if "." in place else photos / place
    summary = make("imagefolder", tmp_path / "out", source=photos / "few", classes_from=str(listed))
    assert summary.class_names == NAMES and summary.class_counts.tolist() == [10, 0, 10, 10]
    assert "1 of these have no folder here: 'coat'" in summary.text()
    table = str(tmp_path / "table")
    rhostream.index([str(tmp_path / "out")], table)
    stream = rhostream.open_stream([str(tmp_path / "out")], table, buffer_size=10, needs_il=False)
    assert stream.stream.table.class_names == {0: "boot", 2: "sandal", 3: "shirt"}


def test_a_class_that_the_other_set_lacks_is_an_error_that_names_it(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"class folder 'coat' of .* is none of the 3 classes"):
        make("imagefolder", tmp_path / "out", source=photos / "d", classes_from=str(photos / "few"))
    (tmp_path / "twice.txt").write_text("boot\nboot\ncoat\nsandal\nshirt\n")
    with pytest.raises(UsageError, match=r"'boot' of .* is the name of several"):
        make("imagefolder", tmp_path / "out", source=photos / "d", classes_from=str(tmp_path / "twice.txt"))
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "none.txt"):
        with pytest.raises(RhostreamError):
            make("imagefolder", tmp_path / "out", source=photos / "d", classes_from=str(tmp_path / nothing))
    assert not (tmp_path / "out").exists()


def test_two_sets_in_one_folder_are_numbered_alike(photos: Path, tmp_path: Path) -> None:
    make("imagefolder", tmp_path / "out", source=photos / "d")
    with pytest.raises(MismatchError, match=r"label 1 is 'sandal' in this set and 'coat'"):
        make("imagefolder", tmp_path / "out", source=photos / "few", split="test")
    assert not list((tmp_path / "out").glob("test-*"))
    make("imagefolder", tmp_path / "out", source=photos / "few", split="test", classes_from=str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(NAMES)
    (tmp_path / "longer.txt").write_text("boot\nsandal\nshirt\ncoat\n")
    make("imagefolder", tmp_path / "three", source=photos / "few")
    with pytest.raises(UsageError, match=r"lists 3 classes, and label 3, 'coat', isn't one"):
        make("imagefolder", tmp_path / "three", source=photos / "d", split="all", classes_from=f"{tmp_path}/longer.txt")


def test_noise_doesn_t_change_what_a_label_is_called(photos: Path, tmp_path: Path) -> None:
    make("web", tmp_path / "noisy", base="imagefolder", source=photos / "d", noise_rate=1.0, copies=0)
    rhostream.index([str(tmp_path / "noisy")], str(tmp_path / "index"), keep={"label_name": "str", "class_name": "str"})
    with rhostream.open_ledger(str(tmp_path / "index")) as ledger:
        rows = ledger.sql("SELECT label, label_name, class_name FROM samples").to_pylist()
        assert {(row["label"], row["label_name"]) for row in rows} == set(enumerate(NAMES))
        assert any(row["label_name"] != row["class_name"] for row in rows)  # of the true label
        assert ledger.sql("SELECT name FROM classes ORDER BY label")["name"].to_pylist() == list(NAMES)


# -- wherever two sets meet ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:none of these shards was seen by fit-il")
def test_an_il_model_scores_no_shard_that_is_numbered_otherwise(photos: Path, tmp_path: Path) -> None:
    assert read_info(resolve(str(photos / "il-model"))).class_names == dict(enumerate(NAMES))  # type: ignore[union-attr]
    out = tmp_path / "il"
    with pytest.raises(MismatchError, match="label 1 is 'coat' in the IL model, 'sandal' in shard"):
        rhostream.compute_il([str(photos / "shifted")], str(photos / "il-model"), str(out))
    assert not list(out.rglob("*.parquet"))
    assert rhostream.compute_il([str(photos / "right")], str(photos / "il-model"), str(out)).made == 1
    facts = il.read_part_facts(il.part_urls(str(out))[0])
    assert facts.class_names == {}  # the table says them all
    assert il.open_info(str(out)).class_names == dict(enumerate(NAMES))
    assert "2 sandal" in Path(write_il_report(str(out), str(tmp_path / "il.html"))).read_text()


def test_a_holdout_is_numbered_as_d(photos: Path, tmp_path: Path) -> None:
    shards = [str(photos / "shards")]
    with pytest.raises(MismatchError, match="'sandal' in the holdout and 'coat' in the shards"):
        rhostream.fit_il(
            shards, str(tmp_path / "m"), holdout=[str(photos / "shifted")], model="mlp-64", epochs=1, image_size=16
        )
    assert not (tmp_path / "m" / "model.json").exists()


def called(names: dict[int, Any], path: Path, count: int = 20, seed: int = 0) -> Path:
    """A shard whose labels 0 to 3 are called so."""
    rng = np.random.default_rng(seed)
    rows = [sample(number, rng) for number in range(count)]
    for row in rows:
        row["json"] = {"label_name": names.get(int(str(row["cls"])))}
    return write_shard(path, rows)


RIGHT = dict(enumerate(NAMES))
SHIFTED = {0: "boot", 1: "sandal", 2: "shirt"}


def test_shards_of_one_list_are_numbered_alike(tmp_path: Path) -> None:
    called(RIGHT, tmp_path / "shards" / "a.tar")
    called(SHIFTED, tmp_path / "shards" / "b.tar", seed=1)
    shards = [str(tmp_path / "shards")]
    with pytest.raises(MismatchError, match=r"label 1 is 'coat' in shard .*a\.tar, 'sandal' in shard .*b\.tar"):
        rhostream.index(shards, str(tmp_path / "whole"))
    with pytest.raises(MismatchError, match="label 1 is 'coat'"):
        rhostream.fit_il(shards, str(tmp_path / "model"), model="mlp-64", epochs=1)
    for index in ("0/2", "1/2"):  # two machines, each of which sees one of them
        rhostream.index(shards, str(tmp_path / "index"), index=index)
    with pytest.raises(MismatchError, match="label 1 is 'coat'"):
        rhostream.open_stream(shards, str(tmp_path / "index"), buffer_size=8, needs_il=False)
    (problem,) = verify(str(tmp_path / "index"))["problems"]
    assert "label 1 is 'coat'" in problem
    assert "'sandal' in" in problem


def test_a_run_goes_on_with_classes_that_are_called_as_they_were(tmp_path: Path) -> None:
    def begin(names: dict[int, str]) -> None:
        for place in ("shards", "il"):
            shutil.rmtree(tmp_path / place, ignore_errors=True)
        called(names, tmp_path / "shards" / "a.tar", 200)
        rhostream.index([str(tmp_path / "shards")], str(tmp_path / "il"))

    settings = {"rule": "uniform", "buffer_size": 40, "batch_size": 8, "model": "mlp-64", "threads": 1}
    where = [str(tmp_path / "shards")], str(tmp_path / "il"), str(tmp_path / "run")
    begin(RIGHT)
    rhostream.train(*where, steps=2, **settings)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["class_names"]["3"] == "shirt"
    begin({**RIGHT, 0: "coat", 1: "boot"})
    with pytest.raises(MismatchError, match=r"label 0 is 'coat' in the table and 'boot' in run .*1 more label"):
        rhostream.train(*where, steps=4, **settings)
    begin(RIGHT)
    assert rhostream.train(*where, steps=4, **settings).steps == 4


def test_the_run_of_a_loop_of_one_s_own_knows_its_classes(tmp_path: Path) -> None:
    called(RIGHT, tmp_path / "shards" / "a.tar", 120)
    rhostream.fit_il([str(tmp_path / "shards")], str(tmp_path / "model"), model="mlp-64", epochs=1)
    rhostream.compute_il([str(tmp_path / "shards")], str(tmp_path / "model"), str(tmp_path / "il"))
    own_loop.run_readme(str(tmp_path), str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["class_names"] == {
        str(k): v for k, v in RIGHT.items()
    }


def test_fields_that_are_kept_later_bring_the_names_to_a_table_that_had_none(tmp_path: Path) -> None:
    called(RIGHT, tmp_path / "shards" / "a.tar")
    shards, old = [str(tmp_path / "shards")], str(tmp_path / "old")
    rhostream.index(shards, old)
    (part,) = il.part_urls(old)
    rows, record = parquet.read(part)
    del record["class_names"]
    Path(part).write_bytes(il.encode_part(rows, il.PartFacts(**record)))
    assert "class_names" not in parquet.read_facts(part)
    rhostream.keep_fields(shards, old, str(tmp_path / "new"), {"label_name": "str"})
    rhostream.index(shards, str(tmp_path / "anew"), keep={"label_name": "str"})
    new, anew = (il.part_urls(str(tmp_path / name))[0] for name in ("new", "anew"))
    assert Path(new).read_bytes() == Path(anew).read_bytes()
    assert il.read_part_facts(new).class_names == RIGHT


def test_what_has_no_names_is_what_it_was(world: Path) -> None:
    table = world / "il"
    assert "class_names" not in json.loads((table / "_table.json").read_text())
    assert "class_names" not in json.loads((world / "il-model" / "model.json").read_text())
    assert "class_names" not in parquet.read_facts(il.part_urls(str(table))[0])
    with rhostream.open_ledger(str(table)) as ledger:
        assert ledger.sql("SELECT * FROM classes").num_rows == 0


# -- names of a stranger ---------------------------------------------------------------------------------------------

EVIL = ["<script>alert(1)</script>\x1b[2J\u202e", "x" * 1024, "'; DROP VIEW classes; --", "{{ 7 * 7 }}"]


@pytest.mark.parametrize("name", [*EVIL, "\ud800", "x" * 1025, 7, ["a"], {"a": 1}, True, ""])
def test_names_of_a_stranger_are_text_or_none(tmp_path: Path, name: Any) -> None:
    usable = name in EVIL
    called({0: name, 1: "ok"}, tmp_path / "shards" / "a.tar", 60)
    shards, run = [str(tmp_path / "shards")], tmp_path / "run"
    rhostream.index(shards, str(tmp_path / "il"))
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        found = dict(zip(*ledger.sql("SELECT * FROM classes").to_pydict().values(), strict=True))
    assert found == ({0: name, 1: "ok"} if usable else {1: "ok"})
    if name != EVIL[0]:
        return
    rhostream.train(
        shards, str(tmp_path / "il"), str(run), rule="uniform", model="mlp-64", buffer_size=20, batch_size=5
    )
    page = Path(write_report(str(run), str(tmp_path / "page.html"))).read_text()
    assert "<script>" not in page and "\x1b" not in page and "\u202e" not in page
    called({0: "other", 1: "ok"}, tmp_path / "shards" / "b.tar", seed=1)
    with pytest.raises(MismatchError, match="label 0 is ") as caught:
        rhostream.index(shards, str(tmp_path / "il-2"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "names", [7, ["a"], {"x": "a"}, {"-1": "a"}, {"1": 5}, {"1": "x" * 2000}, {"99999999999": "a"}, {"1": "\ud800"}]
)
def test_names_in_a_forged_table_are_damage_and_no_accident(world: Path, tmp_path: Path, names: Any) -> None:
    shutil.copytree(world / "il", tmp_path / "il")
    record = json.loads((tmp_path / "il" / "_table.json").read_text())
    (tmp_path / "il" / "_table.json").write_text(json.dumps({**record, "class_names": names}))
    with pytest.raises(TableError, match="can't be understood"):
        il.open_info(str(tmp_path / "il"))
    (tmp_path / "list.json").write_text(json.dumps(names))
    if names != ["a"]:
        with pytest.raises(UsageError, match="is no list of classes"):
            read_class_list(tmp_path / "list.json")


def test_a_set_may_have_very_many_classes(tmp_path: Path) -> None:
    names = {label: f"class {label}" for label in range(200_000)}
    (tmp_path / "list.json").write_text(json.dumps(list(names.values())))
    assert read_class_list(tmp_path / "list.json") == names
    require_same_classes(names, dict(names), "one", "other")
    with pytest.raises(MismatchError, match=r"199,998 more labels differ") as caught:
        require_same_classes(names, {label: f"class {label + 1}" for label in range(199_999)}, "one", "other")
    assert len(str(caught.value)) < 500
    (tmp_path / "far.json").write_text('{"2000000000": "a"}')
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "a" / "1.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    with pytest.raises(UsageError, match="has the label 2,000,000,000"):
        make("imagefolder", tmp_path / "out", source=tmp_path / "d", classes_from=str(tmp_path / "far.json"))


@pytest.mark.skipif(os.sep != "/", reason="names of bytes")
def test_a_folder_that_is_no_utf_8_is_numbered_by_what_it_is_called_in_the_shards(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"tea"):
        place = os.path.join(os.fsencode(tmp_path), b"d", folder)
        os.makedirs(place)
        Path(os.fsdecode(place), "1.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    one = make("imagefolder", tmp_path / "out", source=tmp_path / "d")
    two = make("imagefolder", tmp_path / "two", source=tmp_path / "d", classes_from=str(tmp_path / "out"))
    assert one.class_names == two.class_names == ("caf\\udce9", "tea")
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == (tmp_path / "two" / "train-000000.tar").read_bytes()


@given(st.lists(st.dictionaries(st.integers(0, 5), st.sampled_from("abcd")), max_size=6))
def test_shards_agree_exactly_where_each_label_has_one_name(shards: list[dict[int, str]]) -> None:
    said = {(label, name) for shard in shards for label, name in shard.items()}
    alike = len({label for label, _ in said}) == len(said)
    known = ClassNames()
    try:
        for number, shard in enumerate(shards):
            known.add(shard.items(), f"shard {number}")
        assert alike and known.names == dict(said)
    except MismatchError:
        assert not alike


def test_a_label_for_people_is_one_short_line() -> None:
    assert named(RIGHT, 2) == "2 sandal" and named(RIGHT, 9) == "9"
    assert len(named({0: "x" * 1000}, 0)) <= 62 and named({0: "a\nb"}, 0) == "0 a\\nb"
