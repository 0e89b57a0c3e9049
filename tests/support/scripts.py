"""A script of somebody's own, as a launcher starts it: patched, in processes of its own, killed where asked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.environments import ROOT
from tests.support.ranks import free_port

# Dies at the N-th call of a function by its dotted name; before it, so that what it would have written isn't there.
KILLED_BEFORE = """
import importlib, os, runpy, signal, sys
script, module, name, left = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sys.argv = [script, *sys.argv[5:]]
module = importlib.import_module(module)
function = getattr(module, name)
def counted(*values, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*values, **options)
setattr(module, name, counted)
runpy.run_path(script, run_name="__main__")
"""


def patched(folder: Path, example: str) -> Path:
    """The example's train.py in `folder`, with its selected.patch applied."""
    source = ROOT / "examples" / example
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text((source / "train.py").read_text(encoding="utf-8"))
    subprocess.run(["git", "apply", str(source / "selected.patch")], cwd=folder, check=True, capture_output=True)
    return folder / "train.py"


def changed(example: str) -> list[str]:
    """The lines that a patch takes and gives, with their - and +."""
    text = (ROOT / "examples" / example / "selected.patch").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def run(python: str, arguments: Sequence[str], cwd: Path, ranks: int = 1, code: int = 0, **variables: str) -> str:
    """What rank 0 says; all end with `code`, and of killed ranks (-9) one must be."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    if ranks > 1:
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(free_port())}  # fmt: skip
    processes = [
        subprocess.Popen(
            [python, *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert (-signal.SIGKILL in codes) if code == -signal.SIGKILL else codes == [code] * ranks, "\n".join(said)[-4000:]
    return said[0]
