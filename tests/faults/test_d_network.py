"""Section D: the store and the network, each fault injected by the proxy before a real S3 server."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.doctor import probe_store
from rhostream.errors import (
    AccessError,
    AlreadyExistsError,
    BudgetError,
    MismatchError,
    NotWritableError,
    StorageError,
)
from rhostream.storage import commits
from rhostream.tables import il
from tests.faults.rig.proxy import deaf_port
from tests.faults.rig.s3 import PATIENT, FaultyStore
from tests.stores.servers import BUCKET, KEY, SECRET, Server, s3_options
from tests.support.shards import make_shards, write_shard

WRONG = {"key": KEY, "secret": "n0t-the-s3cret", "client_kwargs": {"region_name": "us-east-1"}}


def _same_index_in_spite_of(store: FaultyStore, *faults: tuple[str, dict[str, object]]) -> None:
    store.put_shards([30, 20])
    store.index("calm")
    storage.configure_spool(store.disk / "another-spool")  # or the shards would not be asked for again
    for fault, asks in faults:
        store.proxy.inject(fault, **asks)
    summary = store.index("faulty")
    assert summary.made == 2 and not summary.bad_shards and summary.ok == 50
    assert store.parts("faulty") == store.parts("calm")


def test_D1_server_errors_are_tried_again_and_change_nothing(faulty: FaultyStore) -> None:
    """A store that answers 500 or 503 is asked again, after a random wait that grows; the result is the same, byte for
    byte, and what was tried again is counted by store and kind."""
    _same_index_in_spite_of(
        faulty,
        ("500", {"method": "GET", "path": "/shards/train-", "times": 1}),
        ("503", {"method": "PUT", "path": "/parts/", "times": 2}),
    )
    assert faulty.retried == {"http 500": 1, "http 503": 2}


def test_D2_a_connection_that_breaks_is_tried_again(faulty: FaultyStore) -> None:
    """A connection that is reset, before the answer or while results are written, costs a new attempt and no more."""
    _same_index_in_spite_of(
        faulty,
        ("reset", {"method": "GET", "path": "/shards/train-", "times": 3}),
        ("reset", {"method": "PUT", "path": "/parts/", "times": 3}),
    )
    assert faulty.retried == {"reset": 6} and faulty.proxy.count(fault="reset") == 6


def test_D3_a_body_cut_once_is_read_again(faulty: FaultyStore) -> None:
    """A body that ends early, whether the connection breaks or the store claims that this was all, is never taken for
    the object: it is read again."""
    _same_index_in_spite_of(
        faulty,
        ("cut", {"method": "GET", "path": "/shards/train-", "times": 1}),
        ("short", {"method": "GET", "path": "/shards/train-", "times": 1}),
    )
    # The client may find a short body first, by the checksum that this server sends along.
    assert faulty.retried["cut body"] == 1 and sum(faulty.retried.values()) == 2


def test_D3_a_body_that_is_always_cut_ends_in_bounded_tries_without_a_part(faulty: FaultyStore) -> None:
    """When it is cut every time, the shard is named after a bounded number of tries, gets no part, and the other shards
    go on."""
    faulty.put_shards([30, 20])
    faulty.proxy.calm()
    faulty.proxy.inject("cut", method="GET", path="/shards/train-000", times=10_000)
    summary = faulty.index()
    assert list(summary.bad_shards) == ["data/train-000.tar"] and summary.made == 1
    assert "the body was cut" in summary.bad_shards["data/train-000.tar"]
    assert list(faulty.parts()) == ["/data/train-001.tar.parquet"]
    assert faulty.proxy.count("GET", "/shards/train-000") <= PATIENT.tries + 1  # and one of the read-ahead
    before = faulty.proxy.count("GET", "/shards/train-000")
    # Where nobody says what the samples are, it first looks: once.
    looked = rhostream.index([faulty.shards], f"{faulty.url}/looked", roots={"data": faulty.shards})
    assert len(looked.bad_shards) == looked.made == 1
    assert faulty.proxy.count("GET", "/shards/train-000") - before <= PATIENT.tries + 2
    faulty.proxy.calm()
    assert faulty.index().made == 1


def test_D5_a_flipped_byte_is_found_by_the_checksum_and_read_again(faulty: FaultyStore) -> None:
    """A byte that changes on the way is found by comparing the checksum of the whole object with the store's, and the
    object is read again."""
    _same_index_in_spite_of(faulty, ("flip", {"method": "GET", "path": "/shards/train-", "times": 2}))
    faulty.proxy.inject("flip", method="GET", path="_table.json", times=1)
    assert il.open_info(f"{faulty.url}/faulty").kind == "index"
    assert faulty.retried["checksum"] == 3


def test_D6_a_store_that_hangs_is_asked_again_after_the_deadline(faulty: FaultyStore) -> None:
    """A store that never answers, or stops in the middle of a body, is given up at a deadline (30 seconds unless
    configured) and asked again, rather than waited for."""
    storage.configure_retry(replace(PATIENT, first_byte=0.5, stall=0.5, slowest=16384))
    _same_index_in_spite_of(
        faulty,
        ("hang", {"method": "GET", "path": "/shards/train-", "times": 1}),
        ("hang_body", {"method": "GET", "path": "/shards/train-", "times": 1}),
        ("hang", {"method": "PUT", "path": "/parts/", "times": 1}),
    )
    assert faulty.retried["first byte"] + faulty.retried["stalled"] >= 3


def test_D6_a_connection_that_is_never_taken_is_given_up(faulty: FaultyStore) -> None:
    """A host that doesn't take the connection is given up at a deadline of its own, and named after bounded tries."""
    with deaf_port() as port:
        storage.configure("s3", s3_options(port))
        storage.configure_retry(replace(PATIENT, tries=2, connect=0.3))
        with pytest.raises(StorageError, match=r"no connection within the deadline \(tried 2 times"):
            storage.identity(f"{faulty.url}/x")
    assert faulty.retried == {"connect": 1}


def test_D7_a_slow_store_is_said_once_and_asked_again(faulty: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """A transfer far below the least throughput (16 KB/s unless configured) is given up and begun again, with one
    warning a store."""
    storage.configure_retry(replace(PATIENT, stall=0.4, slowest=50_000))
    storage.retry._said_slow.clear()
    with caplog.at_level(logging.WARNING, "rhostream"):
        _same_index_in_spite_of(faulty, ("slow", {"method": "GET", "path": "/shards/train-", "times": 2, "rate": 1000}))
    assert faulty.retried["slow"] == 2
    assert sum("is slow" in r.message for r in caplog.records) == 1


def test_D8_credentials_that_expire_stop_the_job_at_once_and_it_resumes(faulty: FaultyStore) -> None:
    """Credentials that expire during a job stop it at once with one sentence, without another request for each shard;
    with new ones the same command goes on where it stopped."""
    faulty.put_shards([10] * 6)
    faulty.proxy.calm()
    faulty.proxy.inject("expired", path="/shards/train-", times=10_000, skip=4)
    with pytest.raises(AccessError, match="the credentials expired") as stopped:
        faulty.index()
    assert faulty.url in str(stopped.value) and SECRET not in str(stopped.value)
    assert faulty.proxy.count(fault="expired") <= 6  # a shard's HEAD and GET, and those that were being read ahead
    assert not faulty.retried
    made = len(faulty.parts())
    assert made < 6
    faulty.proxy.calm()
    summary = faulty.index()
    assert (summary.present, summary.made) == (made, 6 - made)


def test_D8_wrong_credentials_are_one_sentence_before_any_work(faulty: FaultyStore) -> None:
    """Wrong credentials are one sentence, and no attempt is repeated."""
    storage.configure("s3", {**WRONG, "endpoint_url": f"http://127.0.0.1:{faulty.proxy.port}"})
    with pytest.raises(AccessError, match="refused the credentials") as refused:
        storage.read_bytes(f"{faulty.url}/x")
    assert faulty.proxy.count() == 1 and not faulty.retried
    assert WRONG["secret"] not in str(refused.value) + repr(refused.value.__cause__) + repr(storage.settings.settings())


def test_D9_a_shard_that_is_not_there_is_named_and_the_others_go_on(faulty: FaultyStore) -> None:
    """A shard that the store doesn't have is named at the end; the others get their parts."""
    one, two = faulty.put_shards([10, 12])
    summary = rhostream.index([one, f"{faulty.shards}/train-999.tar", two], f"{faulty.url}/index")
    ((name, why),) = summary.bad_shards.items()
    assert name.endswith("train-999.tar") and "does not exist" in why and summary.made == 2


def test_D10_retry_after_is_honoured(faulty: FaultyStore) -> None:
    """A store that asks for time with Retry-After gets it; when it asks for more than our patience, the error says how
    much."""
    faulty.put_shards([10])
    faulty.proxy.calm()
    faulty.proxy.inject("429", method="GET", path="/shards/train-", times=1, retry_after=1)
    before = time.monotonic()
    assert faulty.index().made == 1
    assert time.monotonic() - before >= 1 and faulty.retried == {"http 429": 1}
    faulty.proxy.inject("503", path="/never", times=1, retry_after=3600)
    with pytest.raises(StorageError, match="asked to wait 3600 s"):
        storage.read_bytes(f"{faulty.url}/never")


def test_D11_a_conflict_is_done_again_and_a_lost_answer_is_recognised(faulty: FaultyStore) -> None:
    """A commit that meets 409 is made again. One whose answer was lost finds its own bytes there when it is made again,
    and knows them; anybody else's are never overwritten."""
    _same_index_in_spite_of(
        faulty,
        ("409", {"method": "PUT", "path": "train-000", "times": 2}),
        ("lost", {"method": "PUT", "path": "train-001", "times": 1}),
    )
    assert faulty.retried == {"http 409": 2, "reset": 1}
    faulty.proxy.inject("lost", method="PUT", path="/mine", times=1)
    storage.create(f"{faulty.url}/mine", b"mine")
    faulty.proxy.inject("503", method="PUT", path="/mine", times=1)
    with pytest.raises(AlreadyExistsError):
        storage.create(f"{faulty.url}/mine", b"others")
    assert storage.read_bytes(f"{faulty.url}/mine") == b"mine"


def test_D11_a_part_that_another_job_wrote_meanwhile_is_compared(faulty: FaultyStore) -> None:
    """A part that another job wrote in the meantime is compared by its footer: the same facts are fine, others stop the
    job."""
    faulty.put_shards([10, 12])
    faulty.index("first")
    same, other = faulty.parts("first").values()
    part = il.part_url(f"{faulty.url}/second", "data/train-000.tar")
    faulty.proxy.inject("hook", method="PUT", path="/second/parts/", hook=lambda: storage.replace(part, same))
    second = faulty.index("second")
    assert (second.made, second.present, second.twice) == (1, 1, 1)
    part = il.part_url(f"{faulty.url}/third", "data/train-000.tar")
    faulty.proxy.inject("hook", method="PUT", path="/third/parts/", hook=lambda: storage.replace(part, other))
    with pytest.raises(MismatchError, match="another job wrote a different part"):
        faulty.index("third")


def test_D12_an_exception_between_read_and_commit_leaves_no_object(faulty: FaultyStore) -> None:
    """A job that stops between reading a shard and committing its part leaves no object for it, whole or half."""
    path = write_shard(faulty.disk / "bad.tar", [{"__key__": str(n), "png": b"x", "cls": "none"} for n in range(30)])
    storage.create(f"{faulty.shards}/bad.tar", path.read_bytes())
    with pytest.raises(BudgetError):
        faulty.index()
    assert [u.rpartition("/")[2] for u in storage.list_files(f"{faulty.url}/index", "")] == ["_table.json"]
    faulty.proxy.inject("403", method="PUT", path="/denied")
    with pytest.raises(AccessError):
        storage.create(f"{faulty.url}/denied", b"x")
    assert not storage.exists(f"{faulty.url}/denied")


UPLOAD = """
import sys
from rhostream import storage
storage.configure("s3", {options!r})
storage.create(sys.argv[1], bytes(8 << 20))
"""


def test_D13_a_process_killed_during_an_upload_leaves_no_object(faulty: FaultyStore) -> None:
    """A process that is killed while it uploads leaves no object of that name."""
    url = f"{faulty.url}/half"
    faulty.proxy.inject("hang_upload", method="PUT", path="/half")
    program = UPLOAD.format(options=s3_options(faulty.proxy.port))
    with subprocess.Popen([sys.executable, "-c", program, url]) as process:
        while not any(r.fault == "hang_upload" and r.body for r in list(faulty.proxy.seen)):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not storage.exists(url) and storage.list_files(faulty.url, "half") == []
    storage.create(url, b"whole")
    assert storage.read_bytes(url) == b"whole"


def _delete_behind(store: FaultyStore, server: Server) -> dict[str, object]:
    """A hook of the proxy that makes the store forget a condition: the object is gone before the PUT arrives."""
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3", region_name="us-east-1", endpoint_url=server.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    return {
        "method": "PUT",
        "times": 10_000,
        "hook": lambda path: client.delete_object(Bucket=BUCKET, Key=path.removeprefix(f"/{BUCKET}/")),
    }


def test_D15_a_store_that_ignores_the_condition_is_warned_of_once(faulty: FaultyStore, s3_server: Server) -> None:
    """A store that overwrites what a create-only write must not is found by a probe before any work and named in one
    warning; the job goes on, because the same command writes the same bytes."""
    faulty.put_shards([10, 12])
    faulty.index("kept")
    faulty.proxy.inject("no_condition", **_delete_behind(faulty, s3_server))
    commits._said.clear()
    with pytest.warns(UserWarning, match="ignores create-only writes") as said:
        assert faulty.index("overwritten").made == 2
    assert len(said) == 1
    report = probe_store(faulty.url)
    assert report.writable and report.usable and not report.create_only and "create-only" in report.why
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert faulty.index("overwritten").present == 2
        storage.create(f"{faulty.url}/again", b"same")
        storage.create(f"{faulty.url}/again", b"same")
    assert faulty.parts("overwritten") == faulty.parts("kept")
    faulty.proxy.calm()
    assert probe_store(faulty.url).create_only


def test_D16_a_wrong_clock_is_called_a_clock(faulty: FaultyStore) -> None:
    """A machine whose clock is wrong is told that it is the clock, at once."""
    faulty.put_shards([10])
    faulty.proxy.calm()
    faulty.proxy.inject("skew", path="/shards/train-", times=10_000)
    with pytest.raises(AccessError, match="clock is wrong"):
        faulty.index()
    assert not faulty.retried


def test_D17_a_place_that_cannot_be_written_stops_the_job_before_the_first_shard(faulty: FaultyStore) -> None:
    """A bucket that doesn't exist, or credentials that may only read, stop a job before it reads its first shard."""
    faulty.put_shards([10])
    faulty.proxy.calm()
    with pytest.raises(NotWritableError, match="the bucket does not exist"):
        rhostream.index([faulty.shards], "s3://no-such-bucket/index")
    faulty.proxy.inject("403", method="PUT", times=10_000)
    with pytest.raises(NotWritableError, match="refused the credentials"):
        faulty.index()
    with pytest.raises(NotWritableError, match="https is read only"):
        storage.probe_writable("https://127.0.0.1:1/index")
    assert faulty.proxy.count(path="train-000.tar") == 0


def test_D18_a_host_that_is_unknown_or_refuses_is_tried_and_named(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name that can't be looked up, a port that refuses, and a proxy of the environment that isn't there are
    tried a few times, then named."""
    storage.configure_retry(replace(PATIENT, tries=2))
    for endpoint, says in (("http://no-such-host.invalid:9", "can't be looked up"), ("http://127.0.0.1:1", "refused")):
        storage.configure("s3", {**s3_options(1), "endpoint_url": endpoint})
        with pytest.raises(StorageError, match=rf"{says}.*tried 2 times"):
            storage.read_bytes(f"{faulty.url}/x")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    storage.configure("s3", {**s3_options(1), "endpoint_url": "http://store.example:80"})
    with pytest.raises(StorageError, match="tried 2 times"):
        storage.read_bytes(f"{faulty.url}/x")
    assert sum(faulty.retried.values()) == 3


COMMAND = "import sys; sys.path.insert(0, {root!r}); from rhostream.cli import main; main()"


def _command(*arguments: object, before: tuple[str, ...] = (), cwd: str = "/proc") -> subprocess.CompletedProcess[str]:
    """A verb of the command line with no HOME, from a folder that nobody can write to."""
    root = str(Path(rhostream.__file__).parents[1])
    environment = {"PATH": os.environ["PATH"], "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
    return subprocess.run(
        [*before, sys.executable, "-c", COMMAND.format(root=root), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_D20_no_home_and_a_folder_that_cannot_be_written_are_enough(tmp_path: Path) -> None:
    """Without HOME, in a folder that can't be written to, everything works."""
    make_shards(tmp_path / "shards", [10, 12])
    done = _command("index", "--shards", tmp_path / "shards", "--out", tmp_path / "index")
    assert done.returncode == 0 and '"samples": 22' in done.stdout, done.stderr


@pytest.mark.slow
def test_D20_without_shared_memory_workers_are_refused_by_name(tmp_path: Path) -> None:
    """Where shared memory (/dev/shm) is missing or full, loader workers are refused in one sentence; without workers
    the job runs."""
    isolated = (
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o ro,size=4k none /dev/shm && exec "$@"',
        "sh",
    )
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody hide /dev/shm from a process")
    make_shards(tmp_path / "shards", [10, 12])
    asks = ("fit-il", "--shards", tmp_path / "shards", "--out", tmp_path / "model", "--model", "mlp-64")
    refused = _command(*asks, "--workers", 2, before=isolated)
    assert refused.returncode == 2 and "in shared memory (/dev/shm)" in refused.stderr, refused.stderr
    done = _command(*asks, before=isolated)
    assert done.returncode == 0 and '"accuracy"' in done.stdout, done.stderr
