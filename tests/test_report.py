"""What people read: answers as text, targets as the paper counts them, an honest page that can't be turned."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhostream.audit.account import paid_after
from rhostream.audit.metrics import best, smooth, speedup, steps_to_reach
from rhostream.audit.questions import run_question
from rhostream.audit.render import escape, printable, render
from rhostream.audit.report import write_report
from rhostream.audit.views import open_ledger
from rhostream.errors import MissingExtraError, UnknownNameError, UsageError
from rhostream.samples.image import ImageKind
from tests.support.audit_fixtures import HOSTILE, N_B, World, make_rows, make_run, make_world

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def log(made: World) -> Rows:
    return make_rows(made, 40)


@pytest.fixture(scope="module")
def run(made: World, log: Rows) -> str:
    return make_run(made, str(made.root / "runs" / "rho"), log)


@pytest.fixture(scope="module")
def baselines(made: World) -> list[str]:
    rows = make_rows(made, 80, rule="uniform", seed=1)
    runs, settings = made.root / "runs", {"rule": "uniform", "eval_every": 4}
    return [
        make_run(made, str(runs / "uniform"), rows, accuracy=slower(5), **settings),
        make_run(made, str(runs / "everything"), rows, accuracy=slower(4), n_b=N_B, **settings),
    ]


@pytest.fixture(scope="module")
def page(run: str, baselines: list[str], made: World) -> str:
    return Path(write_report(run, str(made.root / "report.html"), against=baselines)).read_text("utf-8")


def slower(times: float) -> Callable[[int], float]:
    """The accuracy of the fixtures' run, that many times slower."""
    return lambda step: 1 - 0.9 / (step / times + 2)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def galleries_of(log: Rows) -> list[int]:
    """How many pictures each gallery has, by its heading's rule, in plain Python."""
    last = max(row["step"] for row in log if row["step"] is not None)
    il = {(row["shard"], row["ordinal"]): row["il"] for row in log if row["il"] is not None}
    cut, below = float(np.quantile(list(il.values()), 0.9)), [row for row in log if row["reason"] == "below"]
    chosen = (
        [row for row in log if row["kept"] and row["step"] <= last / 10],
        [row for row in below if row["il"] > cut],
        [row for row in below if row["step"] >= 0.75 * last and row["loss"] < -math.log(0.9)],
    )
    return [min(12, len({(row["shard"], row["ordinal"]) for row in rows})) for rows in chosen]


def copied(run: str, to: Path, **changes: Any) -> str:
    folder = Path(shutil.copytree(run, to))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **changes}))
    return str(folder)


# -- text that turns on its reader -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(run: str) -> pa.Table:
    with open_ledger(run) as ledger:
        return ledger.sql(
            "SELECT key, ordinal, il FROM il WHERE shard = 'web/train-000.tar' AND ordinal < $n ORDER BY ordinal",
            {"n": len(HOSTILE)},
        )


def test_hostile_keys_are_inert_in_the_terminal(keys: pa.Table) -> None:
    text = render(keys, "table")
    lines = text.split("\n")
    assert len(lines) == 2 + len(HOSTILE) + 1 and all(line.isprintable() for line in lines)
    assert r"nul\x00esc\x1b[31mred\x07" in text and r"two\nlines\r\ttab" in text and r"left\u202eright" in text
    assert "[/red]" in text and "snow😀é" in text


def test_hostile_keys_are_inert_in_csv(keys: pa.Table) -> None:
    lines = render(keys, "csv").split("\n")
    rows = list(csv.reader(io.StringIO("\n".join(lines))))
    assert len(lines) == len(rows) == 1 + len(HOSTILE) and all(line.isprintable() for line in lines)
    assert rows[3][0] == "'" + HOSTILE[2] and rows[4][0] == "'" + HOSTILE[3]
    assert not any(row[0].startswith(("=", "+", "-", "@")) for row in rows)
    assert float(rows[1][2]) == keys["il"][0].as_py()


def test_json_is_exact_even_for_hostile_keys(keys: pa.Table) -> None:
    text = render(keys, "json")
    assert [row["key"] for row in json.loads(text)] == HOSTILE
    assert all(line.isascii() and line.isprintable() for line in text.split("\n"))
    assert [row["il"] for row in json.loads(text)] == keys["il"].to_pylist()


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_whatever_a_key_is_json_gives_it_back_and_the_others_keep_it_on_its_line(texts: list[str]) -> None:
    table = pa.table({"key": pa.array(texts, pa.string())})
    assert [row["key"] for row in json.loads(render(table, "json"))] == texts
    for style, around in (("table", 3), ("csv", 1)):
        lines = render(table, style).split("\n")
        assert len(lines) == len(texts) + around and all(line.isprintable() for line in lines)


def test_numbers_nan_nothing_lists_and_twin_columns_are_rendered(run: str) -> None:
    with open_ledger(run) as ledger:
        table = ledger.sql(
            "SELECT 'nan'::FLOAT AS a, 1 AS a, NULL AS n, -1.5 AS d, sum(2) AS s, [1, NULL] AS l, "
            "true AS b, 'infinity'::DOUBLE AS i, date '2026-01-02' AS day, '-1' AS t"
        )
    (row,) = json.loads(render(table, "json"))
    assert row == {
        "a": "NaN",
        "a_1": 1,
        "n": None,
        "d": -1.5,
        "s": 2,
        "l": [1, None],
        "b": True,
        "i": "Infinity",
        "day": "2026-01-02",
        "t": "-1",
    }
    assert render(table, "csv").split("\n")[1] == 'nan,1,,-1.5,2,"[1, null]",true,inf,2026-01-02,\'-1'
    shown = render(table, "table").split("\n")[2].split()
    assert shown == ["NaN", "1", "-1.5", "2", "[1,", "null]", "true", "inf", "2026-01-02", "-1"]
    with pytest.raises(UnknownNameError, match="did you mean 'json'"):
        render(table, "jsn")


def test_a_cell_is_cut_and_an_empty_answer_is_still_an_answer() -> None:
    assert printable("x" * 500).endswith("…") and len(printable("x" * 500)) == 80
    assert escape("\ud800") == "\\ud800"
    empty = pa.table({"key": pa.array([], pa.string())})
    assert [render(empty, style) for style in ("table", "json", "csv")] == ["key\n---\n(0 rows)", "[]", "key"]


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_smoothing_never_looks_ahead() -> None:
    assert smooth([1, 2, 3, 4], 2).tolist() == [1, 1.5, 2.5, 3.5]
    assert smooth([5.0, 1.0], 5).tolist() == [5.0, 3.0] and smooth([]).tolist() == []


def test_a_target_counts_when_a_full_window_reaches_it() -> None:
    steps, accuracy = [10, 20, 30, 40], [0.9, 0.1, 0.5, 0.6]
    assert steps_to_reach(steps, accuracy, 0.5, 2) == 20  # (0.9 + 0.1) / 2, not the lucky first one
    assert steps_to_reach(steps, accuracy, 0.52, 2) == 40
    assert steps_to_reach(steps, accuracy, 0.7, 2) is None and steps_to_reach([], [], 0.1) is None
    assert best(accuracy, 2) == pytest.approx(0.55) and math.isnan(best([]))


def test_a_speed_up_that_was_not_reached_is_none_and_never_a_number() -> None:
    uniform = ([10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4])
    assert speedup(uniform, ([5, 10, 15], [0.2, 0.4, 0.5]), 1) == 40 / 10
    assert speedup(uniform, ([5, 10, 15], [0.2, 0.3, 0.35]), 1) is None
    assert speedup(([], []), uniform, 1) is None and speedup(uniform, ([], []), 1) is None


def test_a_nan_evaluation_reaches_nothing_and_harms_no_other() -> None:
    accuracy = [0.1, math.nan, 0.3, 0.5]
    assert best(accuracy, 1) == 0.5 and steps_to_reach([1, 2, 3, 4], accuracy, 0.3, 1) == 3
    assert steps_to_reach([1, 2, 3, 4], accuracy, 0.4, 2) == 4


def test_the_irreducible_loss_is_paid_by_whole_runs_or_never() -> None:
    assert [paid_after(100, [30, 50]), paid_after(100, [200])] == [3, 1]
    assert paid_after(100, [-1]) is paid_after(100, []) is paid_after(100, [math.nan]) is None


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_static_and_loads_nothing(page: str) -> None:
    assert (
        'http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\""
    ) in page
    lower = re.sub(r'"data:[^"]*"', '"data"', page.lower())
    assert not re.search(r"<script|javascript:|@import|url\(|<iframe|https?:", lower)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    drawn = [base64.b64decode(f).decode() for f in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]
    figures = re.findall(r'<figure><img alt="[^"]{40,}" src="data:image/svg', page)
    assert len(figures) == 7 and len(drawn) == 7 + 3 and not any("<script" in f for f in drawn)  # a swatch a setting


def test_hostile_keys_are_inert_on_the_page(made: World, log: Rows, tmp_path: Path) -> None:
    rows = [{**row, "key": HOSTILE[row["ordinal"] % len(HOSTILE)]} for row in log]
    page = Path(write_report(make_run(made, str(tmp_path / "run"), rows), str(tmp_path / "x.html"))).read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script" not in page
    assert "left\\u202eright" in page and "two\\nlines\\r\\ttab" in page and "snow😀é" in page
    assert "{{ 7 * 7 }} {% x %}" in page and not re.search("[\0\x07\x1b\u202e]", page)


def test_the_page_says_what_the_runs_say(page: str, run: str, log: Rows) -> None:
    text = text_of(page)
    assert "Selection paid: 4.4 times fewer steps" in text and "18 steps instead of 80" in text
    assert "within 80 steps" in text and "break-even in forwards is 2.33" in text  # (12 + 9) / 9
    scored, kept = sum(r["loss"] is not None for r in log), sum(r["kept"] for r in log)
    assert f"{scored + 3 * kept:,} " in text and "cost 119 forward units" in text and "paid after 1 run." in text
    assert "Training on everything reaches" in text and "right for 75.0 %" in text
    for reason in ("kept", "below", "quarantined", "nonfinite", "tail"):
        assert f" {reason} {100 * sum(r['reason'] == reason for r in log) / len(log):.1f} %" in text
    with open_ledger(run) as ledger:
        noisy, _ = run_question(ledger, "noisy_share").to_pylist()
        classes = run_question(ledger, "kept_by_class").to_pylist()
    share = 100 * noisy["noisy"] / (noisy["rows"] - noisy["unknown"])
    assert f"group wrong labels among kept among skipped rho {share:.1f} % " in text
    for row in classes:
        assert f" {row['label']} {row['planned']} {100 * row['kept'] / row['planned']:.1f} %" in text
    assert "Worst class at the last evaluation: rho 48.9 % (class 1)" in text


def test_pictures_are_encoded_again_and_never_copied(page: str, made: World, log: Rows) -> None:
    pictures = [base64.b64decode(p) for p in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    raw = b"".join((made.root / "shards" / name.split("/")[1]).read_bytes() for name in made.shards)
    assert len(pictures) == sum(galleries_of(log)) > 24 and "no picture" not in page
    assert not any(picture in raw for picture in pictures)


@pytest.mark.parametrize("data", [b"", b"<svg onload='x'/>", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a" + bytes(30)])
def test_bytes_that_are_no_image_give_no_picture(data: bytes) -> None:
    assert ImageKind().preview({"image": data}, {}).image is None


def test_pictures_that_can_not_be_read_leave_a_place_and_a_reason(
    run: str, made: World, log: Rows, tmp_path: Path
) -> None:
    moved = copied(run, tmp_path / "moved", shard_urls=[f"/nowhere/{n}" for n in made.shards], roots={})
    lost = Path(write_report(moved, str(tmp_path / "lost.html"))).read_text()
    assert lost.count(">no picture<") == sum(galleries_of(log)) and "--root NAME=URL" in lost
    found = write_report(moved, str(tmp_path / "found.html"), roots={"web": str(made.root / "shards")})
    assert "no picture" not in Path(found).read_text()


def test_a_shard_that_changed_gives_no_picture_of_something_else(run: str, made: World, tmp_path: Path) -> None:
    for name in made.shards:
        (tmp_path / name.split("/")[1]).write_bytes(b"\x89PNG" * 50_000)
    page = Path(write_report(run, str(tmp_path / "x.html"), roots={"web": str(tmp_path)})).read_text()
    assert "changed after it was indexed" in page and "data:image/png" not in page


def test_a_table_that_is_gone_is_said_and_the_rest_is_shown(run: str, tmp_path: Path) -> None:
    alone = copied(run, tmp_path / "alone", il=str(tmp_path / "gone"))
    page = Path(write_report(alone, str(tmp_path / "x.html"))).read_text()
    assert "only the IL table knows" in page and "is no IL table" in page and "Worst class" in page


def test_the_same_runs_give_the_same_page(run: str, baselines: list[str], page: str, tmp_path: Path) -> None:
    assert Path(write_report([run], str(tmp_path / "again.html"), against=baselines)).read_text("utf-8") == page


@pytest.mark.parametrize(
    ("accuracy", "title", "tone"),
    [
        (lambda step: 0.5, "Selection did not pay: uniform's best was not reached", "bad"),
        (slower(2.4), "but selection did not pay in arithmetic", "bad"),
        (lambda step: math.nan, "Nothing to compare with", "none"),
    ],
)
def test_the_page_says_plainly_when_it_did_not_pay(
    made: World, log: Rows, baselines: list[str], tmp_path: Path, accuracy: Any, title: str, tone: str
) -> None:
    poor = make_run(made, str(tmp_path / "poor"), log, accuracy=accuracy)
    page = Path(write_report(poor, str(tmp_path / "poor.html"), against=baselines)).read_text()
    assert title in page.replace("&#39;", "'") and page.count(f'class="verdict {tone}"') == 1
    assert "Selection paid" not in page
    if "not reached" in title:  # a target that wasn't reached is never given a number
        assert "not reached" in page and not re.search(r"\d x|\d times fewer", page.split("</section>")[0])


@pytest.mark.slow
def test_seeds_of_one_setting_are_one_group(
    made: World, run: str, log: Rows, baselines: list[str], tmp_path: Path
) -> None:
    twin = make_run(made, str(tmp_path / "twin"), log, seed=1, accuracy=slower(1.2))
    page = Path(write_report([run, twin], str(tmp_path / "two.html"), against=baselines)).read_text()
    assert "over 2 runs" in page and page.count('class="verdict ') == 1
    settings = {**json.loads(Path(twin, "run.json").read_text())["settings"], "loss_cap": True}
    capped = copied(twin, tmp_path / "capped", settings=settings)
    page = Path(write_report([run, capped], str(tmp_path / "three.html"), against=baselines)).read_text()
    assert page.count('class="verdict ') == 2 and "rho with loss cap" in page
    cascade = copied(twin, tmp_path / "cascade", settings={**settings, "band": "20%:90%", "shortlist": "proxy:4"})
    page = Path(write_report([capped, cascade], str(tmp_path / "four.html"), against=baselines)).read_text()
    assert page.count('class="verdict ') == 2 and "rho, band 20%:90%, shortlist proxy:4 with loss cap" in page


def test_a_report_without_baselines_tests_or_an_end_says_so(made: World, log: Rows, tmp_path: Path) -> None:
    alone = make_run(made, str(tmp_path / "alone"), log, eval_every=10**6, complete=False)
    page = Path(write_report(alone, str(tmp_path / "alone.html"))).read_text()
    assert "Nothing to compare with" in page and "Not complete: alone (40 of 40 steps)" in page
    assert "No run of this page was evaluated" in page


def test_a_uniform_run_and_an_empty_one_have_pages_too(made: World, baselines: list[str], tmp_path: Path) -> None:
    page = Path(write_report(baselines[0], str(tmp_path / "uniform.html"))).read_text()
    assert "No selection in this run" in page and "no such sample was looked at" in page
    page = Path(write_report(make_run(made, str(tmp_path / "empty"), []), str(tmp_path / "empty.html"))).read_text()
    assert "The log is empty" in page


def test_a_run_that_lacks_every_optional_field_still_has_a_page(run: str, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "<b>old$<i>"))
    (old / "run.json").write_text('{"version": 1}')
    page = Path(write_report(str(old), str(tmp_path / "old.html"))).read_text()
    assert "&lt;b&gt;old$&lt;i&gt;" in page and "<b>old" not in page and "these runs name no IL table" in page


def test_hostile_class_names_models_and_rules_are_text(run: str, baselines: list[str], tmp_path: Path) -> None:
    evil = "<img src=x onerror=1>\n$\\frac{$ 漢字"
    settings = {**json.loads(Path(run, "run.json").read_text())["settings"], "rule": evil, "model": evil}
    bad = copied(run, tmp_path / "bad", settings=settings, class_names=[evil, "", "ok"])
    page = Path(write_report(bad, str(tmp_path / "bad.html"), against=baselines)).read_text()
    assert "<img src=x" not in page and "&lt;img src=x onerror=1&gt;\\n$\\frac{$ 漢字" in page


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_one_clear_sentence(run: str, tmp_path: Path, package: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed: pip install 'rhostream\[report\]'"):
        write_report(run, str(tmp_path / "x.html"))
    assert not (tmp_path / "x.html").exists()


def test_a_report_is_about_runs_and_not_about_tables(made: World, run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give run folders"):
        write_report(str(made.table), str(tmp_path / "x.html"))
    with pytest.raises(UsageError, match="named twice"):
        write_report(run, str(tmp_path / "x.html"), against=[run])
