"""Bytes changed at random, full disks, questions that reach for files: errors in words, and nothing half done."""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rhostream import cli, storage
from rhostream.errors import NotWritableError, RhostreamError, ShardError, UsageError
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import compute_il, fit_il, index
from rhostream.samples import decoders as decode
from rhostream.samples.statuses import STATUSES
from rhostream.stream.tar import TarWalk
from tests.faults.children import in_child
from tests.faults.hostile_samples import images, saved
from tests.faults.hostile_tars import END, GOOD_PNG, member, pair, pax, record, tar_of
from tests.faults.tally import say
from tests.support.shards import make_shards

REPOSITORY = Path(__file__).resolve().parents[2]


# -- mutations ---------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to four changes: flips, runs of one byte, cuts, copies of pieces, lies in numbers."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out))) if out else 0
        length = int(rng.integers(1, 600))
        kind = int(rng.integers(6))
        if kind == 0:
            out[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            out[at : at + length] = bytes([int(rng.choice([0, 32, 48, 55, 255]))]) * length
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out = out[:at]
        else:
            out[at : at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
    return bytes(out)


def seeds_of_tars() -> list[bytes]:
    long = member("deep/" * 40 + "x.png", GOOD_PNG) + member("deep/" * 40 + "x.cls", b"1")
    with_pax = pax(record(b"path", b"p.png") + record(b"mtime", b"1.5")) + pair("q")
    with_pax += pax(record(b"size", b"1")) + member("s.cls", b"1")
    return [tar_of([(f"{i}.{e}", d) for i in range(4) for e, d in (("png", GOOD_PNG), ("cls", b"1"))]), long + END,
            with_pax + END]  # fmt: skip


def fuzz_tars(rounds: int, folder: Path) -> Counter[str]:
    rng, seen = np.random.default_rng(20261125), Counter[str]()
    seeds = seeds_of_tars()
    path = folder / "x.tar"
    for turn in range(rounds):
        data = mutated(seeds[turn % len(seeds)], rng)
        path.write_bytes(data)
        with storage.open_reader(str(path)) as reader:
            tar = TarWalk(reader, "x", accept_missing_eof=turn % 2 == 1)
            try:
                samples = list(tar)
            except ShardError as exc:
                seen["refused"] += 1
                assert "\n" not in str(exc)
                continue
        seen["read"] += 1
        assert tar.samples_seen == len(samples) <= tar.members_seen <= len(data) // 512
        assert tar.members_seen == tar.members_ignored + sum(len(s.members) for s in samples)
        assert all(o >= 0 and o + n <= len(data) for s in samples for _, o, n in s.members)
    return seen


def fuzz_images(rounds: int) -> Counter[str]:
    rng, seen = np.random.default_rng(20261125), Counter[str]()
    odd = [d for n, _, d, _ in images() if n.startswith(("jpeg", "png", "webp")) and len(d) < 5000]
    seeds = [GOOD_PNG, saved("PNG"), saved("JPEG"), saved("JPEG", progressive=True), saved("WEBP"),
             saved("WEBP", lossless=True), *odd]  # fmt: skip
    outs = [np.zeros((16, 16, c), np.uint8) for c in (1, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it passes over
        for turn in range(rounds):
            data = mutated(seeds[turn % len(seeds)], rng)
            for name in decode.DECODERS:
                status = decode.DECODERS[name](data, outs[turn % 2])
                assert status in STATUSES
                seen[status] += 1
            decode.probe_size(data)
    return seen


def test_a_tar_changed_at_random_is_refused_or_counted(tmp_path: Path) -> None:
    told = in_child(fuzz_tars, 800, tmp_path, limit=60)
    assert told.result["read"] > 50 and told.result["refused"] > 50 and told.peak_bytes < 200 << 20


def test_an_image_changed_at_random_has_a_status() -> None:
    told = in_child(fuzz_images, 150, limit=60)
    assert len(told.result) >= 4 and told.peak_bytes < 1 << 30


@pytest.mark.slow
def test_a_hundred_thousand_changed_tars_and_five_thousand_images_raise_nothing_else(tmp_path: Path) -> None:
    tars = in_child(fuzz_tars, 100_000, tmp_path, limit=140)
    pictures = in_child(fuzz_images, 5_000, limit=140)
    say(
        f"mutated tars: {dict(tars.result)}, {tars.seconds:.0f} s; images: {dict(pictures.result)}, "
        f"{pictures.seconds:.0f} s, {pictures.peak_bytes >> 20} MiB"
    )


# -- full disks --------------------------------------------------------------------------------------------------------


def _fill(shards: list[str], folder: str) -> dict[str, str]:
    """What each job says on a disk that takes no file of more than a few KB."""
    said = {}
    for name, job in (
        ("index", lambda: index(shards, f"{folder}/index")),
        ("compute_il", lambda: compute_il(shards, f"{folder}/model", f"{folder}/il")),
        ("fit_il", lambda: fit_il(shards, f"{folder}/model2", model="mlp-64", epochs=1)),
    ):
        try:
            job()
            said[name] = "done"
        except RhostreamError as exc:
            said[name] = f"{type(exc).__name__}: {exc}"
    return said


def test_a_disk_that_is_full_is_an_error_in_words_leaves_no_part_and_the_same_command_goes_on(tmp_path: Path) -> None:
    shards = [str(p) for p in make_shards(tmp_path / "shards", [1500, 20])]
    fit_il(shards, str(tmp_path / "model"), model="mlp-64", epochs=1)
    told = in_child(_fill, shards, str(tmp_path), file_limit=6000)
    for said in told.result.values():
        assert said.startswith(NotWritableError.__name__) and "can't write" in said, told.result
    written = [p for place in ("index", "il") for p in (tmp_path / place).rglob("*") if p.is_file()]
    assert not [p for p in written if p.name.endswith(".tmp")]
    for part in (p for p in written if p.suffix == ".parquet"):
        assert pq.read_table(part).num_rows == 20  # the small shard's, whole
    for summary in (
        index(shards, str(tmp_path / "index")),
        compute_il(shards, str(tmp_path / "model"), str(tmp_path / "il")),
    ):
        assert summary.samples == 1520 and not summary.bad_shards
    assert len(load_il_model(str(tmp_path / "model")).networks) == 2


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [
    "COPY (SELECT 1) TO '{out}'", "COPY il FROM '/etc/passwd'", "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/etc/*')",
    "ATTACH '{out}' AS x", "INSTALL httpfs", "LOAD httpfs", "PRAGMA database_list", "SET enable_external_access = true",
    "SET lock_configuration = false", "RESET enable_external_access", "EXPORT DATABASE '{out}'",
    "CREATE TABLE x (a INT)",
    "CREATE MACRO f(x) AS x", "DROP VIEW il", "CALL pragma_version()", "SELECT 1; COPY (SELECT 1) TO '{out}'",
    "SELECT getenv('AWS_SECRET_ACCESS_KEY')", "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM parquet_scan('{out}')", "SELECT * FROM sniff_csv('/etc/passwd')", "CHECKPOINT", "VACUUM",
    "SELECT * FROM duckdb_secrets()", "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')", "IMPORT DATABASE '{out}'",
])  # fmt: skip
def test_the_sql_of_the_command_line_reads_its_views_and_reaches_nothing_else(
    question: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3tvalue")
    with pytest.raises(UsageError):
        cli.cli.main(["sql", str(world / "il"), question.format(out=tmp_path / "out")], standalone_mode=False)
    said = capsys.readouterr()
    assert "root:" not in said.out + said.err and "s3cr3tvalue" not in said.out + said.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("style", ["table", "json", "csv"])
def test_labels_and_errors_of_a_hostile_shard_cannot_move_a_cursor_or_become_a_formula(
    style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    escape, members = b"\x1b[2J\x1b]0;pwned\x07", []
    for number, label in enumerate((escape, b"=cmd|' /C calc'!A0", b"\r\n+1", "\u202e1".encode()) * 4):
        members += [(b"%d" % number + escape + b".png", GOOD_PNG), (b"%d" % number + escape + b".cls", label)]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    index([str(tmp_path / "a.tar")], str(tmp_path / "table"), max_bad_fraction=1.0)
    cli.cli.main(["sql", str(tmp_path / "table"), "select key, status, error, '=1' || error as formula from quarantine",
                  "--format", style], standalone_mode=False)  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("label:invalid") == 16 and out.count("\\x1b" if style != "json" else "\\u001b") >= 16
    assert not {c for c in out if not c.isprintable()} - {"\n"}
    assert out.count("'=1.cls") == (16 if style == "csv" else 0)
    # The same shard within the usual budget: the error names a key.
    monkeypatch.setattr(
        "sys.argv", ["rhostream", "index", "--shards", str(tmp_path / "a.tar"), "--out", str(tmp_path / "other")]
    )
    with pytest.raises(SystemExit, match="3"):
        cli.main()
    err = capsys.readouterr().err
    assert "label:invalid 16" in err and not {c for c in err if not c.isprintable()} - {"\n"}


# -- words -------------------------------------------------------------------------------------------------------------


def test_every_status_of_the_code_is_listed_and_every_listed_one_is_in_the_reference() -> None:
    word, found = re.compile(r"(decode|image|text|tokens|kind|label):[a-z_]+\Z|nonfinite\Z"), set[str]()
    for path in [
        p for room in ("samples", "stream", "irreducible") for p in (REPOSITORY / "rhostream" / room).glob("*.py")
    ]:
        if path.name == "statuses.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("BadSample"):
                found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and word.match(node.value):
                found.add(node.value)
    assert found | {"ok"} == set(STATUSES)
    reference = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    for status, says in STATUSES.items():
        assert f"| `{status}` | {says} |" in reference
