"""Exports to a real S3 server: whole or not at all, the same bytes as on a disk, and a stop that goes on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhostream import storage
from rhostream.audit.export import export
from rhostream.errors import UsageError
from tests.stores.servers import BUCKET, Server
from tests.support.audit_fixtures import make_rows, make_run, make_world


@pytest.fixture
def place(s3_server: Server, tmp_path: Path) -> Iterator[str]:
    storage.configure_spool(tmp_path / "spool")
    storage.configure("s3", s3_server.options)
    yield f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
    storage.configure("s3", None)
    storage.configure_spool(None)


def test_an_export_to_a_store_has_the_bytes_of_one_on_a_disk_and_overwrites_nothing(place: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "made")
    run = make_run(world, str(tmp_path / "rho"), make_rows(world, 20))
    for name, with_samples in (("x.parquet", True), ("x.csv", False)):
        export(run, str(tmp_path / name), with_samples=with_samples)
        done = export(run, f"{place}/{name}", with_samples=with_samples)
        assert storage.read_bytes(f"{place}/{name}") == (tmp_path / name).read_bytes()
        assert (done.out, done.bytes) == (f"{place}/{name}", (tmp_path / name).stat().st_size)
        with pytest.raises(UsageError, match="exists already"):
            export(run, f"{place}/{name}", with_samples=with_samples)
    assert sorted(storage.list_files(place, "")) == [f"{place}/x.csv", f"{place}/x.parquet"]
    assert not [*(tmp_path / "spool").rglob("tmp*")]


def test_shards_in_a_store_are_made_once_and_those_that_lack_again(place: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "made")
    for where in (str(tmp_path / "new"), place):
        done = export(str(world.table), where, form="shards", samples_per_shard=20)
        assert (done.shards, done.there, done.samples) == (3, 0, 60)
    files = sorted(file for file in (tmp_path / "new").rglob("*") if file.is_file())
    for file in files:
        assert storage.read_bytes(f"{place}/{file.relative_to(tmp_path / 'new')}") == file.read_bytes()
    storage.delete(f"{place}/shard-000001.tar")
    storage.delete(f"{place}/SHA256SUMS")
    again = export(str(world.table), place, form="shards", samples_per_shard=20)
    assert (again.shards, again.there) == (3, 2)
    assert len(storage.list_files(place, "")) == len(files)
