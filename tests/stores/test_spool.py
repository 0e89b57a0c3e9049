"""The spool: bounded, shared, cleaned after a crash, and never pulled away from under a reader."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.storage import settings
from rhostream.stream.plan import Plan
from tests.faults.rig.s3 import FaultyStore
from tests.stores.servers import SECRET, s3_options

READ = """
import sys
from rhostream import storage
storage.configure("s3", {options!r})
storage.configure_spool({spool!r}, {spool_bytes})
with storage.open_reader(sys.argv[1]) as reader:
    print(type(reader).__name__, storage.sha256_of(reader))
"""


def _process(store: FaultyStore, url: str, prelude: str = "", spool_bytes: int = 1 << 30) -> subprocess.Popen[str]:
    program = prelude + READ.format(
        options=s3_options(store.proxy.port), spool=str(store.disk / "spool"), spool_bytes=spool_bytes
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program, url], stdout=pipe, stderr=pipe, text=True)


def _spooled(store: FaultyStore) -> list[Path]:
    return sorted((store.disk / "spool").glob("*"))


def test_processes_and_threads_that_want_the_same_shard_fetch_it_once(faulty: FaultyStore) -> None:
    (url,) = faulty.put_shards([400])
    faulty.proxy.calm()
    running = [_process(faulty, url) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert len(answers) == 1 and answers.pop().startswith("SpooledReader")
    with ThreadPoolExecutor(8) as pool:
        for reader in pool.map(storage.open_reader, [url] * 8):
            reader.close()
    assert faulty.proxy.count("GET", ".tar") == 1
    (only,) = _spooled(faulty)
    assert len(only.name) == 64 and "train" not in only.name


def test_the_spool_stays_within_its_bytes(faulty: FaultyStore) -> None:
    urls = faulty.put_shards([40] * 8)
    size = storage.identity(urls[0]).size
    storage.configure_spool(faulty.disk / "spool", 4 * size + 4000)
    for url in urls * 2:
        with storage.open_reader(url) as reader:
            assert isinstance(reader, storage.SpooledReader)
        assert sum(path.stat().st_size for path in _spooled(faulty)) <= 4 * size + 4000
    # The one that was longest unused went first.
    faulty.proxy.calm()
    storage.open_reader(urls[-1]).close()
    assert faulty.proxy.count("GET") == 0


def test_a_shard_in_use_is_never_evicted_and_the_next_is_read_by_ranges(faulty: FaultyStore) -> None:
    urls = faulty.put_shards([40] * 6)
    size = storage.identity(urls[0]).size
    storage.configure_spool(faulty.disk / "spool", 4 * size + 4000)
    readers = [storage.open_reader(url) for url in urls]
    assert [type(reader) for reader in readers] == [storage.SpooledReader] * 4 + [storage.RangeReader] * 2
    for url, reader in zip(urls, readers, strict=True):
        assert reader.pread(reader.size, 0) == storage.read_bytes(url)
        reader.close()
    with storage.open_reader(urls[5]) as reader:
        assert isinstance(reader, storage.SpooledReader)


def test_what_a_killed_process_left_is_removed(faulty: FaultyStore) -> None:
    urls = faulty.put_shards([40] * 3)
    for url in urls[:2]:
        faulty.proxy.inject("hang_body", method="GET", path=url.rpartition("/")[2])
        process = _process(faulty, url)
        while not faulty.proxy.count("GET", url.rpartition("/")[2], "hang_body"):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # One, not two: the second process has removed what the first one left.
        assert [path.suffix for path in _spooled(faulty)] == [".part"]
    with storage.open_reader(urls[0]) as again, storage.open_reader(urls[2]) as other:
        assert again.pread(again.size, 0) == storage.read_bytes(urls[0]) and other.size
    assert len(_spooled(faulty)) == 2 and not any(path.suffix for path in _spooled(faulty))


def test_a_spooled_file_that_was_cut_is_fetched_again(faulty: FaultyStore) -> None:
    (url,) = faulty.put_shards([40])
    storage.open_reader(url).close()
    (path,) = _spooled(faulty)
    os.truncate(path, 100)
    with storage.open_reader(url) as reader:
        assert reader.pread(reader.size, 0) == storage.read_bytes(url)


def test_a_full_disk_is_said_once_and_shards_are_read_by_ranges(faulty: FaultyStore) -> None:
    (url,) = faulty.put_shards([400])
    limit = (
        "import resource, logging\nlogging.basicConfig()\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
    )
    out, err = _process(faulty, url, limit).communicate(timeout=60)
    assert out.startswith("RangeReader") and err.count("can't spool (File too large)") == 1
    assert _spooled(faulty) == []


def test_a_spool_that_is_no_folder_of_ours_is_refused(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (url,) = faulty.put_shards([4])
    storage.configure_spool(None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"rhostream-spool-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="isn't a folder of yours"):
        storage.open_reader(url)


def test_shards_are_read_ahead_and_held_until_they_are_no_longer_wanted(faulty: FaultyStore) -> None:
    urls = faulty.put_shards([40] * 5)
    faulty.proxy.calm()
    with storage.ReadAhead(storage.spooled) as ahead:
        ahead.want(urls[:3])
        until = time.monotonic() + 30
        while len([path for path in _spooled(faulty) if not path.suffix]) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert faulty.proxy.count("GET", ".tar") == 3
        for url in urls[:3]:
            storage.open_reader(url).close()
        assert faulty.proxy.count("GET", ".tar") == 3
        ahead.want([])
    assert not any(path.suffix for path in _spooled(faulty))


def test_what_was_brought_is_taken_over_once_without_another_request(faulty: FaultyStore) -> None:
    first, second = faulty.put_shards([40] * 2)
    faulty.proxy.calm()
    with storage.ReadAhead(storage.spooled) as ahead:
        ahead.want([first])
        while faulty.proxy.count() == 0:
            time.sleep(0.01)  # until it is on its way: what isn't yet is not waited for
        reader = ahead.take(first)
        assert reader is not None and reader.pread(512, 0)[257:262] == b"ustar"
        assert (faulty.proxy.count("HEAD"), faulty.proxy.count("GET")) == (1, 1)
        assert ahead.take(first) is None and ahead.take(second) is None
        reader.close()


def test_what_cannot_be_brought_is_left_to_who_needs_it(faulty: FaultyStore) -> None:
    (url,) = faulty.put_shards([40])
    faulty.proxy.calm()
    faulty.proxy.inject("403", method="GET", path=".tar")
    with storage.ReadAhead(storage.spooled) as ahead:
        ahead.want([url])
        while faulty.proxy.count("GET") == 0:
            time.sleep(0.01)
        assert ahead.take(url) is None
        with storage.open_reader(url) as reader:
            assert isinstance(reader, storage.SpooledReader)


@pytest.mark.parametrize(("counts", "n_B", "lanes"), [([500, 300, 800, 10, 390], 40, 8), ([64] * 40, 64, 16)])
def test_the_plan_knows_which_shards_come(counts: list[int], n_B: int, lanes: int) -> None:
    plan = Plan([f"s{n}" for n in range(len(counts))], np.array(counts), n_B, lanes, seed=3)
    for index in range(0, plan.buffers, 3):
        coming = plan.coming(index, 6)
        needed = {s for i in range(index, min(index + 7, plan.buffers)) for s in plan.buffer(i).shard.tolist()}
        assert len(coming) == len(set(coming))
        # A lane may pass through a shard of few samples between two looks; the shards of the buffer itself are known.
        assert set(plan.buffer(index).shard.tolist()) <= set(coming)
        assert len(set(coming) ^ needed) <= 1 + sum(count < 2 * n_B // lanes for count in counts)


def test_settings_travel_to_workers_and_show_no_secret() -> None:
    storage.configure("s3", s3_options(1))
    try:
        sent = pickle.dumps(storage.Carried())
        storage.configure("s3", None)
        assert "s3" not in settings.settings().options
        pickle.loads(sent)
        assert settings.settings().options["s3"]["secret"] == SECRET
        assert SECRET not in repr(settings.settings())
    finally:
        storage.configure("s3", None)


def test_options_come_from_the_environment_as_json_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "_current", None)
    monkeypatch.setenv("RHOSTREAM_STORAGE_OPTIONS", '{"s3": {"key": "k", "secret": "canary"}}')
    monkeypatch.setenv("RHOSTREAM_RETRY", '{"tries": 3}')
    monkeypatch.setenv("RHOSTREAM_SPOOL_BYTES", "1000")
    now = settings.settings()
    assert now.options["s3"]["secret"] == "canary" and now.retry.tries == 3 and now.spool_bytes == 1000
    (tmp_path / "options.json").write_text('{"gs": {"token": "anon"}}')
    monkeypatch.setattr(settings, "_current", None)
    monkeypatch.setenv("RHOSTREAM_STORAGE_OPTIONS", str(tmp_path / "options.json"))
    assert settings.settings().options == {"gs": {"token": "anon"}}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RHOSTREAM_STORAGE_OPTIONS", '{"s3": {"secret": "canary"', "no valid JSON"),
        ("RHOSTREAM_STORAGE_OPTIONS", "canary", "neither JSON nor the path"),
        ("RHOSTREAM_STORAGE_OPTIONS", '{"ftp": {"secret": "canary"}}', "options are for s3, gs or https"),
        ("RHOSTREAM_RETRY", '{"trys": 3}', "expected numbers for some of tries"),
        ("RHOSTREAM_RETRY", '{"tries": 0}', "at least one try"),
        ("RHOSTREAM_SPOOL_BYTES", "16GB", "expected a number of bytes"),
    ],
)
def test_a_mistake_in_the_environment_is_an_error_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setattr(settings, "_current", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says) as refused:
        settings.settings()
    assert "canary" not in str(refused.value) and "canary" not in repr(refused.value.__context__)
