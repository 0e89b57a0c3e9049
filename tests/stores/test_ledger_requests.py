"""What a question of a run on a real S3 server reads, in requests and bytes, counted by the proxy in front of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhostream import storage
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.errors import TableError
from rhostream.tables import il
from rhostream.tables.il import catalogue
from tests.faults.rig.proxy import Request
from tests.faults.rig.s3 import FaultyStore
from tests.support.synthetic import make_run, make_table

SEGMENTS, ROWS = 3, 60_000
KEPT = "SELECT label, count(*) FILTER (kept) AS kept, count(*) AS n FROM selections GROUP BY label ORDER BY label"


def gets(faulty: FaultyStore, folder: str) -> list[Request]:
    return [one for one in faulty.proxy.seen if one.method == "GET" and f"/{folder}/" in one.path]


def test_a_log_is_proved_once_and_a_question_reads_its_columns(faulty: FaultyStore, tmp_path: Path) -> None:
    run, here = make_run(f"{faulty.url}/run", SEGMENTS, ROWS), make_run(str(tmp_path / "run"), SEGMENTS, ROWS)
    whole = sum(storage.identity(url).size for url in storage.list_files(f"{run}/log", ".parquet"))
    with open_ledger(here) as ledger:
        expected = ledger.sql(KEPT).to_pylist()
    faulty.proxy.calm()
    with open_ledger(run) as ledger:  # every byte is proved, each in one request
        assert len(gets(faulty, "log")) == SEGMENTS and sum(r.answered for r in gets(faulty, "log")) == whole
        faulty.proxy.calm()
        assert ledger.sql(KEPT).to_pylist() == expected
        assert sum(one.answered for one in gets(faulty, "log")) < whole / 3
        assert len(gets(faulty, "log")) <= 4 * SEGMENTS
    faulty.proxy.calm()
    with open_ledger(run) as ledger:
        assert gets(faulty, "log") == [] and len([r for r in faulty.proxy.seen if "list-type" in r.target]) < 9
        assert ledger.sql(KEPT).to_pylist() == expected
        assert all(one.headers["if-match"] for one in gets(faulty, "log"))
    faulty.proxy.calm()
    assert verify(run)["rows"] == SEGMENTS * ROWS
    assert sum(one.answered for one in gets(faulty, "log")) >= whole  # which proves them again


def test_a_segment_that_was_replaced_is_not_what_was_proved(faulty: FaultyStore) -> None:
    run = make_run(f"{faulty.url}/run", 2, 2_000)
    first, second = storage.list_files(f"{run}/log", ".parquet")
    with open_ledger(run) as ledger:
        assert ledger.sql("SELECT count(*) AS n FROM selections").to_pylist() == [{"n": 4_000}]
        storage.replace(second, storage.read_bytes(first))
        with pytest.raises(TableError, match="isn't the file that the checkpoint lists"):
            ledger.sql(KEPT)
    with pytest.raises(TableError, match="isn't the file that the checkpoint lists"):
        open_ledger(run)
    storage.delete(second)
    with pytest.raises(TableError, match="listed by the checkpoint but is gone"):
        open_ledger(run)


def test_the_parts_of_a_table_are_read_by_the_columns_of_a_question(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "LEAST", 2)
    monkeypatch.setattr(il, "LEAST", 2)
    table, _ = make_table(f"{faulty.url}/il", 3, 20_000)
    assert il.write_catalogue(table, il.open_info(table))
    whole = sum(storage.identity(url).size for url in il.part_urls(table))
    faulty.proxy.calm()
    with open_ledger(table) as ledger:
        (row,) = ledger.sql("SELECT count(*) AS n, avg(il) AS il FROM il WHERE shard = 'train/000001.tar'").to_pylist()
        assert row["n"] == 20_000 and 0.9 < row["il"] < 1.1
        read = gets(faulty, "parts")
        assert {one.path.rpartition("/")[2] for one in read} == {"000001.tar.parquet"}
        assert sum(one.answered for one in read) < 0.7 * whole / 3
        assert ledger.sql("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 60_000}]
