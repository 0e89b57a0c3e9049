"""verify, its repair and status: what a run's ledger can contradict, and what a repair leaves when it dies."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import rhostream
from rhostream import storage
from rhostream.audit.status import shortened, status_of
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, TableError, UsageError
from rhostream.repair import repair
from rhostream.runs import chain, checkpoint
from rhostream.runs.link import url_of
from rhostream.runs.loadable import is_loadable
from rhostream.runs.tensors import payload
from rhostream.tables import il, parquet, selections
from tests.support.command import command
from tests.support.forks import CONTEXT
from tests.support.shards import make_shards

TRAIN = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8}


@pytest.fixture(scope="module")
def base(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a pass and a half, two checkpoints kept."""
    folder = tmp_path_factory.mktemp("base") / "run"
    rhostream.train([str(world / "shards")], str(world / "il"), str(folder), steps=38, checkpoint_every=20, **TRAIN)
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "run"))


def newest(run: Path) -> Path:
    link = chain.head(str(run))
    assert link is not None
    return Path(url_of(str(run), link.attempt, link.number))


def tensor(run: Path, name: str) -> Path:
    """A file of the newest commit's state."""
    return run / next(path for path in json.loads(newest(run).read_text())["files"] if path.endswith("/" + name))


def rewrite(run: Path, what: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of the newest segment and make the checkpoint agree with its bytes: only the rows can tell."""
    record = json.loads(newest(run).read_text())
    segment = record[what][-1]
    path = run / segment["path"]
    rows, facts = parquet.read(str(path))
    rows = change(rows)
    data = parquet.encode(rows, facts, {}, [])
    path.write_bytes(data)
    segment |= {"rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    newest(run).write_text(json.dumps(record))


def problems(run: Path) -> str:
    return "\n".join(verify(str(run))["problems"])


# -- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_is_proved_file_by_file_and_row_by_row(run: Path) -> None:
    found = verify(str(run))
    assert found["problems"] == found["warnings"] == [] and found["step"] == 38
    assert found["rows"] == 38 * 40 + 3 and found["files"] == 2 + 2 + 2  # log, steps, tensors


def set_column(rows: pa.Table, name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    at = rows.schema.get_field_index(name)
    column = rows[name].cast("string") if pa.types.is_dictionary(rows[name].type) else rows[name]
    values = pa.array(change(column.to_pylist()), column.type)
    return rows.set_column(
        at,
        name,
        values.cast(rows.schema.field(name).type)
        if column is rows[name]
        else values.dictionary_encode().cast(rows.schema.field(name).type),
    )


@pytest.mark.parametrize(
    ("what", "change", "says"),
    [
        ("log", lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), "1 samples are planned twice in a pass"),
        ("log", lambda rows: rows.slice(1), "1 of 38 steps don't have the 40 rows of a buffer, first step 20 with 39"),
        (
            "log",
            lambda rows: rows.filter(pc.invert(pc.fill_null(pc.equal(rows["step"], 30), False))),
            "1 of 38 steps don't have the 40 rows of a buffer, first step 30 with 0",
        ),
        (
            "log",
            lambda rows: set_column(rows, "step", lambda s: [None if v is None else v + 1 for v in s]),
            "has rows of step 38, the checkpoint is of step 38",
        ),
        (
            "log",
            lambda rows: set_column(rows, "kept", lambda k: [not k[0], *k[1:]]),
            "a row is kept and its reason isn't",
        ),
        (
            "log",
            lambda rows: set_column(rows, "reason", lambda r: ["below" if v == "tail" else v for v in r]),
            "the checkpoint counted",
        ),
        (
            "log",
            lambda rows: set_column(rows, "ordinal", lambda o: [100_000, *o[1:]]),
            "samples that the IL table doesn't",
        ),
        ("steps", lambda rows: rows.slice(1), "doesn't hold steps 0 to 37 each once, in order (37 rows)"),
        (
            "steps",
            lambda rows: set_column(rows, "kept", lambda k: [k[0] - 1, *k[1:]]),
            "1 steps kept another number of samples than the log says, first step 20: 7 != 8",
        ),
    ],
    ids=["twice", "row gone", "step gone", "step moved", "kept", "reason", "stranger", "steps row gone", "steps kept"],
)
def test_rows_that_contradict_the_ledger_are_found_even_when_every_checksum_agrees(
    run: Path, what: str, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    rewrite(run, what, change)
    assert says in problems(run)


def test_a_pass_that_lacks_a_sample_is_found_with_and_without_the_table(run: Path, tmp_path: Path) -> None:
    def swap(rows: pa.Table) -> pa.Table:  # a sample of the tail of pass 0 becomes one that was there
        tail = int(np.flatnonzero(pc.is_null(rows["step"]).to_numpy())[0])
        return pa.concat_tables([rows.slice(0, tail), rows.slice(tail + 1)])

    rewrite(run, "log", swap)
    assert "pass 0 lacks samples of 1 shards" in problems(run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "il": str(tmp_path / "gone")}))
    assert "pass 0 has 1,002 samples, run.json says 1,003" in problems(run)


def test_another_table_in_the_place_of_the_runs_own_is_said(run: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "il", tmp_path / "il")
    info = json.loads((tmp_path / "il" / "_table.json").read_text())
    info["ingredients"]["decoder"] = "another"
    (tmp_path / "il" / "_table.json").write_text(json.dumps(info))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "il": str(tmp_path / "il")}))
    assert "another table has taken its place" in problems(run)


def test_a_claim_that_is_gone_and_one_that_is_newer_are_said(run: Path) -> None:
    checkpoint.claim_attempt(str(run), {})
    found = verify(str(run))
    assert found["problems"] == [] and "attempt 1 has claimed the run" in found["warnings"][0]
    shutil.rmtree(run / "attempts")
    assert "could be claimed twice" in problems(run)


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.pt", "link", "segment"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_resumes_from_the_one_before(
    run: Path, base: Path, world: Path, victim: str
) -> None:
    path = {"link": newest(run), "segment": max((run / "log").rglob("*.parquet"))}.get(victim) or tensor(run, victim)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if victim != "link" else 0] ^= 0x10
    path.write_bytes(data)
    found = verify(str(run))
    assert found["problems"] and found["resumable_from"] == 20 and "resumes from step 20" in found["next"]
    mended = repair(str(run))
    assert mended["problems"] == [] and mended["step"] == 20 and mended["repaired"][0].endswith("damaged.json")
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("SELECT max(step) FROM selections")[0].to_pylist() == [19]
    rhostream.train([str(world / "shards")], str(world / "il"), str(run), steps=38, checkpoint_every=20, **TRAIN)
    assert verify(str(run))["problems"] == []
    again, before = (selections.read(str(r), checkpoint.latest(str(r)).log) for r in (run, base))
    assert again.equals(before)


def test_a_checkpoint_whose_files_are_as_committed_and_can_not_be_loaded_is_a_problem(run: Path) -> None:
    record = json.loads(newest(run).read_text())
    path = next(p for p in record["files"] if p.endswith("optimizer.pt"))
    (run / path).write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a pickle that would run something
    record["files"][path] = hashlib.sha256((run / path).read_bytes()).hexdigest()
    newest(run).write_text(json.dumps(record))
    assert "holds what" in problems(run) and verify(str(run))["resumable_from"] == 20


def _zipped(data: bytes, pickled: bytes) -> bytes:
    """The zip of a state with another pickle in it, its checksums made anew."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return sink.getvalue()


def test_what_is_proved_without_torch_is_what_torch_loads() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    files = payload(model.state_dict(), optimizer.state_dict())
    assert all(is_loadable(name, data) for name, data in files.items())
    whole, rng = files["optimizer.pt"], np.random.default_rng(0)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        pickled = archive.read("archive/data.pkl")
    proved = 0
    for _ in range(200):
        changed = bytearray(pickled)
        changed[rng.integers(len(pickled))] = rng.integers(256)
        data = _zipped(whole, bytes(changed))
        if is_loadable("optimizer.pt", data):
            torch.load(io.BytesIO(data), weights_only=True)
            proved += 1
    assert 20 < proved < 150  # another number, another name of a setting: still a state
    for name, data in files.items():
        assert not is_loadable(name, data[:-9]) and not is_loadable(name, b"")
        assert not is_loadable(name, _zipped(whole, b"cos\nsystem\n(S'true'\ntR."))


def test_a_run_with_no_whole_checkpoint_is_left_as_it_is(run: Path) -> None:
    segment = min((run / "log").rglob("*.parquet"))  # listed by both
    segment.write_bytes(b"")
    before = sorted(p for p in run.rglob("*"))
    found = verify(str(run))
    assert found["resumable_from"] is None and "another --run" in found["next"]
    with pytest.raises(TableError, match="nothing was changed"):
        repair(str(run))
    assert sorted(p for p in run.rglob("*")) == before


# -- an IL model -----------------------------------------------------------------------------------------------------


def test_an_il_model_is_proved_by_the_hashes_of_its_weights(world: Path, tmp_path: Path, capsys: Any) -> None:
    model = Path(shutil.copytree(world / "il-model", tmp_path / "m"))
    assert verify(str(model))["problems"] == []
    shown = command(capsys, "status", model)[0]
    assert "2 x mlp-64" in shown and f"rhostream compute-il --shards URL... --il-model {model} --out URL" in shown
    first, second = sorted(model.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    found = command(capsys, "verify", model, code=3)[0]
    assert "sha256 differs" in found and "is gone" in found


# -- a table ---------------------------------------------------------------------------------------------------------


def mend(table: str) -> None:
    """What the process that is killed does."""
    repair(table)


def test_a_repair_that_is_killed_leaves_bad_parts_or_good_ones_and_ends_when_run_again(
    world: Path, tmp_path: Path
) -> None:
    table = Path(shutil.copytree(world / "il", tmp_path / "il"))
    good = {p: p.read_bytes() for p in table.rglob("*.parquet")}
    for part in good:
        part.write_bytes(b"bad")
    process = CONTEXT.Process(target=mend, args=(str(table),))
    process.start()
    while process.is_alive() and all(p.read_bytes() == b"bad" for p in good):
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    now = {p: p.read_bytes() for p in good}
    assert all(now[p] in (b"bad", good[p]) for p in good) and any(now[p] != b"bad" for p in good)
    assert repair(str(table))["problems"] == [] and {p: p.read_bytes() for p in good} == good


def test_a_table_on_a_store_is_proved_and_mended_too(world: Path) -> None:
    shards, table = "memory://verify/shards", "memory://verify/il"
    for shard in (world / "shards").iterdir():
        storage.create(f"{shards}/{shard.name}", shard.read_bytes())
    urls = [f"{shards}/train-{n:03d}.tar" for n in range(7)]
    rhostream.index(urls, table)
    assert verify(table, shards=urls)["problems"] == []
    part = il.part_urls(table)[2]
    whole = storage.read_bytes(part)
    storage.replace(part, whole[:200])
    storage.delete(il.part_urls(table)[5])
    found = verify(table, shards=urls)
    assert len(found["problems"]) == 2 and "shard verify/shards/train-005.tar has no part" in found["problems"][1]
    mended = repair(table)  # without a list of shards: the damaged one, found by its name
    assert mended["problems"] == [] and mended["repaired"] == ["verify/shards/train-002.tar"]
    assert repair(table, shards=urls)["repaired"] == ["verify/shards/train-005.tar"]
    assert verify(table, shards=urls)["problems"] == [] and storage.read_bytes(part) == whole


def test_a_repair_reads_shards_as_leniently_as_the_table_was_made(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    plain = sorted((world / "shards").iterdir())
    (shards / "a.tar.gz").write_bytes(gzip.compress(plain[0].read_bytes()))
    (shards / "b.tar").write_bytes(plain[1].read_bytes().rstrip(b"\0"))  # all but its end marker
    size = (shards / "b.tar").stat().st_size
    with (shards / "b.tar").open("ab") as file:
        file.truncate(-(-size // 512) * 512)
    table, lenient = tmp_path / "il", ("--allow-compressed", "--accept-missing-eof")
    command(capsys, "index", "--shards", shards, "--out", table, *lenient)
    good = {p: p.read_bytes() for p in table.rglob("*.parquet")}
    for part in good:
        part.write_bytes(b"bad")
    command(capsys, "verify", table, "--repair", code=3)
    says = command(capsys, "verify", table, "--repair", "--model", "x:y", code=2)[1]
    assert "--model: this table is an index" in says
    assert "needs --repair" in command(capsys, "verify", table, "--allow-compressed", code=2)[1]
    assert all(p.read_bytes() == b"bad" for p in good)
    command(capsys, "verify", table, "--repair", *lenient)
    assert {p: p.read_bytes() for p in good} == good


def test_data_that_moved_is_found_below_its_root(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "shards", tmp_path / "old")
    rhostream.index([str(tmp_path / "old")], str(tmp_path / "il"), roots={"data": str(tmp_path / "old")})
    part = next((tmp_path / "il").rglob("*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(b"")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(UsageError, match=r"--shards URL\.\.\. and --root NAME=URL; nothing was changed"):
        repair(str(tmp_path / "il"))
    assert repair(str(tmp_path / "il"), roots={"data": str(tmp_path / "new")})["problems"] == []
    assert part.read_bytes() == whole


@pytest.mark.parametrize(
    "forged",
    [
        {"version": "x"},
        {"statuses": 3},
        {"statuses": {"ok": "many"}},
        {"samples": None},
        {"shard": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_footer_that_somebody_made_up_is_a_problem_and_no_crash(world: Path, tmp_path: Path, forged: Any) -> None:
    table = Path(shutil.copytree(world / "il", tmp_path / "il"))
    part = next(table.rglob("*.parquet"))
    rows, record = parquet.read(str(part))
    part.write_bytes(parquet.encode(rows, {**record, **forged}, {}, []))
    found = verify(str(table))
    assert len(found["problems"]) == 1 and part.name in found["problems"][0]


def test_a_bad_part_of_a_shard_that_is_gone_for_good_does_not_keep_the_others_from_repair(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", [30, 30])
    rhostream.index([str(tmp_path / "shards")], str(tmp_path / "il"))
    first, second = sorted((tmp_path / "il").rglob("*.parquet"))
    whole = second.read_bytes()
    first.write_bytes(b"")
    second.write_bytes(b"")
    shards[0].unlink()
    with pytest.raises(UsageError, match="1 of 2 shards whose parts are bad are not where they were"):
        repair(str(tmp_path / "il"))
    found = repair(str(tmp_path / "il"), shards=[str(tmp_path / "shards")])
    assert found["repaired"] == [str(shards[1])] and second.read_bytes() == whole
    assert f"delete {first}" in found["not_repaired"][str(shards[0])] and len(found["problems"]) == 1


def test_the_wrong_il_model_is_refused_before_anything_is_changed(world: Path, tmp_path: Path) -> None:
    table = Path(shutil.copytree(world / "il", tmp_path / "il"))
    next(table.rglob("*.parquet")).write_bytes(b"")
    rhostream.fit_il([str(world / "shards")], str(tmp_path / "other"), model="mlp-64", epochs=1, seed=5)
    before = {p: p.read_bytes() for p in table.rglob("*.parquet")}
    with pytest.raises(MismatchError, match="weights"):
        repair(str(table), il_model=str(tmp_path / "other"))
    assert {p: p.read_bytes() for p in table.rglob("*.parquet")} == before


# -- status ----------------------------------------------------------------------------------------------------------


def test_status_says_how_far_a_table_is_what_is_quarantined_and_what_to_do(
    plain_world: Path, tmp_path: Path, capsys: Any
) -> None:
    table = tmp_path / "il"
    some = [str(plain_world / "shards" / f"train-{n:03d}.tar") for n in range(4)]
    shutil.copy(plain_world / "shards" / "train-005.tar", tmp_path / "bad.tar")
    data = bytearray((tmp_path / "bad.tar").read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 8] = b"<html>!!"
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.warns(UserWarning, match="none of these shards"):
        rhostream.compute_il([str(tmp_path / "bad.tar")], str(plain_world / "il-model"), str(table))
    rhostream.compute_il(some, str(plain_world / "il-model"), str(table))
    state = status_of(str(table), [str(plain_world / "shards"), str(tmp_path / "bad.tar")])
    assert (state["parts"], state["of"], state["missing"]) == (5, 8, 3)
    assert state["quarantined"] == {"decode:not_an_image": 1}
    (example,) = state["examples"]["decode:not_an_image"]
    assert example["shard"] == str(tmp_path / "bad.tar") and example["ordinal"] == 0 and example["error"]
    shown = command(capsys, "status", table, "--shards", plain_world / "shards", tmp_path / "bad.tar")[0]
    assert "5 of 8 shards (62.5%)" in shown and "1 decode:not_an_image" in shown and f"key {example['key']!r}" in shown
    # The command that it gives is the one that ends the job.
    import shlex

    line = next(ln for ln in shown.splitlines() if ln.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert words[:2] == ["rhostream", "compute-il"] and words[3].endswith("train-{004..006}.tar")
    command(capsys, *words[1:])
    assert status_of(str(table), [str(plain_world / "shards"), str(tmp_path / "bad.tar")])["next"] == "nothing"


def test_status_of_a_run_says_its_step_its_unused_samples_and_the_command(
    world: Path, tmp_path: Path, capsys: Any, run: Path
) -> None:
    assert "38 of 38 (100.0%), complete" in command(capsys, "status", run)[0]
    folder = tmp_path / "short"
    shard = tmp_path / "bad.tar"
    data = bytearray((world / "shards" / "train-000.tar").read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 8] = b"<html>!!"
    shard.write_bytes(data)
    with pytest.warns(UserWarning, match="none of these shards"):
        rhostream.compute_il([str(shard)], str(world / "il-model"), str(tmp_path / "il"))
    rhostream.train([str(shard)], str(tmp_path / "il"), str(folder), **TRAIN)
    state = status_of(str(folder))
    assert state["unused"] == {"quarantined": 1}
    (example,) = state["examples"]["quarantined"]
    assert example["shard"] == str(shard) and example["error"].startswith("decode:not_an_image")
    shutil.rmtree(folder / "commits")
    shown = command(capsys, "status", folder)[0]
    assert "no step is committed yet" in shown
    assert f"next: rhostream train --shards {shard} --il {tmp_path / 'il'} --run {folder} " in shown


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (["a/x-00.tar", "a/x-01.tar", "a/x-02.tar"], "'a/x-{00..02}.tar'"),
        (["a/x-0.tar", "a/x-2.tar"], "a/x-0.tar a/x-2.tar"),
        ([f"s{n * 7}" for n in range(20)], "s0 s7 s14 s21 s28 s35 s42 s49 ... (12 more)"),
        (["https://u:pw@h/a b.tar?sig=1"], "'https://h/a b.tar'"),
    ],
)
def test_a_list_of_shards_is_shown_as_one_would_type_it(urls: list[str], words: str) -> None:
    assert shortened(urls) == words
