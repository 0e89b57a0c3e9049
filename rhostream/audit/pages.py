"""The templates of our pages: static HTML without script, in which every text from data is escaped."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Any

from rhostream.audit.render import printable
from rhostream.errors import MissingExtraError
from rhostream.inert import shell_words, shortened

WIDTH = 200  # characters of a name


def environment() -> Any:
    """jinja2's environment over the templates beside this file. Raises MissingExtraError without the extra `report`."""
    try:
        import jinja2
    except ImportError as exc:
        raise MissingExtraError.of("jinja2", "report") from exc
    found = jinja2.Environment(loader=jinja2.FunctionLoader(_template), autoescape=True,
                               undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    # Names, keys and labels are hostile text: escaped for HTML by jinja2, and made visible and short by this.
    found.filters["t"] = _short
    found.filters["sentence"] = lambda value: printable(value, sys.maxsize)  # ours, with names in it: never cut
    found.filters["command"] = lambda words: shell_words(*words)
    return found


def _short(value: Any) -> Any:
    """A name on one line; a long one is shortened in its middle and whole in its `title`."""
    from markupsafe import Markup

    text = printable(value, sys.maxsize)
    if len(text) <= WIDTH:
        return text
    return Markup('<span title="{}">{}</span>').format(text, shortened(text, WIDTH))


def _template(name: str) -> str:
    return (resources.files("rhostream.audit") / name).read_text(encoding="utf-8")
