"""Published results: docs/ says what the Parquet files hold, recomputed from the single runs."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.reproduce.markdown import claim_tables, table
from jobs.reproduce.results import SCHEMA
from jobs.reproduce.tables import main, told

DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted((DOCS / "results").glob("*.parquet"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_finals_are_the_means_of_the_last_five_evaluations_of_each_run(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    curves: dict[tuple[str, str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row["kind"] == "evaluation" and row["test_accuracy"] is not None:
            curves.setdefault((row["world"], row["arm"], row["seed"]), []).append((row["step"], row["test_accuracy"]))
    finals = [r for r in rows if r["kind"] == "comparison" and r["metric"].startswith("final accuracy")]
    assert bool(finals) == bool(curves)
    for final in finals:
        for seed, value in zip(final["seeds"], final["values"], strict=True):
            last = [accuracy for _, accuracy in sorted(curves[final["world"], final["arm"], seed])[-5:]]
            assert value == pytest.approx(statistics.fmean(last), abs=1e-12)
        assert final["middle"] == pytest.approx(statistics.fmean(final["values"]), abs=1e-12)


def test_every_bold_figure_of_a_claim_stands_in_the_record_that_it_leads_to() -> None:
    page = (DOCS / "results.md").read_text()
    said = page.partition("## In short")[2].partition("## The records")[0]
    claims = re.split(r"^(?:\d+\.|##) ", said, flags=re.M)[1:]
    assert len(claims) >= 10
    for claim in claims:
        records = " ".join((DOCS / name).read_text() for name in re.findall(r"\]\((results/[^)#]+\.md)", claim))
        bold = [" ".join(part.split()) for part in re.findall(r"\*\*([^*]+)\*\*", claim)]
        figures = [part for part in bold if re.search(r"\d", part)]
        assert figures and [figure for figure in figures if figure not in " ".join(records.split())] == []


def test_the_pages_tables_are_made_of_the_published_files() -> None:
    page = (DOCS / "results" / "claims.md").read_text()
    assert told(str(DOCS), "small") in (DOCS / "results" / "small.md").read_text()
    made = told(str(DOCS), "small", claims=True)
    for part in made.split("\n\n"):
        if part.startswith("|"):
            assert part in page


def _row(**cells: Any) -> dict[str, Any]:
    return {**dict.fromkeys(SCHEMA.names), "experiment": "table2", "scale": "small", "world": "w", **cells}


ROWS = [
    _row(kind="setting", arm="rho", seed=0, state="complete"),
    _row(kind="setting", arm="loss", seed=0, state="diverged: loss is not finite"),
    _row(kind="setting", arm="loss", seed=1, state="complete"),
    _row(kind="comparison", arm="rho", baseline="uniform", metric="final accuracy (mean of the last 5 evaluations)",
         seeds=[0, 1], values=[0.9, 0.8], middle=0.85, differences=[0.1, 0.0], difference=0.05, low=-0.01, high=0.11),
    _row(kind="comparison", arm="rho", baseline="uniform", metric="times fewer steps to the best of the baseline's 9",
         seeds=[0, 1], values=[2.0, None], middle=None),
    _row(kind="comparison", arm="loss", metric="final accuracy (mean of the last 5 evaluations)", seeds=[0],
         values=[0.5], middle=0.5),
    _row(kind="claim", arm="rho", baseline="uniform", metric="final accuracy", claim="it is ahead", paper="91 %",
         state="undecided: the interval holds 0"),
    _row(kind="claim", arm="rho", baseline="uniform", metric="times fewer", claim="it is sooner",
         paper="not in the paper", state="other direction: none"),
    _row(kind="claim", arm="svp", baseline="uniform", metric="final accuracy", claim="never run", paper="55 %",
         state="not measured"),
]  # fmt: skip


def test_claims_show_the_figure_they_are_judged_by_and_ours_stand_apart() -> None:
    assert claim_tables(ROWS) == [
        "## The paper's claims: 0 of 1 in the same direction",
        "| claim | paper | ours | direction | from |\n| --- | --- | --- | --- | --- |\n"
        "| it is ahead | 91 % | 85.0 %, +5.0 (-1.0 to +11.0) against uniform | undecided: the interval holds 0 "
        "| table2, w: rho |",
        "## Claims of our own: 0 of 1 in the same direction",
        "| claim | ours | direction | from |\n| --- | --- | --- | --- |\n"
        "| it is sooner | NR (2.00 NR) | other direction: none | table2, w: rho |",
    ]


def test_arms_stand_with_every_seed_and_with_why_one_has_none(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), tmp_path / "results" / "table2-small.parquet")
    assert told(str(tmp_path), "small").split("\n\n")[-1] == table(
        ["arm", "final accuracy", "IL model's accuracy on the test set", "times fewer steps"],
        [["rho", "85.0 %; +5.0 (-1.0 to +11.0)", "", "NR (2.00 NR)"],
         ["loss (diverged: loss is not finite)", "50.0 %", "", ""]])  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "says"),
    [(["--only", "tabel2"], "did you mean 'table2'"), (["--scale", "full"], "no results of scale full in")],
)
def test_what_is_not_there_is_one_sentence(asked: list[str], says: str, tmp_path: Path) -> None:
    failed = CliRunner().invoke(main, [*asked, "--out", str(tmp_path)])
    assert failed.exit_code == 2 and says in failed.output and "Traceback" not in failed.output


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", b"other"])
def test_a_file_that_holds_no_results_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "table2-small.parquet"
    path.write_bytes(content)
    if content == b"other":
        pq.write_table(pa.table({"kind": ["claim"]}), path)
    failed = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert failed.exit_code == 2 and f"{path}: no results file" in failed.output and "Traceback" not in failed.output
