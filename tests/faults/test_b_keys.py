"""Keys that repeat, that look alike, or that are written to hurt: stored as they are, counted, shown inert."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.audit.verify.keys import Keys
from rhostream.tables import parquet
from tests.support.command import command
from tests.support.shards import sample

HOSTILE = [
    "two\nlines\rand\ttabs", "ansi\x1b[2J\x1b[31mred\x07", "<script>alert(1)<|script>", "<img src=x onerror=alert(1)>",
    "=cmd|' |C calc'!A0", "@sum(1)", "+1", "-1", "\"double\" 'single' `tick`", "emoji-😀-é", "{{ 7 * 7 }}{% x %}",
    "nul\0key", "left\u202eright\u2066x", "'; DROP TABLE selections; --", "[|red]", "%s%n$(id)", "k" * 10_000,
]  # fmt: skip


def write_tar(path: Path, keys: list[str], seed: int = 0) -> Path:
    """A tar with these keys as they are: names beyond ASCII or 100 bytes go into pax headers."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, key in enumerate(keys):
            for extension, data in (("png", sample(number, rng)["png"]), ("cls", str(number % 4).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                assert isinstance(data, bytes)
                info.size = len(data)
                if "\0" in key:  # only an extended header can hold it
                    info.pax_headers = {"path": info.name}
                tar.addfile(info, io.BytesIO(data))
    return path


def test_B11_a_key_that_comes_twice_is_used_once_and_counted(tmp_path: Path) -> None:
    """Of samples with the same key in one shard, adjacent or not, the first is used; the others are rows with status
    `dup`, counted by the job, by verify and by status.
    """
    keys = [*(f"k{i}" for i in range(10)), "k9", *(f"m{i}" for i in range(10)), "k0"]
    shard = write_tar(tmp_path / "twice.tar", keys)
    done = rhostream.index([str(shard)], str(tmp_path / "il"))
    assert (done.samples, done.ok, done.quarantined) == (22, 20, {"dup": 2})
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        bad = ledger.sql("SELECT ordinal, key, status, error FROM quarantine ORDER BY ordinal").to_pylist()
    assert [(row["ordinal"], row["key"], row["status"]) for row in bad] == [(10, "k9", "dup"), (21, "k0", "dup")]
    assert "the first one counts" in bad[0]["error"]
    (candidates,) = rhostream.open_stream(str(shard), str(tmp_path / "il"), buffer_size=22, needs_il=False)
    used = [
        k
        for k, row in zip(candidates.key.to_pylist(), candidates.reason, strict=True)
        if row == rhostream.candidates.CANDIDATE
    ]
    assert sorted(used) == sorted({*used}) and len(used) == 20
    found = verify(str(tmp_path / "il"))
    assert found["problems"] == [] and "2 samples repeat a key of their own shard" in found["warnings"][0]


def test_B13_a_key_in_several_shards_is_listed_and_never_mistaken(tmp_path: Path) -> None:
    """A key may stand in many shards (web crawls do that): a sample is named by its shard and its ordinal, in the plan,
    the log and SQL; verify counts such keys and lists the first of them with their shards.
    """
    shards = [
        write_tar(tmp_path / "data" / f"{n}.tar", [f"{i:04d}" for i in range(10 * n, 10 * n + 20)], n) for n in range(3)
    ]
    table = str(tmp_path / "il")
    rhostream.index([str(tmp_path / "data")], table)
    found = verify(table)
    assert found["problems"] == [] and found["duplicate_keys"] == 20
    assert "20 keys stand in several shards" in found["warnings"][0]
    for entry in found["first_duplicate_keys"]:
        first = 0 if entry["key"] < "0020" else 1
        assert entry["shards"] == [str(shards[first]), str(shards[first + 1])] and entry["in_shards"] == 2
    seen = set()
    for candidates in rhostream.open_stream(str(tmp_path / "data"), table, buffer_size=20, needs_il=False):
        names = candidates.shard_names.to_pylist()
        seen |= {(names[s], int(o)) for s, o in zip(candidates.shard, candidates.ordinal, strict=True)}
    assert len(seen) == 60


def test_B14_keys_that_differ_in_case_or_form_are_different_samples(tmp_path: Path) -> None:
    """Keys that differ only in case or in Unicode form (NFC, NFD) are different samples; verify says so once, with the
    count.
    """
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    shard = write_tar(tmp_path / "alike.tar", ["a", "A", composed, apart, composed.upper(), "b", "Z", "ß"])
    done = rhostream.index([str(shard)], str(tmp_path / "il"))
    assert (done.samples, done.quarantined) == (8, {})
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        assert ledger.sql("SELECT count(DISTINCT key) FROM il")[0].to_pylist() == [8]
    found = verify(str(tmp_path / "il"))
    assert found["problems"] == [] and found["duplicate_keys"] == 0
    assert [w for w in found["warnings"] if "only in case or in their Unicode form" in w] == [
        "2 keys differ from another only in case or in their Unicode form (NFC, NFD): they are different samples"
    ]


@pytest.mark.parametrize("memory", [1 << 40, 1 << 12], ids=["in memory", "on disk"])
def test_B13_repeats_are_those_that_a_plain_count_finds(memory: int) -> None:
    """What verify counts in bounded memory, spilling to disk, is what a plain count of all keys finds."""
    rng = np.random.default_rng(0)
    parts = [
        [f"{'K' if rng.random() < 0.1 else 'k'}{n}" for n in rng.choice(4_000, 300, replace=False)] for _ in range(12)
    ]
    where: dict[str, set[int]] = {}
    with Keys(memory) as keys:
        for number, own in enumerate(parts):
            keys.add(number, pa.array(own, pa.string()))
            for key in own:
                where.setdefault(key, set()).add(number)
        found = keys.found(5)
        hashes = dict(zip(keys.hashes(pa.array(list(where))).tolist(), where, strict=True))
    repeated = {key for key, numbers in where.items() if len(numbers) > 1}
    assert found.across == len(repeated) and found.within == []
    assert found.alike == len({key.lower() for key in where if {key.upper(), key.lower()} <= where.keys()})
    assert len(found.first) == 5
    for one in found.first:
        assert sorted(where[hashes[one.hash]])[:5] == one.numbers and len(where[hashes[one.hash]]) == one.parts


class _Elements(HTMLParser):
    """Names of elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.filterwarnings("ignore:none of these shards was seen")
def test_B16_hostile_keys_are_stored_exactly_and_shown_inert(world: Path, tmp_path: Path, capsys: Any) -> None:
    """A key with line ends, NUL, terminal escapes, markup, a formula, quotes, emoji or 10,000 characters is stored byte
    for byte and kept through table, log and SQL; on the terminal, in CSV, in status, in verify and in the report it
    is inert text. JSON is exact.
    """
    good = [f"plain-{n}" for n in range(24)]
    shard = write_tar(tmp_path / "hostile.tar", [*HOSTILE, *good])
    empty = write_tar(tmp_path / "again.tar", [*HOSTILE[:4], HOSTILE[1], *(f"other-{n}" for n in range(20))])
    table, run = tmp_path / "il", tmp_path / "run"
    rhostream.compute_il([str(shard), str(empty)], str(world / "il-model"), str(table))
    stored = [k for p in sorted(table.rglob("*.parquet")) for k in parquet.read(str(p), ["key"])[0]["key"].to_pylist()]
    assert set(HOSTILE) <= set(stored)
    rhostream.train(
        [str(shard), str(empty)], str(table), str(run), model="mlp-64", buffer_size=20, batch_size=4, passes=2
    )
    with rhostream.open_ledger(str(run)) as ledger:
        logged = set(ledger.sql("SELECT DISTINCT key FROM selections")[0].to_pylist())
        one = ledger.sql("SELECT count(*) FROM il WHERE key = $key", {"key": "nul\0key"})[0].to_pylist()
    assert set(HOSTILE) <= logged and one == [1]
    query = "SELECT DISTINCT key FROM selections"
    assert set(HOSTILE) <= {row["key"] for row in json.loads(command(capsys, "sql", run, query, "--format", "json")[0])}
    shown = command(capsys, "sql", run, query)[0]
    cells = list(csv.reader(io.StringIO(command(capsys, "sql", run, query, "--format", "csv")[0])))
    assert len(cells) == 1 + len(logged) and not any(c.startswith(("=", "+", "-", "@", "\t", "\r")) for [c] in cells)
    found = command(capsys, "verify", table)[0]
    assert "key 'ansi\\x1b" in found or "key 'two\\nlines" in found or "key '<" in found
    asked = command(capsys, "status", table)[0] + command(capsys, "status", run)[0]
    (table / "parts" / "x.parquet").write_bytes(b"")
    _, refused = command(capsys, "sql", table, "SELECT * FROM il", code=3)
    wrong = command(capsys, "sql", run, 'SELECT "\x1b[2J"', code=2)[1]
    for text in (shown, found, asked, refused, wrong):
        assert all(c.isprintable() or c == "\n" for c in text)
    page = Path(rhostream.write_report(str(run), str(tmp_path / "r.html"))).read_text()
    elements = _Elements()
    elements.feed(page)
    assert not elements.tags & {"script", "iframe", "object", "embed", "form", "link", "base"}
    assert not [name for name in elements.attributes if name.startswith("on")]
