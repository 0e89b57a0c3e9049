"""The README's loop runs as it stands, and is as short as it claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import rhostream
from rhostream.models import build
from tests.tables import without_il

README = (Path(__file__).parent.parent / "README.md").read_text()


def loop() -> str:
    match = re.search(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_the_users_own_loop_runs_and_has_at_most_twelve_lines(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = loop()
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(world)
    names: dict[str, object] = {}
    exec(text.replace("784", "256").replace("buffer_size=320", "buffer_size=100"), names)
    assert len(names["kept"]) == 32 and names["loss"].item() < 2.4


def test_the_users_own_loop_outlives_buffers_without_candidates(world: Path, monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:
    table = without_il(world / "il", tmp_path / "few", {0, 1, 3, 5, 6})
    text = loop().replace("784", "256").replace(
        'il="il", buffer_size=320', f'il="{table}", missing_il="skip", lanes=1, buffer_size=50')
    seen: list[int] = []
    monkeypatch.chdir(world)
    exec(text.replace("    if not kept.total", "    seen.append(kept.total)\n    if not kept.total"), {"seen": seen})
    assert len(seen) == 20 and 0 in seen and 32 in seen


def test_the_loop_of_the_page_on_rules_runs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_live" in block]
    monkeypatch.chdir(world)
    names: dict[str, object] = {"rhostream": rhostream, "torch": torch,
                                "model": build("mlp-64", image_size=16, channels=1, classes=4)}
    exec(text, names)
    for candidates in names["loader"]:
        kept = names["selector"](candidates)
        assert len(kept) == 32 and kept.live_scored == 320 and kept.live_trained == 32


def test_every_command_in_the_readme_exists() -> None:
    from rhostream.cli import cli

    used = set(re.findall(r"^\s+rhostream ([a-z-]+)", README, re.MULTILINE))
    assert used and used <= set(cli.commands)
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^\s*make ([a-z-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
