"""A report's words and figures: each follows from the numbers beside it, and each command on it can be pasted."""

from __future__ import annotations

import base64
import html
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhostream.audit.compare import UNIFORM, comparisons
from rhostream.audit.facts import gather_all
from rhostream.audit.gallery import galleries
from rhostream.audit.metrics import common_window
from rhostream.audit.report import write_report
from rhostream.audit.tabulate import costs
from rhostream.audit.verdict import final_accuracy, ordinal, verdict
from rhostream.audit.views import open_ledger
from rhostream.inert import shell_words, shortened
from tests.support.audit_fixtures import N_B, World, make_rows, make_run, make_world
from tests.support.process import run as rhostream

ODD = "it's $HOME; two words"  # a folder as people name them
BILL = {"fit_samples": 8000, "scored_samples": 58, "macs": 10}


def text_of(page: str) -> str:
    """The page's text: without marks, in one line."""
    without = re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(without))


def commands_of(page: str) -> list[str]:
    return [html.unescape(c) for c in re.findall(r"<code>(rhostream .*?)</code>", page)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("words") / ODD)


@pytest.fixture(scope="module")
def log(made: World) -> list[dict[str, Any]]:
    return make_rows(made, 24)


@pytest.fixture(scope="module")
def baselines(made: World) -> list[str]:
    rows, where = make_rows(made, 24, rule="uniform", seed=1), made.root / "runs"
    steep = {"accuracy": lambda step: 0.5 + 0.01 * step}
    return [
        make_run(made, str(where / "uniform"), rows, rule="uniform", **steep),
        make_run(made, str(where / "everything"), rows, rule="uniform", n_b=N_B, **steep),
    ]


@pytest.fixture(scope="module")
def seeds(made: World, log: list[dict[str, Any]]) -> list[str]:
    """Two seeds that end apart, with an irreducible loss that one run does not pay."""
    runs = made.root / "runs"
    return [
        make_run(made, str(runs / f"rho {seed}"), log, seed=seed, bill=BILL,
                 accuracy=lambda step, top=top: min(top, 0.5 + 0.04 * step))
        for seed, top in enumerate((0.8, 0.9))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(made: World, seeds: list[str], baselines: list[str]) -> str:
    """Made on the command line, of several runs and baselines."""
    out = made.root / "page.html"
    said, _ = rhostream("report", *seeds, "--against", *baselines, "-o", out)
    assert said.strip() == str(out)
    return out.read_text()


def test_the_command_line_takes_several_runs(page: str) -> None:
    text = text_of(page)
    assert "rho 0 and 1 more run" in text and "over 2 runs" in text and page.count('class="verdict ') == 1


def test_every_command_on_a_page_does_what_it_says_when_it_is_pasted(
    page: str, made: World, seeds: list[str], baselines: list[str], tmp_path: Path
) -> None:
    own, _ = rhostream("report", made.table, "-o", tmp_path / "il.html")
    commands = commands_of(page) + commands_of(Path(own.strip()).read_text())
    verbs = [shlex.split(c)[1] for c in commands]
    assert {"view", "export"} < set(verbs)
    assert all(seeds[0] in shlex.split(c) for c, verb in zip(commands, verbs, strict=True) if verb != "sql")
    commands = [c for c, verb in zip(commands, verbs, strict=True) if verb == "sql" and "@" not in c]
    assert [shlex.split(c)[2:-1] for c in commands] == [[*seeds, *baselines], [str(made.table)]]
    answers = [rhostream(*shlex.split(command)[1:])[0] for command in commands]
    assert all(name in answers[0] for name in ("rho 0", "rho 1", "uniform", "everything"))
    assert answers[1].startswith("label  ")


def test_a_shell_takes_a_command_apart_into_its_words_whatever_they_are() -> None:
    words = ["a", "it's", "$HOME `x`", "two\nlines\tand\\", "\x1b[31m", "é😀", os.fsdecode(b"\xff"), "\u202e"]
    command = shell_words(sys.executable, "-c", "import os, sys; print(list(map(os.fsencode, sys.argv[1:])))", *words)
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(list(map(os.fsencode, words)))


def test_selection_has_paid_only_with_everything_on_the_first_bill(page: str) -> None:
    text = text_of(page)
    nth = re.search(r"paid after (\d+) runs\.", text)
    assert nth and int(nth[1]) > 1
    assert f"times fewer steps; with the irreducible loss it pays from the {ordinal(int(nth[1]))} run on" in text
    assert page.count('class="verdict mixed"') == 1 and "Selection paid" not in text


def test_the_nth_run_is_written_as_people_do() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112, 1001)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th", "1,001st",
    ]  # fmt: skip


def test_prose_and_table_name_one_final_accuracy_the_mean_of_the_runs(page: str) -> None:
    text = text_of(page)
    assert "the target ended at 85.0 % of the test set (mean of 2 evaluations; mean of 2 runs)" in text
    assert "test accuracy at the end (mean of 2 evaluations) 85.0 % (95 % interval 21.5 to 100.0 %, 2 seeds)" in text
    assert " rho 2 24 85.0 % 85.0 % " in text


def test_what_was_not_reached_is_measured_as_what_is_called_final(
    made: World, log: list[dict[str, Any]], baselines: list[str], tmp_path: Path
) -> None:
    # Its last evaluation alone lies above uniform's best, the mean of its last two below it.
    late = make_run(made, str(tmp_path / "late"), log, accuracy=lambda step: 0.8 if step > 22 else 0.6)
    run, uniform = gather_all({"late": late, "uniform": baselines[0]}, None).values()
    compared = comparisons([run], [uniform], UNIFORM, 2)
    text = verdict([run], compared, 2).text
    assert "reaches 72.0 % test accuracy (mean of 2 evaluations" in text
    assert "at best 70.0 % by that measure (the last evaluation alone: 80.0 %)" in text
    assert f"{final_accuracy([run], 2):.6f}" == "0.700000"
    assert costs({"rho": [run]}, 2)["rows"][0][3:5] == ["70.0 %", "80.0 %"]


def test_a_window_that_one_run_can_not_fill_is_used_for_none() -> None:
    assert [common_window(counts, 5) for counts in ([5, 9], [4, 9], [0, 5], [])] == [5, 1, 5, 5]


LONG = "beginning-" + 300 * "x" + "-end"


@pytest.fixture(scope="module")
def few(made: World, log: list[dict[str, Any]], baselines: list[str]) -> str:
    """A run of one evaluation, with long keys, whose shards lie deep and nowhere."""
    deep = "/nowhere/" + 60 * "deep/"
    run = make_run(made, str(made.root / "few"), [{**row, "key": LONG} for row in log], eval_every=24,
                   accuracy=lambda step: 0.9, shard_urls=[deep + name for name in made.shards], roots={})  # fmt: skip
    return Path(write_report(run, str(made.root / "few.html"), against=baselines)).read_text()


def test_below_a_full_window_the_lines_go_through_the_evaluations_and_the_page_says_so(few: str) -> None:
    text = text_of(few)
    assert "that takes 2 and few has 1." in text and "Bests are single evaluations" in text
    assert "mean of 2 evaluations" not in text and "reaches 73.0 % test accuracy (single evaluations" in text
    (figure,) = figures(few, "Test accuracy over gradient steps")
    assert figure.count("<use ") > 12 + 12 + 1  # a marker each: two baselines, and the run's only evaluation


def test_a_sentence_is_never_cut_and_a_long_name_is_whole_in_its_title(few: str) -> None:
    assert f'title="{LONG}">{shortened(LONG, 200)}<' in few
    assert re.search(r"could not be read: /nowhere/\S+ does not exist; say where .* --root NAME=URL\.", text_of(few))


def figures(page: str, alt: str) -> list[str]:
    found = re.findall(rf'<img alt="{alt}[^"]*" src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [base64.b64decode(data).decode() for data in found]


def test_groups_differ_in_colour_and_dash_alike_in_every_figure_and_legends_lie_below(page: str) -> None:
    looks = []
    for over in ("gradient steps", "forward units"):
        (figure,) = figures(page, f"Test accuracy over {over}")
        legend = figure[figure.index('id="legend_1"') :]
        strokes = re.findall(r'id="line2d_\d+">\s*<path d="[^"]+" [^>]*style="([^"]+)"', legend)
        looks.append(
            [(re.search("stroke: (#[0-9a-f]+)", s), re.search("stroke-dasharray: ([^;]+)", s)) for s in strokes]
        )
        axis = float(re.findall(r'id="patch_2">\s*<path d="M \S+ (\S+)', figure)[0])  # the axes' lower edge
        tops = [float(y) for y in re.findall(r'<path d="M \S+ (\S+) L|<path d="M \S+ (\S+) ', legend)[0] if y]
        assert min(tops) > axis
    told = [[(c and c[1], d and d[1]) for c, d in one] for one in looks]
    assert told[0] == told[1] and len(told[0]) == 4  # rho, uniform, everything and the target
    assert len({c for c, _ in told[0]}) == len({d for _, d in told[0]}) == 4


def test_nothing_is_called_noise_or_learnt_that_is_not_and_the_heading_says_the_rule(
    made: World, log: list[dict[str, Any]], seeds: list[str], tmp_path: Path
) -> None:
    il = sorted({(r["shard"], r["ordinal"]): r["il"] for r in log if r["il"] is not None}.values())
    cut = float(np.quantile(il, 0.9))
    share = 100 * sum(value > cut for value in il) / len(il)
    with open_ledger(seeds[0]) as ledger:
        _, noise, learnt = galleries(ledger)[0]
    assert f"il above {cut:.2f} nats, the highest {share:.1f} % of the samples looked at" in noise.says
    assert noise.pictures and min(p.row["il"] for p in noise.pictures) > cut
    assert "below 0.11 nats" in learnt.says and all(p.row["loss"] < 0.106 for p in learnt.pictures)
    # A clean table on which a model has not learnt: its highest il is no noise, its lowest loss not learnt.
    rows = [{**r, "il": None if r["il"] is None else min(r["il"], 0.18), "loss": r["loss"] and r["loss"] + 0.45}
            for r in log]  # fmt: skip
    with open_ledger(make_run(made, str(tmp_path / "clean"), rows)) as ledger:
        _, noise, learnt = galleries(ledger)[0]
    assert noise.pictures == learnt.pictures == [] and "il above 0.69 nats" in noise.says
    assert noise.empty == "None: the highest il of what was skipped is 0.18 nats."
    assert re.fullmatch(r"None: the lowest loss of what was skipped then is 0\.[4-9]\d nats\.", learnt.empty)


def test_shortening_keeps_both_ends_and_the_length() -> None:
    assert shortened("abcdefghij", 5) == "ab…ij" and shortened("abcdefghij", 6) == "abc…ij"
    assert shortened("abc", 3) == "abc" and len(shortened("x" * 99, 40)) == 40
