"""What opening a table asks of a real S3 server, in requests and bytes, counted by the proxy in front of it."""

from __future__ import annotations

from rhostream import storage
from rhostream.tables import il
from tests.faults.rig.proxy import Request
from tests.faults.rig.s3 import FaultyStore
from tests.support.synthetic import make_table

PARTS, ROWS = 6, 10_000


def of_parts(faulty: FaultyStore) -> list[Request]:
    return [one for one in faulty.proxy.seen if "/parts/" in one.target]


def test_a_footer_is_read_by_one_request_of_the_last_bytes_of_its_part(faulty: FaultyStore) -> None:
    table, shards = make_table(f"{faulty.url}/il", PARTS, ROWS)
    whole = sum(storage.identity(part).size for part in il.part_urls(table))
    faulty.proxy.calm()
    opened = il.open_table(table, shards)
    assert opened.counts.tolist() == [ROWS] * PARTS
    assert [one.method for one in of_parts(faulty)] == ["GET"] * PARTS
    assert sum(one.answered for one in of_parts(faulty)) <= PARTS * (8 << 10) < whole / 6


def test_a_footer_that_is_longer_takes_a_second_request(faulty: FaultyStore) -> None:
    names = {label: f"class number {label} of many" for label in range(2_000)}
    table, shards = make_table(f"{faulty.url}/il", 1, ROWS, class_names=names)
    faulty.proxy.calm()
    assert il.open_table(table, shards).class_names == names
    first, second = of_parts(faulty)
    assert first.answered == 8 << 10 < second.answered < 512 << 10
