"""The strict walk: complete or an error, whatever happened to the bytes."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from rhostream import storage
from rhostream.errors import ShardError
from rhostream.samples.image import EXTENSIONS as IMAGE_EXTENSIONS
from rhostream.stream import windows
from rhostream.stream.tar import USED_EXTENSIONS, TarWalk
from rhostream.stream.windows import Windows
from tests.support.shards import make_shards


def read(path: Path) -> list[tuple[bytes, list[str]]]:
    with storage.open_reader(str(path)) as reader:
        return [(s.key, [m[0] for m in s.members]) for s in TarWalk(reader, path.name)]


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
            samples = TarWalk(reader, "x")
            mine = {s.key.decode(): {e: reader.pread(n, o) for e, o, n in s.members} for s in samples}
        theirs = {
            s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")}
            for s in wds.WebDataset(str(path), shardshuffle=False)
        }
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


@pytest.mark.parametrize(
    ("data", "says"), [(b"", "empty"), (b"\x1f\x8b" + b"x" * 600, "gzip"), (b"<html>" * 200, "not a tar")]
)
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
    path = handmade(
        tmp_path / "x.tar",
        [
            ("a.jpg", b"1"),
            ("a.seg.png", b"2"),
            ("noext", b"3"),
            (".hidden", b"4"),
            ("./b.PNG", b"5"),
            ("__meta__", b"6"),
            ("c.pkl", b"7"),
            ("c.cls", b"8"),
        ],
    )
    with storage.open_reader(str(path)) as reader:
        samples = TarWalk(reader, "x")
        found = [(s.key, [m[0] for m in s.members]) for s in samples]
    assert found == [(b"a", ["jpg"]), (b"./b", ["png"]), (b"c", ["cls"])]
    assert samples.members_seen == 8 and samples.members_ignored == 5


def test_a_key_that_comes_again_is_a_sample_of_its_own(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.tar", [(n, b"1") for n in ("a.cls", "a.cls", "b.cls", "a.jpg")])
    assert [key for key, _ in read(path)] == [b"a", b"a", b"b", b"a"]


# -- against an independent, slow reading ----------------------------------------------------------------------------

NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
STEM = st.one_of(
    st.sampled_from(["a", "b", "d/a", "./a", "__x__", ".a", "a.b/c"]), NAME, NAME.map(lambda name: "long/" * 30 + name)
)
EXTENSION = st.sampled_from(["jpg", "PNG", "cls", "json", "seg.png", "pkl", "txt", "", "é"])
SIZE = st.one_of(st.sampled_from([0, 1, 63, 64, 65, 511, 512, 513, 600]), st.just((256 << 10) + 7))
KIND = st.sampled_from(
    [tarfile.REGTYPE] * 8
    + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
MTIME = st.sampled_from([0, 1_700_000_000, 1.5, 1764030000.1234567])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(STEM, EXTENSION, SIZE, KIND, MTIME), max_size=14),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 5),
    st.booleans(),
)
def test_batches_are_what_tarfile_and_the_naming_rule_give(
    members: list[tuple[str, str, int, bytes, float]], dialect: int, rows: int, whole: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        with tarfile.open(path, "w", format=dialect) as tar:
            for number, (stem, extension, size, kind, mtime) in enumerate(members):
                info = tarfile.TarInfo(f"{stem}.{extension}" if extension else stem)
                if kind == tarfile.AREGTYPE and len(info.name.encode()) > 90:
                    kind = tarfile.REGTYPE  # tarfile takes a V7 file for a folder where its *cut* name ends in a slash
                info.type, info.mtime, info.linkname = kind, mtime, "elsewhere" if info.islnk() or info.issym() else ""
                info.size = size if info.isreg() else 0
                tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
        with storage.open_reader(str(path)) as reader:
            source = Windows(reader, whole=whole)
            samples = TarWalk(source, "x")
            batches = list(samples.batches(rows))
            assert [(b.key[r], b.members(r)) for b in batches for r in range(len(b))] == slowly(path, samples)
            assert [(s.key, s.members) for s in TarWalk(reader, "y")] == slowly(path, samples)
            assert source.sha256() == (hashlib.sha256(path.read_bytes()).hexdigest() if whole else "")
            for batch in batches:
                for row in range(len(batch)):
                    own = {e: (o, n) for e, o, n in reversed(batch.members(row))}
                    image = next((m for m in batch.members(row) if m[0] in IMAGE_EXTENSIONS), None)
                    assert batch.cls[row] == (
                        reader.pread(own["cls"][1], own["cls"][0]) if own.get("cls", (0, 65))[1] <= 64 else None
                    )
                    for column, member in (
                        (batch.main[row], image),
                        (batch.json[row], ("json", *own["json"]) if "json" in own else None),
                    ):
                        assert (
                            None if column < 0 else (batch.extension[column], batch.offset[column], batch.size[column])
                        ) == member
        assert all(len(b) == rows for b in batches[:-1])


def slowly(path: Path, samples: TarWalk) -> list[tuple[bytes, list[tuple[str, int, int]]]]:
    """The samples by tarfile's reading and a regular expression; the counters of the walk are compared on the way."""
    found: list[tuple[bytes, list[tuple[str, int, int]]]] = []
    seen = ignored = 0
    taken: set[str] = set()
    with tarfile.open(path, errors="surrogateescape") as tar:
        for member in tar:
            seen += 1
            raw = member.name.encode("utf-8", "surrogateescape")
            match = re.match(rb"((?:.*/)?[^./][^./]*)\.([^/]+)\Z", raw, re.DOTALL) if member.isreg() else None
            if match is None or (raw.startswith(b"__") and raw.endswith(b"__")):
                ignored += 1
                continue
            extension = match[2].decode("utf-8", "replace").lower()
            if not found or found[-1][0] != match[1] or extension in taken:
                found.append((match[1], []))
                taken = set()
            taken.add(extension)
            if extension in USED_EXTENSIONS:
                found[-1][1].append((extension, member.offset_data, member.size))
            else:
                ignored += 1
    assert (samples.members_seen, samples.members_ignored, samples.samples_seen) == (seen, ignored, len(found))
    return found


def test_the_samples_before_a_fault_are_given_and_the_open_one_is_not(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.tar", [(f"{i}.{e}", b"1") for i in range(3) for e in ("jpg", "cls")])
    data = bytearray(path.read_bytes())
    data[5 * 1024] ^= 1  # the last .cls
    path.write_bytes(data)
    given, fault = [], None
    with storage.open_reader(str(path)) as reader:
        try:
            for sample in TarWalk(reader, "x"):
                given.append(sample.key)
        except ShardError as error:
            fault = error
    assert fault is not None and given == [b"0", b"1"]


@pytest.mark.parametrize(
    "record", [b"28 mtime=1764030000.1234567", b"27 mtime=1764030000.1234567\n", b"29 mtime=1764030000.1234567\n"]
)
def test_a_pax_header_that_only_looks_like_webdatasets_is_refused(tmp_path: Path, record: bytes) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    path = handmade(tmp_path / "x.tar", [("a.cls", b"1")])
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + path.read_bytes())
    with pytest.raises(ShardError, match="broken pax header"):
        read(path)


def test_windows_give_the_bytes_of_the_file_in_any_order(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * windows.WINDOW + 1000)
    (tmp_path / "x").write_bytes(data)
    rng = np.random.default_rng(1)
    with storage.open_reader(str(tmp_path / "x")) as reader:
        source = Windows(reader, whole=True)
        for offset in rng.integers(0, len(data), 200).tolist():
            for n in (1, 700, windows.WINDOW // 4, windows.WINDOW + 5):
                assert source.pread(n, offset) == data[offset : offset + n]
        source.at(len(data) - 1)
        assert source.sha256() == hashlib.sha256(data).hexdigest()
