"""Shards that were changed in place, moved, or named otherwise than when the table was made."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream import storage
from rhostream.errors import StaleShardError
from tests.support.command import command
from tests.support.shards import make_shards


def relabel(shard: Path, key: str, label: str) -> None:
    """Another label of one digit in place: same size, new time."""
    data = bytearray(shard.read_bytes())
    at = data.index(f"{key}.cls".encode()) + 512
    assert data[at : at + 1] != label.encode()
    data[at : at + 1] = label.encode()
    before = shard.stat().st_mtime_ns
    shard.write_bytes(data)
    os.utime(shard, ns=(before + 5, before + 5))


# -- relabelled in place ---


@pytest.mark.parametrize("verb", ["index", "compute-il"])
def test_a_shard_relabelled_in_place_is_named_by_a_job_that_goes_on(
    world: Path, tmp_path: Path, verb: str, capsys: Any
) -> None:
    first, second = make_shards(tmp_path / "data", [20, 20])
    model = [] if verb == "index" else ["--il-model", world / "il-model"]
    job = [verb, "--shards", tmp_path / "data", "--out", tmp_path / "t", *model]
    command(capsys, *job)
    relabel(second, "s000023", "0")
    _, err = command(capsys, *job, code=3)
    assert f"error: shard {second} changed after it was indexed" in err
    assert "rhostream verify TABLE --repair --shards URL" in err
    relabel(first, "s000001", "0")
    _, err = command(capsys, *job, code=3)
    assert "2 of the 2 shards changed" in err
    _, err = command(capsys, "verify", tmp_path / "t", "--shards", tmp_path / "data", code=3)
    command(capsys, "verify", tmp_path / "t", "--shards", tmp_path / "data", "--repair")
    command(capsys, *job)


def test_a_fit_that_is_complete_knows_the_shards_that_it_learned_from(tmp_path: Path, capsys: Any) -> None:
    first, second = make_shards(tmp_path / "data", [20, 20])
    job = ["fit-il", "--shards", tmp_path / "data", "--out", tmp_path / "m", "--model", "mlp-64", "--epochs", 1]
    command(capsys, *job)
    os.utime(first, ns=(1, 1))  # a copy has another time, and the same bytes
    command(capsys, *job)
    relabel(second, "s000023", "0")
    _, err = command(capsys, *job, code=3)
    assert "1 shards changed" in err and f"first {second}" in err
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    record.pop("shards")  # an older version said nothing of them
    (tmp_path / "m" / "model.json").write_text(json.dumps(record))
    command(capsys, *job)


def test_a_trainer_that_meets_one_ends_with_exit_code_3(tmp_path: Path, capsys: Any) -> None:
    shard = make_shards(tmp_path / "data", [40])[0]
    rhostream.index([str(shard)], str(tmp_path / "t"))
    relabel(shard, "s000003", "0")
    _, err = command(
        capsys,
        "train",
        "--shards",
        shard,
        "--il",
        tmp_path / "t",
        "--rule",
        "loss",
        "--run",
        tmp_path / "run",
        "--model",
        "mlp-64",
        "--buffer-size",
        20,
        "--batch-size",
        4,
        code=3,
    )
    assert f"error: shard {shard} changed after it was indexed" in err


def test_the_same_bytes_with_a_new_time_are_a_copy_to_a_job_and_nothing_is_read_where_the_time_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make_shards(tmp_path / "data", [20, 20])
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "t"))
    opened: list[str] = []
    real = storage.open_reader
    monkeypatch.setattr(storage, "open_reader", lambda url: opened.append(url) or real(url))
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "t"))
    assert opened == []
    os.utime(first, (1, 1))
    with caplog.at_level("WARNING", "rhostream"):
        assert rhostream.index([str(tmp_path / "data")], str(tmp_path / "t")).present == 2
    assert opened == [str(first)] and f"taken for copies, first {first}" in caplog.text


def test_a_stale_shard_in_a_store_is_named_too() -> None:
    url = "memory://stale/a.tar"

    def bytes_of(label: str) -> bytes:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for name, data in (("a.txt", b"hello"), ("a.cls", label.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return sink.getvalue()

    storage.create(url, bytes_of("1"))
    rhostream.index([url], "memory://stale/table")
    assert rhostream.index([url], "memory://stale/table").present == 1
    storage.replace(url, bytes_of("2"))
    with pytest.raises(StaleShardError, match=r"stale/a.tar changed after"):
        rhostream.index([url], "memory://stale/table")


# -- moved ---


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A table made without a root in `il`, its IL model in `m`; the shards lay in `data` and lie `elsewhere` today."""
    make_shards(tmp_path / "data", [60, 60, 60])
    rhostream.fit_il([str(tmp_path / "data")], str(tmp_path / "m"), model="mlp-64", epochs=1)
    rhostream.compute_il([str(tmp_path / "data")], str(tmp_path / "m"), str(tmp_path / "il"))
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    return tmp_path


def keys(folder: Path, **options: Any) -> list[list[str]]:
    stream = rhostream.open_stream(str(folder / "elsewhere"), str(folder / "il"), buffer_size=40, **options)
    return [candidates.key.to_pylist() for candidates in stream]


def test_who_meets_data_that_moved_says_which_root_it_needs(moved: Path) -> None:
    root = f"--root data={moved}/elsewhere"
    with pytest.raises(rhostream.errors.MissingPartError, match=f"same data in another place.*{root}; else run"):
        keys(moved)
    with pytest.warns(UserWarning, match=f"learned from; if they are the same data.*{root}"):
        rhostream.compute_il([str(moved / "elsewhere")], str(moved / "m"), str(moved / "other"))


def test_a_table_made_without_a_root_is_given_one_later(moved: Path) -> None:
    roots = {"data": str(moved / "elsewhere")}
    found = keys(moved, roots=roots)
    shutil.move(moved / "elsewhere", moved / "data")
    stream = rhostream.open_stream(str(moved / "data"), str(moved / "il"), buffer_size=40)
    assert found == [candidates.key.to_pylist() for candidates in stream]


def test_moved_data_are_scored_by_the_networks_that_did_not_learn_from_them(moved: Path) -> None:
    roots, shards = {"data": str(moved / "elsewhere")}, [str(moved / "elsewhere")]
    assert rhostream.compute_il(shards, str(moved / "m"), str(moved / "il"), roots=roots).present == 3
    rhostream.compute_il(shards, str(moved / "m"), str(moved / "again"), roots=roots)
    parts = {table: {p.name: p.read_bytes() for p in (moved / table).rglob("*.parquet")} for table in ("il", "again")}
    assert parts["il"] == parts["again"] and len(parts["il"]) == 3
    # The new table knows where the data went.
    assert rhostream.compute_il(shards, str(moved / "m"), str(moved / "again")).present == 3
    assert len(list(rhostream.open_stream(shards, str(moved / "again"), buffer_size=40))) == 4


def test_every_reader_of_a_table_takes_that_root(moved: Path, capsys: Any) -> None:
    root, shards = f"data={moved}/elsewhere", moved / "elsewhere"
    command(capsys, "verify", moved / "il", "--shards", shards, "--root", root)
    out, _ = command(capsys, "status", moved / "il", "--shards", shards, "--root", root)
    assert "3 of 3 shards" in out
    run = [
        "train",
        "--shards",
        shards,
        "--root",
        root,
        "--il",
        moved / "il",
        "--run",
        moved / "run",
        "--model",
        "mlp-64",
        "--buffer-size",
        40,
        "--batch-size",
        4,
    ]
    command(capsys, *run)
    shutil.move(shards, moved / "third")
    third = f"data={moved}/third"
    command(capsys, "report", moved / "run", "--out", moved / "page.html", "--root", third)
    assert "data:image/png" in (moved / "page.html").read_text()
    part = next((moved / "il").rglob("*.parquet"))
    part.unlink()
    command(capsys, "verify", moved / "il", "--shards", moved / "third", "--root", third, "--repair")
    assert part.exists()


def test_a_root_that_means_nothing_in_a_table_is_still_refused(moved: Path) -> None:
    with pytest.raises(rhostream.errors.MismatchError, match="roots"):
        rhostream.compute_il(
            [str(moved / "elsewhere")], str(moved / "m"), str(moved / "il"), roots={"strange": str(moved / "elsewhere")}
        )


def test_of_two_folders_of_a_name_the_one_below_which_the_shards_are_is_meant(tmp_path: Path) -> None:
    make_shards(tmp_path / "data" / "x" / "data", [20])
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "t"))
    shutil.move(tmp_path / "data" / "x" / "data", tmp_path / "new")
    stream = rhostream.open_stream(
        str(tmp_path / "new"),
        str(tmp_path / "t"),
        buffer_size=10,
        needs_il=False,
        roots={"data": str(tmp_path / "new")},
    )
    assert len(list(stream)) == 2
