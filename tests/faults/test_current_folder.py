"""Nothing of the folder one stands in is run but what was asked for by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rhostream
from tests.support.shards import make_shards

HOSTILE = ("numpy", "duckdb", "pyarrow", "queue", "torch", "selectors", "socket", "pickle", "colorsys", "click", "PIL")
CANARY = "import os\nopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'canary'), 'w').close()\n"
OWN = """
import helper
from torch import nn
def net(image_size, channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
def rule(loss_B):
    return loss_B * helper.SIGN
"""


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, shards and code of somebody else, beside code of one's own."""
    root = tmp_path_factory.mktemp("download")
    make_shards(root / "data", [40, 24])
    rhostream.index([str(root / "data")], str(root / "ix"))
    for name in HOSTILE:
        (root / f"{name}.py").write_text(CANARY)
    (root / "nets.py").write_text(OWN)
    (root / "helper.py").write_text("SIGN = 1.0\n")
    (root / "wrong.py").write_text("def (\n")
    return root


def verb(folder: Path, *arguments: object, code: int = 0) -> str:
    """What pip makes of the console script, in a folder of its own."""
    script = folder.parent / "bin" / "rhostream"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from rhostream.cli import main\nif __name__ == '__main__':\n    main()\n")
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == code, done.stderr
    assert not (folder / "canary").exists(), f"{arguments[0]} ran code of the current folder"
    return done.stderr


TRAIN = ("train", "--shards", "data", "--il", "ix", "--buffer-size", 16, "--batch-size", 4, "--steps", 1)


def test_code_that_lies_beside_a_table_is_not_run_by_any_verb(download: Path) -> None:
    verb(download, *TRAIN, "--rule", "loss", "--model", "mlp-64", "--run", "run", "--workers", 1)
    verb(download, "verify", "ix")
    verb(download, "sql", "run", "select count(*) from selections")
    verb(download, "status", "run")


@pytest.mark.slow
def test_code_that_lies_beside_shards_is_not_run_by_a_job(download: Path) -> None:
    verb(download, "index", "--shards", "data", "--out", "ix2", "--workers", 1)
    verb(download, "fit-il", "--shards", "data", "--out", "m", "--model", "mlp-64", "--epochs", 1, "--workers", 1)
    verb(download, "compute-il", "--shards", "data", "--il-model", "m", "--out", "il", "--workers", 1)


@pytest.mark.slow
def test_ones_own_code_in_the_current_folder_is_found_by_its_name(download: Path) -> None:
    verb(download, *TRAIN, "--rule", "nets:rule", "--model", "nets:net", "--run", "own")
    said = verb(download, *TRAIN, "--rule", "loss", "--model", "wrong:net", "--run", "bad", code=2)
    assert "importing wrong raised SyntaxError" in said
