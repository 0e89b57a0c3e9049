"""Where the library lets a test kill it."""

from __future__ import annotations

import ast
import functools

from tests.faults.crash_server import REPOSITORY


@functools.cache
def points() -> dict[str, str]:
    """name -> where, of every call of `crash_point` in the library."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / "rhostream").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "crash_point" in source else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("crash_point"):
                (name,) = node.args
                assert isinstance(name, ast.Constant) and isinstance(name.value, str), f"{path}:{node.lineno}"
                assert name.value not in found, f"{name.value} is at {found[name.value]} and {path}:{node.lineno}"
                found[name.value] = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
    return found
