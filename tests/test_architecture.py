"""The house keeps its shape: imports go down, the face holds, nothing unpickles, the wheel is the library alone."""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import rhostream
from benchmarks.house import circles, imported, modules

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("rhostream", "shards", "jobs") for path in (REPOSITORY / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Programs of the repository and what the tests lean on: the same rules, but for tests that pickle what they made.
HELPERS = sorted(path for folder in ("benchmarks", "tests", ".ci") for path in (REPOSITORY / folder).rglob("*.py")
                 if ".venv" not in path.parts)  # fmt: skip
GLUED = "of a query that is glued together"
# Views and fragments made of the library's own constants, and of export the user's own SELECT, in a database that
# reaches nothing but the ledger: read each before its number is raised.
OWN_SQL = {
    "rhostream/audit/export/datacomp.py": 1,
    "rhostream/audit/export/job.py": 1,
    "rhostream/audit/export/selection.py": 1,
    "rhostream/audit/facts.py": 3,
    "rhostream/audit/gallery.py": 1,
    "rhostream/audit/views.py": 6,
}
MADE_HERE = {
    "benchmarks/memory.py": "import pickle",
    "tests/test_scale.py": "import pickle",
    "tests/stores/test_spool.py": "import pickle",
    **dict.fromkeys(
        (
            "tests/test_readme.py",
            "tests/test_dealing.py",
            "tests/test_export.py",
            "tests/support/own_loop.py",
            "tests/test_docs_blocks.py",
            "tests/test_joint.py",
            "tests/test_pairs.py",
            "tests/test_pairs_kind.py",
        ),
        "exec runs text",
    ),
}  # the pages' own code
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}

TELLING = {"shell", "weights_only", "timeout", "allow_pickle"}  # arguments that make a call dangerous or safe


@pytest.fixture(scope="module", autouse=True)
def no_collector() -> Iterator[None]:
    """A tree has no circles, but so many nodes that the collector takes longer than the parser."""
    gc.disable()
    yield
    gc.enable()


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


def test_no_module_is_in_a_circle_of_imports() -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules(REPOSITORY).items()}
    assert circles({name: imported(tree, set(trees)) - {name} for name, tree in trees.items()}) == []


def test_a_circle_is_seen_though_a_function_hides_it() -> None:
    texts = {"a": "from b import x", "b": "def f():\n    import c", "c": "import a", "d": "import a"}
    graph = {name: imported(ast.parse(text), set(texts)) for name, text in texts.items()}
    assert circles(graph) == [["a", "b", "c"]]


def test_no_file_of_the_library_has_300_lines() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in (REPOSITORY / "rhostream").rglob("*.py")}
    assert not {str(path.relative_to(REPOSITORY)): n for path, n in lines.items() if n >= 300}


def test_no_test_file_leans_on_another() -> None:
    """What several share stands in tests/support, tests/faults or tests/stores, under a name that says what it is."""
    for path in REPOSITORY.glob("tests/**/test_*.py"):
        leaning = re.findall(r"^ *(?:from|import) (tests(?:\.\w+)*\.test_\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert {*leaning} <= {f"tests.{path.stem}"}, path


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


def test_a_recipe_answers_and_refuses_without_importing_torch() -> None:
    code = """
import sys
import shards.make
for asked, ended in (["web", "--help"], 0), (["fashion-mnist", "--source", "/nowhere", "--out", "/nowhere"], 2):
    sys.argv = ["make", *asked]
    try:
        shards.make.main()
    except SystemExit as exc:
        assert (exc.code or 0) == ended, exc.code
print("torch" in sys.modules)
"""
    assert _python(code).endswith("False")


def test_who_reads_an_il_models_record_needs_no_torch() -> None:
    assert _python("import sys, rhostream.il_model.info; print('torch' in sys.modules)") == "False"


def test_an_il_models_record_and_a_runs_have_one_room_each() -> None:
    """No other source joins the name of one to a folder, or gives it a name; lists of class names may stand in both."""
    owners = {"model.json": "rhostream/il_model/info.py", "run.json": "rhostream/runs/record.py"}
    lists = {"rhostream/tables/class_lists.py", "rhostream/making/folder.py"}
    named = {
        (file, place)
        for path in SOURCES if (place := str(path.relative_to(REPOSITORY))) not in lists
        for file in re.findall(r'(?:, |/|= )"(model\.json|run\.json)"(?:\)|\n)', path.read_text("utf-8"))
    }  # fmt: skip
    assert named == {*owners.items()}


def test_arithmetic_that_wings_share_has_one_room_each() -> None:
    rooms = {
        "except torch.OutOfMemoryError": {"rhostream/selection/forward.py"},  # halving
        'mode="replicate"': {"rhostream/compute/images.py"},  # shifts
        "model.judge(": {"rhostream/compute/judge.py"},  # what is right of a text, and its loss
        ".backward(": {"rhostream/selection/gradient.py", "rhostream/irreducible/learn.py"},  # IL's weighs classes
    }
    library = {
        str(path.relative_to(REPOSITORY)): path.read_text("utf-8")
        for path in (REPOSITORY / "rhostream").rglob("*.py")
        if path.name != "run.py"  # a docstring shows a user's own loop
    }
    assert {what: {place for place, text in library.items() if what in text} for what in rooms} == rooms


def test_an_option_that_re_ranks_is_one_file_that_its_field_names() -> None:
    """Each file of selection/adjust/ but the shape and what it shares is named by a field, and by nothing else."""
    from rhostream.selection.options import Options
    from rhostream.setting import settings_of

    folder = REPOSITORY / "rhostream" / "selection" / "adjust"
    made = {path.stem for path in folder.glob("*.py") if "\ndef make(" in path.read_text("utf-8")}
    named = {says.adjust for says in settings_of(Options).values() if says.adjust is not None}
    assert made == named and "own" in named and len(named) >= 6
    for path in SOURCES:
        if path.parent != folder and path.name != "selector.py":  # which makes the views that duplicates compare
            for name in made:
                assert f"selection.adjust.{name} import" not in path.read_text("utf-8") or name == "own", path


def test_the_checks_of_foreign_json_know_every_decoder() -> None:
    from rhostream.foreign import DECODERS as KNOWN
    from rhostream.samples.decoders import DECODERS
    from rhostream.samples.kind import Kind
    from rhostream.samples.text import TextKind

    assert {*DECODERS, TextKind.decoder, Kind.decoder} == {*KNOWN}


def _asks_for_the_kind(source: str) -> Iterator[str]:
    """Where `source` compares something with the name of a built-in kind of samples, or takes hold of its class."""
    names = {"image", "text", "tokens", "pair"}
    classes = {"ImageKind", "TextKind", "TokensKind", "PairKind", "OwnKind"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            said = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
            if names & said:
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and (asked := classes & {alias.name for alias in node.names}):
            yield f"{node.lineno}: imports {', '.join(asked)}"
        if isinstance(node, ast.Attribute) and node.attr in classes:
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_nobody_outside_samples_asks_which_kind_a_sample_is_of() -> None:
    assert [*_asks_for_the_kind("if kind.name == 'image' or content in ('text', 'x'):\n    pass")]
    assert [*_asks_for_the_kind("from rhostream.samples.image import ImageKind")]
    asking = {
        str(path.relative_to(REPOSITORY)): asked
        for path in SOURCES
        if path.is_relative_to(REPOSITORY / "rhostream") or path.is_relative_to(REPOSITORY / "jobs")
        if path.parent.name != "samples" and (asked := [*_asks_for_the_kind(path.read_text(encoding="utf-8"))])
    }
    assert asking == {}


def test_reading_a_part_starts_no_thread_that_could_outlive_the_interpreter() -> None:
    """One of Arrow's that lets go of Python's bytes while the interpreter ends aborts a job that is done (exit 134)."""
    code = """
import os
import pyarrow as pa
from rhostream.tables import parquet
data = parquet.encode(pa.table({"key": [str(n) for n in range(200_000)]}), {}, {}, ["key"])
before = len(os.listdir("/proc/self/task"))
rows, _ = parquet.parse(data, "part")
print(rows.num_rows, len(os.listdir("/proc/self/task")) - before)
"""
    assert _python(code) == "200000 0"


# -- nothing that runs what it reads -----------------------------------------------------------------------------------


def _dangers(source: str) -> Iterator[str]:
    """What in `source` could run code out of data, each as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in TELLING}
            if called in SHELLS or given.get("shell", "False") != "False":
                yield f"{node.lineno}: {called} runs text"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            text = node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
            if called.startswith("subprocess.") and text:
                yield f"{node.lineno}: {called} of a string"
            if called.startswith(("requests.", "httpx.", "urllib.request.urlopen")) and "timeout" not in given:
                yield f"{node.lineno}: {called} without a timeout"
            if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
                yield f"{node.lineno}: {called} makes objects out of text"
            if called in ("tempfile.mktemp", "os.tempnam", "tarfile.extractall", "zipfile.extractall"):
                yield f"{node.lineno}: {called} can be led elsewhere"
            if called.endswith((".sql", ".execute", ".query")) and node.args and _is_glued(node.args[0]):
                yield f"{node.lineno}: {called} of a query that is glued together"
            if given.get("allow_pickle", "False") != "False" or called.endswith(("read_pickle", "hub.load")):
                yield f"{node.lineno}: {called} unpickles"
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name == "load" for a in node.names):
            yield f"{node.lineno}: torch.load by a name that hides it"


def _dotted(called: ast.expr) -> str:
    """What `ast.unparse` says, in a tenth of its time where it is names alone: nearly always."""
    names, at = [], called
    while isinstance(at, ast.Attribute):
        names.append(at.attr)
        at = at.value
    return ".".join([at.id, *reversed(names)]) if isinstance(at, ast.Name) else ast.unparse(called)


def _is_glued(text: ast.expr) -> bool:
    """Whether a query is an f-string, a sum or a `%` with values in it: values are bound, never written into SQL."""
    if isinstance(text, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in text.values)
    if isinstance(text, ast.BinOp):
        return any(not isinstance(side, ast.Constant) for side in (text.left, text.right))
    return isinstance(text, ast.Call) and ast.unparse(text.func).endswith(".format")


def _dangers_of(paths: list[Path]) -> dict[str, list[str]]:
    """The dangers of each file that has any, under its path in the repository."""
    found = {str(p.relative_to(REPOSITORY)): list(_dangers(p.read_text(encoding="utf-8"))) for p in paths}
    return {path: dangers for path, dangers in found.items() if dangers}


def test_no_source_unpickles_or_starts_a_shell() -> None:
    assert len(SOURCES) > 200
    found = _dangers_of(SOURCES)
    assert {path: other for path, dangers in found.items() if (other := [d for d in dangers if GLUED not in d])} == {}
    assert {path: len(dangers) for path, dangers in found.items()} == OWN_SQL


def test_no_benchmark_and_no_test_unpickles_or_starts_a_shell() -> None:
    assert len(HELPERS) > 100
    found = {
        path: [d for d in dangers if not d.endswith((GLUED, MADE_HERE.get(path, GLUED)))]
        for path, dangers in _dangers_of(HELPERS).items()
    }
    assert {path: dangers for path, dangers in found.items() if dangers} == {}


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
        "subprocess.run('ls x')",
        "subprocess.check_output(f'ls {x}')",
        "requests.get(url)",
        "yaml.load(f)",
        "tempfile.mktemp()",
        "con.execute(f'SELECT {x}')",
        "con.sql('SELECT ' + x)",
        "con.sql('SELECT {}'.format(x))",
    ],
)
def test_the_check_itself_sees_each_danger(source: str) -> None:
    assert len(list(_dangers(source))) == 1


# -- known vulnerabilities --------------------------------------------------------------------------------------------


def _audit() -> Any:
    spec = importlib.util.spec_from_file_location("dependency_audit", REPOSITORY / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_package_and_no_lower_bound_is_known_to_be_vulnerable() -> None:
    audit = _audit()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert audit.below_floor(audit.installed()) == audit.loose_bounds(project) == []


def test_the_audit_finds_an_old_package_and_a_loose_bound() -> None:
    audit = _audit()
    (old,) = audit.below_floor({"pillow": Version("12.2.9"), "torch": Version("2.13.0+cpu"), "other": Version("0.1")})
    assert "pillow 12.2.9 is installed" in old
    project = {"build-system": {"requires": ["setuptools>=77"]},
               "project": {"dependencies": ["torch>=2.10", "pillow"],
                           "optional-dependencies": {"x": ["aiohttp>=3.9"]}}}  # fmt: skip
    loose = [line.split()[2].rstrip(";") for line in audit.loose_bounds(project)]
    assert loose == ["setuptools>=77", "pillow", "aiohttp>=3.9"]


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
        if path.suffix in {".py", ".sql", ".html", ".typed", ".js", ".css"}
    }
    assert {name for name in names if ".dist-info/" not in name} == library
    assert any(name.endswith("licenses/LICENSE") for name in names)
