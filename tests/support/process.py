"""The command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.crash_server import shared


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """What a command says to stdout and to stderr; forked from a process that has imported everything."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "err")
        ended = shared().cli(out, *arguments, errors=errors).wait()
        said = out.read_text(), errors.read_text()
    assert ended["code"] == code, said[1]
    assert "Traceback" not in said[1]
    return said


def process(*arguments: object, code: int = 0) -> tuple[str, str]:
    """The same in an interpreter of its own, with this process's environment."""
    done = subprocess.run(
        [sys.executable, "-c", "from rhostream.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr
