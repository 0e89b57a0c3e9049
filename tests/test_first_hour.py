"""README.md and docs/tutorial-images.md, word for word: in a bare environment, on a folder of JPEGs.

Commands are read from the pages and given to `sh` without a change; what the tutorial shows of their output is compared
with what they print, numbers aside. `rhostream view`, which waits for Ctrl-C, is started, asked for its page and ended.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.environments import ROOT
from tests.support.photo_folder import photo_folder

MARK = "<!-- run by tests/test_first_hour.py -->"
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial-images.md"
ACTIVATE = ". .venv/bin/activate\n"
NO_INDEX = re.compile(r"No matching distribution|Could not find a version|Temporary failure|Connection", re.IGNORECASE)
WAITS = "rhostream view"
AS_SHOWN = 0.75  # of the lines of an output that the tutorial shows: measured seconds decide how samples are judged
pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks of a page that this file runs or compares."""
    found = re.findall(rf"^{re.escape(MARK)}\n```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) >= 4, f"{page.name} has {len(found)} blocks marked {MARK}"
    return found


@dataclass(frozen=True)
class Clone:
    """A checkout's files in a folder of their own, and an environment of a person who has nothing of ours."""

    folder: Path
    variables: dict[str, str]

    def shell(self, text: str, *, activated: bool = True) -> str:
        """What `sh` prints of the commands. Fails where one of them does."""
        script = self.folder / ".commands.sh"
        script.write_text((ACTIVATE if activated else "") + text)
        done = subprocess.run(
            ["sh", "-e", str(script)], cwd=self.folder, env=self.variables, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode and not activated and NO_INDEX.search(done.stdout):
            pytest.skip(f"the packages can't be had here: {done.stdout.strip().splitlines()[-1]}")
        assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}"
        return done.stdout

    def page_of(self, command: str) -> str:
        """The page that a command serves, which prints where and waits to be interrupted."""
        words = shlex.split(command)
        served = subprocess.Popen(
            [str(self.folder / ".venv" / "bin" / words[0]), *words[1:]], cwd=self.folder, env=self.variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert served.stdout is not None
            printed = list[str]()
            for line in served.stdout:
                printed.append(line)
                if url := re.search(r"http://(127\.0\.0\.1|localhost)\S*", line):
                    with urllib.request.urlopen(url[0], timeout=60) as answer:
                        return str(answer.read().decode())
            raise AssertionError(f"{command} named no page: {''.join(printed)}")
        finally:
            served.send_signal(signal.SIGINT)
            served.wait(60)
            if served.stdout is not None:
                served.stdout.close()
            assert served.returncode in (0, 130)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """As README's first block makes it."""
    folder = tmp_path_factory.mktemp("first hour") / "rhostream"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, check=True,
                            stdout=subprocess.PIPE).stdout  # fmt: skip
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    kept = ("HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "SSL_CERT_FILE")
    variables = {name: value for name, value in os.environ.items() if name in kept or name.startswith(("PIP_", "XDG_"))}
    variables |= {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin", "BROWSER": "true"}
    made = Clone(folder, variables)
    language, install = blocks(README)[0]
    assert language == "sh" and "pip install" in install
    made.shell(install, activated=False)
    assert "\npytest " not in made.shell("pip list"), "the environment isn't bare"
    yield made
    shutil.rmtree(folder)


def follow(clone: Clone, page: Path, skip: int) -> list[tuple[str, str]]:
    """Run the commands of a page, but for the first blocks. Returns (shown, printed) of each output that it shows."""
    compared, printed = list[tuple[str, str]](), ""
    for language, text in blocks(page)[skip:]:
        if language == "text":
            compared.append((text, printed))
            continue
        waiting = [line for line in text.splitlines() if line.startswith(WAITS)]
        printed = clone.shell("\n".join(line for line in text.splitlines() if line not in waiting) + "\n")
        for line in waiting:
            assert "<html" in (served := clone.page_of(line).lower()) and "rhostream" in served
    return compared


def plain(line: str) -> str:
    """A line without its numbers, what was measured, and blanks."""
    return re.sub(
        r"[\s│┌┐└┘├┤┬┴┼─]+", " ", re.sub(r"[0-9][0-9.,]*|\b[kMGT]?B\b|about|min|\bs\b|[-+]", "", line)
    ).strip()


def test_the_readme_leads_from_a_folder_of_images_to_a_page_of_two_runs(
    clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    photo_folder(clone.folder / "photos", count=900, wrong=0.2, seed=3)
    follow(clone, README, 1)
    report = (clone.folder / "report.html").read_text()
    assert "uniform" in report and "runs/rho" in report
    with capsys.disabled():
        print(f"README word for word: {time.monotonic() - started:.0f} s")


def test_the_tutorial_of_images_prints_what_it_shows(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    for shown, printed in follow(clone, TUTORIAL, 0):
        there = {plain(line) for line in printed.splitlines()}
        lines = [line for line in shown.splitlines() if plain(line) and line.strip() != "..."]
        missing = [line for line in lines if plain(line) not in there]
        assert len(missing) <= (1 - AS_SHOWN) * len(lines) + 1, f"{missing}\nare not in\n{printed}"
    with capsys.disabled():
        print(f"the tutorial word for word: {time.monotonic() - started:.0f} s")


def test_the_tutorial_can_be_read_in_ten_minutes() -> None:
    assert len(TUTORIAL.read_text().split()) <= 1500
