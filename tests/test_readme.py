"""What the README and the page on rules show runs as it stands; the README's loop: test_run.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import rhostream
from rhostream.models import build

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_loop_of_the_page_on_rules_runs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_live" in block]
    monkeypatch.chdir(world)
    names: dict[str, object] = {
        "rhostream": rhostream,
        "torch": torch,
        "model": build("mlp-64", image_size=16, channels=1, classes=4),
    }
    exec(text, names)
    for candidates in names["loader"]:
        kept = names["selector"](candidates)
        assert len(kept) == 32 and kept.live_scored == 320 and kept.live_trained == 32


def test_every_command_in_the_readme_exists() -> None:
    from rhostream.cli import cli

    used = set(re.findall(r"^\s+rhostream ([a-z-]+)", README, re.MULTILINE))
    for block in re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        used |= set(re.findall(r"^rhostream ([a-z-]+)", block, re.MULTILINE))
    assert len(used) > 5 and used <= set(cli.commands)
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^\s*make ([a-z-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
