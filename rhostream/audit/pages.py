"""The templates of our pages: static HTML without script, in which every text from data is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

from rhostream.audit.render import printable
from rhostream.errors import MissingExtraError


def environment() -> Any:
    """jinja2's environment over the templates beside this file. Raises MissingExtraError without the extra `report`."""
    try:
        import jinja2
    except ImportError as exc:
        raise MissingExtraError.of("jinja2", "report") from exc
    found = jinja2.Environment(loader=jinja2.FunctionLoader(_template), autoescape=True,
                               undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    # Names, keys and labels are hostile text: escaped for HTML by jinja2, and made visible and short by this.
    found.filters["t"] = lambda value: printable(value, 200)
    found.filters["sentence"] = lambda value: printable(value, 1000)  # ours, with names in it: cut, it says nothing
    return found


def _template(name: str) -> str:
    return (resources.files("rhostream.audit") / name).read_text(encoding="utf-8")
