"""The ledger, its questions and the report: committed files only, locked down, hostile text inert."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import rhostream
from rhostream.audit.metrics import best, smooth, speedup, steps_to_reach
from rhostream.audit.questions import QUESTIONS, run_question
from rhostream.audit.verify import status_of, verify
from rhostream.errors import TableError, UnknownNameError, UsageError
from rhostream.repair import repair
from rhostream.runs import checkpoint
from rhostream.tables import selections
from tests.support.shards import png, write_shard


def test_views_equal_the_log_read_without_duckdb(trained: Callable[..., Path]) -> None:
    run = trained()
    plain = selections.read(str(run), checkpoint.latest(str(run)).log).to_pylist()
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT * EXCLUDE (run, source) FROM selections").to_pylist()
        assert ledger.sql("SELECT DISTINCT source FROM selections")[0].to_pylist() == [None]  # nobody asked for sources
        assert ledger.sql("SELECT DISTINCT run FROM selections")[0].to_pylist() == ["run"]
        assert ledger.sql("SELECT count(*) FROM samples")[0].to_pylist() == [1003]
    order = lambda r: (r["pass"], r["shard"], r["ordinal"])  # noqa: E731
    assert sorted(map(str, sorted(rows, key=order))) == sorted(map(str, sorted(plain, key=order)))


@pytest.mark.parametrize(
    "text",
    [
        "COPY (SELECT 1) TO '/tmp/rhostream-test.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "SET enable_external_access = true",
        "DROP VIEW selections",
        "SELEC 1",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT getenv('HOME')",
    ],
)
def test_the_ledger_reads_and_does_nothing_else(trained: Callable[..., Path], text: str) -> None:
    with rhostream.open_ledger(str(trained(steps=2))) as ledger, pytest.raises(UsageError):
        ledger.sql(text)


def test_a_name_nobody_knows_gets_a_guess(trained: Callable[..., Path], tmp_path: Path) -> None:
    with rhostream.open_ledger(str(trained("rho-1", steps=2))) as ledger:
        with pytest.raises(UsageError, match="did you mean 'selections'"):
            ledger.sql("SELECT * FROM selection")
        with pytest.raises(UnknownNameError, match="did you mean 'noisy_share'"):
            run_question(ledger, "noisyshare")
    with pytest.raises(UsageError, match="did you mean rho-1"):
        rhostream.open_ledger(str(tmp_path / "rho-2"))


def test_every_question_has_an_answer_and_noisy_share_the_right_one(trained: Callable[..., Path]) -> None:
    run = trained(steps=50, test_shards=[], eval_every=10)
    with rhostream.open_ledger(str(run)) as ledger:
        for name, question in QUESTIONS.items():
            if "duplicate_of" in question.sql:
                with pytest.raises(UsageError, match="--keep duplicate_of:str"):
                    run_question(ledger, name)
            else:
                assert isinstance(run_question(ledger, name), pa.Table)
        known = {(r["shard"], r["ordinal"]): r["is_noisy"] for r in ledger.sql("SELECT * FROM samples").to_pylist()}
        shares = {r["kept"]: (r["rows"], r["noisy_share"]) for r in run_question(ledger, "noisy_share").to_pylist()}
    rows = selections.read(str(run), checkpoint.latest(str(run)).log).to_pylist()
    for kept in (True, False):
        noisy = [
            known[r["shard"], r["ordinal"]] for r in rows if r["kept"] is kept and r["reason"] in ("kept", "below")
        ]
        assert shares[kept] == (len(noisy), pytest.approx(sum(noisy) / len(noisy), abs=6e-5))  # four digits


def test_a_damaged_segment_is_refused_by_name(trained: Callable[..., Path]) -> None:
    run = trained(steps=5)
    segment = next((run / "log").rglob("*.parquet"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(TableError, match=segment.name):
        rhostream.open_ledger(str(run))
    assert len(verify(str(run))["problems"]) == 1


def test_a_run_without_a_checkpoint_has_empty_views(world: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    run = trained(steps=5)
    shutil.rmtree(run / "commits")
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("SELECT count(*) FROM selections")[0].to_pylist() == [0]
        assert ledger.sql("SELECT steps FROM runs")[0].to_pylist() == [0]
    page = rhostream.write_report(str(run), str(tmp_path / "empty.html"))
    assert "Nothing to compare" in Path(page).read_text()


def test_verify_finds_a_cut_part_and_repair_makes_it_again(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "il"
    shutil.copytree(world / "il", table)
    before = {p: p.read_bytes() for p in table.rglob("*.parquet")}
    assert verify(str(table))["problems"] == [] and verify(str(table))["rows"] == 1003
    victim = sorted(before)[2]
    victim.write_bytes(before[victim][:100])
    assert len(verify(str(table))["problems"]) == 1 and "--repair" in status_of(str(table))["next"]
    found = repair(str(table))
    assert found["problems"] == [] and len(found["repaired"]) == 1
    assert {p: p.read_bytes() for p in table.rglob("*.parquet")} == before
    victim.unlink()
    state = status_of(str(table), [str(world / "shards")])
    assert state["missing"] == 1 and "compute-il" in state["next"]


def test_the_report_compares_with_uniform_and_carries_no_script(
    trained: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    tests = {"test_shards": [str(world / "test")], "eval_every": 2, "steps": 40}
    rho, uniform = trained("rho", **tests), trained("uniform", rule="uniform", **tests)
    everything = trained("everything", rule="uniform", buffer_size=8, **tests)
    page = Path(
        rhostream.write_report(
            [str(rho)], str(tmp_path / "deep" / "report.html"), against=[str(uniform), str(everything)]
        )
    ).read_text()
    assert "<script" not in page and "default-src 'none'" in page
    text = re.sub(r'"data:image/[^"]*"', '"picture"', page)  # any word may stand in the base64 of a picture
    assert "http" not in text.replace("http-equiv", "") and "picture" in text
    with rhostream.open_ledger([str(rho), str(uniform)]) as ledger:
        curves = [
            ledger.sql(
                "SELECT step + 1 AS s, test_accuracy AS a FROM steps WHERE run = $run AND test_accuracy "
                "IS NOT NULL ORDER BY step",
                {"run": r},
            ).to_pydict()
            for r in ("uniform", "rho")
        ]
    gain = speedup(*((c["s"], c["a"]) for c in curves))
    assert (f"{gain:.2f}x" if gain else "not reached") in page
    assert page.count("<figure>") >= 24 and page.count("data:image/png") >= 20


def test_smoothing_and_targets_count_as_the_paper_does() -> None:
    assert smooth([1, 2, 3, 4, 5, 6], 3).tolist() == [1, 1.5, 2, 3, 4, 5]
    assert best([0.9, 0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5], 5) == 0.5
    steps = [25, 50, 75, 100, 125, 150]
    assert steps_to_reach(steps, [0, 1, 1, 1, 1, 1], 1.0, 5) == 150
    assert steps_to_reach(steps, [0, 1, 1, 1, 1, 1], 1.1, 5) is None
    assert speedup((steps, [0, 0, 0, 0, 1, 1]), (steps, [1, 1, 1, 1, 1, 1]), 1) == 5.0
    assert speedup((steps, [1] * 6), (steps, [0] * 6), 5) is None


def test_pictures_that_can_not_be_read_leave_a_note(trained: Callable[..., Path], tmp_path: Path) -> None:
    import json

    run = trained(steps=20)
    record = json.loads((run / "run.json").read_text())
    record["shard_urls"] = ["/nowhere/x.tar"] * len(record["shards"])
    (run / "run.json").write_text(json.dumps(record))
    page = Path(rhostream.write_report(str(run), str(tmp_path / "r.html"))).read_text()
    assert "could not be read" in page and png and write_shard
