"""`python -P .ci/smoke.py`: what is installed in this environment does its work, from pictures to an answer in SQL.

Needs the installed package alone, and runs in an empty folder of its own. Exit code 1 with what failed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

RHOSTREAM = str(Path(sys.executable).parent / "rhostream")
TRAIN = ("--rule", "loss", "--model", "mlp-64", "--buffer-size", "16", "--batch-size", "4", "--steps", "4")


def call(folder: Path, *words: str) -> str:
    """What a command writes to standard output."""
    done = subprocess.run([RHOSTREAM, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.exit(f"rhostream {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def pictures(folder: Path) -> None:
    """Two classes, eighty small pictures."""
    draw = random.Random(0)
    for number in range(80):
        place = folder / ("light" if number % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        tone = draw.randrange(160, 256) if number % 2 else draw.randrange(0, 96)
        Image.new("RGB", (16, 16), (tone, draw.randrange(256), tone)).save(place / f"{number:03d}.png")


def main() -> None:
    """The journey."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert "fit-il" in call(folder, "--help") and "versions" in call(folder, "doctor", "--json")
        pictures(folder / "photos")
        call(folder, "shards", "photos", "--out", "data", "--test-fraction", "0.1")
        shards = sorted(str(path) for path in (folder / "data").glob("train-*.tar"))
        call(folder, "index", "--shards", *shards, "--out", "index")
        made = json.loads(call(folder, "train", "--shards", *shards, "--il", "index", "--run", "run", *TRAIN))
        assert (made["steps"], made["kept"]) == (4, 16), made
        answer = call(folder, "sql", "run", "select count(*) as n from selections where kept", "--format", "csv")
        assert answer.split() == ["n", "16"], answer
    print(f"smoke: {RHOSTREAM} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
