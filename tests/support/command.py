"""A verb of the command line, run in this process as `main` runs it."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import pytest

from rhostream.cli import main


def command(capsys: Any, *arguments: object, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of `rhostream ARGUMENTS`, whose exit code must be `code`."""
    before, show, path = sys.argv, warnings.showwarning, list(sys.path)
    handlers, level = list(logging.root.handlers), logging.root.level
    capsys.readouterr()
    sys.argv = ["rhostream", *map(str, arguments)]
    logging.root.handlers[:] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                main()
                exit_code = 0
            except SystemExit as exc:
                exit_code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    finally:
        sys.argv, warnings.showwarning, sys.path[:] = before, show, path
        logging.root.handlers[:], logging.root.level = handlers, level
    out, err = capsys.readouterr()
    if exit_code != code:
        pytest.fail(f"exit code {exit_code}, expected {code}:\n{out}\n{err}")
    return out, err
