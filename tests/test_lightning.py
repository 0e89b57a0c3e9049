"""Lightning's integration where Lightning isn't: its example's length, and what is missing in a sentence."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from rhostream.errors import MissingExtraError

ROOT = Path(__file__).resolve().parents[1]
PATCH = ROOT / "examples" / "lightning" / "rhostream.patch"


def test_an_ordinary_project_changes_at_most_ten_lines(tmp_path: Path) -> None:
    changed = [line for line in PATCH.read_text().splitlines() if re.match(r"[+-](?!\+\+|--)", line)]
    assert 0 < len(changed) <= 10
    script = ROOT / "examples" / "lightning" / "train.py"
    (tmp_path / "train.py").write_text(script.read_text())
    subprocess.run(["git", "apply", str(PATCH)], cwd=tmp_path, check=True, capture_output=True)
    assert "SelectionData(" in (tmp_path / "train.py").read_text()
    page = (ROOT / "docs" / "lightning.md").read_text()
    shown = page.split("<!-- run by tests/test_lightning.py -->\n```diff\n")[1].partition("```")[0].splitlines()
    assert [line for line in changed if line.strip("+- ")] == shown


@pytest.mark.skipif(find_spec("lightning") is not None, reason="lightning is installed")
def test_without_lightning_the_pip_line_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"rhostream\[lightning\]"):
        import rhostream.integrations.lightning  # noqa: F401
