"""Commits on disks that lack something: hard links, a rename that refuses a taken name, room in a file's name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.errors import NotWritableError, UsageError
from tests.support.shards import make_shards

# What such a file system answers: os.link fails by that errno, and renameat2 too where the kernel's driver is old.
STUB = """
import ctypes, errno, os, sys, threading
how, old, point = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
def link(*a, **k): raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))
os.link = link
from rhostream import crashpoints, storage
from rhostream.storage import commits
if old == "old":
    commits._system_rename = lambda: None
elif old == "refusing":
    def refuse(a, b):
        ctypes.set_errno(errno.EINVAL)
        return -1
    commits._system_rename = lambda: refuse
if point:
    crashpoints.arm(point)
"""
CLI = STUB + "from rhostream.cli import main; main()"
LAWS = (
    STUB
    + """
import warnings
warnings.simplefilter("ignore")
from rhostream.errors import AlreadyExistsError
url = sys.argv[1] + "/deep/er/x"
assert storage.probe_writable(sys.argv[1])
storage.create(url, b"first")
for other in (b"second", b"first"):
    try:
        storage.create(url, other)
    except AlreadyExistsError:
        continue
    raise SystemExit("a taken name was taken again")
assert storage.read_bytes(url) == b"first"
storage.replace(url, b"third")
assert storage.read_bytes(url) == b"third"
won = []
def race(n):
    try:
        storage.create(sys.argv[1] + "/race", bytes([n]) * 100_000)
        won.append(n)
    except AlreadyExistsError:
        pass
threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
data = storage.read_bytes(sys.argv[1] + "/race")
assert data == bytes([data[0]]) * 100_000, "a commit was seen in part"
if old == "new":
    assert won == [data[0]], won
assert not [name for name in os.listdir(sys.argv[1]) if name.endswith(".tmp")]
"""
)


def child(program: str, *arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("how", "rename"), [("EPERM", "new"), ("EOPNOTSUPP", "refusing"), ("ENOSYS", "old")])
def test_a_name_is_taken_once_and_seen_whole_where_there_are_no_hard_links(
    how: str, rename: str, tmp_path: Path
) -> None:
    child(LAWS, how, rename, "", tmp_path)


@pytest.mark.parametrize(
    ("rename", "point"),
    [("new", "commit: temporary file written"), pytest.param("old", "commit: published", marks=pytest.mark.slow)],
)
def test_a_job_that_was_killed_there_goes_on_to_the_same_bytes(rename: str, point: str, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [5, 4])
    rhostream.index(shards, str(tmp_path / "whole"))
    job = ("index", "--shards", *shards, "--out", tmp_path / "il")
    child(CLI, "ENOTSUP", rename, f"{point}@4", *job, code=-signal.SIGKILL)
    said = child(CLI, "ENOTSUP", rename, "", *job)
    assert ("run one at a time there" in said) == (rename == "old")
    parts = sorted((tmp_path / "il" / "parts").rglob("*.parquet"))
    assert len(parts) == 2
    for part in parts:
        assert part.read_bytes() == (tmp_path / "whole" / part.relative_to(tmp_path / "il")).read_bytes()


def test_a_place_that_is_a_file_or_whose_name_is_too_long_is_no_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place, says in (("file", "it is a file"), ("file/below", "it is a file"), ("x" * 256, "too long.*--root")):
        with pytest.raises(NotWritableError, match=says):
            storage.probe_writable(str(tmp_path / place))
    with pytest.raises(UsageError, match="no path"):
        storage.probe_writable(storage.resolve(""))
    assert os.listdir(tmp_path) == ["file"]
