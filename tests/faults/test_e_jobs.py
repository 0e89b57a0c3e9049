"""Jobs beside, after and on top of each other; budgets; and the accounts that every job leaves."""

from __future__ import annotations

import json
import re
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rhostream
from rhostream import errors
from rhostream.audit.verify import status_of, verify
from rhostream.errors import BudgetError, MismatchError, NotWritableError, ShardError, UsageError
from rhostream.irreducible.compute import parse_index
from rhostream.stream import scan
from rhostream.tables import il
from tests.faults import tally
from tests.faults.crash_server import Rig
from tests.support.shards import make_shards, sample, write_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight small shards."""
    return [str(p) for p in make_shards(tmp_path_factory.mktemp("jobs") / "shards", [20, 30, 1, 25, 40, 5, 12, 28])]


@pytest.fixture(scope="module")
def model(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("jobs-model") / "m")
    rhostream.fit_il(shards, folder, model="mlp-64", epochs=1)
    return folder


@pytest.fixture(scope="module")
def table(shards: list[str], model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, made in one go."""
    folder = tmp_path_factory.mktemp("jobs-table") / "t"
    rhostream.compute_il(shards, model, str(folder))
    return folder


@pytest.fixture(scope="module")
def rig_table(rig: Rig, shards: list[str], model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, made where the rig's jobs run: with another number of threads the last bit of an il may differ."""
    folder = tmp_path_factory.mktemp("rig-table") / "t"
    assert rig.job("compute-il", {"shards": shards, "il_model": model, "out": str(folder)})["code"] == 0
    return folder


def parts(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "parts").rglob("*.parquet")}


def accounts(folder: Path) -> list[dict[str, object]]:
    return [json.loads(p.read_text()) for p in sorted((folder / "jobs").iterdir())]


def bad_shard(path: Path, bad: int, good: int = 20) -> str:
    """A shard with so many labels that no class has."""
    rng = np.random.default_rng(0)
    rows = [sample(i, rng) | ({"cls": "-1"} if i < bad else {}) for i in range(bad + good)]
    return str(write_shard(path, rows))


def cut_shard(path: Path) -> str:
    write_shard(path, [sample(0, np.random.default_rng(0))])
    path.write_bytes(path.read_bytes()[:700])
    return str(path)


# -- several jobs, one table -----------------------------------------------------------------------------------------


def test_E6_two_scorers_at_once_make_each_part_once(rig: Rig, model: str, tmp_path: Path) -> None:
    """Two compute-il at once on the same output lose nothing and leave the bytes that one would have left; they share
    the work, as each looks for a part right before it reads a shard."""
    many = [str(p) for p in make_shards(tmp_path / "shards", [8] * 20)]
    done = rig.each(lambda n: rig.job("compute-il", {"shards": many, "il_model": model, "out": str(tmp_path / "t")}),
                    range(2))  # fmt: skip
    assert [d["error"] for d in done] == ["", ""]
    assert rig.job("compute-il", {"shards": many, "il_model": model, "out": str(tmp_path / "alone")})["code"] == 0
    assert parts(tmp_path / "t") == parts(tmp_path / "alone") and len(parts(tmp_path / "t")) == 20
    found = accounts(tmp_path / "t")
    assert len(found) == 2 and all(a["made"] + a["present"] == 20 and a["samples"] == 160 for a in found)
    assert sum(int(str(a["made"])) for a in found) == 20
    tally.say(f"two scorers at once, 20 shards of 8 samples: {sum(int(str(a['twice'])) for a in found)} made twice")


def test_E6_a_part_that_came_meanwhile_is_not_made_again(
    rig: Rig, shards: list[str], model: str, tmp_path: Path
) -> None:
    """A scorer that was held up finds the parts that another one has made since, and reads none of their shards."""
    slow, hold = tmp_path / "slow.tar", tmp_path / "slow.tar.hold"
    slow.touch()
    hold.touch()
    held_up = rig.cli(tmp_path / "log", "compute-il", "--shards", slow, *shards[:3], "--il-model", model, "--out",
                      tmp_path / "t", hangs=slow)  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "t" / "_table.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert rhostream.compute_il(shards[:3], model, str(tmp_path / "t")).made == 3
    hold.unlink()  # the read ends, without a byte
    assert held_up.wait()["code"] == 3
    last = accounts(tmp_path / "t")[-1]
    assert (last["made"], last["present"], last["scored"], list(last["bad_shards"])) == (0, 3, 0, [str(slow)])


def test_E7_status_names_exactly_the_shards_of_a_machine_that_never_started(shards: list[str], tmp_path: Path) -> None:
    """Machines split a list with --index I/N and no word between them; `rhostream status --shards` names exactly the
    shards of the one that never started."""
    for machine in (0, 1, 3):
        made = rhostream.index(shards[::-1] if machine == 3 else shards, str(tmp_path / "t"), index=f"{machine}/4")
        assert made.made == made.shards == 2
    status = status_of(str(tmp_path / "t"), shards)
    assert status["missing"] == 2 and status["first_missing"] == sorted(shards)[2::4]
    assert rhostream.index(shards, str(tmp_path / "t"), index="2/4").made == 2
    assert status_of(str(tmp_path / "t"), shards)["missing"] == 0


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", "/", "1/4/2"])
def test_an_index_that_names_no_machine_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N with 0 <= I < N"):
        parse_index(text)


def test_E8_other_chunks_give_the_same_il(
    shards: list[str], model: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is continued with other sizes of chunks goes on, and its il are those of a job in one go, to a
    millionth of a nat."""
    rhostream.compute_il(shards[:4], model, str(tmp_path / "t"))
    monkeypatch.setattr(scan, "CHUNK", 16)
    assert rhostream.compute_il(shards, model, str(tmp_path / "t")).made == 4
    for shard in shards:
        one, other = (il.read_part(il.part_url(str(t), shard)).il for t in (table, tmp_path / "t"))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_E8_as_many_threads_give_the_same_bytes_and_others_the_same_il(tmp_path: Path) -> None:
    """Parts are equal to the byte for the same number of threads of the model (--threads), whatever the workers; with
    other threads the il are the same to 1e-5 nats, and each job's account says how many it had."""
    wide = [str(p) for p in make_shards(tmp_path / "shards", [600])]
    rhostream.fit_il(wide, str(tmp_path / "m"), model="mlp-256", epochs=1)
    for name, threads, workers in (("one", 1, 0), ("worker", 1, 1), ("two", 2, 0)):
        made = rhostream.compute_il(wide, str(tmp_path / "m"), str(tmp_path / name), threads=threads, workers=workers)
        assert made.threads == threads == accounts(tmp_path / name)[0]["threads"]
    assert parts(tmp_path / "one") == parts(tmp_path / "worker")
    one, two = (il.read_part(il.part_url(str(tmp_path / name), wide[0])).il for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="--threads 0"):
        rhostream.compute_il(wide, str(tmp_path / "m"), str(tmp_path / "none"), threads=0)


@pytest.mark.slow
def test_E8_other_workers_give_the_same_bytes(
    rig: Rig, shards: list[str], model: str, rig_table: Path, tmp_path: Path
) -> None:
    """A job that is continued with another number of workers leaves the same bytes."""
    for workers, these in ((1, shards[:3]), (2, shards[:6]), (0, shards)):
        options = {"shards": these, "il_model": model, "out": str(tmp_path / "t"), "workers": workers}
        assert rig.job("compute-il", options)["code"] == 0
    assert parts(tmp_path / "t") == parts(rig_table)


def test_E9_another_model_is_refused_naming_both_fingerprints(shards: list[str], table: Path, tmp_path: Path) -> None:
    """A table is continued with its own IL model only; another one is refused, naming both fingerprints and what
    differs."""
    rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=1, seed=7)
    before = parts(table)
    own = il.open_info(str(table)).fingerprint
    with pytest.raises(MismatchError, match=rf"fingerprint {own} != .*weights") as error:
        rhostream.compute_il(shards, str(tmp_path / "m"), str(table))
    assert error.value.exit_code == 2 and parts(table) == before


def test_E10_a_longer_list_scores_only_what_is_new(shards: list[str], model: str, table: Path, tmp_path: Path) -> None:
    """The same command with more shards scores the new ones and touches no part that is there."""
    first = rhostream.compute_il(shards[:5], model, str(tmp_path / "t"))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "t").rglob("*.parquet")}
    more = rhostream.compute_il(shards, model, str(tmp_path / "t"))
    assert (first.made, more.made, more.present, more.scored) == (5, 3, 5, 45)
    assert all(p.stat().st_mtime_ns == then for p, then in times.items()) and parts(tmp_path / "t") == parts(table)


# -- commits ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process grows beyond 3,000 bytes: the disk's way of failing in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_D12_a_commit_that_fails_leaves_no_object(
    shards: list[str], model: str, table: Path, tmp_path: Path, short_files: None
) -> None:
    """An error between the read of a shard and the commit of its part leaves no object, no temporary file, and a job
    that goes on with the same command."""
    rhostream.compute_il(shards[2:3], model, str(tmp_path / "t"))
    before = {p for p in (tmp_path / "t").rglob("*") if p.is_file()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(NotWritableError, match="File too large"):
        rhostream.compute_il(shards, model, str(tmp_path / "t"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    assert {p for p in (tmp_path / "t").rglob("*") if p.is_file()} == before
    rhostream.compute_il(shards, model, str(tmp_path / "t"))
    assert parts(tmp_path / "t") == parts(table)


@pytest.mark.parametrize("point", ["commit: temporary file opened", "commit: temporary file written"])
def test_D13_a_kill_during_a_write_leaves_no_object(
    rig: Rig, shards: list[str], model: str, tmp_path: Path, point: str
) -> None:
    """A job that is killed while it writes a part leaves no part of that name: what can be seen is whole."""
    options = {"shards": shards, "il_model": model, "out": str(tmp_path / "t")}
    # By the same kind of process: byte-equal means on the same number of threads.
    assert rig.job("compute-il", options | {"out": str(tmp_path / "whole")})["code"] == 0
    whole = parts(tmp_path / "whole")
    assert rig.job("compute-il", options, f"{point}@6")["code"] == -9  # the probe, another, the table, then parts
    left = parts(tmp_path / "t")
    assert 0 < len(left) < len(shards) and left.items() <= whole.items()
    assert not verify(str(tmp_path / "t"))["problems"]
    assert rig.job("compute-il", options)["code"] == 0 and parts(tmp_path / "t") == whole


# -- accounts and budgets --------------------------------------------------------------------------------------------


def test_A5_a_tar_without_samples_has_a_part_without_rows(shards: list[str], tmp_path: Path) -> None:
    """A valid tar without samples gets a part without rows; it is counted, and warned of."""
    empty = str(write_shard(tmp_path / "empty.tar", []))
    with pytest.warns(UserWarning, match=r"empty\.tar holds no sample"):
        summary = rhostream.index([empty, *shards], str(tmp_path / "t"))
    assert summary.empty_shards == 1 and summary.made == 9 and summary.samples == 161
    assert il.read_part_facts(il.part_url(str(tmp_path / "t"), empty)).samples == 0
    assert accounts(tmp_path / "t")[0]["empty_shards"] == 1


def test_the_account_of_a_job_is_printed_and_stored_and_adds_up(
    rig: Rig, shards: list[str], model: str, tmp_path: Path
) -> None:
    wrong, cut = bad_shard(tmp_path / "wrong.tar", 4), cut_shard(tmp_path / "cut.tar")
    log = tmp_path / "log"
    run = rig.cli(log, "compute-il", "--shards", *shards, wrong, cut, "--il-model", model, "--out", tmp_path / "t")
    assert run.wait()["code"] == 3
    said, (stored,) = log.read_text(), accounts(tmp_path / "t")
    assert json.loads(said[said.index("{\n") : said.index("\n}") + 2]).items() <= stored.items()
    assert stored["shards"] == stored["made"] + len(stored["bad_shards"]) == 10 and stored["present"] == 0
    assert stored["samples"] == 185 == stored["ok"] + 4 and stored["quarantined"] == {"label:range": 4}
    assert stored["members_seen"] == stored["members_used"] + stored["members_ignored"] == 3 * 185
    assert "185 samples = 181 ok + 4 quarantined (label:range 4)" in said and "cut.tar" in said
    assert len(stored["first_bad"]) == 3 and "wrong.tar: 's000000'" in stored["first_bad"][0]


def test_bad_samples_of_the_whole_job_have_a_budget(shards: list[str], tmp_path: Path) -> None:
    wrong = [bad_shard(tmp_path / f"wrong-{i}.tar", 4) for i in range(3)]
    with pytest.raises(BudgetError, match=r"12 of.*at most 10.*label:range 12; first: .*s000000") as error:
        rhostream.index([*shards, *wrong], str(tmp_path / "t"), max_bad_samples=10)
    assert error.value.exit_code == 3 and "--max-bad-samples" in str(error.value)
    assert len(parts(tmp_path / "t")) == 10  # what was within the budget stays
    borne = rhostream.index([*shards, *wrong], str(tmp_path / "t"), max_bad_samples=12)
    assert borne.quarantined == {"label:range": 12}


def test_bad_shards_have_a_budget(shards: list[str], tmp_path: Path) -> None:
    cut = [cut_shard(tmp_path / f"cut-{i:02d}.tar") for i in range(12)]
    with pytest.raises(BudgetError, match=r"2 of 5 shards can't be read, at most 1 are allowed .*cut-00.*systematic"):
        rhostream.index([*shards[:3], *cut[:2]], str(tmp_path / "t"), max_bad_shards=1)
    assert list(rhostream.index([*shards[:3], *cut[:2]], str(tmp_path / "t")).bad_shards) == cut[:2]
    with pytest.raises(BudgetError, match=r"11 of 20 shards"):
        rhostream.index([*shards, *cut], str(tmp_path / "u"))
    with pytest.raises(ShardError, match="cut-00"):
        rhostream.index([*cut, *shards], str(tmp_path / "v"), fail_fast=True)
    for wrong in (-1, 1.5):
        with pytest.raises(UsageError, match="--max-bad-shards"):
            rhostream.index(shards, str(tmp_path / "w"), max_bad_shards=wrong)


def test_what_fit_il_could_not_use_is_counted_and_has_a_budget(shards: list[str], tmp_path: Path) -> None:
    wrong, cut = bad_shard(tmp_path / "wrong.tar", 4), cut_shard(tmp_path / "cut.tar")
    info = rhostream.fit_il([*shards, wrong, cut], str(tmp_path / "m"), model="mlp-64", epochs=1, classes=4)
    assert info.read == {
        "samples": 185,
        "ok": 181,
        "label:range": 4,
        "bad_shards": info.read["bad_shards"],
        "retried": {},
    }
    assert list(info.read["bad_shards"]) == [cut] and "incomplete" in info.read["bad_shards"][cut]
    with pytest.raises(BudgetError, match=r"label:range 4.*--max-bad-samples"):
        rhostream.fit_il([*shards, wrong], str(tmp_path / "n"), model="mlp-64", epochs=1, max_bad_samples=3)
    with pytest.raises(BudgetError, match=r"shard .*worse\.tar: 30 of 50 samples"):
        rhostream.fit_il([*shards, bad_shard(tmp_path / "worse.tar", 30)], str(tmp_path / "n"), model="mlp-64")
    with pytest.raises(ShardError, match="cut"):
        rhostream.fit_il([*shards, cut], str(tmp_path / "n"), model="mlp-64", epochs=1, fail_fast=True)


def test_the_account_of_a_run_adds_up(rig: Rig, shards: list[str], table: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = rig.cli(log, "train", "--shards", *shards, "--il", table, "--run", tmp_path / "run", "--model", "mlp-64",
                  "--buffer-size", 40, "--batch-size", 8, "--passes", 2)  # fmt: skip
    assert run.wait()["code"] == 0
    said = log.read_text()
    told = json.loads(said[said.index("{\n") : said.index("\n}") + 2])
    assert told["planned"] == 2 * 161 == told["kept"] + told["skipped"] + told["tail"]
    assert (told["kept"], told["tail"]) == (8 * 8, 2) and sum(told["reasons"].values()) == told["planned"]
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["reasons"] == told["reasons"]


# -- exit codes ------------------------------------------------------------------------------------------------------


def test_every_error_has_the_exit_code_that_its_tree_shows() -> None:
    shown = dict(re.findall(r"^[ |`-]*(\w+) +(\d+(?:/\d+)?)  ", errors.__doc__ or "", re.MULTILINE))
    classes = {name: error for name, error in vars(errors).items()
               if isinstance(error, type) and issubclass(error, errors.RhostreamError)}  # fmt: skip
    assert set(shown) == set(classes)
    for name, error in classes.items():
        assert str(error.exit_code) in shown[name].split("/"), name


@pytest.mark.parametrize(("code", "arguments", "says"), [
    (0, "index --shards {shards} --out {new}", '"made": 8'),
    (0, "status {table} --json", '"parts": 8'),
    (0, "verify {table} --json", '"problems": []'),
    (2, "train --shards {shards} --il {table} --run {new} --model tests.faults.test_e_jobs:broken "
        "--buffer-size 20 --batch-size 4", "raised RuntimeError: unforeseen (test_e_jobs.py"),
    (2, "index --shards {shards}", "Missing option '--out'"),
    (2, "index --shards {shards} --out {new} --index 4/4", "expected I/N"),
    (2, "index --shards /nowhere/x-*.tar --out {new}", "no file matches"),
    (2, "index --shards {shards} --out {new} --workers -1", "expected 0 or more"),
    (2, "index --shards {shards} --out {new} --max-bad-fraction 2", "between 0 and 1"),
    (2, "compute-il --shards {shards} --il-model {table} --out {new}", "model.json"),
    (2, "index --shards {shards} --out {table}", "has kind 'il'"),
    (2, "train --shards {shards} --il {new} --run {new}", "is no IL table"),
    (3, "index --shards {shards} {cut} --out {new}", "cut.tar incomplete"),
    (3, "index --shards {shards} {cut} --out {new} --fail-fast", "cut.tar incomplete"),
    (3, "index --shards {shards} {wrong} --out {new} --max-bad-samples 1", "something systematic"),
    (3, "index --shards {shards} {cut} --out {new} --max-bad-shards 0", "at most 0 are allowed"),
    (3, "fit-il --shards {shards} {cut} --out {new} --model mlp-64 --epochs 1", "cut.tar incomplete"),
    (3, "verify {damaged}", "damaged"),
])  # fmt: skip
def test_exit_codes_are_those_that_the_help_documents(
    rig: Rig, shards: list[str], table: Path, tmp_path: Path, code: int, arguments: str, says: str
) -> None:
    if "{damaged}" in arguments:
        shutil.copytree(table, tmp_path / "damaged")
        next((tmp_path / "damaged" / "parts").rglob("*.parquet")).write_bytes(b"PAR1")
    places = {"shards": "\0".join(shards), "table": str(table), "new": str(tmp_path / "new"),
              "cut": cut_shard(tmp_path / "cut.tar"), "wrong": bad_shard(tmp_path / "wrong.tar", 4),
              "damaged": str(tmp_path / "damaged")}  # fmt: skip
    argv = [one for word in arguments.split() for one in word.format(**places).split("\0")]
    assert rig.cli(tmp_path / "log", *argv).wait()["code"] == code, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert says in said and "Traceback" not in said


def broken(*, image_size: int, channels: int, classes: int) -> None:
    """A user's model with a fault in it."""
    raise RuntimeError("unforeseen")
