"""The private names of other packages on which the stores lean: few, in one file, and looked for."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiobotocore.session import AioSession

import rhostream.storage
from rhostream import storage
from rhostream.errors import UsageError
from rhostream.storage import private
from tests.faults.rig.s3 import FaultyStore

FOLDER = Path(rhostream.storage.__file__).parent


def test_private_names_of_other_packages_stand_in_one_file() -> None:
    """Every `x._name` in storage/ is one of `self`, `cls`, of a module or class of the package, or in private.py."""
    ours = {name for path in FOLDER.glob("*.py") for name in _defined(ast.parse(path.read_text()))}
    for path in sorted(FOLDER.glob("*.py")):
        if path.name != "private.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                    plain = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                    assert plain and node.attr in ours, f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def _defined(tree: ast.AST) -> set[str]:
    """Private attributes that code of the folder sets, and its methods and functions."""
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    return functions | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def test_the_names_are_there_in_the_versions_that_are_installed() -> None:
    async def look() -> None:
        async with aiohttp.ClientSession() as session:
            private.only_once(session)
        async with AioSession().create_client(
            "s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:9", aws_access_key_id="a",
            aws_secret_access_key="b",
        ) as client:  # fmt: skip
            assert private.sessions_of(client) == []

    asyncio.run(look())


def test_a_name_that_is_gone_is_said_with_its_package_and_version() -> None:
    with pytest.raises(UsageError, match=rf"aiohttp {aiohttp.__version__} has no ClientSession._retry_connection"):
        private.only_once(object())
    with pytest.raises(UsageError, match=r"aiobotocore [\d.]+ has no client._endpoint.http_session._sessions"):
        private.sessions_of(object())


def test_a_kept_connection_that_breaks_is_counted(faulty: FaultyStore) -> None:
    """Were the switch without effect, aiohttp itself would ask again, and nobody had counted it."""
    url = f"{faulty.url}/x"
    storage.create(url, b"x")
    for _ in range(3):
        faulty.proxy.inject("reset", method="HEAD")
        assert storage.exists(url)
    assert faulty.retried == {"reset": 3}
