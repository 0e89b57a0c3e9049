"""`python -m benchmarks.house [OLD]`: the size and shape of the library in numbers, at another commit and as it stands.

Both are laid out by the same formatter first, since lines depend on who laid them out. Statements are those of Python's
grammar without docstrings; an option is one of a verb's; a circle is a set of modules each of which imports the others
in the end, by imports inside functions too (those for type checkers apart).
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_EDITION = "44d0f50"
LONG = 300  # lines of a file
OPTIONS = """
import click
from rhostream.cli import cli
with click.Context(cli) as context:
    verbs = [cli.get_command(context, name) for name in cli.list_commands(context)]
    print(sum(isinstance(p, click.Option) for verb in verbs for p in verb.params))
"""


@dataclass(frozen=True)
class House:
    """The library of one commit, in numbers."""

    files: int
    lines: int
    statements: int
    functions: int
    classes: int
    long_files: int
    largest: str  # file and lines
    importers: int  # modules that one other module imports and no other does
    circles: int
    options: int


def counted(root: Path) -> House:
    """The package `root/rhostream`, which is laid out anew on the way."""
    package = root / "rhostream"
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", "--no-cache", "--line-length", "120", str(package)], check=True
    )
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules(root).items()}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(root).items()}
    largest = max(lines, key=lambda name: lines[name])
    graph = {name: imported(tree, set(trees)) - {name} for name, tree in trees.items()}
    users = [sum(name in those for those in graph.values()) for name in graph if not name.endswith("__init__")]
    return House(
        files=len(trees),
        lines=sum(lines.values()),
        statements=sum(sum(1 for _ in statements(tree)) for tree in trees.values()),
        functions=sum(of_kind(tree, ast.FunctionDef, ast.AsyncFunctionDef) for tree in trees.values()),
        classes=sum(of_kind(tree, ast.ClassDef) for tree in trees.values()),
        long_files=sum(n > LONG for n in lines.values()),
        largest=f"{largest.removeprefix('rhostream.')} ({lines[largest]})",
        importers=sum(n == 1 for n in users),
        circles=len(circles(graph)),
        options=int(
            subprocess.run(
                [sys.executable, "-c", OPTIONS],
                env={**os.environ, "PYTHONPATH": str(root)}, cwd=root, check=True, capture_output=True, text=True,
            ).stdout
        ),
    )  # fmt: skip


def modules(root: Path) -> dict[str, Path]:
    """Name to file, of every module of the package below `root`."""
    found = {}
    for path in sorted((root / "rhostream").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Every statement but docstrings."""
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if isinstance(node, ast.stmt) and not text:
            yield node


def of_kind(tree: ast.AST, *kinds: type[ast.AST]) -> int:
    """How many nodes of these kinds a tree has."""
    return sum(isinstance(node, kinds) for node in ast.walk(tree))


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules among `known` that a module imports when it or one of its functions runs."""
    found = set[str]()
    checking = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in below}
    return found & known


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of at least two modules that reach each other (by Kosaraju's two walks)."""
    order, seen = list[str](), set[str]()

    def walk(start: str, edges: dict[str, set[str]], into: list[str]) -> None:
        stack = [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            name, rest = stack[-1]
            after = next((other for other in rest if other not in seen), None)
            if after is None:
                into.append(name)
                stack.pop()
            else:
                seen.add(after)
                stack.append((after, iter(sorted(edges[after]))))

    for name in graph:
        if name not in seen:
            walk(name, graph, order)
    back = {name: {other for other in graph if name in graph[other]} for name in graph}
    seen, found = set(), []
    for name in reversed(order):
        if name not in seen:
            walk(name, back, component := [])
            found.append(sorted(component))
    return [component for component in found if len(component) > 1]


def unpacked(commit: str | None, folder: Path) -> Path:
    """The package as it was at a commit, or as it stands, below `folder`."""
    if commit is None:
        listed = ["git", "ls-files", "-z", "--", "rhostream"]
        done = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        for name in filter(None, done.stdout.split("\0")):
            if (REPOSITORY / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((REPOSITORY / name).read_bytes())
        return folder
    packed = subprocess.run(
        ["git", "archive", commit, "rhostream"], cwd=REPOSITORY, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main(old: str) -> None:
    """Print the numbers side by side."""
    found = []
    for commit in (old, None):
        with tempfile.TemporaryDirectory() as folder:
            found.append(counted(unpacked(commit, Path(folder))))
    print(f"| library | {old} | now |\n|---|---|---|")
    for name in House.__dataclass_fields__:
        values = [getattr(house, name) for house in found]
        cells = [f"{value:,}" if isinstance(value, int) else value for value in values]
        print(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else FIRST_EDITION)
