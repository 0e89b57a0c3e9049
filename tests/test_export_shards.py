"""New shards hold the samples that were asked for, member by member and byte by byte, whatever their names."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rhostream
from rhostream.audit.export import Exported, export, tars
from rhostream.errors import ShardError, StorageError, UsageError
from rhostream.tables import il
from tests.support.shards import png

Members = list[tuple[str, bytes]]
HARD = ["plain", "=1+1", "a b", "two\nlines", "deep/er/x", "../up", "é-日本", "\x1b[31mred", "x" * 120, "-x"]


def write_tar(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def members_of(path: Path) -> Members:
    with tarfile.open(path, errors="surrogateescape") as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]


def sample(key: str, rng: np.random.Generator) -> Members:
    """A picture, its label, what nobody here uses (before, between and behind), and what others would unpickle."""
    picture = png(rng.integers(0, 255, (8, 8), np.uint8))
    return [(f"{key}.depth.bin", rng.bytes(700)), (f"{key}.png", picture), (f"{key}.url", b"https://x"),
            (f"{key}.cls", b"1"), (f"{key}.pkl", b""), (f"{key}.JSON5", rng.bytes(3))]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, int], Members]]:
    """Two roots whose shards and keys have the same names, as an index; and the members of each sample."""
    root, rng, whole = tmp_path_factory.mktemp("sources"), np.random.default_rng(0), dict[tuple[str, int], Members]()
    for folder, form in (("one", tarfile.PAX_FORMAT), ("two", tarfile.GNU_FORMAT)):
        for shard in ("00.tar", "01.tar"):
            samples = [sample(key, rng) for key in HARD]
            whole |= {(f"{folder}/{shard}", n): members for n, members in enumerate(samples)}
            write_tar(root / folder / shard, [member for members in samples for member in members], form)
    roots = {"one": str(root / "one"), "two": str(root / "two")}
    rhostream.index(list(roots.values()), str(root / "ix"), roots=roots)
    return root, whole


def copied(folder: Path) -> list[tuple[tuple[str, int], str, Members]]:
    """(where it came from, its key, its members without the key) of each sample of new shards."""
    found = []
    for tar in sorted(folder.glob("*.tar")):
        members = members_of(tar)
        for row in pq.read_table(folder / "sources" / f"{tar.stem}.parquet").to_pylist():
            mine = [(name[len(row["key"]) :], data) for name, data in members if name.startswith(row["key"] + ".")]
            found.append(((row["from_shard"], row["from_ordinal"]), row["key"], mine))
    return found


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.tuples(st.sampled_from(["one/00.tar", "one/01.tar", "two/00.tar", "two/01.tar"]),
                                st.integers(0, len(HARD) - 1)), min_size=1, max_size=25),
       most=st.integers(1, 12))  # fmt: skip
def test_every_member_of_every_sample_is_copied_and_nothing_else(
    sources: tuple[Path, dict[tuple[str, int], Members]], tmp_path_factory: pytest.TempPathFactory,
    chosen: set[tuple[str, int]], most: int,
) -> None:  # fmt: skip
    root, whole = sources
    out = tmp_path_factory.mktemp("out") / "new"
    places = ", ".join(str(place) for place in sorted(chosen))
    done = export(str(root / "ix"), str(out), form="shards", where=f"(shard, ordinal) IN ({places})",
                  samples_per_shard=most)  # fmt: skip
    found = copied(out)
    assert [place for place, _, _ in found] == sorted(chosen)
    for place, key, members in found:
        old = HARD[place[1]]
        assert members == [(name[len(old) :], data) for name, data in whole[place]]
        assert key == old or (key.endswith("/" + old) and key.count("/") == old.count("/") + 1)
    assert sum(key != HARD[place[1]] for place, key, _ in found) == done.renamed
    assert (done.samples, done.shards) == (len(chosen), -(-len(chosen) // most))
    tars = sorted(out.glob("*.tar"))
    sums = [f"{hashlib.sha256(tar.read_bytes()).hexdigest()}  {tar.name}\n" for tar in tars]
    assert (out / "SHA256SUMS").read_text() == "".join(sums) and done.bytes == sum(t.stat().st_size for t in tars)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_new_shards_are_read_by_index_and_by_webdataset(
    sources: tuple[Path, dict[tuple[str, int], Members]], tmp_path: Path
) -> None:
    root, whole = sources
    done = export(str(root / "ix"), str(tmp_path / "new"), form="shards", samples_per_shard=15)
    rhostream.index([str(tmp_path / "new")], str(tmp_path / "ix"))
    with rhostream.open_ledger(str(tmp_path / "ix")) as ledger:
        assert ledger.sql("SELECT status, count(*) AS n FROM il GROUP BY status").to_pylist() == [
            {"status": "ok", "n": len(whole)}
        ]
    urls = [str(tar) for tar in sorted((tmp_path / "new").glob("*.tar"))]
    read = [s["png"] for s in wds.WebDataset(urls, shardshuffle=False, empty_check=False)]
    pictures = [next(data for name, data in members if name.endswith(".png")) for _, members in sorted(whole.items())]
    assert sorted(read) == sorted(pictures) and len(urls) == done.shards == 3


def test_a_shard_ends_before_the_sample_that_is_too_much(
    sources: tuple[Path, dict[tuple[str, int], Members]], tmp_path: Path
) -> None:
    root, _ = sources
    done = export(str(root / "ix"), str(tmp_path / "new"), form="shards", shard_bytes=20_000)
    sizes = [tar.stat().st_size for tar in sorted((tmp_path / "new").glob("*.tar"))]
    assert max(sizes) <= 20_000 + 1024 and min(sizes[:-1]) > 20_000 - 8_000 and len(sizes) == done.shards
    again = export(str(root / "ix"), str(tmp_path / "new"), form="shards", shard_bytes=20_000)
    assert again.there == again.shards == done.shards and again.bytes == done.bytes


@given(length=st.integers(1, 1200), size=st.integers(0, 3))
def test_what_a_member_takes_is_known_before_it_is_written(length: int, size: int) -> None:
    name = b"a" * length + b".x"
    assert len(tars._header(name, size)) == tars._header_bytes(name)


def test_a_folder_of_something_else_is_left_as_it_is(
    sources: tuple[Path, dict[tuple[str, int], Members]], tmp_path: Path
) -> None:
    root, _ = sources
    table, out = str(root / "ix"), tmp_path / "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, says in (("mine", "1 files that are of no export"), ("file", "it is a file")):
        with pytest.raises(UsageError, match=says):
            export(table, str(tmp_path / place), form="shards")
    export(table, str(out), form="shards", where="ordinal < 5", samples_per_shard=8)
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    for asked in ({"where": "ordinal < 6", "samples_per_shard": 8}, {"where": "ordinal < 5", "samples_per_shard": 7},
                  {"where": "shard = 'one/00.tar' and ordinal < 5", "samples_per_shard": 8}):  # fmt: skip
        with pytest.raises(UsageError, match="it is another export"):
            export(table, str(out), form="shards", **asked)  # type: ignore[arg-type]
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    with pytest.raises(UsageError, match="expected 1 or more"):
        export(table, str(tmp_path / "none"), form="shards", samples_per_shard=0)


def test_a_sample_that_cannot_be_copied_stops_the_export_which_goes_on_when_it_can(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / "data" / name, [m for n in range(6) for m in sample(f"{name[0]}{n}", rng)])
    table, out = str(tmp_path / "ix"), tmp_path / "new"
    rhostream.index([str(tmp_path / "data")], table)
    data = (tmp_path / "data" / "b.tar").read_bytes()

    def go() -> Exported:
        return export(table, str(out), form="shards", samples_per_shard=4)

    for broken, error, says in (
        (None, StorageError, "b.tar does not exist.*--root"),
        (data[:-512], ShardError, "bytes"),
        (bytes(len(data)), ShardError, "members aren't where"),
    ):
        (tmp_path / "data" / "b.tar").unlink(missing_ok=True)
        if broken is not None:
            (tmp_path / "data" / "b.tar").write_bytes(broken)
        with pytest.raises(error, match=says):
            go()
        assert sorted(f.name for f in out.glob("*.tar")) == ["shard-000000.tar"] and not (out / "SHA256SUMS").exists()
    (tmp_path / "data" / "b.tar").write_bytes(data)
    done = go()
    assert (done.there, done.shards, done.samples) == (1, 3, 12)
    (tmp_path / "data" / "b.tar").write_bytes(data[:512] + b"?" + data[513:])
    (out / "shard-000002.tar").unlink()
    assert go().there == 2  # the byte that changed is none of this shard
    (out / "shard-000001.tar").unlink()
    with pytest.raises(UsageError, match="other bytes today"):
        go()


def test_where_a_sample_came_from_and_what_the_ledger_says_of_it_stand_beside(
    trained: Any, world: Path, tmp_path: Path
) -> None:
    run = str(trained(steps=10))
    export(run, str(tmp_path / "new"), form="shards", where="reason = 'below'", samples_per_shard=100)
    tables = [pq.read_table(file) for file in sorted((tmp_path / "new" / "sources").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    with rhostream.open_ledger(run) as ledger:
        asked = "SELECT DISTINCT shard, ordinal, loss FROM selections WHERE reason = 'below' ORDER BY shard, ordinal"
        said = ledger.sql(asked).to_pylist()
    assert [(r["from_shard"], r["from_ordinal"], r["loss"]) for r in rows] == [tuple(r.values()) for r in said]
    facts = json.loads(tables[0].schema.metadata[b"rhostream"])
    assert facts["sha256"] == (tmp_path / "new" / "SHA256SUMS").read_text()[:64]
    with pytest.warns(UserWarning, match="none of these shards was seen by fit-il"):
        rhostream.compute_il([str(tmp_path / "new")], str(world / "il-model"), str(tmp_path / "il"))
    assert {f.stem for f in (tmp_path / "il").rglob("*.parquet")} == {f.name for f in (tmp_path / "new").glob("*.tar")}
    assert il.open_info(str(tmp_path / "il")).kind == "il"
