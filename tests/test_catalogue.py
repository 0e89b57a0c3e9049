"""The catalogue of a table spares footers and nothing else: a part that isn't the listed one is never taken from it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import rhostream
from rhostream import storage
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.errors import TableError
from rhostream.repair import repair
from rhostream.stream.join import Join, JoinSettings
from rhostream.stream.plan import Plan
from rhostream.tables import il, parquet
from rhostream.tables.class_lists import table_names
from rhostream.tables.il import catalogue as catalogues
from tests.support.shards import make_shards
from tests.support.synthetic import make_table, part, shard_urls

PARTS, ROWS = 12, 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of few parts have a catalogue too."""
    monkeypatch.setattr(catalogues, "LEAST", 4)
    monkeypatch.setattr(il, "LEAST", 4)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table with its catalogue."""
    url = make_table(str(tmp_path / "il"), PARTS, ROWS, class_names={1: "one"})[0]
    assert il.write_catalogue(url, il.open_info(url))
    return url


def asked(table: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts whose footers an open reads from now on."""
    seen, tail = list[str](), storage.read_tail
    monkeypatch.setattr(storage, "read_tail", lambda url, n: seen.append(url) or tail(url, n))
    return seen


def put(table: str, number: int, rows: int = ROWS, **changes: object) -> str:
    """Another part in the place of one, as `verify --repair` or a stranger puts it."""
    info = il.open_info(table)
    facts, data = part(info, number, rows)
    if changes:
        batch = parquet.parse(data, "")[0]
        data = il.encode_part(batch, replace(facts, **changes))  # type: ignore[arg-type]
    url = il.part_url(table, facts.shard)
    storage.replace(url, data)
    return url


def lie(table: str, column: str, value: object) -> None:
    """A catalogue that says something else of the first part, under the name of the true one."""
    (url,) = il.catalogues(table)
    rows, record = parquet.read(url)
    values = rows[column].to_pylist()
    values[0] = value
    at = rows.schema.get_field_index(column)
    rows = rows.set_column(at, rows.schema.field(column), pa.array(values, rows.schema.field(column).type))
    storage.replace(url, parquet.encode(rows, record, {}, []))


def test_a_table_opened_by_its_catalogue_is_the_table_and_no_part_is_asked(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (url,), shards = il.catalogues(table), list(shard_urls(PARTS))
    found = il.find_catalogue(table, il.open_info(table), PARTS)
    assert found and found.facts(il.part_urls(table)) == [il.read_part_facts(one) for one in il.part_urls(table)]
    one, seen = il.open_table(table, shards), asked(table, monkeypatch)
    assert il.open_table(table, shards[::-1]).counts.tolist() == [ROWS] * PARTS and seen == []
    assert table_names(table) == {1: "one"} and status_of(table)["samples"] == PARTS * ROWS and seen == []
    storage.delete(url)
    other = il.open_table(table, shards)
    assert len(seen) == PARTS and repr(one) == repr(other) and one.class_names == other.class_names
    assert (one.shards, one.names, one.counts.tolist()) == (other.shards, other.names, other.counts.tolist())
    assert il.write_catalogue(table, il.open_info(table)) == url  # of the same list


def test_a_part_that_was_replaced_removed_or_added_is_asked_itself(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info, seen = il.open_info(table), asked(table, monkeypatch)
    replaced = put(table, 3, rows=2)
    storage.create(il.part_url(table, "train/000012.tar"), part(info, PARTS, ROWS)[1])
    opened = il.open_table(table, shard_urls(PARTS + 1))
    assert opened.counts.tolist() == [ROWS] * 3 + [2] + [ROWS] * 9
    assert sorted(seen) == sorted([replaced, il.part_url(table, "train/000012.tar")])
    removed = il.part_url(table, "train/000005.tar")
    storage.delete(removed)
    found = il.find_catalogue(table, info)
    assert found and not found.covers(removed) and not found.covers(replaced)
    assert verify(table)["warnings"] == ["the catalogue lacks 2 of 12 parts, whose footers are read one by one"]
    # Of the same size in the same place: the time (or ETag) tells.
    touched = il.part_url(table, "train/000001.tar")
    os.utime(touched, ns=(0, os.stat(touched).st_mtime_ns + 1))
    seen.clear()
    il.open_table(table, list(shard_urls(3)))
    assert seen == [touched]


def test_a_row_that_no_part_could_have_is_left_out_and_told_by_verify(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(table, monkeypatch)
    for column, value in (("samples", -1), ("shard", None), ("class_names", [(-5, "minus")])):
        lie(table, column, value)
        seen.clear()
        assert il.open_table(table, list(shard_urls(PARTS))).counts.tolist() == [ROWS] * PARTS
        assert seen == [il.part_url(table, "train/000000.tar")] and "they don't" in verify(table)["problems"][0]
        assert repair(table)["problems"] == []


@pytest.mark.parametrize("column, value", [("samples", ROWS + 1), ("class_names", [(1, "two")])])
def test_a_forged_catalogue_is_seen_before_a_row_reaches_a_buffer_and_verify_mends_it(
    table: str, column: str, value: object
) -> None:
    lie(table, column, value)
    shards = list(shard_urls(PARTS))
    if column == "class_names":
        with pytest.raises(rhostream.errors.MismatchError, match="label 1"):
            il.open_table(table, shards)
        shards = shards[:1]
    opened = il.open_table(table, shards)
    plan, join = Plan(opened.names, opened.counts, 4, 1), Join(opened, JoinSettings(needs_il=False))
    with pytest.raises(TableError, match=r"000000\.tar\.parquet isn't the part .*catalogue is stale or forged"):
        for index in range(plan.buffers):
            assert 0 not in join(plan.buffer(index)).rows.shard
    found = verify(table)
    assert "says of 1 parts what they don't, first that of train/000000.tar" in found["problems"][0]
    assert "--repair" in found["next"]
    mended = repair(table)
    assert mended["problems"] == [] and len(mended["repaired"]) == 1
    again = il.open_table(table, shard_urls(PARTS))
    assert again.counts.tolist() == [ROWS] * PARTS and again.class_names == {1: "one"}


def test_a_part_of_another_making_or_another_shard_is_refused_when_it_is_read(table: str) -> None:
    opened = il.open_table(table, shard_urls(PARTS))
    put(table, 2, fingerprint="0" * 16)
    put(table, 4, rows=ROWS - 1)
    put(table, 6, compression="gzip")
    storage.replace(il.part_url(table, "train/000008.tar"), part(opened.info, 9, ROWS)[1])
    for number in (2, 4, 6):
        with pytest.raises(TableError, match="isn't the part that the table was opened with"):
            opened.read_part(number)
    with pytest.raises(rhostream.errors.MismatchError, match=r"is that of train/000009\.tar"):
        opened.read_part(8)
    assert np.array_equal(opened.read_part(0).il, il.read_part(il.part_url(table, "train/000000.tar")).il)


def test_a_damaged_catalogue_is_told_and_left_out(
    table: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (url,), seen = il.catalogues(table), asked(table, monkeypatch)
    whole = Path(url).read_bytes()
    for data in (whole[:100] + bytes([whole[100] ^ 4]) + whole[101:], b"", whole[:-1]):
        seen.clear()
        Path(url).write_bytes(data)
        assert il.open_table(table, shard_urls(PARTS)).counts.tolist() == [ROWS] * PARTS
        assert len(seen) == PARTS and "isn't used" in caplog.text and "--repair" in caplog.text
    assert "can't be used" in verify(table)["problems"][0]
    assert repair(table)["problems"] == [] and il.find_catalogue(table, il.open_info(table)) is not None


def test_a_list_of_few_shards_of_a_large_table_is_opened_by_their_footers(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "SPARSE", 2)
    assert il.find_catalogue(table, il.open_info(table), PARTS // 2) is not None
    assert il.find_catalogue(table, il.open_info(table), PARTS // 2 - 1) is None


def test_the_job_that_completes_a_table_writes_its_catalogue_and_the_next_one_asks_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = [str(path) for path in make_shards(tmp_path / "shards", [3] * 5)], str(tmp_path / "il")
    ask = {"roots": {"data": str(tmp_path / "shards")}, "content": "image", "resize": "crop"}
    rhostream.index(shards, out, index="0/2", **ask)
    assert il.catalogues(out) == []
    rhostream.index(shards, out, index="1/2", **ask)
    (first,) = il.catalogues(out)
    seen = asked(out, monkeypatch)
    assert rhostream.index(shards, out, **ask).present == 5 and seen == [] and il.catalogues(out) == [first]
    more = [str(path) for path in make_shards(tmp_path / "shards", [3] * 7)]
    assert rhostream.index(more, out, **ask).made == 2
    assert il.catalogues(out)[0] == first and len(il.catalogues(out)) == 2  # of several the larger one counts
    seen.clear()
    assert len(il.open_table(out, more, ask["roots"]).names) == 7 and seen == []  # type: ignore[arg-type]
    with open_ledger(out) as ledger:
        assert ledger.sql("SELECT count(*) AS n FROM il").to_pylist() == [{"n": 21}]
