"""The house keeps its shape: imports go down, the face holds, nothing unpickles, the wheel is the library alone."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import rhostream

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("rhostream", "shards", "jobs") for path in (REPOSITORY / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}


def _python(code: str) -> str:
    """What a fresh interpreter prints for `code`, run at the root of the repository."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- imports ---------------------------------------------------------------------------------------------------------


def test_imports_only_go_down() -> None:
    lint = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache", "--no-logo"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


# -- the face --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rhostream.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(rhostream, name).__doc__
    assert name in dir(rhostream)


def test_type_checkers_and_the_interpreter_see_the_same_face() -> None:
    tree = ast.parse(Path(rhostream.__file__).read_text(encoding="utf-8"))
    for_checkers = {
        alias.name: node.module
        for block in tree.body if isinstance(block, ast.If)
        for node in block.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert for_checkers == rhostream._HOME
    assert sorted(for_checkers) == rhostream.__all__


def test_an_unknown_name_of_the_face_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rhostream.trian  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert rhostream.__version__ == importlib.metadata.version("rhostream")


def test_importing_rhostream_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'duckdb', 'PIL', 'webdataset', 'fsspec', 'click'}"
    assert _python(f"import sys, rhostream; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_help_answers_without_importing_torch() -> None:
    code = """
import sys
from rhostream.cli import main
sys.argv = ["rhostream", "--help"]
try:
    main()
except SystemExit as exc:
    assert not exc.code
print("torch" in sys.modules)
"""
    assert _python(code).endswith("False")


# -- nothing that runs what it reads -----------------------------------------------------------------------------------


def _dangers(source: str) -> Iterator[str]:
    """What in `source` could run code out of data, each as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in SHELLS or given.get("shell", "False") != "False":
                yield f"{node.lineno}: {called} runs text"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            if given.get("allow_pickle", "False") != "False" or called.endswith(("read_pickle", "hub.load")):
                yield f"{node.lineno}: {called} unpickles"
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name == "load" for a in node.names):
            yield f"{node.lineno}: torch.load by a name that hides it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_unpickles_or_starts_a_shell(path: Path) -> None:
    assert list(_dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "eval(x)",
        "pd.read_pickle(f)",
    ],
)
def test_the_check_itself_sees_each_danger(source: str) -> None:
    assert len(list(_dangers(source))) == 1


# -- the wheel -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building in place would take what an older build left behind
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("rhostream", "shards", "jobs", "benchmarks", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
         "--no-index", "-w", str(tmp_path), str(source)],
        check=True, timeout=100,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    library = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "rhostream").rglob("*")
        if path.suffix in {".py", ".sql", ".html", ".typed"}
    }
    assert {name for name in names if ".dist-info/" not in name} == library
    assert any(name.endswith("licenses/LICENSE") for name in names)
