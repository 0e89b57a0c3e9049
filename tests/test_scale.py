"""What must hold at any size: a log written in the background loses nothing and says when it can't, and a table is
names and counts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rhostream import storage
from rhostream.candidates import Candidates
from rhostream.errors import AlreadyExistsError, MissingExtraError, NotWritableError, StorageError, TableError
from rhostream.reasons import Reason
from rhostream.samples.decoders import decoder
from rhostream.stream.join import Join, JoinSettings
from rhostream.stream.plan import Plan
from rhostream.tables import il, parquet, selections
from rhostream.tables.segments import SegmentQueue
from rhostream.tables.selections import LogWriter
from rhostream.tables.strings import Strings, StringsBuilder
from tests.support.shards import png
from tests.support.waits import eventually

ROWS = 32
NAMES = pa.array([f"bucket/train-{i:05d}.tar" for i in range(100)])


def buffer(step: int) -> tuple[Candidates, dict[str, Any]]:
    rng = np.random.default_rng(step)
    loss = np.where(rng.random(ROWS) < 0.9, rng.random(ROWS), np.nan).astype(np.float32)
    candidates = Candidates(
        step // 4, step, rng.integers(0, 100, ROWS).astype(np.int32), rng.integers(0, 999, ROWS).astype(np.int32),
        pa.array([f"{key:09d}" for key in rng.integers(0, 10**9, ROWS)]), torch.from_numpy(rng.integers(-1, 9, ROWS)),
        torch.from_numpy(np.where(rng.random(ROWS) < 0.9, loss, np.nan)), np.zeros(ROWS, np.uint8), None,
        shard_names=NAMES,
    )  # fmt: skip
    return candidates, {"loss": loss, "score": loss, "kept": rng.random(ROWS) < 0.1, "correct": rng.random(ROWS) < 0.5,
                        "reason": rng.integers(0, 3, ROWS).astype(np.uint8),
                        "weight": np.ones(ROWS, np.float32)}  # fmt: skip


def take(writer: LogWriter, steps: range) -> None:
    for step in steps:
        candidates, columns = buffer(step)
        writer.take(candidates, step, columns, step)


# -- the log is written in the background ----------------------------------------------------------------------------


def plain(candidates: Candidates, step: int | None, columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a buffer, one by one."""
    rows = []
    for n in range(len(candidates)):
        values = {"label": candidates.label[n].item(), "il": candidates.il[n].item()}
        values |= {name: column[n].item() for name, column in columns.items()}
        reached = not np.isnan(values["loss"])
        rows.append({
            "pass": candidates.pass_index, "step": step, "key": candidates.key[n].as_py(),
            "shard": NAMES[candidates.shard[n]].as_py(), "ordinal": candidates.ordinal[n].item(),
            "label": values["label"] if values["label"] >= 0 else None, "loss": values["loss"] if reached else None,
            "il": None if np.isnan(values["il"]) else values["il"], "score": values["score"] if reached else None,
            # Nothing is right where the target is no class.
            "correct": values["correct"] if reached and values["label"] >= 0 else None, "kept": values["kept"],
            "reason": Reason(values["reason"]).name, "weight": values["weight"],
        })  # fmt: skip
    return rows


def test_a_segment_holds_the_rows_that_were_taken_and_the_same_steps_give_the_same_bytes(tmp_path: Path) -> None:
    writers, expected = [LogWriter(str(tmp_path / folder), 0) for folder in "ab"], []
    for step in [*range(9), None]:
        at = 9 if step is None else step
        candidates, columns = buffer(at)
        for writer in writers:
            writer.take(candidates, step, columns, at)
        expected += plain(candidates, step, columns)
    one, other = (writer.flush() for writer in writers)
    assert one == other and one[0]["path"].endswith("0000000000-0000000009.parquet")
    assert selections.read(str(tmp_path / "a"), one).to_pylist() == expected


def test_segments_are_listed_in_the_order_of_the_steps_and_hold_every_row(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path), 3, max_rows=2 * ROWS)
    take(writer, range(7))
    segments = writer.flush()
    take(writer, range(7, 10))
    segments += writer.flush()
    assert [s["rows"] for s in segments] == [2 * ROWS] * 3 + [ROWS] + [2 * ROWS, ROWS]
    steps = selections.read(str(tmp_path), segments)["step"].to_pylist()
    assert steps == [step for step in range(10) for _ in range(ROWS)] and writer.flush() == []


class Disk:
    """A disk that writes one segment each time it is told to."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(0)

    def __call__(self, url: str, data: bytes) -> None:
        self.turns.acquire()
        storage.create(url, data)


def test_a_disk_slower_than_the_run_holds_it_up_and_is_told_once(tmp_path: Path) -> None:
    disk = Disk()
    queue = SegmentQueue(str(tmp_path), spill_rows=2 * ROWS, patience=60, commit=disk)
    writer = LogWriter(str(tmp_path), 0, max_rows=ROWS, queue=queue)
    take(writer, range(3))  # two segments wait, one is being collected
    with pytest.warns(UserWarning, match="the log's disk is slower than the run: 2 segments") as told:
        threading.Thread(target=lambda: (eventually(lambda: bool(told.list)), disk.turns.release(99))).start()
        take(writer, range(3, 9))
    assert len(told) == 1 and str(tmp_path / "log" / "attempt=0" / "rank=0") in str(told[0].message)
    assert selections.read(str(tmp_path), writer.flush()).num_rows == 9 * ROWS


@pytest.mark.parametrize("bound", [{"spill_rows": 2 * ROWS}, {"spill_bytes": 1}])
@pytest.mark.filterwarnings("ignore:the log's disk is slower")
def test_a_disk_that_writes_nothing_stops_the_run_with_what_waits_and_what_to_do(tmp_path: Path, bound: Any) -> None:
    disk = Disk()
    writer = LogWriter(str(tmp_path), 0, max_rows=ROWS,
                       queue=SegmentQueue(str(tmp_path), patience=0.1, commit=disk, **bound))  # fmt: skip
    with pytest.raises(StorageError, match=r"nothing was written for 0\.1 s.*rows.*log/attempt=0.*same command"):
        take(writer, range(9))
    with pytest.raises(StorageError, match="nothing was written"):
        writer.flush()
    disk.turns.release(99)


def test_an_error_of_the_store_reaches_the_run_at_its_next_step_and_stays(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where a folder should be")
    writer = LogWriter(str(tmp_path), 0, max_rows=ROWS)
    with pytest.raises((NotWritableError, AlreadyExistsError), match=r"log/attempt=0/rank=0.*wait to be written"):
        take(writer, range(2))
        writer.flush()
    with pytest.raises((NotWritableError, AlreadyExistsError)):
        take(writer, range(2, 3))
    with pytest.raises((NotWritableError, AlreadyExistsError)):
        writer.flush()


FULL_DISK = """
import resource, sys
from rhostream.errors import NotWritableError
from rhostream.tables.selections import LogWriter
from tests.test_scale import take
writer = LogWriter(sys.argv[1], 0, max_rows=6400)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    take(writer, range(400))
    writer.flush()
except NotWritableError as exc:
    print(exc)
"""


def test_a_full_disk_stops_the_run_by_the_name_of_the_folder_and_leaves_no_half_segment(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f"can't write {tmp_path}/log/attempt=0/rank=0/" in done.stdout and "same command" in done.stdout
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


# -- a table is names and counts -------------------------------------------------------------------------------------


def made(folder: Path, shards: int, rows: int) -> str:
    """An index of so many shards of so many rows."""
    info = il.TableInfo(kind="index", roots={"data": "/nowhere"})
    il.make_or_match(str(folder), info)
    for number in range(shards):
        facts = il.PartFacts(
            fingerprint=info.fingerprint, kind="index", shard=f"data/{number:03d}.tar", shard_size=1 << 40,
            shard_tag="", samples=rows, statuses={il.OK: rows}, members_seen=rows, members_used=rows,
            members_ignored=0,
        )  # fmt: skip
        part = pa.Table.from_pylist(
            [{"key": f"{number}-{row}", "ordinal": row, "label": row, "status": il.OK, "in_holdout": False,
              "members": [{"ext": "jpg", "offset": 512 + row, "size": 100_000}]} for row in range(rows)], info.schema,
        )  # fmt: skip
        storage.create(il.part_url(str(folder), facts.shard), il.encode_part(part, facts))
    return str(folder)


def test_an_opened_table_is_its_names_and_counts_also_when_it_is_sent_to_a_worker(tmp_path: Path) -> None:
    shards = [f"/nowhere/{number:03d}.tar" for number in range(300)]
    table = il.open_table(made(tmp_path, 300, 3), shards)
    sent = pickle.dumps(table)
    again = pickle.loads(sent)
    assert len(sent) < 2_000 + 60 * 300
    for one in (table, again):
        assert list(one.shards) == shards and list(one.names) == [f"data/{n:03d}.tar" for n in range(300)]
        assert one.counts.tolist() == [3] * 300 and not one.missing and one.il_rows == 0
    assert [il.read_part_facts(il.part_url(table.url, name)).shard for name in table.names] == list(table.names)


def test_a_join_keeps_the_parts_of_the_buffer_at_hand_and_no_other(tmp_path: Path) -> None:
    table = il.open_table(made(tmp_path, 12, 10), [f"/nowhere/{n:03d}.tar" for n in range(12)])
    plan, join = Plan(table.names, table.counts, 4, 2), Join(table, JoinSettings(needs_il=False))
    for index in range(plan.buffers):
        rows = plan.buffer(index)
        keys = join(rows).key.to_pylist()
        assert keys == [f"{s}-{o}" for s, o in zip(rows.shard, rows.ordinal, strict=True)]
        assert set(join._parts) == set(plan._permutations) == set(rows.shard.tolist())


def test_a_part_in_memory_takes_the_narrowest_types_and_keeps_every_value(tmp_path: Path) -> None:
    part = il.read_part(il.part_url(made(tmp_path, 1, 300), "data/000.tar"))
    assert (part.label.dtype, part.offset.dtype, part.size.dtype) == (np.int16, np.int16, np.int32)
    assert part.label.tolist() == list(range(300)) and part.offset[0].tolist() == list(range(512, 812))
    assert part.usable.all() and not part.in_holdout.any() and part.key[299].as_py() == "0-299"


def test_the_quick_reading_of_a_footer_agrees_with_the_parser_and_trusts_no_damage(tmp_path: Path) -> None:
    url = il.part_url(made(tmp_path, 1, 3), "data/000.tar")
    whole, beginning = Path(url).read_bytes(), il.footer_beginning(il.open_info(str(tmp_path)))
    facts, names = il.read_part_footer(url)
    assert il.read_part_facts(url) == facts and names == il.SCHEMA.names
    assert il.read_part_footer(url, beginning) == (facts, None)
    record = whole.rindex(b'{"bad_fields"')
    for at in range(record, record + 200, 7):
        Path(url).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(TableError, match=r"000\.tar\.parquet"):
            parquet.read_facts(url)
    for size in (0, 3, 8, len(whole) - 1):
        Path(url).write_bytes(whole[:size])
        with pytest.raises(TableError, match="damaged"):
            il.read_part_facts(url)


def test_strings_are_a_sequence_that_arrow_takes_as_it_is() -> None:
    builder = StringsBuilder()
    builder.extend(["a", "", "größer", "😀"])
    strings = builder.build()
    assert list(strings) == ["a", "", "größer", "😀"] == [strings[np.int64(i)] for i in range(4)]
    assert strings[1:3] == ["", "größer"] and strings[-1] == "😀" and strings == pickle.loads(pickle.dumps(strings))
    assert pa.array(strings, pa.string()).equals(pa.array(list(strings))) and not Strings() and "a" in strings


LARGE = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))  # anonymous memory: what torch alone takes, and some
import rhostream
shard, folder = sys.argv[1:]
rhostream.index([shard], folder + "/index")
loader = rhostream.open_stream(shard, folder + "/index", buffer_size=4, needs_il=False)
seen = [(c.key.to_pylist(), int(c.image.sum()) > 0) for c in loader]
print(len({key for keys, _ in seen for key in keys}), sum(read for _, read in seen))
"""


@pytest.mark.slow
def test_a_shard_far_larger_than_memory_is_indexed_and_read(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "large.tar"
    with path.open("wb") as file:
        for number in range(12):
            body = png(rng.integers(0, 255, (16, 16), dtype=np.uint8))
            for name, size, data in (
                (f"{number:06d}.png", len(body), body),
                (f"{number:06d}.cls", 1, b"1"),
                (f"{number:06d}.bin", 512 << 20, b""),
            ):  # 6 GB in all, on disk hardly any
                header = tarfile.TarInfo(name)
                header.size = size
                file.write(header.tobuf(tarfile.USTAR_FORMAT) + data)
                file.seek(-(-(size) // 512) * 512 - len(data), os.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    command = [sys.executable, "-c", LARGE, str(path), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.split() == ["12", "3"] and path.stat().st_size > 6 << 30


def test_a_decoder_that_is_missing_is_named_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert decoder("auto")[0] == "pillow"
    with pytest.raises(MissingExtraError, match=r"simplejpeg is not installed: pip install 'rhostream\[jpeg\]'"):
        decoder("simplejpeg")
