"""Section F of exports: what stands in the way, disks that fill, shards that are gone, text that isn't harmless."""

from __future__ import annotations

import csv
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rhostream.audit.export import export
from rhostream.errors import NotWritableError, StorageError, TableError, UsageError
from rhostream.inert import FORMULA
from tests.support.audit_fixtures import HOSTILE, World, make_rows, make_run, make_world
from tests.support.command import command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def run(made: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over hostile keys."""
    return make_run(made, str(tmp_path_factory.mktemp("runs") / "rho"), make_rows(made, 30))


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process grows beyond 3,000 bytes: the disk's way of failing in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "asked"),
    [("x.parquet", {}), ("x.csv", {}), ("y.parquet", {"with_samples": True}), ("new", {"form": "shards"})],
)
def test_D12_a_disk_that_fills_during_an_export_is_said_and_leaves_nothing(
    run: str, tmp_path: Path, short_files: None, name: str, asked: dict[str, Any]
) -> None:
    """An export onto a disk that fills ends with one sentence that says so, and leaves neither a file that looks whole
    nor a temporary one."""
    with pytest.raises(NotWritableError, match=rf"can't write .*{name}.*: File too large"):
        export(run, str(tmp_path / name), where="true", **asked)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_D17_an_export_overwrites_nothing(run: str, tmp_path: Path, capsys: Any) -> None:
    """An export to a name that is taken, by a file or a folder, or below a file, is refused before any work, and what
    stands there stays."""
    (tmp_path / "x.parquet").write_text("mine")
    (tmp_path / "d.parquet").mkdir()
    for name in ("x.parquet", "d.parquet"):
        _, err = command(capsys, "export", run, "-o", tmp_path / name, code=2)
        assert "exists already, and nothing is overwritten" in err
    command(capsys, "export", run, "-o", tmp_path / "x.parquet" / "y.parquet", code=2)
    assert (tmp_path / "x.parquet").read_text() == "mine" and [*tmp_path.glob(".*")] == []


def test_F5_shards_that_moved_are_found_by_their_root_and_else_nothing_is_written(made: World, tmp_path: Path) -> None:
    """An export of pictures whose shards have moved says so, names the option that says where they lie, and writes
    nothing; with that option it has all of them."""
    moved = shutil.copytree(made.root, tmp_path / "made")
    run = make_run(World(moved, moved / "il", made.parts, made.shards), str(tmp_path / "run"), make_rows(made, 8))
    (moved / "shards").rename(moved / "elsewhere")
    with pytest.raises(StorageError, match=r"none of 22 samples.*--root NAME=URL"):
        export(run, str(tmp_path / "x.parquet"), with_samples=True)
    assert not (tmp_path / "x.parquet").exists() and not [*tmp_path.glob(".*")]
    done = export(run, str(tmp_path / "x.parquet"), with_samples=True, roots={"web": str(moved / "elsewhere")})
    assert (done.samples, done.unread) == (22, 0)
    shutil.move(moved / "il", moved / "table")
    with pytest.raises(UsageError, match="IL table isn't at"):
        export(run, str(tmp_path / "y.parquet"), with_samples=True)


def test_F5_what_cannot_be_read_is_a_row_with_nulls_that_is_counted_and_named(
    made: World, tmp_path: Path, capsys: Any
) -> None:
    """A shard that can't be read costs an export its pictures and nothing else: the rows are there, they are counted,
    the shard is named with the reason, and the exit code is 3."""
    moved = shutil.copytree(made.root, tmp_path / "made")
    run = make_run(World(moved, moved / "il", made.parts, made.shards), str(tmp_path / "run"), make_rows(made, 8))
    with (moved / "shards" / "train-001.tar").open("r+b") as file:
        file.truncate(4000)
    out, _ = command(capsys, "export", run, "-o", tmp_path / "x.parquet", "--with-samples", code=3)
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    lost = [row for row in found if row["image"] is None]
    assert {row["shard"] for row in lost} == {"web/train-001.tar"} and len(found) == 22
    assert f"unread    {len(lost)} samples" in out and "web/train-001.tar has 4,000 bytes" in out


def test_F6_no_cell_of_an_exported_csv_is_a_formula(run: str, tmp_path: Path, capsys: Any) -> None:
    """In CSV a key that a spreadsheet would run stands behind a quote, one that holds control characters as escapes,
    each on one line; what is printed holds none of them either."""
    out, _ = command(capsys, "export", run, "-o", tmp_path / "x.csv", "--where", "true")
    data = (tmp_path / "x.csv").read_bytes().decode()
    rows = [*csv.DictReader(data.splitlines())]
    assert data.count("\n") == len(rows) + 1 and data.replace("\n", "").isprintable() and len({*HOSTILE}) == 10
    for row in rows:
        for name in ("key", "shard", "reason", "source", "run"):
            assert not row[name].startswith(FORMULA)
    assert any(row["key"].startswith("'=cmd") for row in rows) and out.replace("\n", "").isprintable()


def test_C7_an_export_of_a_damaged_run_names_the_segment_and_writes_nothing(made: World, tmp_path: Path) -> None:
    """A run whose log has a flipped bit gives no export: the error names the segment."""
    run = make_run(made, str(tmp_path / "run"), make_rows(made, 8))
    segment = next((tmp_path / "run" / "log").rglob("*.parquet"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(TableError, match=segment.name):
        export(run, str(tmp_path / "x.parquet"))
    assert not (tmp_path / "x.parquet").exists()
