"""Real stores on loopback: an S3 server (SeaweedFS) and a GCS emulator, each stopped by its own process id."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read when gcsfs is first imported: its experimental half asks Google's servers about buckets.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

KEY, SECRET = "rhostream-test", "s3cr3t-of-the-tests-7d1f"
KEY_2, SECRET_2 = "rhostream-renewed", "an0ther-of-the-tests-55c2"  # of the same user
BUCKET = "bench"
UP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """Where a store listens and how one logs in."""

    host: str
    port: int
    options: dict[str, Any]  # for storage.configure

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def s3_options(port: int) -> dict[str, Any]:
    return {
        "key": KEY,
        "secret": SECRET,
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }


@contextlib.contextmanager
def run_s3(folder: Path) -> Iterator[Server]:
    """SeaweedFS with one bucket and a user who may do everything in it, with either of two keys."""
    weed = Path(sys.executable).with_name("weed")
    assert weed.exists(), "the S3 server of the tests isn't installed: pip install -e '.[dev]'"
    identities = [
        {
            "name": "tests",
            "credentials": [
                {"accessKey": KEY, "secretKey": SECRET},
                {"accessKey": KEY_2, "secretKey": SECRET_2},
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    command = [
        str(weed),
        "-alsologtostderr=false",
        f"-logdir={folder}",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={config}",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-volume.max=50",
        "-master.volumeSizeLimitMB=64",
        "-master.electionTimeout=1s",
        "-master.heartbeatInterval=100ms",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    with _running(command, folder / "weed.log", lambda: _make_bucket(s3)):
        yield Server("127.0.0.1", s3, s3_options(s3))


def _make_bucket(port: int) -> bool:
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=config,
    )
    try:
        if not any(b["Name"] == BUCKET for b in client.list_buckets().get("Buckets", [])):
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="up", Body=b"up")  # a volume is there, too
        return True
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()


@contextlib.contextmanager
def run_gcs(folder: Path) -> Iterator[Server]:
    """The emulator, in memory. It takes any credential and ignores ifGenerationMatch."""
    (port,) = free_ports(1)
    command = [
        str(Path(sys.executable).with_name("gcp-storage-emulator")),
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--in-memory",
        "--default-bucket",
        BUCKET,
        "--quiet",
    ]

    def up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b/{BUCKET}", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with _running(command, folder / "gcs.log", up):
        options = {"token": "anon", "project": "tests", "endpoint_url": f"http://127.0.0.1:{port}"}
        yield Server("127.0.0.1", port, options)


@contextlib.contextmanager
def _running(command: list[str], log: Path, up: Callable[[], bool]) -> Iterator[None]:
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, cwd=log.parent)
    try:
        until = time.monotonic() + UP_SECONDS
        while not up():
            assert process.poll() is None and time.monotonic() < until, (
                f"{Path(command[0]).name} doesn't start:\n{log.read_text(errors='replace')[-2000:]}"
            )
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_s3(tmp_path_factory.mktemp("s3-server")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_gcs(tmp_path_factory.mktemp("gcs-server")) as server:
        yield server
