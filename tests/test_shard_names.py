"""Names of shards and the files of their parts: one to one, short enough, and whole wherever a name is shown."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import storage
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.repair import repair
from rhostream.tables import il
from rhostream.tables.names import LONGEST, file_of, name_of, plain, unshortened
from tests.support.shards import make_shards

PART = st.text("aA.+%_ -я\\\n#é日", min_size=1, max_size=90)
NAME = st.lists(PART, min_size=1, max_size=3).map("/".join)


@given(st.lists(NAME | NAME.map(lambda n: "/" + n), max_size=12, unique=True))
def test_names_have_files_of_their_own_that_fit_and_lead_back(names: list[str]) -> None:
    names = [name for name in names if not name.startswith("_/")]
    files = [file_of(name) for name in names]
    assert len(set(files)) == len(names)
    for name, file in zip(names, files, strict=True):
        assert all(len(part) <= LONGEST and part not in (".", "..") for part in file.split("/"))
        assert name_of(file) == (name if file == unshortened(name) else None)


@given(NAME)
def test_names_that_fitted_have_the_files_that_they_had(name: str) -> None:
    before = quote(name, safe="/") + ".parquet"
    if max(map(len, before.split("/"))) <= LONGEST and not {".", ".."} & set(name.split("/")):
        assert il.part_url("/t", name) == f"/t/parts/{before}"


def test_a_table_in_a_store_keeps_the_long_names_that_it_has() -> None:
    name = "b/" + "я" * 60 + "/t.tar"
    assert il.part_url("memory://long/new", name).endswith("/" + file_of(name))
    storage.create(f"memory://long/old/parts/{unshortened(name)}", b"x")
    assert il.part_url("memory://long/old", name).endswith("/" + unshortened(name))


def _made(folder: Path, table: Path) -> list[str]:
    """A table of two shards there and a run on it; the names that SQL has for them."""
    make_shards(folder, [30, 14])
    rhostream.index([folder], str(table))  # type: ignore[list-item]
    rhostream.train(
        [folder],
        str(table),
        str(table) + "-run",
        rule="uniform",
        model="mlp-64",  # type: ignore[list-item]
        buffer_size=16,
        batch_size=4,
    )
    with rhostream.open_ledger(str(table) + "-run") as ledger:
        asked = "SELECT DISTINCT shard FROM {} ORDER BY shard"
        names = [row["shard"] for row in ledger.sql(asked.format("selections")).to_pylist()]
        assert [row["shard"] for row in ledger.sql(asked.format("samples")).to_pylist()] == names
    assert verify(str(table), shards=[str(folder)])["problems"] == []
    found = status_of(str(table), [str(folder)])
    assert (found["parts"], found["missing"], found["stale"]) == (2, 0, 0)
    storage.delete(il.part_urls(str(table))[0])
    assert repair(str(table), shards=[str(folder)])["problems"] == []
    return names


def test_a_folder_of_a_long_name_in_another_script_is_one_like_others(tmp_path: Path) -> None:
    folder = tmp_path / "данные-для-обучения-часть-первая-очищенная-версия"
    assert _made(folder, tmp_path / "il") == [f"{folder}/train-{n:03d}.tar" for n in range(2)]
    assert status_of(str(tmp_path / "il"), [str(make_shards(tmp_path / "o", [3])[0])])["first_stale"][0].startswith(
        str(folder)
    )


def test_a_folder_whose_name_is_no_unicode_is_one_like_others(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert _made(folder, tmp_path / "il") == [f"{tmp_path}/caf\\xe9/train-{n:03d}.tar" for n in range(2)]
    assert plain(str(folder)) == f"{tmp_path}/caf\\xe9"
    there = il.open_info(str(tmp_path / "il"))
    assert il.shard_url(f"{tmp_path}/caf\\xe9/train-000.tar", there) == f"{folder}/train-000.tar"


def test_results_may_lie_in_a_folder_whose_name_is_no_unicode(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sultats"))
    assert len(_made(tmp_path / "data", folder / "il")) == 2
