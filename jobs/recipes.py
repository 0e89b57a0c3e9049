"""The repository's recipes for shards, as programs: a job stands on the library alone, so it runs them as one does."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path


def make(out: str | Path, *arguments: str) -> None:
    """`python -m shards.make ARGUMENTS --out OUT`; what is there already isn't made again.

    Without a --source the files of Fashion-MNIST are fetched before. Where that or the recipe fails, its own sentence
    is on stderr, and this program ends with its exit code.
    """
    if "--source" not in arguments:
        _fetch_fashion_mnist()
    _run("shards.make", *arguments, "--out", str(out))


@functools.cache
def _fetch_fashion_mnist() -> None:
    _run("shards.fetch_fashion_mnist")


def _run(module: str, *arguments: str) -> None:
    ended = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL)
    if ended.returncode:
        sys.exit(ended.returncode)
