"""Samples on a deny-list are never read, whatever else holds; the ledger says from which step on which list held."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream import storage
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import NotFoundError, UsageError
from tests.support.own_loop import network
from tests.support.small_run import go


def denied_rows(run: Path) -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(run)) as ledger:
        return ledger.sql(
            "SELECT step, shard, ordinal, key, loss, kept FROM selections WHERE reason = 'denied'"
        ).to_pylist()


def changes_of(run: Path) -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.runs[0].checkpoint is not None
        return ledger.runs[0].checkpoint.changes


def some(world: Path, where: str) -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(world / "il")) as ledger:
        return ledger.sql(f"SELECT shard, key, ordinal FROM samples WHERE {where} ORDER BY shard, ordinal").to_pylist()


def write(path: Path, rows: list[dict[str, Any]], second: str = "ordinal") -> str:
    path.write_text(json.dumps([{"shard": row["shard"], second: row[second]} for row in rows]))
    return str(path)


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def buffers(world: Path, **options: Any) -> dict[tuple[int, int], int]:
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40, lanes=4, **options)
    got = [*stream, stream.stream.tail(0)]
    return {
        (int(s), int(o)): int(r) for c in got for s, o, r in zip(c.shard, c.ordinal, c.reason.tolist(), strict=True)
    }


@pytest.mark.parametrize("second", ["ordinal", "key"])
def test_every_sample_on_the_list_is_denied_and_nothing_else_changes(
    world: Path, tmp_path: Path, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, plain, pread = some(world, "true"), buffers(world), storage.Reader.pread
    names = {name: n for n, name in enumerate(sorted({row["shard"] for row in everything}))}
    at = {(names[row["shard"]], row["ordinal"]): row for row in everything}
    named = {place for place in at if place[1] % 7 == 3 or plain[place] == Reason.tail}
    path, reads = write(tmp_path / "deny.json", [at[place] for place in named], second), list[int]()

    def counted(self: Any, size: int, offset: int) -> bytes:
        if size != 8192:  # a part's footer
            reads.append(size)
        return pread(self, size, offset)

    monkeypatch.setattr(storage.Reader, "pread", counted)
    with_list = buffers(world, deny=path)
    assert {at for at, reason in with_list.items() if reason == Reason.denied} == named
    assert len(reads) == list(with_list.values()).count(CANDIDATE)
    # What holds beside it is as it was; a sample of the tail is denied, too, and counted once.
    assert {at: r for at, r in with_list.items() if at not in named} == {
        at: r for at, r in plain.items() if at not in named
    }
    assert {plain[at] for at in named} == {CANDIDATE, Reason.tail}


def test_a_denied_sample_without_an_il_stops_no_run(plain_world: Path, tmp_path: Path) -> None:
    rhostream.index([str(plain_world / "shards")], str(tmp_path / "index"))
    everything = write(tmp_path / "deny.json", some(plain_world, "true"))
    stream = rhostream.open_stream(
        str(plain_world / "shards"), str(tmp_path / "index"), buffer_size=40, needs_il=False, deny=everything
    )
    assert set(next(iter(stream)).reason.tolist()) == {Reason.denied}


def test_a_run_that_goes_on_with_a_longer_list_records_from_which_step_on_it_held(world: Path, tmp_path: Path) -> None:
    rows, run = some(world, "ordinal % 3 = 0"), tmp_path / "run"
    short, long = write(tmp_path / "short.json", rows[:50]), write(tmp_path / "long.json", rows)
    go(world, run, 6, deny=short)
    assert json.loads((run / "run.json").read_text())["settings"]["deny"] == digest(short)
    assert changes_of(run) == []
    with pytest.raises(UsageError, match="--deny none"):
        go(world, run, 12)
    go(world, run, 12, deny=long)
    want = {"field": "deny", "old": digest(short), "new": digest(long), "step": 6, "samples": len(rows), "attempt": 1}
    assert changes_of(run) == [want]
    with pytest.raises(UsageError, match=rf"50 samples.*{len(rows)}"):
        go(world, run, 18, deny=short)
    go(world, run, 12, deny=long)  # the same again is no second change
    go(world, run, 18, deny="none")
    assert [change["new"] for change in changes_of(run)] == [digest(long), None]
    go(world, run, 20)  # nothing holds any more, so nothing has to be said
    named = {(row["shard"], row["ordinal"]): n < 50 for n, row in enumerate(rows)}
    found = denied_rows(run)
    assert found and all(row["loss"] is None and not row["kept"] for row in found)
    assert all(named[row["shard"], row["ordinal"]] or 6 <= row["step"] < 12 for row in found)
    assert all(row["step"] < 12 for row in found)
    with rhostream.open_ledger(str(run)) as ledger:
        seen = ledger.sql("SELECT step, shard, ordinal, reason FROM selections WHERE step BETWEEN 6 AND 11").to_pylist()
    assert all(row["reason"] == "denied" for row in seen if (row["shard"], row["ordinal"]) in named)


def test_going_back_behind_a_list_does_not_forget_it(world: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", write(tmp_path / "deny.json", some(world, "ordinal < 20"))
    go(world, run, 2, checkpoint_every=2)
    go(world, run, 4, deny=path)
    with pytest.raises(UsageError, match="deny"):
        go(world, run, 6, from_step=2)
    go(world, run, 4, from_step=2, deny=path)
    assert [(c["field"], c["step"]) for c in changes_of(run)] == [("from_step", 2), ("deny", 2)]


def test_a_loop_of_ones_own_keeps_to_the_list_too(world: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "deny.json", some(world, "ordinal % 2 = 0"))

    def loop(steps: int, **options: Any) -> None:
        stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40, **options)
        optimizer = torch.optim.SGD((model := network()).parameters(), 0.1)
        selector = rhostream.Selector(model, batch_size=8)
        state = {"model": model, "optimizer": optimizer}
        run = rhostream.Run(str(tmp_path / "run"), stream, selector, state=state, config={}, steps=steps)
        for kept in run:
            loss_b = torch.nn.functional.cross_entropy(model(kept.input), kept.label, reduction="none")
            optimizer.zero_grad()
            kept.mean(loss_b).backward()
            optimizer.step()
            run.step(loss_b)

    loop(3)
    loop(6, deny=path)
    assert [(c["field"], c["step"], c["new"]) for c in changes_of(tmp_path / "run")] == [("deny", 3, digest(path))]
    assert {row["step"] for row in denied_rows(tmp_path / "run")} == {3, 4, 5}
    with pytest.raises(UsageError, match=r"open_stream\(deny=\)"):
        loop(9)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "can be read"),
        (b"shard,ordinal\n", "no rows"),
        (b"[]", "columns none"),
        (b"shard,name\na,b\n", "columns shard, name"),
        (b"PAR1 and then nothing", "can be read"),
        (b"\x00\xff\xfe" * 100, "deny-list"),
        (b'{"shard": ' + b"[" * 10_000, "can be read"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_before_any_work(
    world: Path, tmp_path: Path, data: bytes, says: str
) -> None:
    (tmp_path / "deny").write_bytes(data)
    with pytest.raises(UsageError, match=says):
        go(world, tmp_path / "run", deny=str(tmp_path / "deny"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotFoundError):
        go(world, tmp_path / "run", deny=str(tmp_path / "gone"))


def test_rows_that_name_no_sample_are_counted_and_hold_nothing_up(world: Path, tmp_path: Path) -> None:
    (tmp_path / "deny.csv").write_text('shard,key\nshards/00.tar,"\x1b[31m<b>"\nelsewhere.tar,a\n')
    with pytest.warns(UserWarning, match="deny-list .*2 of its rows name no sample") as told:
        assert Reason.denied not in buffers(world, deny=tmp_path / "deny.csv").values()
    assert "\x1b" not in str(told[0].message)
    with warnings.catch_warnings(), pytest.raises(UsageError, match="deny is a set"):
        buffers(world, deny={"a"})
