"""A18: a shard that changes while it is read."""

from __future__ import annotations

from pathlib import Path

import rhostream
from rhostream import storage
from rhostream.errors import ChangedError
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.tables import il
from tests.faults.rig.s3 import FaultyStore
from tests.support.shards import make_shards


def test_A18_a_shard_that_grows_on_a_disk_while_it_is_read_gets_no_part(tmp_path: Path) -> None:
    """A shard that grows on a disk while it is read is named, gets no part, and is read by the same command once it
    rests."""
    path, other = make_shards(tmp_path / "shards", [1200, 30])
    grown, seen, error = path.read_bytes(), 0, None
    path.write_bytes(grown[:-10240])  # somebody is still copying it
    for message in scan([(str(path), "growing")], ScanSettings()):
        if isinstance(message, Chunk):
            seen += len(message)
            with path.open("ab") as file:
                file.write(grown[-10240 + seen :][:512])
        else:
            assert isinstance(message, End)
            error = message.error
    assert isinstance(error, ChangedError) and seen and "changed its size while it was read" in str(error)
    path.write_bytes(grown)
    summary = rhostream.index([str(path), str(other)], str(tmp_path / "index"))
    assert summary.samples == 1230 and not summary.bad_shards


def test_A18_a_shard_that_is_replaced_in_a_store_while_it_is_opened_is_read_once_more(faulty: FaultyStore) -> None:
    """In a store every read names the version that was opened: one that was replaced in between is opened once more, as
    it is then, and never mixed of two; one that is replaced during ranged reads is named."""
    (url,) = faulty.put_shards([20])
    (longer,) = make_shards(faulty.disk / "longer", [35])
    faulty.proxy.inject(
        "hook", method="GET", path="/shards/train-000.tar", hook=lambda: storage.replace(url, longer.read_bytes())
    )
    summary = faulty.index()
    assert summary.samples == 35 and not summary.bad_shards
    part = il.read_part_facts(il.part_url(f"{faulty.url}/index", "data/train-000.tar"))
    assert part.shard_size == longer.stat().st_size == storage.identity(url).size
    storage.configure_spool(faulty.disk / "none", 0)  # by ranges, then
    faulty.proxy.inject(
        "hook",
        method="GET",
        path="/shards/train-000.tar",
        hook=lambda: storage.replace(url, longer.read_bytes() + bytes(512)),
    )
    found = rhostream.index(
        [url], f"{faulty.url}/ranged", roots={"data": faulty.shards}, content="image", resize="crop"
    )
    (why,) = found.bad_shards.values()
    assert "changed while it was read" in why and found.made == 0
