"""The notebooks of examples/notebooks are executed, each in a folder and a kernel of its own, and do as they say.

They are stored without outputs. What executes them lies in an environment that sees .venv's packages behind its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import rhostream
from tests.support import environments

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""
WRONG = "SELECT avg(is_noisy::int) FROM selections JOIN samples USING (shard, ordinal) WHERE kept AND step IS NOT NULL"


def cells(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_begins_with_what_it_is_for(path: Path) -> None:
    first, *rest = cells(path)
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")
    code = [cell for cell in rest if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def executed(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The cells with their outputs; skips the test where the packages can't be had."""
    if why := environments.make("notebook"):
        pytest.skip(f"the environment of notebooks can't be made here: {why}")
    command = [environments.python("notebook"), "-c", EXECUTE, str(path), str(folder / "done.ipynb")]
    around = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PATH": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [cell for cell in cells(folder / "done.ipynb") if cell["cell_type"] == "code"]


def drawn(code: list[dict[str, Any]]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def wrong_kept(run: Path) -> float:
    with rhostream.open_ledger(str(run)) as ledger:
        return float(next(iter(ledger.sql(WRONG).to_pylist()[0].values())))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "plots", "run"), [("ledger", 2, "rho"), ("loop", 1, "mine"), ("compare", 1, "rho-0")])
def test_a_notebook_runs_and_selects(name: str, plots: int, run: str, tmp_path: Path) -> None:
    code = executed(FOLDER / f"{name}.ipynb", tmp_path)
    assert drawn(code) == plots
    assert wrong_kept(tmp_path / "runs" / run) < 0.25  # of 30 % in the data
    if name == "compare":
        assert wrong_kept(tmp_path / "runs" / "uniform-0") > 0.25 and (tmp_path / "report.html").exists()
