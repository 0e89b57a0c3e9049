"""Scanning shards: every sample is a row, every row a status, every shard an end; whatever the bytes are."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhostream.errors import ShardError, StorageError, UsageError
from rhostream.samples.image import ImageKind
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.stream.seen import Seen
from tests.support.hostile_members import DEEP, GOOD, HOSTILE, hostile_shard, image_bytes, write_tar

PREPROCESS = ImageKind(image_size=16, channels=3)


def everything(path: Path, settings: ScanSettings, workers: int = 0) -> tuple[list[Chunk], End]:
    messages = list(scan([(str(path), "s")], settings, workers=workers))
    assert isinstance(messages[-1], End)
    return [m for m in messages if isinstance(m, Chunk)], messages[-1]


def test_every_bad_sample_is_a_row_with_its_status(tmp_path: Path) -> None:
    path, expected = hostile_shard(tmp_path / "a.tar")
    chunks, end = everything(path, ScanSettings(kind=PREPROCESS, classes=14, keep={"n": "int"}))
    rows = [row for chunk in chunks for row in chunk.rows.to_pylist()]
    assert {r["key"]: r["status"] for r in rows[:-2]} == {k: s for k, (_, s) in HOSTILE.items()} | {"twice": "ok"}
    assert [r["status"] for r in rows] == expected
    assert all((r["error"] is None) == (r["status"] == "ok") for r in rows)
    assert end.error is None and end.samples_seen == len(rows)
    assert end.members_seen == end.members_used + end.members_ignored
    assert end.members_used == sum(len(r["members"]) for r in rows) and end.members_ignored == 1


def test_without_decoding_only_missing_and_empty_images_are_found(tmp_path: Path) -> None:
    path, expected = hostile_shard(tmp_path / "a.tar")
    chunks, _ = everything(path, ScanSettings(classes=14, keep={"n": "int"}))
    unseen = {"decode:truncated", "decode:not_an_image", "image:too_large"}
    assert [s for c in chunks for s in c.rows.column("status").to_pylist()] == [
        "ok" if s in unseen else s for s in expected
    ]


def test_a_json_that_nobody_needs_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.png", GOOD), ("a.cls", b"1"), ("a.json", DEEP)])
    chunks, _ = everything(path, ScanSettings(kind=PREPROCESS))
    assert chunks[0].ok.all()


def test_kept_fields_that_do_not_fit_are_null_and_counted(tmp_path: Path) -> None:
    values = [1, True, "x", 2.5, None, 2**63, "\ud800", [1]]
    records = [json.dumps(dict.fromkeys("bifs", value)).encode() for value in values]
    members = [(f"{i}.{e}", d) for i, r in enumerate(records) for e, d in (("png", GOOD), ("cls", b"0"), ("json", r))]
    chunks, end = everything(
        write_tar(tmp_path / "a.tar", members), ScanSettings(keep={"b": "bool", "i": "int", "f": "float", "s": "str"})
    )
    rows = chunks[0].rows
    assert rows.column("b").to_pylist() == [None, True, None, None, None, None, None, None]
    assert rows.column("i").to_pylist() == [1, None, None, None, None, None, None, None]
    assert rows.column("f").to_pylist() == [1.0, None, None, 2.5, None, float(2**63), None, None]
    assert rows.column("s").to_pylist() == [None, None, "x", None, None, None, None, None]
    assert end.bad_fields == {"b": 6, "i": 6, "f": 4, "s": 6} and chunks[0].ok.all()


def test_a_key_that_is_not_utf8_is_kept_readably(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for ext, data in (("png", GOOD), ("cls", b"0")):
            header = tarfile.TarInfo(f"caf\xe9.{ext}")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    chunks, _ = everything(tmp_path / "a.tar", ScanSettings(kind=PREPROCESS))
    assert chunks[0].rows.column("key").to_pylist() == ["caf\\xe9"]


def test_workers_change_no_row_and_no_pixel(tmp_path: Path) -> None:
    shards = []
    for s in range(3):
        members = [(f"{s}-{i}.{e}", d) for i in range(40) for e, d in (("png", image_bytes(i)), ("cls", b"1"))]
        shards.append((str(write_tar(tmp_path / f"{s}.tar", members)), f"{s}"))
    big = ImageKind(image_size=256, channels=3)  # chunks of 170 rows

    def run(workers: int) -> dict[tuple[int, int], tuple[object, bytes]]:
        found = {}
        for message in scan(shards, ScanSettings(kind=big), workers=workers):
            if isinstance(message, Chunk):
                found[message.shard, int(message.ordinal[0])] = (
                    message.rows,
                    message.fields["pixels"].numpy().tobytes(),
                )
        return found

    assert run(0) == run(2)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "hole", "gz", "gone"])
def test_a_shard_that_breaks_ends_with_its_error_and_the_next_one_goes_on(tmp_path: Path, damage: str) -> None:
    members = [(f"{i}.{e}", d) for i in range(20) for e, d in (("png", GOOD), ("cls", b"1"))]
    good, bad = write_tar(tmp_path / "good.tar", members), write_tar(tmp_path / "bad.tar", members)
    data = bytearray(bad.read_bytes())
    if damage == "cut":
        data = data[: 512 * 9]
    elif damage == "header":
        data[512 * 10 : 512 * 60] = b"\xff" * 512 * 50
    elif damage == "empty":
        data = bytearray()
    elif damage == "hole":
        data[512 * 10 : 512 * 20] = bytes(512 * 10)
    elif damage == "gz":
        data[:4] = b"\x1f\x8b\x08\0"
    bad.write_bytes(data)
    if damage == "gone":
        bad.unlink()
    ends = [m for m in scan([(str(bad), "bad"), (str(good), "good")], ScanSettings()) if isinstance(m, End)]
    assert isinstance(ends[0].error, StorageError if damage == "gone" else ShardError) and "bad" in str(ends[0].error)
    assert ends[1].error is None and ends[1].samples_seen == 20


def test_a_quota_takes_the_same_random_rows_every_time(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", d) for i in range(100) for e, d in (("png", GOOD), ("cls", b"1"))]
    path = write_tar(tmp_path / "a.tar", members)

    def drawn(seed: int) -> list[int]:
        return everything(path, ScanSettings(quota=10, seed=seed))[0][0].ordinal.tolist()

    assert len(drawn(0)) == 10 and drawn(0) == sorted(drawn(0)) == drawn(0) != drawn(1)


def test_negative_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="--workers -1"):
        next(scan([], ScanSettings(), workers=-1))


@given(st.lists(st.lists(st.binary(max_size=2), max_size=6), max_size=6))
def test_repeated_keys_are_those_a_set_would_find(chunks: list[list[bytes]]) -> None:
    every = sorted(key for chunk in chunks for key in chunk)
    for ordered in (chunks, [sorted(chunk) for chunk in chunks], [[key] for key in every]):
        seen, before = Seen(), set[bytes]()
        for keys in ordered:
            expected = set()
            for row, key in enumerate(keys):
                if key in before:
                    expected.add(row)
                before.add(key)
            assert seen.repeated(keys) == expected
