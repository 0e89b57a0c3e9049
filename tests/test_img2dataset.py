"""A folder as img2dataset leaves it is read as it is: sidecars and failed rows aside, in five commands to a report."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rhostream
from rhostream import storage
from rhostream.errors import StorageError
from tests.support.command import command
from tests.support.img2dataset import COLUMNS, sample_rows, write_folder

ROWS, A_SHARD = 240, 80
PAIR = {"content": "pair", "tokenizer": "words:1000", "text_length": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 80 rows, a tenth of them failed, and one row without a caption."""
    folder = tmp_path_factory.mktemp("img2dataset")
    write_folder(folder, sample_rows(ROWS), samples_per_shard=A_SHARD, image_size=16)
    return folder


def successes(folder: Path) -> int:
    return sum(json.loads(path.read_text())["successes"] for path in folder.glob("*_stats.json"))


def table(place: Path) -> list[dict[str, object]]:
    return [row for path in sorted(place.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_script_writes_what_img2dataset_writes(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{n:05d}{end}" for n in range(3) for end in (".parquet", ".tar", "_stats.json")
    ]
    listed = table(folder)
    assert len(listed) == ROWS and list(listed[0]) == list(COLUMNS)
    assert {row["status"] for row in listed} == {"success", "failed_to_download", "failed_to_resize"}
    assert 0 < successes(folder) == sum(row["status"] == "success" for row in listed) < ROWS
    assert [row["key"] for row in listed] != sorted(str(row["key"]) for row in listed)  # as downloads ended


def test_a_folder_means_its_tars_and_sidecars_are_passed_over_in_silence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tars = [str(folder / f"0000{n}.tar") for n in range(3)]
    with caplog.at_level(logging.WARNING):
        for given in (str(folder), f"{folder}/*.tar", f"{folder}/{{00000..00002}}.tar"):
            assert storage.expand(given) == tars
    assert not caplog.records


def test_a_shard_that_is_missing_from_a_range_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "00001.tar").unlink()
    with pytest.raises(StorageError, match=r"00001\.tar"):
        rhostream.index(f"{copy}/{{00000..00002}}.tar", str(tmp_path / "index"), content="pair", fail_fast=True)
    rhostream.index(str(copy), str(tmp_path / "of folder"), content="pair")
    assert 0 < len(table(tmp_path / "of folder")) < successes(folder)  # of a folder what is there


def test_failed_rows_are_no_samples_and_a_row_without_a_caption_has_a_status(folder: Path, tmp_path: Path) -> None:
    keep = {"sha256": "str", "original_width": "int", "url": "str"}
    rhostream.index(f"{folder}/*.tar", str(tmp_path / "index"), content="pair", keep=keep)
    found = {row["key"]: row for row in table(tmp_path / "index")}
    came = {row["key"]: row for row in table(folder) if row["status"] == "success"}
    assert set(found) == set(came)
    uncaptioned = {key for key, row in came.items() if row["caption"] is None}
    assert {key for key, row in found.items() if row["status"] != "ok"} == uncaptioned != set()
    assert {found[key]["status"] for key in uncaptioned} == {"text:empty"}
    for key, row in found.items():
        assert {name: row[name] for name in keep} == {name: came[key][name] for name in keep}


def test_five_commands_lead_from_the_folder_to_a_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of docs/recipes-made.md, but for sizes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "laion")
    pair = "--content pair --tokenizer words:1000 --text-length 8 --loss siglip --model pair-small"
    train = "train --shards laion --il il --model pair-small --loss siglip --buffer-size 40 --batch-size 8 --steps 4"
    for line in (
        f"fit-il --shards laion {pair} --epochs 1 --out il-model --max-bad-fraction 0.05",
        "compute-il --shards laion --il-model il-model --out il --max-bad-fraction 0.05",
        f"{train} --rule uniform --run runs/uniform",
        f"{train} --rule rho --run runs/rho",
        "report runs/rho --against runs/uniform --out report.html",
    ):
        command(capsys, *line.split())
    page = Path("report.html").read_text()
    assert "uniform" in page and "A black" in page  # a caption of the gallery
    with rhostream.open_ledger("runs/rho") as ledger:
        (row,) = ledger.sql("SELECT count(*) AS n, sum(kept::INT) AS kept FROM selections WHERE step < 4").to_pylist()
    assert (row["n"], row["kept"]) == (160, 32)
