"""`python -m benchmarks.gpu`: its minutes are shared out, its record is whole after every part, its page is honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import results
from benchmarks.gpu import page, paper, record
from benchmarks.gpu.__main__ import main, outcome, run_parts, source_of, write
from benchmarks.gpu.budget import SHARES, Clock, is_too_little, seconds_of
from benchmarks.gpu.speed import busy
from shards.cifar_files import read_cifar
from shards.recipes.cifar10 import LAYOUT


def test_all_shares_are_the_25_minutes() -> None:
    assert sum(SHARES.values()) == 25 and set(SHARES) == set(page.TITLES)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1.3), min_size=len(SHARES), max_size=len(SHARES)))
def test_no_part_begins_with_less_than_a_fifth_of_its_share_and_what_one_leaves_goes_to_the_others(
    taken: list[float],
) -> None:
    left, names = 1500.0, [*SHARES]
    for number, (name, share) in enumerate(zip(names, taken, strict=True)):
        limit = seconds_of(name, left, names[number:])
        assert limit <= left + 1e-9
        if all(one <= 1 for one in taken[:number]):  # none before it took more than it had
            assert limit >= 60 * SHARES[name] - 1e-6 and not is_too_little(name, limit, 1500)
        left = max(left - share * limit, 0.0)
    assert is_too_little("step", 29, 1500) and not is_too_little("step", 31, 1500)


def test_a_part_that_raises_or_has_no_time_hinders_no_other() -> None:
    now, told = [0.0], {}

    def slow(clock: Clock) -> Any:
        now[0] += 1410
        return "done", "it took its time", {"a": 1}

    def broken(clock: Clock) -> Any:
        raise ValueError("no such thing")

    parts: Any = {"tests": broken, "step": slow, "copies": lambda clock: ("done", "quick", {}), "paper-clean": broken}
    run_parts([*parts], parts, Clock(1500, lambda: now[0]), told.__setitem__)
    assert {name: part["state"] for name, part in told.items()} == {
        "tests": "failed", "step": "done", "copies": "skipped", "paper-clean": "skipped"
    }  # fmt: skip
    assert told["tests"]["says"] == "ValueError: no such thing"
    assert told["step"]["figures"] == {"a": 1}


def test_a_record_keeps_what_was_done_that_day_and_the_page_takes_none_of_a_toy(tmp_path: Path) -> None:
    path, first = record.begin(tmp_path, "python -m benchmarks.gpu --toy", toy=True, data="made up", minutes=25)
    first["parts"]["step"] = {"state": "done", "says": "fast", "seconds": 1.0, "figures": {"x": 1.5}}
    record.save(path, first)
    assert record.begin(tmp_path, "again", toy=True, data="made up", minutes=25)[1]["parts"] == first["parts"]
    assert record.begin(tmp_path, "again", toy=False, data="made up", minutes=25)[1]["parts"] == {}
    assert path.name.endswith("-toy.json") and record.newest(tmp_path) is None
    real = {**first, "gpu": True, "toy": False, "cuda": "13.0", "device": "NVIDIA H200", "date": "2001-01-01"}
    record.save(tmp_path / "2001-01-01-nvidia-h200.json", real)
    (tmp_path / "performance").mkdir()
    text = write(tmp_path, tmp_path).read_text()
    assert "Measured on 2001-01-01" in text and "| x | 1.5 |" in text and "Not run yet" not in text


def test_the_page_of_the_repository_says_whether_it_was_run() -> None:
    text = (results.FOLDER.parents[1] / "docs" / "performance" / "gpu.md").read_text()
    assert text == page.render(record.newest())
    assert ("Not run yet on a GPU" in text) == (record.newest() is None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--source", "mnist=x"], "expected cifar10=DIR"),
        (["--source", "cifar10=nowhere"], "is no folder"),
        (["--part", "all"], "'all' is not one of"),
        (["--minutes", "0"], "not in the range"),
    ],
)
def test_what_can_not_be_is_refused_before_any_work(options: list[str], says: str, tmp_path: Path) -> None:
    got = CliRunner().invoke(
        main, [*options, "--toy", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    )
    assert got.exit_code == 2 and says in got.output and not list(tmp_path.iterdir())
    assert source_of(("cifar10=tests",)) == Path("tests")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_toy_size_is_measured(tmp_path: Path) -> None:
    got = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    assert got.exit_code == 2 and "no CUDA device" in got.output and not list(tmp_path.iterdir())


def test_made_up_pictures_have_the_form_of_cifar10s_files(tmp_path: Path) -> None:
    folder = paper.made_up(tmp_path / "files", 20)
    train, test = (read_cifar(LAYOUT, folder, split) for split in ("train", "test"))
    assert train.images.shape == (100, 32, 32, 3) and test.images.shape == (20, 32, 32, 3)
    assert set(train.labels.tolist()) <= set(range(10))


def test_the_outcome_of_tests_is_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "t.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no CUDA device"/></testcase>'
        '<testcase name="c"><failure message="1 != 2"/></testcase></testsuite></testsuites>'
    )
    assert outcome(tmp_path / "t.xml") == {"a": "passed", "b": "skipped: no CUDA device", "c": "failure: 1 != 2"}
    assert outcome(tmp_path / "none.xml") == {}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_busy_is_the_length_of_the_union(spans: list[tuple[int, int]]) -> None:
    inside = {second for start, length in spans for second in range(start, start + length)}
    assert busy([(start, start + length) for start, length in spans]) == len(inside)


@pytest.mark.slow
def test_all_of_it_runs_at_toy_size(tmp_path: Path) -> None:
    asked = ["--toy", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    got = CliRunner().invoke(main, [*asked, *(word for name in SHARES if name != "tests" for word in ("--part", name))])
    assert got.exit_code == 0, got.output
    (path,) = (tmp_path / "out").glob("*-toy.json")
    told = json.loads(path.read_text())["parts"]
    assert {name: part["state"] for name, part in told.items()} == dict.fromkeys([*SHARES][1:], "done"), told
    for name in ("paper-clean", "paper-noise"):
        assert told[name]["figures"]["rho, epochs"] == told[name]["figures"]["uniform, epochs"] == 2
