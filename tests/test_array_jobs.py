"""Jobs that a scheduler numbers: `--index auto` covers every shard once, and `--missing-only` is what is left."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import storage
from rhostream.audit.missing import missing_shards
from rhostream.errors import UsageError
from rhostream.irreducible.share import SCHEDULERS, parse_index
from rhostream.tables.il.info import places_of
from tests.support.command import command
from tests.support.shards import make_shards
from tests.support.tables import parts


def array(task: int, least: int, count: int, step: int, *, srun: tuple[int, int] | None = None) -> dict[str, str]:
    """What Slurm 22.05 sets in a task of `--array=least-most:step`, and in a process that srun started there."""
    ids = {"ID": task, "MIN": least, "MAX": least + step * (count - 1), "COUNT": count, "STEP": step}
    names = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in ids.items()} | {"SLURM_PROCID": "0"}
    if srun is not None:
        names |= {"SLURM_STEP_NUM_TASKS": str(srun[1]), "SLURM_PROCID": str(srun[0])}
    return names


def kubernetes(pod: int, pods: int) -> dict[str, str]:
    return {"JOB_COMPLETION_INDEX": str(pod), "RHOSTREAM_JOBS": str(pods)}


def skypilot(job: int, jobs: int) -> dict[str, str]:
    return {"SKYPILOT_JOB_RANK": str(job), "SKYPILOT_NUM_JOBS": str(jobs)}


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Eleven small shards, in a process that no scheduler started."""
    for name in (*SCHEDULERS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return sorted(str(path) for path in make_shards(tmp_path / "shards", [3] * 11))


# -- the numbers of jobs -----------------------------------------------------------------------------------------------


@given(least=st.integers(0, 10_000), count=st.integers(1, 40), step=st.integers(1, 500), processes=st.integers(0, 5))
def test_the_tasks_of_any_slurm_array_are_each_number_once(least: int, count: int, step: int, processes: int) -> None:
    """Whatever ids it has, and however many processes srun starts in each task (0: without srun)."""
    places = [
        parse_index("auto", array(least + step * k, least, count, step, srun=(p, processes) if processes else None))
        for k in range(count) for p in range(max(processes, 1))
    ]  # fmt: skip
    assert places == [(n, count * max(processes, 1)) for n in range(count * max(processes, 1))]


@given(jobs=st.integers(1, 60))
def test_the_pods_of_an_indexed_job_and_the_jobs_of_skypilot_are_each_number_once(jobs: int) -> None:
    for scheduler in (kubernetes, skypilot):
        assert [parse_index("auto", scheduler(n, jobs)) for n in range(jobs)] == [(n, jobs) for n in range(jobs)]


# SLURM_ARRAY_TASK_MIN, MAX, COUNT and STEP as Slurm 22.05 set them for these ids.
NO_RANGES = {"5,9,17": (5, 17, 3, 1), "0-3,8-11": (0, 11, 8, 1), "0-8:4,9": (0, 9, 4, 4), "1,0-8:4": (0, 8, 4, 4),
             "0,4,8": (0, 8, 3, 1)}  # fmt: skip


@pytest.mark.parametrize("ids", NO_RANGES)
def test_a_slurm_array_whose_ids_are_no_range_is_refused(ids: str) -> None:
    least, most, count, step = NO_RANGES[ids]
    there = array(least, least, count, step) | {"SLURM_ARRAY_TASK_MAX": str(most)}
    with pytest.raises(UsageError, match="are no range") as refused:
        parse_index("auto", there)
    assert "\n" not in str(refused.value)


REFUSED = {
    "nobody numbers it": ({}, "SLURM_ARRAY_TASK_ID.*JOB_COMPLETION_INDEX.*SKYPILOT_JOB_RANK"),
    "Slurm, without an array": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "SLURM_ARRAY_TASK_ID"),
    "two schedulers": (kubernetes(0, 2) | skypilot(1, 2), "JOB_COMPLETION_INDEX and SKYPILOT_JOB_RANK are set"),
    "how many pods isn't said": ({"JOB_COMPLETION_INDEX": "3"}, "RHOSTREAM_JOBS"),
    "fewer jobs than numbers": (kubernetes(4, 4), "JOB_COMPLETION_INDEX is 4"),
    "a number that is none": (skypilot(0, 4) | {"SKYPILOT_JOB_RANK": "first"}, "'first'"),
    "a negative number": (kubernetes(0, 4) | {"RHOSTREAM_JOBS": "-4"}, "'-4'"),
    "an old Slurm": ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_MIN"),
    "a step of nothing": (array(3, 3, 1, 0), None),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_that_nobody_numbers_is_one_sentence_or_its_number(what: str) -> None:
    there, says = REFUSED[what]
    if says is None:
        assert parse_index("auto", there) == (0, 1)
        return
    with pytest.raises(UsageError, match=says) as refused:
        parse_index("auto", there)
    assert "\n" not in str(refused.value)


def test_jobs_numbered_by_a_scheduler_make_the_parts_of_one_job(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, many, kept = tmp_path / "one", tmp_path / "many", tmp_path / "kept"
    rhostream.index(shards, str(one))
    command(capsys, "index", "--shards", *shards, "--out", many, "--index", "auto", code=2)
    assert not many.exists()
    for task in (7, 10, 13, 16):
        for name, value in array(task, 7, 4, 3).items():
            monkeypatch.setenv(name, value)
        command(capsys, "index", "--shards", *shards, "--out", many, "--index", "auto")
        command(capsys, "index", "--shards", *shards, "--out", kept, "--from", one, "--keep", "is_noisy:bool",
                "--index", "auto")  # fmt: skip
    assert parts(many) == parts(one)
    for table in (many, kept):
        accounts = [json.loads(path.read_text()) for path in sorted((table / "jobs").iterdir())]
        assert [account["index"] for account in accounts] == ["0/4", "1/4", "2/4", "3/4"]
        assert Counter(account["made"] for account in accounts) == {3: 3, 2: 1}


# -- what is left ------------------------------------------------------------------------------------------------------


def test_what_status_says_is_missing_is_what_the_next_job_makes(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, whole = tmp_path / "table", tmp_path / "whole"
    for machine in (0, 2, 3):
        rhostream.index(shards, str(table), index=f"{machine}/4")
    out, _ = command(capsys, "status", table, "--shards", *shards, "--missing-only")
    assert out.splitlines() == shards[1::4]
    as_json, _ = command(capsys, "status", table, "--shards", *shards, "--missing-only", "--json")
    assert json.loads(as_json) == shards[1::4]
    listed = tmp_path / "missing.txt"
    listed.write_text(out)
    made, _ = command(capsys, "index", "--shards", f"@{listed}", "--out", table, "--json")
    assert json.loads(made)["made"] == 3
    rhostream.index(shards, str(whole))
    assert parts(table) == parts(whole)
    assert command(capsys, "status", table, "--shards", *shards, "--missing-only")[0] == ""


def test_a_list_of_shards_that_cannot_be_made_is_one_sentence(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rhostream.index(shards[:1], str(tmp_path / "table"))
    command(capsys, "status", tmp_path / "table", "--missing-only", code=2)
    with pytest.raises(UsageError, match="is no table"):
        missing_shards(str(tmp_path), shards)
    with pytest.raises(UsageError, match="signature") as refused:
        missing_shards(str(tmp_path / "table"), ["https://host/a.tar?signature=secret"])
    assert "secret" not in str(refused.value)


def test_a_file_of_shards_is_its_lines(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_bytes(b"shards/train-{000..002}.tar\r\n\n" + shards[5].encode() + b"\n\xff.tar")
    found = storage.expand(["@list.txt", shards[7]])
    assert found == [*shards[:3], shards[5], f"{tmp_path}/\udcff.tar", shards[7]]
    Path("store.txt").write_text("s3://bucket/a.tar\ns3://bucket/b.tar\n")
    assert places_of(["@store.txt"]) == places_of(["s3://bucket/a.tar"]) == {"scheme": "s3"}
    Path("@list.txt").touch()  # a name that is there by those letters is that file
    assert storage.expand("@list.txt") == [f"{tmp_path}/@list.txt"]
    for content, says in ((b"", "no shards"), (b"@list.txt\n@other", "@other")):
        Path("empty.txt").write_bytes(content)
        if content:
            assert storage.expand("@empty.txt")[1].endswith(says)  # lists aren't nested
        else:
            with pytest.raises(UsageError, match=says):
                storage.expand("@empty.txt")
