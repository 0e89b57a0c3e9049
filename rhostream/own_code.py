"""A user's own code by name, `package.module:function`, and nothing else of the folder one stands in.

The current folder is searched last, and only while the module that was asked for is imported: a numpy.py or queue.py
that lies in a downloaded folder never takes the place of the real one.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rhostream.errors import UsageError, users_code

# name:MODEL is one of their models; a file of settings may say so
MODEL_PREFIXES = ("torchvision", "timm", "hf", "open_clip")


def own_function(what: str, name: str) -> Callable[..., Any]:
    """The user's `package.module:function`. Raises UsageError when there is none, or its import fails."""
    module, _, path = name.partition(":")
    if module.strip() in MODEL_PREFIXES:  # else a file could name code: a hf.py that lies beside it
        raise UsageError(
            f"{what} {name!r}: {', '.join(f'{lib}:' for lib in MODEL_PREFIXES)} name models alone, and no {what}"
        )
    with users_code(f"{what} {name!r}: importing {module}"):
        try:
            with _current_folder_last():
                found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as exc:
            raise UsageError(
                f"{what} {name!r}: {exc}; expected package.module:function on the Python path or in the current folder"
            ) from exc
    if not callable(found):
        raise UsageError(f"{what} {name!r} is a {type(found).__name__}, expected a function")
    return found  # type: ignore[no-any-return]


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


@contextlib.contextmanager
def _current_folder_last() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:  # Python was told so, by PYTHONPATH or by how it was started
        yield
        return
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module may have done so itself
            sys.path.remove(folder)


def keep_out_current_folder() -> None:
    """Of what is imported from now on, here and in the Python processes that this one starts.

    Those would begin with `python -c`, which searches the current folder first: worker processes do.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.path[:] = [entry for entry in sys.path if entry]
