"""Section D: credentials that expire while a run goes on, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream import storage
from rhostream.errors import AccessError
from rhostream.runs import checkpoint
from rhostream.tables import selections
from tests.faults.rig.s3 import FaultyStore
from tests.stores.servers import BUCKET, KEY, KEY_2, SECRET, SECRET_2, s3_options
from tests.support.command import command

RUN = ["--model", "mlp-64", "--rule", "uniform", "--buffer-size", 20, "--batch-size", 5, "--steps", 14,
       "--checkpoint-every", 2, "--threads", 1, "--lanes", 2]  # fmt: skip
OPEN = 150  # requests for samples before the key expires: all that is read before the first step, and some steps


@pytest.fixture
def table(faulty: FaultyStore) -> str:
    """An index of eight shards in the store, on disk."""
    faulty.put_shards([40] * 8)
    faulty.index()
    rhostream.index([faulty.shards], str(faulty.disk / "index"), roots={"data": faulty.shards})
    storage.configure_spool(faulty.disk / "cold-spool", 0)  # every sample is a request
    faulty.proxy.calm()
    return str(faulty.disk / "index")


@pytest.fixture
def shared_file(faulty: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of credentials, to which the environment points; the store's options name none."""
    file = tmp_path / "credentials"
    file.write_text(_profile(KEY, SECRET))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.configure("s3", _without_keys(faulty))
    yield file
    storage.configure("s3", s3_options(faulty.proxy.port))


def _profile(key: str, secret: str, name: str = "default") -> str:
    return f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def _without_keys(faulty: FaultyStore) -> dict[str, Any]:
    return {name: value for name, value in s3_options(faulty.proxy.port).items() if name not in ("key", "secret")}


def _train(faulty: FaultyStore, table: str, run: str, capsys: Any, code: int = 0) -> str:
    _, err = command(capsys, "train", "--shards", faulty.shards, "--il", table, "--run", run, *RUN, code=code)
    return err


def _rows(run: str) -> list[dict[str, Any]]:
    last = checkpoint.latest(storage.resolve(run))
    assert last is not None and last.step == 14
    return list(selections.read(storage.resolve(run), last.log).select(["step", "shard", "key", "kept"]).to_pylist())


def test_D8_a_run_goes_on_with_the_credentials_that_its_chain_has_by_now(
    faulty: FaultyStore, table: str, shared_file: Path, tmp_path: Path, capsys: Any
) -> None:
    """Credentials that were found, in a file, a role or the environment, and expire while a run goes on are looked for
    once more: where others are found by then, the run goes on with them, and that is counted."""
    storage.exists(f"{faulty.url}/anything")  # the client has read the file
    shared_file.write_text(_profile(KEY_2, SECRET_2))
    faulty.proxy.inject("expired_403", path="/shards/train-", signed_by=KEY, times=10_000, skip=OPEN)
    _train(faulty, table, str(tmp_path / "run"), capsys)
    assert faulty.retried["expired"] >= 1 and set(faulty.retried) == {"expired"}
    signed = [request.headers["authorization"] for request in faulty.proxy.seen]
    assert KEY in signed[0] and KEY_2 in signed[-1]
    storage.configure_spool(tmp_path / "calm-spool")
    faulty.proxy.calm()
    _train(faulty, table, str(tmp_path / "calm"), capsys)
    assert _rows(str(tmp_path / "run")) == _rows(str(tmp_path / "calm"))


@pytest.mark.parametrize("given", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_D8_a_run_whose_credentials_cannot_be_renewed_ends_in_one_sentence_and_resumes(
    given: bool, faulty: FaultyStore, table: str, tmp_path: Path, capsys: Any, request: pytest.FixtureRequest
) -> None:
    """A run whose credentials expire and can't be renewed ends with one sentence and exit code 3, and the same command
    goes on from its last checkpoint once there are new ones."""
    if not given:
        request.getfixturevalue("shared_file")  # where the same ones are found again
    run = str(tmp_path / "run")
    faulty.proxy.inject("expired_403", path="/shards/train-", signed_by=KEY, times=10_000, skip=OPEN)
    err = _train(faulty, table, run, capsys, code=3)
    (said,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "the credentials expired (ExpiredToken): renew them and run the same command again" in said
    assert SECRET not in err and "Traceback" not in err and not faulty.retried
    assert faulty.proxy.count(fault="expired_403") <= 20  # HEAD and GET of what was being read and brought
    reached = checkpoint.latest(storage.resolve(run))
    assert reached is not None and 0 < reached.step < 14
    faulty.proxy.calm()
    storage.configure("s3", {**s3_options(faulty.proxy.port), "key": KEY_2, "secret": SECRET_2})
    _train(faulty, table, run, capsys)
    storage.configure_spool(tmp_path / "calm-spool")
    _train(faulty, table, str(tmp_path / "calm"), capsys)
    assert _rows(run) == _rows(str(tmp_path / "calm"))


def test_a_profile_and_the_environment_are_asked_for_credentials(
    faulty: FaultyStore, shared_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_file.write_text(_profile(KEY, "wrong") + _profile(KEY_2, SECRET_2, "writer"))
    with pytest.raises(AccessError):
        storage.exists(f"{faulty.url}/x")
    storage.configure(f"s3://{BUCKET}", {**_without_keys(faulty), "profile": "writer"})
    assert not storage.exists(f"{faulty.url}/x")
    storage.configure(f"s3://{BUCKET}", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage.configure("s3", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faulty.proxy.port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert not storage.exists(f"{faulty.url}/x")


def test_who_pays_for_requests_is_said_in_every_one(faulty: FaultyStore) -> None:
    """`requester_pays` and what else the options say of every request: in reads, writes, listings and deletions."""
    storage.configure("s3", {**s3_options(faulty.proxy.port), "requester_pays": True,
                             "s3_additional_kwargs": {"StorageClass": "STANDARD"}})  # fmt: skip
    url = f"{faulty.url}/paid"
    storage.create(url, b"paid")
    assert storage.read_bytes(url) == b"paid" and storage.list_files(faulty.url, "") == [url]
    storage.delete(url)
    assert {request.method for request in faulty.proxy.seen} == {"PUT", "GET", "DELETE"}
    for request in faulty.proxy.seen:
        assert request.headers.get("x-amz-request-payer") == "requester", request
        assert ("x-amz-storage-class" in request.headers) == (request.method == "PUT")
