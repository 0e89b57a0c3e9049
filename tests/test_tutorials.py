"""The tutorials of docs/ run as they stand: each block in its turn, in a folder that holds nothing else.

A block of Python is a file, named by its first line; a block of commands is typed. They are marked so:
<!-- run by tests/test_tutorials.py -->
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rhostream

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"<!-- run by tests/test_tutorials\.py -->\n```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECONDS = 600


def follow(page: str, folder: Path) -> None:
    """Do what a page says, block after block, with the installed commands."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(blocks) >= 5
    for language, text in blocks:
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, f"{page}: the first line of a file names it"
            (folder / name[1]).write_text(text, encoding="utf-8")
            continue
        for line in text.replace("\\\n", " ").splitlines():
            done = subprocess.run(
                [str(binaries / word) if n == 0 else word for n, word in enumerate(shlex.split(line))],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS,
            )  # fmt: skip
            assert done.returncode == 0, f"{page}: {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def ask(folder: Path, run: str, question: str) -> Any:
    with rhostream.open_ledger(str(folder / "runs" / run)) as ledger:
        return next(iter(ledger.sql(question).to_pylist()[0].values()))


LAST = "SELECT arg_max(test_accuracy, step) FROM steps WHERE test_accuracy IS NOT NULL"
WRONG = "SELECT avg(is_noisy::int) FROM selections JOIN samples USING (shard, ordinal) WHERE kept"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_of_text_is_followed_word_for_word(tmp_path: Path) -> None:
    follow("tutorial-text.md", tmp_path)
    best = ask(tmp_path, "uniform", "SELECT max(test_accuracy) FROM steps")
    reached = ask(tmp_path, "rho", f"SELECT min(step) FROM steps WHERE test_accuracy >= {best}")
    assert reached < ask(tmp_path, "uniform", "SELECT max(step) FROM steps") / 2
    assert ask(tmp_path, "rho", WRONG) < 0.25 < ask(tmp_path, "uniform", WRONG)
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_of_pairs_is_followed_word_for_word(tmp_path: Path) -> None:
    follow("tutorial-pairs.md", tmp_path)
    uniform, chosen, rho = (ask(tmp_path, run, LAST) for run in ("uniform", "filter", "rho"))
    assert uniform < rho and uniform < chosen
    assert ask(tmp_path, "filter", WRONG) < 0.1 and ask(tmp_path, "rho", WRONG) < 0.2 < ask(tmp_path, "uniform", WRONG)
    assert (tmp_path / "report.html").stat().st_size > 10_000
