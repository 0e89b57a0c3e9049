"""No sample goes without a row unsaid, and what is wrong with one is said of it: dots, links, order, cut images."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rhostream
from rhostream.errors import BudgetError, ShardError
from rhostream.irreducible.accounts import Summary
from rhostream.samples.decoders import DECODERS
from rhostream.storage import open_reader
from rhostream.stream.headers import swallowed
from rhostream.stream.tar import TarWalk
from rhostream.tables import il
from tests.faults.hostile_samples import photo, saved
from tests.faults.hostile_tars import GOOD_PNG, Members, tar_of

END = b"\xff\xd9"


def indexed(tmp_path: Path, members: Members, **options: object) -> tuple[Summary, list[dict[str, object]]]:
    path, table = tmp_path / "a.tar", str(tmp_path / "index")
    path.write_bytes(tar_of(members))
    summary = rhostream.index([str(path)], table, **options)
    rows = [] if summary.bad_shards else pq.read_table(il.part_url(table, str(path))).to_pylist()
    return summary, rows


def pairs(names: list[str]) -> Members:
    return [(f"{name}.{e}", d) for name in names for e, d in (("png", GOOD_PNG), ("cls", b"1"))]


# -- names with dots ---------------------------------------------------------------------------------------------------


def test_samples_that_dots_would_put_into_one_row_are_an_error_of_the_shard_with_their_number(tmp_path: Path) -> None:
    summary, _ = indexed(tmp_path, pairs([f"{n:03d}" for n in range(20)] + [f"photo.{n:04d}" for n in range(40)]))
    (why,) = summary.bad_shards.values()
    assert "39 samples would have no row" in why and "photo.0000.png" in why and summary.samples == 0


@pytest.mark.parametrize(
    ("extensions", "lost"),
    [
        ({"png", "cls"}, 0),
        ({"png", "cls", "seg.png", "depth.png"}, 0),
        ({"jpg", "txt", "json", "jpg.json"}, 0),
        ({"v2.png", "v2.cls"}, 0),
        ({"cls", "left.png", "right.png"}, 0),
        ({"tar.gz", "a.b.c"}, 0),
        ({"1.png", "1.cls", "2.png", "2.cls"}, 1),
        ({"png", "cls", "1.png", "1.cls"}, 1),
        ({"1.txt", "2.txt", "3.txt"}, 2),
        ({"1.jpg", "1.json", "2.jpg", "2.json"}, 1),
        ({"2024.01.npy", "2024.02.npy"}, 1),
    ],
)
def test_what_lies_beside_a_sample_is_told_from_samples_of_their_own(extensions: set[str], lost: int) -> None:
    assert swallowed(extensions) == lost


@given(st.lists(st.text("ab.", min_size=1, max_size=5).filter(lambda name: name[0] != "."), max_size=8, unique=True))
def test_every_labelled_image_has_a_row_or_its_shard_is_refused(names: list[str]) -> None:
    """Law: whatever dots a name has, a shard that is read has as many rows as it was given samples."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(tar_of(pairs(names)))
        with open_reader(str(path)) as reader:
            try:
                rows = list(TarWalk(reader, "a"))
            except ShardError as exc:
                assert "dots" in str(exc)
            else:
                assert len(rows) >= len(names)


# -- reasons -----------------------------------------------------------------------------------------------------------


def test_a_sample_without_a_label_says_which_members_it_has(tmp_path: Path) -> None:
    _, rows = indexed(
        tmp_path,
        [
            ("a.v2.png", GOOD_PNG),
            ("a.v2.cls", b"1"),
            ("b.png", GOOD_PNG),
            ("b.class", b"1"),
            ("c.gif", b"GIF"),
            ("c.cls", b"1"),
            *pairs(["d"]),
        ],
    )
    assert [row["status"] for row in rows] == ["label:missing", "label:missing", "image:missing", "ok"]
    assert "members: v2.png, v2.cls; a key ends at its first dot" in str(rows[0]["error"])
    assert "members: png, class" in str(rows[1]["error"]) and "members: cls, gif" in str(rows[2]["error"])


def test_members_that_do_not_adjoin_are_told_to_be_sorted_and_stand_first_in_the_message(tmp_path: Path) -> None:
    members = pairs([f"{n:03d}" for n in range(20)])
    apart = [m for m in members if m[0].endswith("png")] + [m for m in members if m[0].endswith("cls")]
    with pytest.raises(BudgetError, match=r"first: '000' \(no .cls .*; '000' \(the key came before.*sort the tar by"):
        indexed(tmp_path, apart)
    (tmp_path / "twice").mkdir()
    _, rows = indexed(tmp_path / "twice", pairs(["a", "a", "b"]))
    assert [row["status"] for row in rows] == ["ok", "dup", "ok"] and "sort" not in str(rows[1]["error"])


def test_links_are_counted_and_named_where_a_sample_lacks_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(6):
            for extension, data in (("cls", b"1"), ("png", GOOD_PNG)):
                info = tarfile.TarInfo(f"{number}.{extension}")
                if number > 2 and (extension == "png" or number == 5):
                    info.type, info.linkname = tarfile.LNKTYPE, f"0.{extension}"
                else:
                    info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rhostream.index([str(tmp_path / "a.tar")], str(tmp_path / "index"))
    rows = pq.read_table(il.part_url(str(tmp_path / "index"), str(tmp_path / "a.tar"))).to_pylist()
    assert "4 of its 12 members are links" in caplog.text and len(rows) == 5
    assert all("png (a link)" in row["error"] for row in rows[3:])


# -- images that stop early --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"subsampling": 0, "quality": 95}),
        ("RGB", {"restart_marker_blocks": 3}),
        ("RGB", {"optimize": True}),
        ("RGB", {"quality": 5}),
    ],
)
def test_a_jpeg_that_stops_early_is_truncated_even_with_its_end_marker(
    name: str, mode: str, options: dict[str, object]
) -> None:
    decode, out = DECODERS[name], np.zeros((48, 48, 3), np.uint8)
    for side in (9, 64, 100):
        whole = saved("JPEG", photo(side).convert(mode), **options)
        plain = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
        assert decode(whole, out) == decode(whole + b"\0 behind the end", out) == "ok"
        exact = np.zeros((side, side, 3), np.uint8)
        if name == "pillow":
            assert decode(whole, exact) == "ok" and np.array_equal(exact, plain)
    start = whole.rfind(b"\xff\xda") + 14
    for cut in np.linspace(start, len(whole) - 16, 25).astype(int).tolist():
        assert decode(whole[:cut].rstrip(b"\xff") + END, out) == "decode:truncated", (cut, len(whole))


def test_a_progressive_jpeg_that_stops_early_is_found_by_simplejpeg() -> None:
    """Pillow alone can't tell: a progressive JPEG needs its end marker to be decoded at all."""
    whole = saved("JPEG", photo(100), progressive=True)
    assert DECODERS["simplejpeg"](whole[: len(whole) // 2] + END, np.zeros((48, 48, 3), np.uint8)) == "decode:truncated"


def test_odd_bytes_between_segments_do_not_make_a_whole_jpeg_a_truncated_one() -> None:
    whole = saved("JPEG", photo(64))
    at = whole.rfind(b"\xff\xda")
    for decode in DECODERS.values():
        assert decode(whole[:at] + b"\0\0\0" + whole[at:], np.zeros((16, 16, 3), np.uint8)) == "ok"


def test_a_png_or_webp_that_stops_early_is_never_ok() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(range(i, i + 96)) for i in range(32)))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
    webp = saved("WEBP", photo(64))[: len(saved("WEBP", photo(64))) // 4 * 2]
    for decode in DECODERS.values():
        out = np.zeros((16, 16, 3), np.uint8)
        assert decode(head + chunk(b"IDAT", rows) + chunk(b"IEND", b""), out) == "ok"
        assert decode(head + chunk(b"IDAT", rows[: len(rows) // 2]) + chunk(b"IEND", b""), out) == "decode:truncated"
        assert decode(webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:], out) == "decode:broken"
