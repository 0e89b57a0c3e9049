"""Shard bytes that lie, through the command line's own jobs: named, counted, and never a shorter list of samples."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rhostream import progress, storage
from rhostream.errors import MismatchError
from rhostream.irreducible import compute_il, fit_il, index
from rhostream.stream.open import open_stream
from rhostream.stream.tar import TarWalk
from tests.faults.children import in_child
from tests.faults.corpus import GOOD_PNG, block, tar_of
from tests.faults.hostile_tars import member
from tests.faults.tally import say

Members = list[tuple[str, bytes]]


def parts(table: Path) -> list[str]:
    return sorted(str(p.relative_to(table)) for p in table.rglob("*.parquet"))


def samples(n: int, first: int = 0) -> Members:
    return [(f"{i:06d}.{e}", d) for i in range(first, first + n)
            for e, d in (("png", GOOD_PNG), ("cls", b"%d" % (i % 4)))]  # fmt: skip


def shard(path: Path, members: Members, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members) if data is None else data)
    return path


def indexed(tmp_path: Path, *shards: Path, **options: object) -> tuple[object, Path]:
    table = tmp_path / "table"
    return index([str(s) for s in shards], str(table), **options), table


def whole(members: Members) -> bytes:
    """A tar up to its end marker, without the padding to 10 KB."""
    data = tar_of(members)
    return data[: len(data.rstrip(b"\0")) // 512 * 512 + 512]


# -- cut ---------------------------------------------------------------------------------------------------------------


def test_A1_a_tar_cut_at_a_member_boundary_is_named_and_gets_no_part(tmp_path: Path) -> None:
    """A shard that ends without its end marker is named with its samples and bytes, and gets no part; the other
    shards get theirs."""
    bad = shard(tmp_path / "bad.tar", [], whole(samples(4)))
    summary, table = indexed(tmp_path, bad, shard(tmp_path / "good.tar", samples(3)))
    why = summary.bad_shards[str(bad)]
    size = bad.stat().st_size
    assert f"bad.tar incomplete: 4 samples, end marker missing ({size:,} of at least {size + 1024:,} bytes)" in why
    assert len(parts(table)) == 1 and summary.made == 1 and summary.samples == 3


def test_A1_one_zero_block_is_no_end_marker(tmp_path: Path) -> None:
    """Half an end marker counts as none."""
    bad = shard(tmp_path / "bad.tar", [], whole(samples(2)) + bytes(512))
    assert "incomplete: 2 samples" in indexed(tmp_path, bad)[0].bad_shards[str(bad)]


def test_A3_a_tar_cut_inside_the_data_of_a_member_is_named_and_gets_no_part(tmp_path: Path) -> None:
    """A shard that is cut inside a member is named with the bytes it has and needs, and gets no part."""
    data = whole(samples(5))
    for cut in (len(data) - 512, len(data) - 1000, len(data) - 2600):
        bad = shard(tmp_path / f"{cut}.tar", [], data[:cut])
        summary, table = indexed(tmp_path, bad)
        assert "incomplete" in summary.bad_shards[str(bad)] and f"({cut:,} of at least " in summary.bad_shards[str(bad)]
        assert not parts(table)


def test_A4_a_shard_of_zero_bytes_is_an_error_of_its_own_and_the_others_go_on(tmp_path: Path) -> None:
    """An empty file is named as a bad shard; the others get their parts."""
    bad, good = shard(tmp_path / "bad.tar", [], b""), shard(tmp_path / "good.tar", samples(2))
    summary, table = indexed(tmp_path, bad, good)
    assert "bad.tar is empty (0 bytes)" in summary.bad_shards[str(bad)] and len(parts(table)) == 1


def test_A5_a_valid_tar_without_samples_gets_an_empty_part_and_a_warning(tmp_path: Path) -> None:
    """A tar without a sample gets a part of no rows, is counted, and warned of."""
    with pytest.warns(UserWarning, match="holds no sample"):
        summary, table = indexed(tmp_path, shard(tmp_path / "a.tar", [("README", b"hello"), ("LICENSE", b"")]))
    assert pq.read_table(table / parts(table)[0]).num_rows == 0
    assert (summary.samples, summary.members_seen, summary.members_ignored, summary.made) == (0, 2, 2, 1)


# -- compressed --------------------------------------------------------------------------------------------------------


def test_A7_a_compressed_shard_is_refused_with_the_option_that_allows_it(tmp_path: Path) -> None:
    """A gzip file named .tar is a bad shard whose error names `--allow-compressed`."""
    bad = shard(tmp_path / "bad.tar", [], gzip.compress(tar_of(samples(3))))
    small = shard(tmp_path / "small.tar", [], gzip.compress(b""))
    summary, table = indexed(tmp_path, bad, small)
    for name in (bad, small):
        assert "is gzip-compressed" in summary.bad_shards[str(name)]
        assert "--allow-compressed" in summary.bad_shards[str(name)]
    assert not parts(table)


def test_A7_a_compressed_shard_that_is_allowed_gets_the_rows_of_the_plain_one(tmp_path: Path) -> None:
    """With `--allow-compressed` a gzip shard gets the same rows as the plain one; a stream from that table is refused
    before any work, since it reads by offset."""
    data, rows = tar_of(samples(40)), {}
    two = gzip.compress(data[:9999]) + gzip.compress(data[9999:]) + bytes(100)
    for name, stored in (("plain", data), ("gz", gzip.compress(data)), ("two", two)):
        path, table = shard(tmp_path / name / "a.tar", [], stored), tmp_path / name / "table"
        fit_il(
            [str(path)],
            str(tmp_path / name / "model"),
            model="mlp-64",
            epochs=1,
            allow_compressed=True,
            roots={"r": str(path.parent)},
        )
        summary = compute_il(
            [str(path)],
            str(tmp_path / name / "model"),
            str(table),
            allow_compressed=True,
            roots={"r": str(path.parent)},
        )
        assert not summary.bad_shards and summary.ok == 40
        rows[name] = pq.read_table(table / parts(table)[0]).drop(["il", "predicted", "fold"])
        facts = json.loads(pq.read_schema(table / parts(table)[0]).metadata[b"rhostream"])
        assert facts["compression"] == ("" if name == "plain" else "gzip") and facts["shard_size"] == len(stored)
    assert rows["plain"].equals(rows["gz"]) and rows["plain"].equals(rows["two"])
    with pytest.raises(MismatchError, match=r"gzip-compressed.*gunzip"):
        open_stream(
            str(tmp_path / "gz" / "a.tar"),
            str(tmp_path / "gz" / "table"),
            buffer_size=8,
            roots={"r": str(tmp_path / "gz")},
        )


def test_A7_a_compressed_shard_that_is_damaged_or_cut_gets_no_part(tmp_path: Path) -> None:
    """A gzip shard that is cut or damaged is a bad shard; nothing of it is left in the spool."""
    data = gzip.compress(tar_of(samples(40)))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    cut = shard(tmp_path / "cut.tar", [], data[:-9])
    damaged, tail = shard(tmp_path / "damaged.tar", [], bytes(flipped)), shard(tmp_path / "tail.tar", [], data + b"x")
    summary, table = indexed(tmp_path, cut, damaged, tail, allow_compressed=True)
    assert "ends in the middle" in summary.bad_shards[str(cut)] and "damaged" in summary.bad_shards[str(damaged)]
    assert len(summary.bad_shards) == 3 and not parts(table)


def test_A8_what_inflates_without_end_stops_at_a_bound(tmp_path: Path) -> None:
    """Extended headers are read up to 1 MiB, and a gzip shard inflates to at most 100 times its size (256 MiB are
    always allowed): a bomb is a bad shard within seconds, in less than 500 MB."""
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 600 << 20
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 600 << 20
    with gzip.open(tmp_path / "pax.tar", "wb", 1) as file:
        file.write(pax.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(300):
            file.write(bytes(1 << 20))
    with open(tmp_path / "long.tar", "wb") as plain:
        plain.write(name.tobuf(tarfile.GNU_FORMAT))
        plain.truncate(601 << 20)
    assert (tmp_path / "pax.tar").stat().st_size < 4 << 20
    shards = [str(tmp_path / "pax.tar"), str(tmp_path / "long.tar")]
    told = in_child(_index_all, shards, str(tmp_path / "table"), limit=5)
    assert "inflates to more than" in told.result[shards[0]] and "extended header of" in told.result[shards[1]]
    assert told.peak_bytes < 500 << 20


def _index_all(shards: list[str], table: str) -> dict[str, str]:
    return index(shards, table, allow_compressed=True).bad_shards


# -- headers -----------------------------------------------------------------------------------------------------------


def test_A10_a_member_that_declares_eight_terabytes_allocates_nothing(tmp_path: Path) -> None:
    """A size beyond the end of the file makes the shard incomplete; nothing of that size is ever allocated."""
    huge = tarfile.TarInfo("a.png")
    huge.size = 8 << 40
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        bad = shard(tmp_path / f"{dialect}.tar", [], whole(samples(2)) + huge.tobuf(dialect) + bytes(2048))
        told = in_child(_index_all, [str(bad)], str(tmp_path / f"table{dialect}"), limit=5)
        assert "incomplete: 2 samples" in told.result[str(bad)] and "8,796,093,0" in told.result[str(bad)]
        assert told.peak_bytes < 50 << 20


@pytest.mark.parametrize("field", ["negative", "words", "checksum", "first checksum", "pax size"])
def test_A11_a_header_that_cannot_be_is_an_error_that_says_where(tmp_path: Path, field: str) -> None:
    """A negative or unreadable size and a broken checksum are errors of the shard, with the offset."""
    good, at = whole(samples(2)), f"{len(whole(samples(2))):,}"
    digits = b"5011 size=" + b"9" * 5000 + b"\n"
    bad = {
        "negative": good + block("b.png", size=b"\xff" * 12),
        "words": good + block("b.png", size=b"twelve bytes"),
        "checksum": good + block("b.png")[:100] + b"x" + block("b.png")[101:],
        "first checksum": b"x" + good[1:],
        "pax size": good + block("pax", size=len(digits), kind=b"x") + digits.ljust(5120, b"\0"),
    }[field]
    path = shard(tmp_path / "bad.tar", [], bad + bytes(1024))
    why = indexed(tmp_path, path)[0].bad_shards[str(path)]
    size = f"header at offset {at} has the size field"
    says = {
        "negative": size,
        "words": size,
        "checksum": f"corrupt header at offset {at}",
        "first checksum": "is not a tar",
        "pax size": "states the size",
    }
    assert says[field] in why


def test_A12_links_devices_and_folders_are_ignored_and_counted(tmp_path: Path) -> None:
    """Links, pipes, devices and folders are never followed or made, only counted."""
    (tmp_path / "secret.png").write_bytes(GOOD_PNG)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE)
        ):
            info = tarfile.TarInfo(f"x{number}.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(info)
        for name, data in samples(1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = set(os.listdir(tmp_path))
    summary, _ = indexed(tmp_path, path)
    assert (summary.members_seen, summary.members_used, summary.members_ignored) == (8, 2, 6)
    assert summary.ok == summary.samples == 1 and set(os.listdir(tmp_path)) == before | {"table"}


def test_A13_the_naming_rule_is_kept_and_what_it_leaves_out_is_counted(tmp_path: Path) -> None:
    """The key ends at the first dot of the last name, folders belong to it (`./` too); names without a key or an
    extension and `__names__` are ignored and counted."""
    names = [
        "noext",
        ".hidden.png",
        "__meta__",
        "__x__.png__",
        "./a.png",
        "./a.cls",
        "d/e/b.seg.png",
        "d/e/b.png",
        "d/e/b.cls",
        "d.ir/c.png",
        "d.ir/c.cls",
        "d/",
    ]
    members = [(name, GOOD_PNG if name.endswith("png") else b"1") for name in names]
    summary, table = indexed(tmp_path, shard(tmp_path / "a.tar", members))
    rows = pq.read_table(table / parts(table)[0])
    assert rows["key"].to_pylist() == ["./a", "d/e/b", "d.ir/c"] and summary.ok == 3
    # no extension, a dot-file, two `__names__`, `d/`, and `seg.png`, an extension that isn't used
    assert (summary.members_seen, summary.members_used, summary.members_ignored) == (12, 6, 6)


def test_A14_a_missing_end_marker_is_accepted_on_request_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With `--accept-missing-eof` a tar without its end marker counts as whole, with one warning; a cut inside a member
    stays an error, and without the option so does the missing marker."""
    data = whole(samples(4))
    unpadded = data[: len(data.rstrip(b"\0"))]
    endings = {
        "none.tar": data,
        "half.tar": data + bytes(512),
        "unpadded.tar": unpadded,
        "whole.tar": data + bytes(1024),
    }
    shards = [shard(tmp_path / name, [], stored) for name, stored in endings.items()]
    cut = shard(tmp_path / "cut.tar", [], data[:-512])
    garbage = shard(tmp_path / "garbage.tar", [], data + bytes(512) + b"x" * 512)
    with caplog.at_level(logging.WARNING, "rhostream"):
        summary, table = indexed(tmp_path, *shards, cut, garbage, accept_missing_eof=True)
    assert set(summary.bad_shards) == {str(cut), str(garbage)} and summary.ok == 16 and len(parts(table)) == 4
    said = [r.message for r in caplog.records if "--accept-missing-eof" in r.message]
    assert len(said) == 1 and "none.tar" in said[0]
    assert set(index([str(s) for s in shards], str(tmp_path / "strict")).bad_shards) == {str(s) for s in shards[:3]}


def big_shard(path: Path, n: int) -> Path:
    """`n` samples of two members of one byte each, written as they go by."""
    with open(path, "wb") as file:
        for start in range(0, n, 10_000):
            file.write(
                b"".join(
                    member(f"{i:08d}.jpg", b"x") + member(f"{i:08d}.cls", b"1")
                    for i in range(start, min(start + 10_000, n))
                )
            )
        file.write(bytes(1024))
    return path


def _index_aloud(shard: str, table: str) -> tuple[int, list[str]]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    progress.EVERY_SECONDS = 0.0
    logger = logging.getLogger("rhostream")
    logger.setLevel(logging.INFO)
    logger.addHandler(Keep())
    return index([shard], table).samples, [line for line in said if "0 of 1 shards" in line]


def test_A15_a_shard_of_many_samples_is_read_in_chunks_and_progress_moves_inside_it(tmp_path: Path) -> None:
    """A shard is read chunk by chunk however many samples it has, and progress is told inside it."""
    told = in_child(_index_aloud, str(big_shard(tmp_path / "a.tar", 20_000)), str(tmp_path / "table"))
    samples, said = told.result
    assert samples == 20_000 and len(said) == -(-20_000 // 512)
    assert "index: 0 of 1 shards, 512 samples" in said[0] and "20,000 samples" in said[-1]
    assert told.peak_bytes < 200 << 20


@pytest.mark.slow
def test_A15_a_shard_of_a_million_samples_takes_bounded_memory(tmp_path: Path) -> None:
    """A million samples of one shard (2 GB) are indexed in less than 500 MB over the baseline."""
    told = in_child(_index_aloud, str(big_shard(tmp_path / "a.tar", 1_000_000)), str(tmp_path / "table"), limit=150)
    say(
        f"1,000,000 samples: {told.peak_bytes >> 20} MiB over {told.base_bytes >> 20} MiB, "
        f"{told.seconds:.1f} s of CPU, {len(told.result[1]):,} lines of progress inside the shard"
    )
    assert told.result[0] == 1_000_000 and told.peak_bytes < 500 << 20


def test_A16_one_sample_and_members_of_one_byte_are_shards_like_any_other(tmp_path: Path) -> None:
    """A shard of one sample, and members of one byte, are read like any other."""
    one = shard(tmp_path / "one.tar", samples(1))
    tiny = shard(tmp_path / "tiny.tar", [(f"{i}.{e}", b"1") for i in range(3) for e in ("jpg", "cls")])
    summary, _ = indexed(tmp_path, one, tiny)
    assert (summary.samples, summary.ok, summary.members_seen) == (4, 4, 8)
    with storage.open_reader(str(tiny)) as reader:
        assert [len(s.members) for s in TarWalk(reader, "tiny")] == [2, 2, 2]
