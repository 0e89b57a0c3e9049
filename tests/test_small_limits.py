"""Sizes and limits that quietly cost something: few lanes, few file handles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rhostream
from rhostream.stream.plan import choose_lanes, few_lanes
from tests.support.command import command
from tests.support.shards import make_shards


@pytest.mark.parametrize(
    ("size", "lanes", "nearest"), [(67, 1, "64, 72"), (127, 1, "120, 128"), (254, 2, "248, 256"), (298, 2, "296, 304")]
)
def test_a_buffer_of_few_lanes_names_the_nearest_sizes_with_more(size: int, lanes: int, nearest: str) -> None:
    assert choose_lanes(size) == lanes
    says = few_lanes(size, lanes, 100)
    assert says.startswith(f"{lanes} lane") and says.endswith(nearest)
    assert all(choose_lanes(int(n)) >= 8 for n in nearest.split(", "))
    assert not few_lanes(size, lanes, 2 * lanes) and not few_lanes(64, 64, 100)


def test_every_way_into_a_stream_says_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "data", [30] * 5)
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "t"))
    with caplog.at_level("WARNING", "rhostream"):
        for options in ({"buffer_size": 67}, {"buffer_size": 64}, {"buffer_size": 67, "lanes": 1}):
            list(rhostream.open_stream(str(tmp_path / "data"), str(tmp_path / "t"), needs_il=False, **options))
    assert caplog.text.count("nearest sizes with more: 64, 72") == 1
    _, err = command(
        capsys,
        "train",
        "--shards",
        tmp_path / "data",
        "--il",
        tmp_path / "t",
        "--rule",
        "loss",
        "--run",
        tmp_path / "run",
        "--model",
        "mlp-64",
        "--buffer-size",
        67,
        "--batch-size",
        8,
    )
    assert err.count("1 lane: buffers of 67 come from one or two shards") == 1


LIMITED = """
import json, resource, sys
import rhostream, torch, pyarrow.parquet
shards, table = sys.argv[1:]
stream = rhostream.open_stream(shards, table, buffer_size=64, needs_il=False)
for limit in (40, 3):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        stream = rhostream.open_stream(shards, table, buffer_size=64, needs_il=False)
        print(json.dumps([c.key.to_pylist() for c in stream]))
    except rhostream.errors.StorageError as exc:
        print(json.dumps(str(exc)))
"""


def test_a_stream_works_with_fewer_handles_than_lanes_and_none_left_is_one_sentence(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [4] * 80)
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "t"))
    whole = [
        c.key.to_pylist()
        for c in rhostream.open_stream(str(tmp_path / "data"), str(tmp_path / "t"), buffer_size=64, needs_il=False)
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "data"), str(tmp_path / "t")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[0] == whole and len(whole) == 5
    assert "too many open files: raise the limit (`ulimit -n" in found[1]
