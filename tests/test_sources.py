"""Each sample has the name of its source in the log; SQL and report say how selection changed the mixture."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhostream
from rhostream.errors import MismatchError, UsageError
from rhostream.stream.sources import MOST, OTHER, UNKNOWN
from rhostream.tables import selections
from tests.support.shards import png, write_shard
from tests.support.small_run import go

HOSTILE = "<b>x\x1b[31m</b>"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two roots, web and books; of the samples a field says a language, or nothing, or something hostile."""
    root, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    for name, count in (("web", 120), ("books", 60)):
        samples = []
        for n in range(count):
            said = {} if n % 5 == 0 else {"lang": HOSTILE if n % 5 == 1 else "en", "year": 1900 + n % 3}
            pixels = png(rng.integers(0, 255, (16, 16), np.uint8))
            samples.append({"__key__": f"{name}{n:03d}", "png": pixels, "cls": str(n % 4), "json": said})
        write_shard(root / name / "0.tar", samples)
    rhostream.index(
        [str(root / "web"), str(root / "books")],
        str(root / "il"),
        roots={"web": str(root / "web"), "books": str(root / "books")},
        keep={"lang": "str", "year": "int", "weight": "float"},
    )
    return root


def trained(mixed: Path, run: Path, **more: Any) -> str:
    settings: dict[str, Any] = {"model": "mlp-64", "rule": "loss", "buffer_size": 40, "batch_size": 8, "threads": 1}
    shards = [str(mixed / "web"), str(mixed / "books")]
    rhostream.train(shards, str(mixed / "il"), str(run), **{**settings, **more})
    return str(run)


@pytest.fixture(scope="module")
def by_root(mixed: Path) -> str:
    return trained(mixed, mixed / "by-root", sources="root")


@pytest.fixture(scope="module")
def by_field(mixed: Path) -> str:
    return trained(mixed, mixed / "by-field", sources="lang")


def rows_of(run: str, what: str = "selections") -> list[dict[str, Any]]:
    with rhostream.open_ledger(run) as ledger:
        return ledger.sql(f"SELECT * FROM {what}").to_pylist()


def test_the_source_of_a_sample_is_its_root_or_what_a_kept_field_says_of_it(
    mixed: Path, by_root: str, by_field: str
) -> None:
    roots, said = rows_of(by_root), {0: UNKNOWN, 1: HOSTILE}
    assert {(row["key"][:3], row["source"]) for row in roots} == {("web", "web"), ("boo", "books")}
    assert all(row["source"] == said.get(int(row["key"][-3:]) % 5, "en") for row in rows_of(by_field))
    assert len(roots) == 180
    shards = [str(mixed / "web"), str(mixed / "books")]
    stream = rhostream.open_stream(shards, str(mixed / "il"), buffer_size=40, needs_il=False, sources="year")
    assert sorted(next(iter(stream)).source_names or ()) == ["1900", "1901", "1902", UNKNOWN]


def test_a_log_without_sources_has_the_columns_that_it_had_and_a_null_source(mixed: Path, tmp_path: Path) -> None:
    run = trained(mixed, tmp_path / "plain", steps=2)
    assert {row["source"] for row in rows_of(run)} == {None} and rows_of(run, "sources") == []
    with rhostream.open_ledger(run) as ledger:
        assert ledger.runs[0].checkpoint is not None
        (segment,) = ledger.runs[0].checkpoint.log
    path = Path(run) / segment["path"]
    import pyarrow.parquet as pq

    assert pq.read_schema(path).names == selections.SCHEMA.names
    assert "sources" not in json.loads((Path(run) / "run.json").read_text())["fingerprints"]


def test_the_view_of_sources_is_what_the_rows_say(by_root: str) -> None:
    run = by_root
    rows = [row for row in rows_of(run) if row["step"] is not None]
    planned, kept = (Counter(row["source"] for row in rows if row["kept"] or every) for every in (True, False))
    for one in rows_of(run, "sources"):
        name = one["source"]
        assert (one["planned"], one["kept"], one["candidates"]) == (planned[name], kept[name], planned[name])
        assert one["kept_rate"] == pytest.approx(kept[name] / planned[name])
        assert one["share_planned"] == pytest.approx(planned[name] / len(rows))
        assert one["share_kept"] == pytest.approx(kept[name] / kept.total())
        loss = [row["loss"] for row in rows if row["source"] == name]
        assert one["mean_loss"] == pytest.approx(np.mean(loss)) and one["mean_il"] is None
    assert len(rows_of(run, "sources")) == 2


def test_a_report_says_how_the_mixture_changed_and_names_are_inert(by_field: str, tmp_path: Path) -> None:
    page = Path(rhostream.write_report(by_field, str(tmp_path / "page.html"))).read_text()
    assert 'id="sources"' in page and HOSTILE not in page and "<b>x" not in page and "\x1b" not in page
    (words,) = re.findall(r"Selection rewrites the mixture.*?</p>", page, re.DOTALL)
    assert words.count("of the looks and") == 3


def test_a_run_goes_on_with_the_sources_that_it_began_with(mixed: Path, tmp_path: Path) -> None:
    trained(mixed, tmp_path / "run", sources="root", steps=2)
    for other in ({"sources": "lang"}, {}):
        with pytest.raises(MismatchError, match="sources"):
            trained(mixed, tmp_path / "run", steps=4, **other)
    run = trained(mixed, tmp_path / "run", sources="root", steps=4)
    assert {row["source"] for row in rows_of(run)} == {"web", "books"}


@pytest.mark.parametrize("asked", ["nothing", "weight", "label", "\x1b[31m"])
def test_a_field_that_the_table_does_not_keep_is_refused_naming_those_that_it_keeps(
    mixed: Path, tmp_path: Path, asked: str
) -> None:
    with pytest.raises(UsageError, match=r"lang \(str\), year \(int\)") as refused:
        trained(mixed, tmp_path / "run", sources=asked)
    assert "\x1b" not in str(refused.value)


def test_roots_without_names_are_no_sources(plain_world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--root NAME=URL"):
        go(plain_world, tmp_path / "run", sources="root")


def test_of_a_field_with_more_than_a_thousand_values_the_rest_is_other(tmp_path: Path) -> None:
    pages = ["x" * 300 + str(n) for n in range(5)] + [f"page {n}" for n in range(MOST + 40)]
    members = {"cls": "0", "png": png(np.zeros((2, 2), np.uint8))}
    samples = [{"__key__": f"{n}", **members, "json": {"page": page}} for n, page in enumerate(pages)]
    write_shard(tmp_path / "data" / "0.tar", samples)
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "il"), keep={"page": "str"})
    with pytest.warns(UserWarning, match="1,000") as told:
        stream = rhostream.open_stream(
            str(tmp_path / "data"), str(tmp_path / "il"), buffer_size=200, needs_il=False, sources="page"
        )
    assert len(told) == 1
    names = stream.stream.join_settings.sources.names  # type: ignore[union-attr]
    assert len(names) == MOST + 2 and names[-2:] == (OTHER, UNKNOWN) and max(map(len, names)) == 200
    seen = Counter(names[code] for candidates in [*stream, stream.stream.tail(0)] for code in candidates.source)
    assert seen[OTHER] == 40 + 1 and seen["x" * 200] == 5 and seen["page 0"] == 1
