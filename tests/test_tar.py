"""The strict walk: complete or an error, whatever happened to the bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from rhostream import storage
from rhostream.errors import ShardError
from rhostream.stream.tar import walk
from tests.conftest import make_shards


def read(path: Path) -> list[tuple[bytes, list[str]]]:
    with storage.open_reader(str(path)) as reader:
        return [(s.key, [m[0] for m in s.members]) for s in walk(reader, path.name)]


def handmade(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shards(tmp_path, [5])[0]


# webdataset leaves its tars open for the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_walk_agrees_with_webdataset_on_every_member(tmp_path: Path) -> None:
    for mtime in (0, None):  # None: a pax header before every member
        path = tmp_path / f"{mtime}.tar"
        with wds.TarWriter(str(path), **({} if mtime is None else {"mtime": mtime})) as writer:
            for i in range(50):
                writer.write({"__key__": f"a/b{i}", "jpg": bytes([i]) * (i * 37), "cls": str(i), "json": {"i": i}})
        with storage.open_reader(str(path)) as reader:
            samples = walk(reader, "x")
            mine = {s.key.decode(): {e: reader.pread(n, o) for e, o, n in s.members} for s in samples}
        theirs = {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")}
                  for s in wds.WebDataset(str(path), shardshuffle=False)}
        assert mine == theirs
        assert samples.members_seen == 150 and samples.members_ignored == 0


def test_a_tar_cut_at_any_block_is_an_error_never_a_shorter_list(shard: Path) -> None:
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end + 512, 512):
        shard.write_bytes(whole[:cut])
        with pytest.raises(ShardError):
            read(shard)


def test_every_flipped_byte_of_every_header_is_found(shard: Path) -> None:
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [m.offset for m in tar.getmembers()]
    rng = np.random.default_rng(0)
    for header in headers:
        for at in rng.integers(0, 500, 12).tolist():
            damaged = bytearray(whole)
            damaged[header + at] ^= 0x11
            shard.write_bytes(damaged)
            with pytest.raises(ShardError):
                read(shard)


def test_a_zeroed_hole_is_not_the_end(shard: Path) -> None:
    whole = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[4]
    whole[member.offset : member.offset + 2048] = bytes(2048)
    shard.write_bytes(whole)
    with pytest.raises(ShardError, match="hole"):
        read(shard)


@pytest.mark.parametrize(("data", "says"), [(b"", "empty"), (b"\x1f\x8b" + b"x" * 600, "gzip"),
                                            (b"<html>" * 200, "not a tar")])
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=says):
        read(path)


def test_a_member_that_claims_eight_terabytes_allocates_nothing(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 8 << 40
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ShardError, match="incomplete"):
        read(path)


def test_long_names_in_both_dialects_are_read(tmp_path: Path) -> None:
    name = "deep/" * 60 + "sample"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert read(handmade(tmp_path / f"{kind}.tar", [(name + ".cls", b"1")], kind)) == [(name.encode(), ["cls"])]


def test_the_naming_rule_and_its_accounts(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.seg.png", b"2"), ("noext", b"3"), (".hidden", b"4"),
                                         ("./b.PNG", b"5"), ("__meta__", b"6"), ("c.pkl", b"7"), ("c.cls", b"8")])
    with storage.open_reader(str(path)) as reader:
        samples = walk(reader, "x")
        found = [(s.key, [m[0] for m in s.members]) for s in samples]
    assert found == [(b"a", ["jpg"]), (b"./b", ["png"]), (b"c", ["cls"])]
    assert samples.members_seen == 8 and samples.members_ignored == 5


def test_a_key_that_comes_again_is_a_sample_of_its_own(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.tar", [(n, b"1") for n in ("a.cls", "a.cls", "b.cls", "a.jpg")])
    assert [key for key, _ in read(path)] == [b"a", b"a", b"b", b"a"]
