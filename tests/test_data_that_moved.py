"""Shards that were changed in place, moved, or named otherwise than when the table was made."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream import storage
from rhostream.errors import StaleShardError
from tests.conftest import make_shards
from tests.faults.command import command


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
def test_a_shard_relabelled_in_place_is_named_by_a_job_that_goes_on(world: Path, tmp_path: Path, verb: str,
                                                                    capsys: Any) -> None:
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


def test_a_trainer_that_meets_one_ends_with_exit_code_3(tmp_path: Path, capsys: Any) -> None:
    shard = make_shards(tmp_path / "data", [40])[0]
    rhostream.index([str(shard)], str(tmp_path / "t"))
    relabel(shard, "s000003", "0")
    _, err = command(capsys, "train", "--shards", shard, "--il", tmp_path / "t", "--rule", "loss", "--run",
                     tmp_path / "run", "--model", "mlp-64", "--buffer-size", 20, "--batch-size", 4, code=3)
    assert f"error: shard {shard} changed after it was indexed" in err


def test_the_same_bytes_with_a_new_time_are_a_copy_to_a_job_and_nothing_is_read_where_the_time_is_the_same(
        tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
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
