"""The chain of commits: what counts after forks, what a commit costs, what is merged, kept, removed and proved."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhostream import storage
from rhostream.audit import sources
from rhostream.audit.report import write_report
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.errors import SupersededError, TableError, UsageError
from rhostream.repair import repair
from rhostream.runs import chain, checkpoint, compaction, retention
from rhostream.runs.attempt import Attempt
from rhostream.runs.link import BLOCK, Link, url_of
from rhostream.runs.prune import prune
from rhostream.storage.clients import store_of
from rhostream.tables import merged, parquet, selections
from rhostream.tables.segments import segment_record
from rhostream.tables.selections import LogWriter
from tests.support.audit_fixtures import log_rows
from tests.support.chains import PINNED, RECORD, STATE, begin, branch, commit, long_chain, rows, take, two_ranks
from tests.support.command import command
from tests.support.ranks import together


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth commit is whole, so that a short run has several."""
    monkeypatch.setattr(chain, "WHOLE_EVERY", 4)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def committed(run: str, commits: int, **how: Any) -> Attempt:
    attempt = begin(run)
    for _ in range(commits):
        take(attempt)
        commit(attempt, **how)
    return attempt


def link_file(run: str, number: int, attempt: int = 0) -> Path:
    return Path(url_of(run, attempt, number))


def files(run: str, what: str) -> set[str]:
    return {str(path.relative_to(run)) for path in Path(run, what).rglob("*.parquet")}


# -- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("seed", range(2))
def test_the_branch_in_force_holds_each_step_once_whatever_died_and_whatever_was_gone_back_to(
    run: str, seed: int
) -> None:
    draw, attempt, counts, uncommitted = random.Random(seed), begin(run), list[tuple[int, int]](), 0
    for _ in range(60):
        (act,) = draw.choices(["step", "commit", "die", "back"], [6, 6, 2, 1])
        if act == "step":
            take(attempt)
            uncommitted += 1
        elif act == "commit" and uncommitted:
            counts += [(attempt.step - n, attempt.attempt) for n in range(uncommitted, 0, -1)]
            commit(attempt, keep=3)
            uncommitted = 0
        elif act == "die":
            attempt, uncommitted = begin(run), 0
        elif act == "back" and (states := retention.kept(run)):
            start = retention.at_step(run, draw.choice(states).step)
            attempt, uncommitted, counts = begin(run, start), 0, counts[: start.step]
        assert branch(run) == counts and attempt.step == len(counts) + uncommitted
    assert verify(run)["problems"] == [] and len(counts) > 4


def test_a_claimed_attempt_without_a_commit_leaves_what_it_starts_from_in_force(run: str) -> None:
    committed(run, 3)
    begin(run, retention.at_step(run, 2))
    link = chain.head(run)
    assert link is not None and (link.step, link.attempt) == (2, 0)
    assert json.loads(Path(run, "attempts", "1.json").read_text())["from"] == {
        "attempt": 0,
        "number": 1,
        "step": 2,
        "sha256": hashlib.sha256(link_file(run, 1).read_bytes()).hexdigest(),
    }


def test_an_attempt_that_went_back_holds_what_the_others_name_and_one_that_goes_on_does_not(run: str) -> None:
    committed(run, 4)
    begin(run)  # dies before its first commit
    attempt = begin(run)
    take(attempt)
    assert not commit(attempt).held
    begin(run, retention.at_step(run, 4))  # dies, too; what it went back to is in force
    attempt = begin(run)
    take(attempt)
    link = commit(attempt)
    assert link.held and (link.number, link.previous and link.previous.attempt) == (4, 0)
    anew = Attempt(run, dict(PINNED))
    assert anew.open(RECORD, fresh=True) is None
    anew.claim()
    take(anew)
    link = commit(anew)
    assert link.held and link.number == 0 and branch(run) == [(0, 5)] and verify(run)["problems"] == []


def test_a_step_that_is_not_kept_is_answered_with_those_that_are(run: str) -> None:
    committed(run, 5, keep=3)
    assert [link.step for link in retention.kept(run)] == [3, 4, 5] and retention.at_step(run, 4).number == 3
    with pytest.raises(UsageError, match="no state of step 2; kept are those of step 3, 4, 5"):
        retention.at_step(run, 2)


def test_two_commits_at_one_step_are_two_states(run: str) -> None:
    attempt = committed(run, 2)
    again = commit(attempt)
    assert again.step == 2 and all("/commit=2/" in path for path in again.files)
    assert verify(run)["problems"] == [] and retention.at_step(run, 2).number == 2


# -- what it costs ---------------------------------------------------------------------------------------------------


class Counted:
    """Requests to a store and bytes that go either way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        self.requests, self.bytes = Counter[str](), 0
        store: Any = store_of(url)[0]
        for name in ("info", "get", "put", "find", "delete"):
            monkeypatch.setattr(store, name, self._counting(name, getattr(store, name)))

    def _counting(self, name: str, ask: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.requests[name] += 1
            self.bytes += len(args[1]) if name == "put" else 0
            return ask(*args)

        return counted

    def take(self) -> tuple[dict[str, int], int]:
        told = dict(self.requests), self.bytes
        self.requests.clear()
        self.bytes = 0
        return told


def test_a_commit_costs_the_same_requests_and_bytes_after_100_and_after_1500(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = Counted(monkeypatch, "memory://chains/x"), {}
    for links in (100, 1500):
        run = f"memory://chains/{links}"
        for path, data in long_chain(links):
            storage.create(f"{run}/{path}", data)
        attempt = Attempt(run, dict(PINNED))
        asked.take()
        attempt.open(RECORD)
        opened = asked.take()[0]
        attempt.claim()
        commits = list[Any]()
        for _ in range(3):
            take(attempt)
            asked.take()
            commit(attempt)
            commits.append(asked.take())
        told[links] = opened, commits
    (few, at_100), (many, at_1500) = told[100], told[1500]
    assert [requests for requests, _ in at_100] == [requests for requests, _ in at_1500]
    assert all(abs(a - b) < 64 for (_, a), (_, b) in zip(at_100, at_1500, strict=True))  # digits of numbers
    assert at_1500[0][0] == {"put": 5, "info": 1, "find": 1}  # log, steps, two tensors, link; a newer attempt; states
    assert sum(many.values()) <= sum(few.values()) + 8  # 6 blocks are found by doubling and halving


def test_a_link_reads_at_most_256_behind_it_and_no_listing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = "memory://chains/behind", Counted(monkeypatch, "memory://chains/x")
    for path, data in long_chain(2 * BLOCK - 1):
        storage.create(f"{run}/{path}", data)
    link = chain.head(run)
    asked.take()
    assert link is not None and len(chain.segments(run, link, "log")) == 8 + 8 * BLOCK - 8
    assert asked.take()[0]["get"] == BLOCK - 2


# -- compaction ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
def test_small_segments_are_merged_and_the_rows_stay_what_they_were(run: str) -> None:
    committed(run, 11)
    latest = checkpoint.latest(run)
    assert latest is not None and branch(run) == [(step, 0) for step in range(11)]
    assert [s["rows"] for s in latest.log] == [36, 4, 4] and [s["rows"] for s in latest.steps] == [9, 1, 1]
    assert "/merged=0000000008/0000000000-0000000008" in latest.log[0]["path"]
    whole = chain.at(run, 0, 8, "")
    assert len(whole.merged[0]["of"]) == 5  # what was merged before, and four new ones
    # Raw segments of the first eight commits are gone, and so is what was merged from them first.
    assert files(run, "log") == {s["path"] for s in latest.log} and verify(run)["problems"] == []


@pytest.mark.slow
def test_every_256th_commit_is_whole_and_its_raw_segments_go_two_commits_later(run: str) -> None:
    attempt = committed(run, 2 * BLOCK + 2)
    assert [n for n in range(2 * BLOCK + 2) if chain.at(run, 0, n, "").whole] == [0, BLOCK, 2 * BLOCK]
    assert len(files(run, "log")) == BLOCK + 3  # merged and its parts, and one since
    take(attempt)
    commit(attempt)
    assert len(files(run, "log")) == 3 and verify(run)["problems"] == [] and len(branch(run)) == 2 * BLOCK + 3


@pytest.mark.usefixtures("often")
def test_a_ledger_that_is_opened_while_segments_are_merged_looks_again(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = committed(run, 4)
    before, real = checkpoint.latest(run), checkpoint.latest
    for _ in range(3):
        take(attempt)
        commit(attempt)
    stale = [before]  # what was read right before the raw segments went
    monkeypatch.setattr(checkpoint, "latest", lambda run: stale.pop() if stale else real(run))
    with open_ledger(run) as ledger:
        assert ledger.sql("select count(*) from selections")[0].to_pylist() == [28] and not stale


@pytest.mark.usefixtures("often")
def test_a_question_whose_segments_are_merged_while_the_ledger_is_open_is_asked_again(run: str) -> None:
    attempt = committed(run, 4)
    count = "SELECT count(*) AS n, max(step) AS last FROM selections"
    with open_ledger(run) as ledger:
        assert ledger.sql(count).to_pylist() == [{"n": 16, "last": 3}]
        for _ in range(3):
            take(attempt)
            commit(attempt)
        # The segments that it was opened with are gone.
        assert ledger.sql(count).to_pylist() == [{"n": 28, "last": 6}]
        newest = checkpoint.latest(run)
        assert newest is not None
        storage.delete(storage.join(run, newest.log[0]["path"]))  # which nobody merged
        with pytest.raises(TableError, match="is listed by the checkpoint but is gone"):
            ledger.sql(count)


@pytest.mark.usefixtures("often")
def test_raw_segments_stay_for_two_commits_and_as_long_as_an_older_state_is_kept(run: str) -> None:
    attempt = committed(run, 5)
    raw = {f"log/attempt=0/rank=0/{n:010d}-{n:010d}.parquet" for n in range(4)}
    assert files(run, "log") > raw
    take(attempt)
    commit(attempt)
    assert files(run, "log") > raw
    take(attempt)
    commit(attempt, keep=3)  # the states of commits 4, 5 and 6: none is older than the merging
    assert not files(run, "log") & raw
    other = committed(run + "-2", 7, keep=4)
    assert files(other.url, "log") > raw and verify(other.url)["problems"] == []


@pytest.mark.usefixtures("often")
def test_what_a_state_that_was_handed_out_names_is_removed_by_prune_alone(run: str) -> None:
    attempt = committed(run, 2)
    take(attempt)
    out = commit(attempt, handed_out=True)
    for _ in range(6):
        take(attempt)
        commit(attempt)
    before = {kind: files(run, kind) for kind in ("log", "steps")}
    whole = chain.with_segments(run, chain.at(run, 0, out.number, out.digest))
    assert {s["path"] for s in whole.log} < before["log"] and out.files == {}
    asked = prune(run, before=9)
    assert not asked.deleted and {kind: files(run, kind) for kind in before} == before
    assert asked.states == [8] and asked.segments > 8 and "--delete does it" in str(asked)
    done = prune(run, before=9, delete=True)
    assert done.segments == asked.segments and done.bytes == asked.bytes > 0
    latest = checkpoint.latest(run)
    assert latest is not None and files(run, "log") == {s["path"] for s in latest.log}
    assert verify(run)["problems"] == [] and branch(run) == [(step, 0) for step in range(9)]
    assert "nothing to remove" in str(prune(run, before=9))


@pytest.mark.usefixtures("often")
def test_prune_leaves_all_that_states_from_its_step_on_count(run: str) -> None:
    committed(run, 10, keep=20)
    prune(run, before=7, delete=True)
    assert [link.step for link in retention.kept(run)] == [7, 8, 9, 10]
    for link in retention.kept(run):
        whole = chain.with_segments(run, link)
        assert selections.read(run, whole.log).num_rows == 4 * link.step
    begin(run, retention.at_step(run, 7))
    assert branch(run) == [(step, 0) for step in range(7)]


def test_prune_says_what_is_no_run_and_is_a_verb(run: str, capsys: Any) -> None:
    begin(run)
    with pytest.raises(UsageError, match="no commit"):
        prune(run, before=1)
    committed(run, 4, keep=4)
    assert "would remove" in command(capsys, "prune", run, "--before", 3)[0]
    assert "removed 2 states (of step 1, 2)" in command(capsys, "prune", run, "--before", 3, "--delete")[0]
    assert "Missing option" in "".join(command(capsys, "prune", run, code=2))


def test_each_rank_is_merged_for_itself_in_its_order(run: str) -> None:
    listed = list[dict[str, Any]]()
    writers = [LogWriter(run, 0, rank) for rank in range(3)]
    for step in range(4):
        for rank, writer in enumerate(writers):
            log_rows(writer, [rows(step, rank)[rank]], step)
            listed += writer.flush()
    jobs = compaction.plan({"log": listed, "steps": [], "shadow": []}, 1, 256)
    assert [(job["rank"], len(job["of"])) for job in jobs] == [(0, 4), (1, 4), (2, 4)]
    lists, of = compaction.applied(
        {"log": listed, "steps": [], "shadow": []}, [one for job in jobs for one in compaction.merge(run, job)]
    )
    table = selections.read(run, lists["log"])
    assert table["label"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4 and table["step"].to_pylist() == [0, 1, 2, 3] * 3
    assert table.schema.equals(selections.read(run, listed).schema) and len(of) == 3


def test_two_ranks_merge_each_its_own_and_know_the_same_commit(run: str, tmp_path: Path) -> None:
    first, second = together(tmp_path / "answers", two_ranks, 2, run)
    assert first == second and len({*first}) == 6
    latest = checkpoint.latest(run)
    assert latest is not None and latest.digest == first[-1] and verify(run)["problems"] == []
    assert [s["path"][:21] for s in latest.log[:2]] == ["log/attempt=0/rank=0/", "log/attempt=0/rank=1/"]
    assert ["merged=" in s["path"] for s in latest.log] == [True, True, False, False]
    table = selections.read(run, latest.log)
    assert sorted(table["ordinal"].to_pylist()) == list(range(24))
    assert table["label"].to_pylist() == [0] * 10 + [1] * 10 + [0] * 2 + [1] * 2  # of the last commit, unmerged
    raw = {path for one in chain.at(run, 0, 4, "").merged for path in one["of"] if path.startswith("log/")}
    assert files(run, "log") == {s["path"] for s in latest.log} | raw and len(raw) == 6


def test_segments_are_merged_up_to_a_size_and_large_ones_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "TARGET", 100)
    monkeypatch.setattr(compaction, "SMALL", 50)
    sizes = [40, 40, 40, 60, 10, 45, 45, 45, 49, 49]
    log = [
        {"path": f"log/attempt=0/rank=0/{n:010d}-{n:010d}.parquet", "bytes": size, "rows": 1}
        for n, size in enumerate(sizes)
    ]
    jobs = compaction.plan({"log": log, "steps": [], "shadow": []}, 0, 4)
    assert [[one["bytes"] for one in job["of"]] for job in jobs] == [[40, 40], [10, 45, 45], [45, 49]]
    monkeypatch.setattr(compaction, "ROWS", 2)
    jobs = compaction.plan({"log": log, "steps": [], "shadow": []}, 0, 4)
    assert [[one["bytes"] for one in job["of"]] for job in jobs] == [[40, 40], [10, 45], [45, 45], [49, 49]]


@pytest.mark.usefixtures("often")
def test_a_damaged_raw_segment_is_left_as_it_is_named_and_verify_says_so(run: str) -> None:
    attempt = committed(run, 4)
    Path(run, "log/attempt=0/rank=0/0000000001-0000000001.parquet").write_bytes(b"x")
    take(attempt)
    with pytest.warns(UserWarning, match="left unmerged"):
        commit(attempt)
    latest = checkpoint.latest(run)
    assert latest is not None and [s["rows"] for s in latest.log] == [4, 4, 12]
    assert "0000000001" in verify(run)["problems"][0]


@pytest.mark.usefixtures("often")
def test_segments_of_other_columns_go_together_for_themselves(run: str) -> None:
    attempt = committed(run, 4, keep=9)
    lists, records = dict[str, list[Any]](log=[], steps=[], shadow=[]), [chain.at(run, 0, n, "").log for n in range(4)]
    for (segment,) in records[:2]:  # as older versions wrote them, with a `lag` that was always 0
        url = str(Path(run, segment["path"]))
        table, facts = parquet.read(url)
        data = parquet.encode(table.append_column("lag", pa.array([0] * len(table), pa.uint8())), facts, {}, [])
        Path(url).write_bytes(data)
        lists["log"].append(segment_record(segment["path"], data, segment["rows"]))
    lists["log"] += [segment for each in records[2:] for segment in each]
    (job,) = compaction.plan(lists, attempt.attempt, 4)
    made = compaction.merge(run, job)
    assert [(one["segment"]["rows"], len(one["of"])) for one in made] == [(8, 2), (8, 2)]
    # Read together, as a run that was begun then and goes on today has them: of today's columns, in rows and in SQL.
    for segments in (lists["log"], [one["segment"] for one in made]):
        whole = selections.read(run, segments)
        assert whole.schema.names == selections.SCHEMA.names and whole["step"].to_pylist() == sorted([0, 1, 2, 3] * 4)
        paths = [(str(Path(run, segment["path"])), None) for segment in segments]
        assert sources.dataset(paths, None, selections.SCHEMA).to_table().to_pylist() == whole.to_pylist()


# -- proofs ----------------------------------------------------------------------------------------------------------


def test_a_link_that_was_replaced_or_is_gone_is_found_from_the_newest_digest(run: str) -> None:
    committed(run, 5)
    path = link_file(run, 2)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"buffer": 3', b'"buffer": 2'))
    assert "0000000002.json isn't the link" in verify(run)["problems"][0]
    with pytest.raises(TableError, match="0000000002"):
        checkpoint.latest(run)
    path.unlink()
    assert "0000000002.json is named by a later commit but is gone" in verify(run)["problems"][0]


@pytest.mark.usefixtures("often")
def test_merged_rows_that_are_not_the_raw_ones_and_rows_that_count_twice_are_found(run: str) -> None:
    committed(run, 5, keep=9)
    whole = json.loads(link_file(run, 4).read_text())
    raw = [segment_record(path, Path(run, path).read_bytes(), 4) for path in whole["merged"][0]["of"]]
    parts = [merged.read_part(run, segment) for segment in raw[::-1]]
    data = merged.encode_together("log", [rows for rows, _ in parts], parts[0][1])
    at = next(s for s in whole["log"] if "merged=" in s["path"])
    Path(run, at["path"]).write_bytes(data)
    at |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    link_file(run, 4).write_text(json.dumps(whole))
    assert "doesn't hold the rows of the 5 segments" in "\n".join(verify(run)["problems"])
    whole["log"].append(raw[0])
    link_file(run, 4).write_text(json.dumps(whole))
    assert "counts beside log/attempt=0" in "\n".join(verify(run)["problems"])


def test_repair_goes_on_from_the_sound_commit_and_a_trainer_that_still_writes_stops(run: str) -> None:
    attempt = committed(run, 4, keep=3)
    for path in (link_file(run, 3), Path(run, next(p for p in chain.at(run, 0, 2, "").files if "model" in p))):
        path.write_bytes(path.read_bytes()[:-7] + b"x" * 7)
    found = verify(run)
    assert found["resumable_from"] == 2
    mended = repair(run)
    assert mended["problems"] == [] and mended["step"] == 2 and len(mended["repaired"]) == 2
    assert branch(run) == [(0, 0), (1, 0)] and "attempt 1 has claimed" in mended["warnings"][0]
    take(attempt)
    with pytest.raises(SupersededError, match="attempt 1 has taken over"):
        commit(attempt)


def test_fields_that_a_later_version_adds_are_left_out_and_a_later_format_is_refused(run: str) -> None:
    committed(run, 1)
    path = link_file(run, 0)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "weather": "fine"}))
    link = chain.head(run)
    assert link is not None and link.step == 1
    path.write_text(json.dumps({**record, "version": 3}))
    with pytest.raises(TableError, match="newer rhostream"):
        chain.head(run)


# -- states of other trainers ----------------------------------------------------------------------------------------


def test_a_state_that_was_handed_out_is_shown_and_said_until_it_is_confirmed_or_loaded(
    run: str, tmp_path: Path, capsys: Any
) -> None:
    attempt = committed(run, 2)
    take(attempt)
    link = commit(attempt, handed_out=True)
    assert status_of(run)["step"] == 3 and "step 3 was handed out" in command(capsys, "status", run)[0]
    assert "step 3 was handed out" in verify(run)["warnings"][0]
    out, said = command(capsys, "sql", run, "select count(*) n from selections")
    assert "12" in out and "step 3 was handed out" in said
    assert "run: step 3 was handed out" in Path(write_report(run, str(tmp_path / "r.html"))).read_text()
    chain.confirm(run, link)
    chain.confirm(run, link)
    assert status_of(run)["unconfirmed"] == "" and verify(run)["warnings"] == []
    take(attempt)
    commit(attempt, handed_out=True)
    head = chain.head(run)
    assert head is not None and head.unconfirmed
    begin(run)  # whoever goes on from it has it
    head = chain.head(run)
    assert head is not None and head.step == 4 and not head.unconfirmed


def test_a_state_of_another_trainer_is_found_by_its_digest_and_a_strangers_is_refused(run: str) -> None:
    attempt = committed(run, 3)
    link = chain.head(run)
    assert link is not None and chain.at(run, 0, 2, link.digest) == link and attempt.attempt == 0
    with pytest.raises(TableError, match="isn't the link that was committed"):
        chain.at(run, 0, 1, link.digest)
    with pytest.raises(TableError, match="is gone"):
        chain.at(run, 0, 7, link.digest)


# -- readers ---------------------------------------------------------------------------------------------------------


def test_who_reads_a_run_needs_no_torch() -> None:
    code = "import sys, rhostream.audit.views, rhostream.runs.prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_link_survives_its_json() -> None:
    link = Link(step=3, pass_index=0, buffer=3, attempt=0, complete=False, files={}, counts={"kept": 3})
    assert json.loads(link.encode())["version"] == 2 and "digest" not in json.loads(link.encode()) and STATE
