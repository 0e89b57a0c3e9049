"""`python .ci/dist.py [--python EXE ...] [--no-smoke]`: build both distributions, check them, install each and use it.

The tools live in `.venv-dist`. Each distribution is installed by pip into a fresh environment of each interpreter, with
the versions of constraints.txt, and `.ci/smoke.py` runs there. Exit code 1 for the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build==1.6.1", "twine==7.0.0")
HOSTING = (".github/", ".git-blame-ignore-revs")  # what only the place where the repository lies reads
CLEAN = (
    "no previously-included files",
    "byte-compiling is disabled",
)  # of a clean tree, and of an environment's choice
MADE = ("PKG-INFO", "setup.cfg", "rhostream.egg-info/")  # what building adds to the source


def run(*command: str, **how: str) -> str:
    """What a command says, both ways; what it says is shown where it fails."""
    done = subprocess.run(command, cwd=how.get("cwd", str(ROOT)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def tools() -> str:
    """The interpreter that has the tools."""
    python = ROOT / ".venv-dist" / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(ROOT / ".venv-dist"))
    run(str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *TOOLS)
    return str(python)


def build(python: str) -> tuple[Path, Path]:
    """The wheel (made of the source distribution, as `build` does it) and the source distribution."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    said = run(python, "-m", "build", "--outdir", "dist")
    heard = [line for line in said.splitlines() if "warning" in line.lower() or "deprecat" in line.lower()]
    if warned := [line for line in heard if not any(known in line for known in CLEAN)]:
        sys.exit("build warns:\n" + "\n".join(warned))
    (wheel,), (source,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    run(python, "-m", "twine", "check", "--strict", str(wheel), str(source))
    return wheel, source


def require_contents(wheel: Path, source: Path) -> None:
    """The wheel is the library, the source distribution is the repository: nothing else, nothing less."""
    tracked = {name for name in run("git", "ls-files").splitlines() if not name.startswith(HOSTING)}
    library = {name for name in tracked if name.startswith("rhostream/")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    _equal(names, library, wheel.name)
    with tarfile.open(source) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    _equal({name for name in names if not name.startswith(MADE)}, tracked | {"MANIFEST.in"}, source.name)


def _equal(got: set[str], expected: set[str], what: str) -> None:
    if more := sorted(got - expected):
        sys.exit(f"{what} holds {len(more)} files too many: {', '.join(more[:5])}")
    if less := sorted(expected - got):
        sys.exit(f"{what} lacks {len(less)} files: {', '.join(less[:5])}")


def smoke(python: str, distribution: Path) -> None:
    """Install one distribution into a bare environment of one interpreter, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        own = str(Path(folder, "bin", "python"))
        constraints = str(ROOT / "constraints.txt")
        run(own, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-c", constraints, str(distribution))
        print(run(own, "-P", str(ROOT / ".ci" / "smoke.py"), cwd=folder).strip(), f"({distribution.name})", flush=True)


def main() -> None:
    """Build, check, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="EXE")
    parser.add_argument("--no-smoke", action="store_true")
    asked = parser.parse_args()
    wheel, source = build(tools())
    require_contents(wheel, source)
    print(f"dist: {wheel.name} and {source.name} are whole, and twine has nothing against them", flush=True)
    for python in [] if asked.no_smoke else asked.python:
        for distribution in (wheel, source):
            smoke(python, distribution)


if __name__ == "__main__":
    main()
