"""What holds of every place where shards and results may lie: one suite for a disk, memory, S3 and GCS."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.audit.views import open_ledger
from rhostream.config.init import InitConfig
from rhostream.doctor import probe_store
from rhostream.errors import AccessError, AlreadyExistsError, MismatchError, NotFoundError, UsageError
from rhostream.guide.job import guide
from rhostream.runs import checkpoint
from rhostream.tables import il, selections
from tests.faults.rig.proxy import GenerationProxy
from tests.stores.servers import BUCKET, SECRET, Server
from tests.support.shards import make_shards

REMOTE = ("memory", "s3", "gs")


@pytest.fixture(scope="session")
def gcs_proxy(gcs_server: Server) -> Iterator[GenerationProxy]:
    with GenerationProxy(gcs_server.port) as proxy:
        yield proxy


@pytest.fixture(params=["disk", *REMOTE])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder of each kind of store."""
    name = uuid.uuid4().hex[:8]
    storage.configure_spool(tmp_path / "spool")
    if request.param == "s3":
        storage.configure("s3", request.getfixturevalue("s3_server").options)
    if request.param == "gs":
        proxy = request.getfixturevalue("gcs_proxy")
        options = request.getfixturevalue("gcs_server").options
        storage.configure("gs", {**options, "endpoint_url": f"http://127.0.0.1:{proxy.port}"})
    yield str(tmp_path / name) if request.param == "disk" else f"{request.param}://{BUCKET}/{name}"
    for scheme in ("s3", "gs"):
        storage.configure(scheme, None)
    storage.configure_spool(None)


@pytest.mark.parametrize("name", ["plain.tar", "a b+c%20d.tar", "é-日本.tar", "deep/er/x=1/y.tar", "q&a;#1~'(x)!.tar"])
def test_an_object_of_any_name_is_read_whole_in_ranges_and_listed(place: str, name: str) -> None:
    url, data = storage.join(place, name), os.urandom(70_001)
    storage.create(url, data)
    assert storage.read_bytes(url) == data and storage.exists(url) and storage.identity(url).size == len(data)
    assert storage.list_files(place, ".tar") == [url]
    for spool_bytes in (None, 0):
        with storage.open_reader(url, spool_bytes) as reader:
            assert reader.size == len(data) and reader.unchanged() and reader.version == storage.identity(url)
            for n, offset in ((1, 0), (1000, 69_500), (0, 5), (10, 70_001), (70_001, 0), (4096, 33)):
                assert reader.pread(n, offset) == data[offset : offset + n]
    assert storage.digest_of(url)[0] == len(data)


def test_the_end_of_an_object_is_read_alone_and_a_listing_knows_the_versions(place: str) -> None:
    data = os.urandom(70_001)
    short = b"x" if place.startswith("gs:") else b""  # the emulator breaks off over an empty object
    for name, part in (("whole.tar", data), ("short.tar", short)):
        storage.create(storage.join(place, name), part)
        for n in (1, 16 << 10, 70_001, 1 << 20):
            assert storage.read_tail(storage.join(place, name), n) == part[-n:]
    with pytest.raises(NotFoundError):
        storage.read_tail(storage.join(place, "none.tar"), 9)
    listed = dict(storage.list_entries(place, ".tar"))
    assert listed == {url: storage.identity(url) for url in storage.list_files(place, ".tar")} and len(listed) == 2


def test_a_name_is_taken_once_and_the_first_bytes_stay(place: str) -> None:
    url = storage.join(place, "x", "one")
    storage.create(url, b"first")
    for data in (b"second", b"first"):
        with pytest.raises(AlreadyExistsError, match="exists already"):
            storage.create(url, data)
    assert storage.read_bytes(url) == b"first"
    storage.replace(url, b"third")
    assert storage.read_bytes(url) == b"third"


def test_a_deleted_object_is_gone_and_may_be_deleted_again(place: str) -> None:
    url = storage.join(place, "x")
    for call in (storage.identity, storage.read_bytes, storage.open_reader):
        with pytest.raises(NotFoundError, match="does not exist"):
            call(url)
    storage.create(url, b"x")
    storage.delete(url)
    storage.delete(url)
    assert not storage.exists(url) and storage.list_files(place, "") == []


def test_a_listing_is_sorted_goes_below_and_leaves_out_dots_and_neighbours(place: str) -> None:
    for name in ("b.tar", "a/2.tar", "a/1.tar", "a/.hidden.tar", "a/1.txt"):
        storage.create(storage.join(place, name), b"x")
    storage.create(place + "-neighbour/c.tar", b"x")
    assert storage.list_files(place, ".tar") == [storage.join(place, n) for n in ("a/1.tar", "a/2.tar", "b.tar")]
    assert storage.expand([place]) == storage.list_files(place, ".tar")
    assert storage.expand([f"{place}/a/*.tar"]) == [f"{place}/a/1.tar", f"{place}/a/2.tar"]
    assert storage.expand([place + "/a/{1..2}.tar"]) == [f"{place}/a/1.tar", f"{place}/a/2.tar"]
    with pytest.raises(UsageError, match="no file matches"):
        storage.expand([f"{place}/none*.tar"])


def test_a_replaced_object_has_another_identity_and_an_open_reader_keeps_the_old_bytes(place: str) -> None:
    url = storage.join(place, "shard.tar")
    storage.create(url, b"a" * 5000)
    first = storage.identity(url)
    with storage.open_reader(url) as reader:
        storage.replace(url, b"b" * 5000)
        assert storage.identity(url) != first
        assert reader.pread(10, 0) == b"a" * 10
    with storage.open_reader(url) as reader:
        assert reader.pread(10, 0) == b"b" * 10


def test_a_signal_behind_the_close_of_a_reader_closes_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create(str(tmp_path / "shard.tar"), b"a")
    reader, closed, close = storage.open_reader(str(tmp_path / "shard.tar")), list[int](), os.close

    def interrupted(fd: int) -> None:
        closed.append(fd)
        close(fd)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.close()
        reader.close()
    assert len(closed) == 1


def test_a_place_is_probed_without_a_trace(place: str) -> None:
    assert storage.probe_writable(place) is True
    report = probe_store(place)
    assert report.writable and report.create_only and report.usable and not report.why
    assert storage.list_files(place, "") == []


def test_a_large_object_is_created_once_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rhostream.storage import s3

    monkeypatch.setattr(s3, "SINGLE_PUT", 5 << 20)  # else it takes more than 64 MB to come in parts
    url, data = storage.join(place, "large"), os.urandom(5 << 20) * 2 + b"end"
    storage.create(url, data)
    assert storage.read_bytes(url) == data
    with pytest.raises(AlreadyExistsError):
        storage.create(url, data[:-1])
    with storage.open_reader(url) as reader:
        assert reader.pread(100, 5 << 20) == data[5 << 20 :][:100]


def test_what_is_written_piece_by_piece_appears_once_and_whole_or_not_at_all(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rhostream.storage import on_disk, s3

    monkeypatch.setattr(s3, "SINGLE_PUT", 5 << 20)
    monkeypatch.setattr(on_disk, "PIECE", 1 << 20)
    url, data = storage.join(place, "below", "large"), os.urandom(5 << 20) * 2 + b"end"
    with pytest.raises(ZeroDivisionError), storage.writing(url) as file:
        file.write(data)
        raise ZeroDivisionError
    assert not storage.exists(url) and storage.list_files(place, "") == []
    with storage.writing(url) as file:
        file.write(b"a header that is known at the end")
        for start in range(0, len(data), 1 << 20):
            file.seek(start)
            file.write(data[start : start + (1 << 20)])
        assert not storage.exists(url)
    assert storage.read_bytes(url) == data and storage.digest_of(url) == on_disk.OnDisk.digest(data)
    with pytest.raises(AlreadyExistsError), storage.writing(url) as file:
        file.write(b"another")
    assert storage.identity(url).size == len(data) and storage.list_files(place, "") == [url]


def _end_to_end(shards: str, out: str) -> list[dict[str, object]]:
    """fit-il, compute-il and a run that is resumed once: what it logged."""
    roots = {"data": shards}
    rhostream.fit_il([shards], f"{out}/model", model="mlp-64", epochs=1, roots=roots)
    rhostream.compute_il([shards], f"{out}/model", f"{out}/il", roots=roots)
    for steps in (4, 9):
        rhostream.train(
            [shards],
            f"{out}/il",
            f"{out}/run",
            model="mlp-64",
            buffer_size=20,
            batch_size=5,
            passes=2,
            steps=steps,
            roots=roots,
            threads=1,
        )
    done = checkpoint.latest(storage.resolve(f"{out}/run"))
    assert done is not None and done.step == 9
    rows = selections.read(storage.resolve(f"{out}/run"), done.log)
    return list(rows.select(["step", "shard", "key", "kept"]).to_pylist())


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[dict[str, object]]]:
    """Three shards, and what the journey logs of them on a disk."""
    folder = tmp_path_factory.mktemp("on-disk")
    return make_shards(folder / "shards", [40, 30, 50]), _end_to_end(str(folder / "shards"), str(folder / "out"))


@pytest.mark.parametrize("place", REMOTE, indirect=True)
def test_a_table_and_a_run_are_made_resumed_and_read_there(
    place: str, on_disk: tuple[list[Path], list[dict[str, object]]]
) -> None:
    """The same rows as on disk: shards and results in the store, and the same command again makes nothing anew."""
    shards, logged = on_disk
    for path in shards:
        storage.create(f"{place}/shards/{path.name}", path.read_bytes())
    assert _end_to_end(f"{place}/shards", place) == logged
    roots = {"data": f"{place}/shards"}
    again = rhostream.compute_il([f"{place}/shards"], f"{place}/model", f"{place}/il", roots=roots)
    assert (again.present, again.made) == (3, 0)
    with open_ledger(f"{place}/run") as ledger:
        assert ledger.sql("select count(*) from selections where kept").to_pylist() == [{"count_star()": 9 * 5}]
    for url in storage.list_files(place, ".json"):
        assert SECRET.encode() not in storage.read_bytes(url)


def test_a_shard_that_was_replaced_after_it_was_indexed_is_refused(place: str, tmp_path: Path) -> None:
    first, second = make_shards(tmp_path / "local", [30, 31])
    url = f"{place}/shards/a.tar"
    storage.create(url, first.read_bytes())
    rhostream.index([url], f"{place}/index")
    storage.replace(url, second.read_bytes())
    table = il.open_table(f"{place}/index", [url])
    stream = rhostream.open_stream([url], f"{place}/index", buffer_size=10, needs_il=False)
    assert table.names
    with pytest.raises((MismatchError, rhostream.errors.StorageError, rhostream.errors.ShardError), match="chang"):
        next(iter(stream))


def test_init_looks_at_shards_where_they_lie(place: str, tmp_path: Path) -> None:
    for path in make_shards(tmp_path / "local", [30, 20]):
        storage.create(f"{place}/shards/{path.name}", path.read_bytes())
    found = guide(InitConfig(data=[f"{place}/shards/"], seconds=0))
    assert (found.facts.samples, found.facts.shards, found.facts.counted) == (50, 2, True)
    fit = next(command for command in found.plan.commands if command.verb == "fit-il")
    assert storage.expand(fit.config["shards"]) == storage.expand([f"{place}/shards/"])
    with pytest.raises(UsageError, match=r"no file (below|matches)|isn't there"):
        guide(InitConfig(data=[f"{place}/nothing/"], seconds=0))


def test_a_gcs_that_misbehaves_is_asked_again(gcs_server: Server, gcs_proxy: GenerationProxy, tmp_path: Path) -> None:
    storage.configure("gs", {**gcs_server.options, "endpoint_url": f"http://127.0.0.1:{gcs_proxy.port}"})
    storage.configure_spool(tmp_path / "spool")
    storage.configure_retry(storage.Retry(first_wait=0.02, first_byte=5))
    url, data, before = f"gs://{BUCKET}/{uuid.uuid4().hex}", os.urandom(100_000), storage.retried()
    gcs_proxy.calm()
    try:
        gcs_proxy.inject("lost", method="POST")
        storage.create(url, data)
        with pytest.raises(AlreadyExistsError):
            storage.create(url, data)
        for fault in ("reset", "cut", "flip", "503"):
            gcs_proxy.inject(fault, method="GET", path="alt=media")
        with storage.open_reader(url) as reader:
            assert isinstance(reader, storage.SpooledReader) and reader.pread(reader.size, 0) == data
        assert storage.retried_since(before) == {
            f"gs://{BUCKET}": {"reset": 2, "cut body": 1, "checksum": 1, "http 503": 1}
        }
        gcs_proxy.inject("403", method="GET")
        with pytest.raises(AccessError, match="refused the credentials"):
            storage.read_bytes(url)
        gcs_proxy.inject("403", method="GET")
        with pytest.raises(AccessError, match="refused the credentials"):
            guide(InitConfig(data=[f"gs://{BUCKET}/nobody/"], seconds=0))
    finally:
        gcs_proxy.calm()
        storage.configure("gs", None)
        storage.configure_spool(None)
        storage.configure_retry(None)


def test_a_gcs_that_ignores_the_condition_is_said_so(gcs_server: Server) -> None:
    """The emulator itself is such a store."""
    storage.configure("gs", gcs_server.options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert storage.probe_writable(f"gs://{BUCKET}/probe") is False
        report = probe_store(f"gs://{BUCKET}/probe")
        assert report.usable and not report.create_only
    finally:
        storage.configure("gs", None)


@pytest.mark.parametrize(("payer", "billed"), [(True, "tests"), ("another", "another")])
def test_a_gcs_is_told_who_pays(gcs_server: Server, gcs_proxy: GenerationProxy, payer: object, billed: str) -> None:
    options = {**gcs_server.options, "endpoint_url": f"http://127.0.0.1:{gcs_proxy.port}", "requester_pays": payer}
    storage.configure("gs", options)
    gcs_proxy.calm()
    url = f"gs://{BUCKET}/{uuid.uuid4().hex}/x"
    try:
        storage.create(url, b"x")
        assert storage.read_bytes(url) == b"x" and storage.list_files(url.removesuffix("/x"), "") == [url]
        storage.delete(url)
        asked = [request.target for request in gcs_proxy.seen]
        assert len(asked) == 4 and all(f"userProject={billed}" in target for target in asked)
    finally:
        storage.configure("gs", None)
