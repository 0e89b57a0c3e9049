"""Makes `benchmarks/peers/.venv` from the pinned list when it is missing or the list has changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
REQUIREMENTS, CONSTRAINTS = HERE / "requirements.txt", REPOSITORY / "constraints.txt"
PYTHON, DONE = HERE / ".venv" / "bin" / "python", HERE / ".venv" / ".done"
SECONDS = 1200


def make() -> str:
    """Make it unless it is there; "" or, when it could not be made, why."""
    if DONE.exists() and DONE.read_text() == REQUIREMENTS.read_text():
        return ""
    click.echo(f"installing the peers into {HERE / '.venv'} (minutes, once)", err=True)
    commands = [
        [sys.executable, "-m", "venv", str(HERE / ".venv")],
        [str(PYTHON), "-m", "pip", "install", "-q", "--no-deps", "-c", str(CONSTRAINTS), "-r", str(REQUIREMENTS)],
    ]
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.CalledProcessError as exc:
            return next((line for line in exc.stderr.splitlines() if line.startswith("ERROR")), str(exc))
        except (OSError, subprocess.TimeoutExpired) as exc:
            return str(exc)
    DONE.write_text(REQUIREMENTS.read_text())
    return ""


if __name__ == "__main__":
    sys.exit(make() or 0)  # "" is an error to it
