"""The S3 server behind the fault proxy, as tests of faults use it: one fresh folder a test, and short patience."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.irreducible.accounts import Summary
from tests.faults.rig.proxy import Proxy
from tests.stores.servers import BUCKET, Server, s3_options
from tests.support.shards import make_shards

PATIENT = storage.Retry(
    tries=6, first_wait=0.02, longest_wait=0.1, total=60, connect=5, first_byte=10, stall=10, slowest=1
)


@dataclass(frozen=True)
class FaultyStore:
    """A folder of the bucket, reached through the proxy."""

    url: str
    proxy: Proxy
    disk: Path  # shards and spool
    before: dict[str, dict[str, int]]

    @property
    def shards(self) -> str:
        return f"{self.url}/shards"

    @property
    def retried(self) -> dict[str, int]:
        """What was tried again since the test began."""
        return storage.retried_since(self.before).get(f"s3://{BUCKET}", {})

    def put_shards(self, counts: list[int]) -> list[str]:
        """Shards of so many samples, on disk and in the store."""
        urls = []
        for path in make_shards(self.disk / "shards", counts):
            urls.append(f"{self.shards}/{path.name}")
            storage.replace(urls[-1], path.read_bytes())
        return urls

    def index(self, table: str = "index", workers: int = 0) -> Summary:
        """`rhostream index` of the shards, without the look at what the samples are: faults hit the job itself."""
        return rhostream.index(
            [self.shards],
            f"{self.url}/{table}",
            roots={"data": self.shards},
            workers=workers,
            content="image",
            resize="crop",
        )

    def parts(self, table: str = "index") -> dict[str, bytes]:
        """Name and bytes of every part."""
        folder = f"{self.url}/{table}/parts"
        return {url.removeprefix(folder): storage.read_bytes(url) for url in storage.list_files(folder, ".parquet")}


@pytest.fixture(scope="session")
def proxy(s3_server: Server) -> Iterator[Proxy]:
    with Proxy(s3_server.port) as running:
        yield running
    storage.configure("s3", None)
    storage.configure_retry(None)


@pytest.fixture
def faulty(proxy: Proxy, tmp_path: Path) -> Iterator[FaultyStore]:
    storage.configure("s3", s3_options(proxy.port))
    storage.configure_retry(PATIENT)
    storage.configure_spool(tmp_path / "spool")
    proxy.calm()
    yield FaultyStore(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}", proxy, tmp_path, storage.retried())
    proxy.calm()
    storage.configure_spool(None)  # the other settings stay for the next test: a new client takes a quarter second
