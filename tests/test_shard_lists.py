"""What a user may type where shards, tables, lists or models are asked for: it is read, or refused in one sentence."""

from __future__ import annotations

import io
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import storage
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import AccessError, MismatchError, RhostreamError, UsageError
from rhostream.repair import repair
from rhostream.tables import il
from rhostream.tables.names import parse_roots
from tests.support.shards import make_shards


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a few (empty) shards; warnings are given anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["rhostream.storage.expand"], "_said", set())
    for name in ("a.tar", "b.tar", "run[1]/a.tar", "run[1]/x/b.tar", "run1/c.tar", "{1..2}/d.tar", "v1.0/e.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def found(shards: Any) -> list[str]:
    return [os.path.relpath(url) for url in storage.expand(shards)]


READ: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "text": (lambda: "a.tar", ["a.tar"]),
    "path": (lambda: Path("a.tar"), ["a.tar"]),
    "bytes": (lambda: b"a.tar", ["a.tar"]),
    "a list": (lambda: ["b.tar", Path("a.tar")], ["b.tar", "a.tar"]),
    "a tuple": (lambda: ("b.tar", b"a.tar"), ["b.tar", "a.tar"]),
    "a generator": (lambda: (name for name in ("b.tar", "a.tar")), ["b.tar", "a.tar"]),
    "keys of a dict": (lambda: {"b.tar": 1, "a.tar": 2}.keys(), ["b.tar", "a.tar"]),
    "a URL": (lambda: "file://" + os.path.abspath("a.tar"), ["a.tar"]),
    "an upper-case scheme": (lambda: "FILE://" + os.path.abspath("a.tar"), ["a.tar"]),
    "a way round": (lambda: "run1/../a.tar", ["a.tar"]),
    "braces": (lambda: "{b,a}.tar", ["b.tar", "a.tar"]),
    "a question mark": (lambda: "?.tar", ["a.tar", "b.tar"]),
    "a class": (lambda: "[ab].tar", ["a.tar", "b.tar"]),
    "a folder": (lambda: "run1", ["run1/c.tar"]),
    "a folder with a slash": (lambda: "run1/", ["run1/c.tar"]),
    "a folder with a dot": (lambda: "v1.0", ["v1.0/e.tar"]),
    "a folder named like a class": (lambda: "run[1]", ["run[1]/a.tar", "run[1]/x/b.tar"]),
    "a pattern in such a folder": (lambda: "run[1]/*.tar", ["run[1]/a.tar"]),
    "a file in a folder named like braces": (lambda: "{1..2}/d.tar", ["{1..2}/d.tar"]),
    "folders of a pattern": (lambda: "r*", ["run1/c.tar", "run[1]/a.tar", "run[1]/x/b.tar"]),
    "at any depth": (lambda: "run*/**/*.tar", ["run1/c.tar", "run[1]/a.tar", "run[1]/x/b.tar"]),
}


@pytest.mark.parametrize("form", READ)
def test_a_form_that_names_shards_is_read(here: Path, form: str) -> None:
    given, expected = READ[form]
    assert found(given()) == expected


REFUSED: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None, "an empty list": list, "an empty text": lambda: "", "a blank": lambda: "  ",
    "a zero byte": lambda: "a\0.tar", "a number": lambda: 3, "a dict": lambda: {"a.tar": 1}, "a set": lambda: {"a.tar"},
    "a list in a list": lambda: [["a.tar"]], "a list with nothing": lambda: ["a.tar", None],
    "an open file": lambda: io.StringIO("a.tar"),
    "the same twice": lambda: ["a.tar", "./a.tar"], "twice by a URL": lambda: ["a.tar", f"file://{os.getcwd()}/a.tar"],
    "commas": lambda: "a.tar,b.tar", "a file of names": lambda: "@list.txt", "a pattern of nothing": lambda: "z*.tar",
    "an open brace": lambda: "a{1..", "too many": lambda: "a{0..99999999999}.tar", "a shell": lambda: "pipe:cat a.tar",
    "a chain": lambda: "s3://b/a.tar::s3://b/b.tar", "pathlib's URL": lambda: Path("s3://b/a.tar"),
    "no bucket": lambda: "s3://", "no host": lambda: "https:///a.tar", "a pattern of buckets": lambda: "memory://*/a",
    "another store": lambda: "hf://datasets/x", "one more": lambda: "azure://c/x.tar", "http": lambda: "http://h/a?b=c",
    "no address": lambda: "https://[::1/a.tar", "half an address": lambda: "https://[1/a.tar",
    "a list on the web": lambda: "https://127.0.0.1:9/*.tar",
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_any_other_form_is_refused_in_one_sentence(here: Path, form: str) -> None:
    with pytest.raises(UsageError) as refused:
        storage.expand(REFUSED[form]())
    assert "\n" not in str(refused.value) and str(refused.value)


def test_linked_folders_are_listed_and_links_that_lead_back_are_counted(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("data/own.tar", "data/z/deep.tar", "big/big.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    os.symlink(here / "big", "data/part1")
    os.symlink("/nowhere/x.tar", "data/gone.tar")  # a bad shard is named, never passed over
    assert found("data") == ["data/gone.tar", "data/own.tar", "data/part1/big.tar", "data/z/deep.tar"]
    assert not caplog.records
    os.symlink("..", "data/up")  # above what is listed
    os.symlink("z", "data/a")  # a neighbour keeps its own name
    os.symlink(here / "data", "big/back")
    with caplog.at_level(logging.WARNING):
        assert found("data") == ["data/gone.tar", "data/own.tar", "data/part1/big.tar", "data/z/deep.tar"]
        assert found("data/**/*.tar") == found("data")
    assert "3 linked folders" in caplog.text
    with pytest.raises(UsageError, match="named twice"):
        found(["big/big.tar", "data/part1/big.tar"])


def test_what_lies_beside_shards_and_looks_like_one_is_counted(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("mixed").mkdir()
    for name in ("a.tar", "B.TAR", "c.tar.gz", "d.tgz", ".e.tar", "labels.json"):
        Path("mixed", name).touch()
    with caplog.at_level(logging.WARNING):
        assert found("mixed") == ["mixed/a.tar"]
    assert "4 files" in caplog.text
    Path("none").mkdir()
    for name in ("B.TAR", "readme.txt"):
        Path("none", name).touch()
    for folder, says in (("none", r"2 other files lie there, such as B\.TAR"), ("run1/none", "no file|expected")):
        Path(folder).mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=says):
            found(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(here: Path) -> None:
    Path("data/closed").mkdir(parents=True)
    Path("data/a.tar").touch()
    Path("data/closed").chmod(0)
    try:
        with pytest.raises(AccessError, match="closed can't be listed"):
            found("data")
    finally:
        Path("data/closed").chmod(0o700)


def test_a_named_pipe_and_a_folder_are_no_shards_and_nobody_waits_for_them(here: Path) -> None:
    os.mkfifo("p.tar")
    for name in ("p.tar", "run1"):
        with pytest.raises(UsageError, match="expected a file"):
            storage.open_reader(os.path.abspath(name))


# -- keys of a store ---------------------------------------------------------------------------------------------------

KEYS = st.text("ab01#?%[]*{}., '~+=&!é日", min_size=1, max_size=12).filter(lambda k: k.strip(" .") and k[0] != ".")


@given(folder=KEYS, name=KEYS)
def test_a_key_is_what_it_says_whatever_its_letters(folder: str, name: str) -> None:
    top = f"memory://keys/{uuid.uuid4().hex}"
    url, other = f"{top}/{folder}/{name}.tar", f"{top}/other/x.tar"
    for one in (url, other):
        storage.create(one, b"x")
    assert storage.redact(url) == url and il.shard_name(url, {}) == url.removeprefix("memory://")
    assert il.shard_name(url, {"r": f"{top}/{folder}"}) == f"r/{name}.tar"
    assert storage.expand([f"{top}/"]) == sorted([url, other])
    if "{" not in url:  # which is a range by its letters, as in a shell
        assert storage.expand([url]) == [url]
        assert storage.expand([f"{top}/{folder}/"]) == [url]
        if "*" not in folder:
            assert storage.expand([f"{top}/{folder}/*"]) == [url]


def test_folders_of_a_store_are_listed_whatever_their_names(here: Path) -> None:
    top = f"memory://{uuid.uuid4().hex}.data"
    shards = [f"{top}/{name}/t.tar" for name in ("2024.06.01", "imagenet-v1.0", "imagenet", "run#1", "run#2")]
    for url in shards:
        storage.create(url, b"x")
    for url in shards:
        folder = url.rpartition("/")[0]
        assert storage.expand([folder]) == storage.expand([folder + "/"]) == [url]
    assert storage.expand([top]) == shards and storage.expand([f"{top}/run#?/t.tar"]) == shards[3:]
    assert storage.expand([f"{top}/image[n]et*/*.tar"]) == shards[1:3]
    storage.create(f"{top}/lone", b"x")
    assert storage.expand([f"{top}/lone"]) == [f"{top}/lone"]
    for nothing in (f"{top}/none", f"{top}/none/", f"{top}/none*.tar"):
        with pytest.raises(UsageError, match="no file matches"):
            storage.expand([nothing])


def test_only_https_has_queries_and_a_query_is_never_shown() -> None:
    assert storage.redact("https://u:p@h/a%23b.tar?sig=x#y") == "https://h/a%23b.tar"
    assert storage.redact("s3://key:secret@bucket/run#1/a?b.tar") == "s3://bucket/run#1/a?b.tar"
    assert storage.resolve("https://h/a.tar?sig=ab/") == "https://h/a.tar?sig=ab/"
    with pytest.raises(UsageError, match=r"same name h/a\.tar.*--root"):
        il.named_shards(["https://h/a.tar?x=1", "https://h/a.tar?x=2"], {})


def test_shards_of_two_folders_with_a_hash_have_parts_of_their_own(tmp_path: Path) -> None:
    top = f"memory://{uuid.uuid4().hex}"
    for number, path in enumerate(make_shards(tmp_path / "s", [5, 6])):
        storage.create(f"{top}/run#{number}/t.tar", path.read_bytes())
    made = rhostream.index([top], str(tmp_path / "il"))
    assert (made.made, made.samples) == (2, 11)
    assert len(il.part_urls(str(tmp_path / "il"))) == 2
    stream = rhostream.open_stream([top], str(tmp_path / "il"), buffer_size=11, needs_il=False)
    assert [len(candidates.key) for candidates in stream] == [11]


# -- every verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and their index."""
    root = tmp_path_factory.mktemp("small")
    make_shards(root / "shards", [12, 8])
    rhostream.index(root / "shards", str(root / "il"))  # type: ignore[arg-type]
    return root


def _verbs(root: Path, out: Path) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Every argument that names shards, a table, a model or roots, as a function of its value."""
    shards, table = [str(root / "shards")], str(root / "il")
    plain: dict[str, Any] = {"model": "mlp-64", "rule": "uniform", "buffer_size": 8, "batch_size": 4, "steps": 1}
    yield "index shards", lambda x: rhostream.index(x, str(out / "a"))
    yield "index out", lambda x: rhostream.index(shards, x)
    yield "index roots", lambda x: rhostream.index(shards, str(out / "b"), roots=x or "")
    yield "index keep", lambda x: rhostream.index(shards, str(out / "c"), keep=x or {"a": x})
    yield "fit-il shards", lambda x: rhostream.fit_il(x, str(out / "d"), model="mlp-64")
    yield "fit-il holdout", lambda x: rhostream.fit_il(shards, str(out / "d"), model="mlp-64", holdout=x or [])
    yield "fit-il out", lambda x: rhostream.fit_il(shards, x, model="mlp-64")
    yield "fit-il init", lambda x: rhostream.fit_il(shards, str(out / "d"), model="mlp-64", init=x or "none")
    yield "fit-il model", lambda x: rhostream.fit_il(shards, str(out / "d"), model=x)
    yield "compute-il model", lambda x: rhostream.compute_il(shards, x, str(out / "e"))
    yield "compute-il shards", lambda x: rhostream.compute_il(x, str(out / "d"), str(out / "e"))
    yield "train shards", lambda x: rhostream.train(x, table, str(out / "r"), **plain)
    yield "train il", lambda x: rhostream.train(shards, x, str(out / "r"), **plain)
    yield "train run", lambda x: rhostream.train(shards, table, x, **plain)
    yield "train test", lambda x: rhostream.train(shards, table, str(out / "r"), test_shards=x or [""], **plain)
    yield "train keep list", lambda x: rhostream.train(shards, table, str(out / "r"), keep_list=x or "x", **plain)
    yield "train model", lambda x: rhostream.train(shards, table, str(out / "r"), **{**plain, "model": x})
    yield "train rule", lambda x: rhostream.train(shards, table, str(out / "r"), **{**plain, "rule": x})
    yield "train loss", lambda x: rhostream.train(shards, table, str(out / "r"), loss=x, **plain)
    yield "train roots", lambda x: rhostream.train(shards, table, str(out / "r"), roots=x or "", **plain)
    yield "open_stream shards", lambda x: rhostream.open_stream(x, table, needs_il=False)
    yield "open_stream il", lambda x: rhostream.open_stream(shards, x, needs_il=False)
    yield "open_stream roots", lambda x: rhostream.open_stream(shards, table, needs_il=False, roots=x or [])
    yield "verify", verify
    yield "verify shards", lambda x: verify(table, shards=x or [""])
    yield "repair", repair
    yield "repair shards", lambda x: repair(table, shards=x or [""])
    yield "status", status_of
    yield "status shards", lambda x: status_of(table, x or [""])
    yield "open_ledger", rhostream.open_ledger
    yield "write_report", lambda x: rhostream.write_report(x, str(out / "p.html"))
    yield "join_il", rhostream.join_il


STRANGE: dict[str, Any] = {
    "nothing": None, "number": 3, "empty": "", "zero": "a\0b", "object": object(), "nested": [["x"]], "dict": {"": 3},
    "shell": "pipe:x", "scheme": "hf://x", "long": "x" * 300, "file": __file__, "half": "https://[x", "colon": ":",
    "twice": ["x", "x"],
}  # fmt: skip
MAY_BE = ("long", "file", "colon", "twice")  # a path, though an odd one: a shard that isn't there is named as bad


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] if form in MAY_BE else []) for form in STRANGE]
)
def test_no_verb_answers_a_strange_argument_with_an_internal_error(
    small: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for name, call in _verbs(small, tmp_path):
        try:
            call(STRANGE[form])
            wrong += [] if form in MAY_BE else [f"{name}: accepted"]
        except RhostreamError as exc:
            if exc.exit_code not in (2, 3) or "\n" in str(exc):
                wrong.append(f"{name}: {exc!r}")
        except Warning:
            assert form in MAY_BE  # "shards have no part and are left out"
        except Exception as exc:
            wrong.append(f"{name}: {type(exc).__name__}: {exc}")
    assert not wrong, "\n".join(wrong)


def test_a_table_a_run_and_a_shard_in_each_others_place_are_told_apart(small: Path, tmp_path: Path) -> None:
    shard, table = str(small / "shards" / "train-000.tar"), str(small / "il")
    part = il.part_urls(table)[0]
    with pytest.raises(UsageError, match="it is a table"):
        rhostream.index(table, str(tmp_path / "x"))
    for no_table in (shard, part, str(small / "shards"), str(small / "none")):
        with pytest.raises(UsageError, match="no IL table"):
            rhostream.open_stream(shard, no_table)
    for place in (shard, f"{shard}/below"):
        with pytest.raises(UsageError, match="it is a file"):
            rhostream.index(shard, place)


ROOTS: dict[str, list[str]] = {
    "no URL": ["data"],
    "no name": ["=data"],
    "empty": [""],
    "a slash": ["a/b=data"],
    "twice": ["a=x", "a=y"],
    "one place": ["a=x", "b=./x"],
    "dots": ["..=x"],
    "the mark of absolute names": ["_=x"],
    "blank": ["a= "],
}


@pytest.mark.parametrize("form", ROOTS)
def test_a_root_that_names_no_place_is_refused(form: str) -> None:
    with pytest.raises(UsageError, match=r"--root|no path"):
        parse_roots(ROOTS[form])


def test_a_root_may_hold_equal_signs_and_be_relative(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_roots(["a=memory://b/x=1"]) == {"a": "memory://b/x=1"}
    monkeypatch.chdir(small)
    table = str(small / "named")
    rhostream.index("shards", table, roots={"d": "shards"})
    assert [il.shard_of_part(table, url) for url in il.part_urls(table)] == ["d/train-000.tar", "d/train-001.tar"]


def test_keep_is_a_dict_or_the_text_of_the_command_line() -> None:
    assert il.checked_keep({"a": "int"}) == il.checked_keep("a:int") == {"a": "int"}
    for strange in ({"a": "integer"}, {"a": int}, {3: "int"}, ["a:int"], {"label": "int"}, "a:int,a:str", {"": "int"}):
        with pytest.raises(UsageError):
            il.checked_keep(strange)


def test_a_part_of_another_shard_is_never_taken_for_ones_own(small: Path, tmp_path: Path) -> None:
    """As on a disk that doesn't tell A.tar from a.tar."""
    folder, table = tmp_path / "s", str(tmp_path / "il")
    one, two = make_shards(folder, [6, 6])
    rhostream.index([one], table)  # type: ignore[list-item]
    os.rename(il.part_url(table, str(one)), il.part_url(table, str(two)))
    for refused in (
        lambda: rhostream.index([str(two)], table),
        lambda: rhostream.open_stream([str(two)], table, needs_il=False),
    ):
        with pytest.raises(MismatchError, match=r"train-001\.tar is that of .*train-000\.tar"):
            refused()
