"""The performance page says what the results say, and can be made from any results."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import accuracy, page, results, reuse
from benchmarks.measure import Figure
from benchmarks.memory import write_table
from rhostream.audit.verify import verify

LOADER = [
    Figure("loader", "pillow, 2 workers", "samples/s over bare decode", (0.80, 0.95, 0.85), 0.9),
    Figure("loader", "pillow, 2 workers", "samples/s over litdata; absent: no wheel", (), 1.0),
    Figure("loader", "pillow, 2 workers", "rhostream", (2900.0, 3000.0, 3100.0), unit="samples/s"),
    Figure("loader", "pillow, 2 workers", "bare decode", (3300.0, 3500.0, 3400.0), unit="samples/s"),
]
UNKNOWN = [Figure("weather", "outside", "degrees | shade", (21.0,), 20.0, unit="C")]
OTHERS = {
    "step": [Figure("step", "mlp", "time over floor", (1.1, 1.2), 1.05, at_least=False)],
    "memory": [Figure("memory", f"{n:,} rows in parts of 2,000", "process, RssAnon", (170.0, 171.0), unit="MiB")
               for n in (1000, 10000)],
    "scaling": [Figure("scaling", case, "rhostream", (900.0, 950.0), unit="samples/s")
                for case in ("n_B 80", "n_B 320", "0 workers", "2 workers", "32 pixels")],
    "accuracy": [Figure("accuracy", f"mlp, {rule}", f"curve, {what}", values, unit=unit) for rule in ("rho", "uniform")
                 for what, values, unit in (("seconds", (5.0, 10.0), "s"), ("accuracy", (0.5, 0.7), ""))],
}  # fmt: skip


def save(folder: Path, name: str, figures: list[Figure]) -> Path:
    return results.save(folder, name, figures, "python -m benchmarks", 0.5)


def test_results_hold_a_row_for_each_value_and_give_back_the_same_figures(tmp_path: Path) -> None:
    path = save(tmp_path, "loader", LOADER)
    assert pq.read_table(path).schema.equals(results.SCHEMA)
    rows = results.newest(tmp_path)
    assert [row["pair"] for row in rows] == [0, 1, 2, None, 0, 1, 2, 0, 1, 2]
    assert results.figures_of(rows) == LOADER


def test_running_a_benchmark_again_replaces_its_rows_of_the_day_and_no_others(tmp_path: Path) -> None:
    save(tmp_path, "loader", LOADER)
    save(tmp_path, "weather", UNKNOWN)
    path = save(tmp_path, "loader", LOADER[:1])
    assert list(tmp_path.iterdir()) == [path]
    assert [row["benchmark"] for row in results.newest(tmp_path)] == ["weather"] + 3 * ["loader"]


def test_the_page_takes_each_benchmark_from_its_newest_file(tmp_path: Path) -> None:
    path = save(tmp_path, "loader", LOADER)
    save(tmp_path, "weather", UNKNOWN)
    path.rename(tmp_path / "2001-01-01-older.parquet")
    save(tmp_path, "loader", LOADER[:1])
    rows = results.newest(tmp_path)
    assert {row["benchmark"] for row in rows} == {"loader", "weather"}
    assert results.figures_of([row for row in rows if row["benchmark"] == "loader"]) == LOADER[:1]


def test_the_page_says_what_was_missed_what_is_absent_and_how_it_was_measured(tmp_path: Path) -> None:
    save(tmp_path, "loader", LOADER)
    save(tmp_path, "weather", UNKNOWN)
    text = page.write(tmp_path, tmp_path / "docs").read_text()
    lost = text.partition("## Where we lose")[2].partition("## ")[0]
    assert "pillow, 2 workers, samples/s over bare decode: 0.85, target ≥ 0.9 (0.8 to 0.95 over 3)" in lost
    assert "litdata; absent: no wheel: not measured" in lost
    assert "weather" not in lost
    record = (tmp_path / "docs" / "performance" / "weather.md").read_text()
    assert (
        record.startswith("# Weather\n")
        and "| outside | degrees \\| shade | 21.00 C | 21.00 C | 21.00 C | ≥ 20 | met |" in record
    )
    assert "`python -m benchmarks` on " in record and "load average 0.5" in record
    assert f"| [Weather](performance/weather.md) | {results.newest(tmp_path)[0]['date']} | " in text


def test_every_plot_is_drawn_and_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name, figures in (OTHERS | {"loader": LOADER}).items():
        save(tmp_path, name, figures)
    first, again = (page.write(tmp_path, tmp_path / name).parent for name in ("first", "again"))
    drawn = sorted(os.listdir(first / "figures"))
    assert drawn == ["accuracy.png", "loader.png", "memory.png", "scaling.png", "step.png"]
    pages = {path.stem: path.read_text() for path in (first / "performance").glob("*.md")}
    assert not any("curve, " in text for text in [*pages.values(), (first / "performance.md").read_text()])
    for name in drawn:
        assert f"(../figures/{name})" in pages[Path(name).stem]
        assert (first / "figures" / name).read_bytes() == (again / "figures" / name).read_bytes()


def test_the_page_of_the_repository_is_made_from_its_newest_results() -> None:
    rows = results.newest()
    assert rows, "benchmarks/results has no Parquet file: make bench"
    pages = page.render(rows)
    assert {name: (page.DOCS / name).read_text() for name in pages} == pages, "python -m benchmarks.page"
    assert {f"performance/{path.name}" for path in (page.DOCS / "performance").iterdir()} < set(pages)
    for text in pages.values():
        for plot in re.findall(r"\(\.\./figures/([^)]+)\)", text):
            assert (page.DOCS / "figures" / plot).exists()


def test_a_claim_has_its_figures_or_isnt_made(tmp_path: Path) -> None:
    claimed = page.render(results.newest())["performance.md"].partition("## What is claimed")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\d+\. ", claimed, re.MULTILINE)) == 10 and "{" not in claimed
    step = page.render([row for row in results.newest() if row["benchmark"] == "step"])["performance.md"]
    assert re.findall(r"^1\. .*\((performance/\w+\.md)\)\.\n\n##", step, re.MULTILINE) == ["performance/step.md"]


def test_the_table_that_is_measured_is_valid_to_the_last_law(tmp_path: Path) -> None:
    write_table(tmp_path / "table", 2000, 1000)
    found = verify(str(tmp_path / "table"))
    assert not found["problems"] and len(list((tmp_path / "table").rglob("*.parquet"))) == 2


def test_times_faster_is_times_fewer_steps_over_a_steps_cost_and_both_are_said() -> None:
    figures = accuracy.figures_of(
        "cnn",
        {"uniform": [1200, None], "everything": [1000, 900], "rho": [300, 400]},
        {"uniform": [24.0, 30.0], "everything": [20.0, 18.0], "rho": [18.0, 24.0]},
        {"uniform": [0.02, 0.02], "everything": [0.02, 0.02], "rho": [0.06, 0.06]},
        {"uniform": [25.0, 31.0], "everything": [21.0, 19.0], "rho": [19.0, 25.0]},
        20.0,
    )
    told = {f.what: f.values for f in figures if f.case == "cnn, rho"}
    assert told["times fewer steps than uniform"] == (4.0, 0.0)
    assert told["a step over uniform's"] == pytest.approx((3.0, 3.0))
    assert told["times faster than uniform"][0] == pytest.approx(4.0 / 3.0)
    assert told["the same, of the run itself"] == (19.0, 25.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp-512", "transformer", "small-cnn-lenet"])
def test_a_backward_cut_to_the_kept_rows_gives_the_gradient_of_a_second_forward(name: str) -> None:
    model, x, label = reuse.world(name, 24)
    kept = torch.tensor([1, 4, 5, 11, 20])
    reuse.today(model, x, label, kept)
    expected = [p.grad.clone() for p in model.parameters()]
    for step in (reuse.whole, lambda _, *given: reuse.Cut(model, x).step(*given)):
        step(model, x, label, kept)
        for mine, theirs in zip(expected, model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.grad, rtol=1e-4, atol=1e-6)
