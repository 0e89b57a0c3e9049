"""What a field of a config says of itself; the command line, run.json, resumes, reports and the docs are made of it.

    gumbel: float | None = setting(None, help="...", metavar="T", pin=ASKED, fixed=CHOICE)

It stands at the bottom of the house, so that an option can be told where it acts. Nothing here imports more than the
standard library: `--help` is made of these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from rhostream.errors import UnknownNameError, UsageError

# What a run's settings are to its resumes.
ALWAYS = "always"  # pinned under its name
ASKED = "asked"  # pinned where it isn't at its default, so that runs of before the field was there are at its default
RESOLVED = "resolved"  # pinned as what comes of it: `pinned_as` are the names
RECORDED = "recorded"  # written down, and free to differ
FREE = "free"

# Why a run that goes on can't change a setting.
PLAN = "it decides the order of the samples, of which each comes once a pass"
CANDIDATES = "it decides which samples can be chosen and what they look like, which holds for the whole log"
CHOICE = (
    "it decides what is kept, and a run is described by one choice; --warm-up, --stop-after and --ratio make "
    "one that changes in time"
)
WEIGHTS = "it decides which weights there are"
UNPINNED = "nothing pins it: give the option itself, the run goes on with it"

GENERAL, RULES, CASCADE = "Options", "Options on the rule", "Cheaper selection"  # headings of --help
MACHINE, RECORDS = "This machine", "What is written"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The metadata of a field. A field is pinned, or `free` says why a resume may have another value."""

    help: str
    heading: str = GENERAL
    metavar: str | None = None
    unset: str = ""  # what holds where the value is None, for people
    choices: tuple[str, ...] = ()  # nothing else can be given
    option: str = ""  # its name on the command line, where it isn't the field's
    command_line: bool = True  # False: for Python and config files
    code: bool = False  # an object of Python: in no file
    imports: bool = False  # its value can be package.module:function, which a file must not decide
    place: bool = False  # paths or URLs, which are made absolute and lose their secrets where they are recorded
    no_place: str = ""  # of a place, the word that isn't one
    positional: bool = False  # on the command line it is given without its name
    joined: bool = False  # several values, which the command line takes as one text with commas
    kept: bool = True  # part of what run.json says of the config
    pin: str = FREE
    pinned_as: tuple[str, ...] = ()
    free: str = ""
    fixed: str = UNPINNED  # why a run can't change it while it goes on; "" where it can
    part: str = ""  # "rule": the choice alone, in which a baseline differs; "sizes": of one that trains on everything
    words: str | None = None  # in the name of a run of a report, before its value; None: not in it
    # of an option that re-ranks: a file of selection/adjust/, or a function of its value, that makes what does so
    adjust: str | Callable[[Any], Any] | None = None


def setting(default: Any = MISSING, **says: Any) -> Any:
    """A dataclass field that says so much of itself; see `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(**says)})


def settings_of(config: Any) -> dict[str, Setting]:
    """{field: what it says of itself} of a config or its class, in the order of the fields."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(config)}


def defaults_of(config: Any) -> dict[str, Any]:
    """{field: default} of those that have one."""
    return {field.name: field.default for field in dataclasses.fields(config) if field.default is not MISSING}


def kinds_of(config: Any) -> dict[str, tuple[str, ...]]:
    """{field: the types it can have}, as they are written: ("float", "None")."""
    return {
        field.name: tuple(part.strip() for part in str(field.type).split(" | ")) for field in dataclasses.fields(config)
    }


def option_name(name: str, says: Setting | None) -> str:
    """`--buffer-size` of `buffer_size`."""
    return f"--{(says and says.option) or name.replace('_', '-')}"


def takes_several(kinds: tuple[str, ...]) -> bool:
    """Whether a field of these types is a list."""
    return any(kind.startswith(("Iterable", "Sequence")) for kind in kinds)


# Settings that are gone (docs/decisions/039): the one value that is left, and what to do instead of another.
GONE: dict[str, tuple[Any, str]] = {
    "selection": ("global", "all ranks choose together, from the whole buffer, as global did: leave it out"),
    "tensorboard": (False, "--track tensorboard writes the same events, and goes on with those of before"),
}


def as_now(name: str, value: Any) -> tuple[str, Any]:
    """A setting that an older version wrote down, by the name and the value that it has now."""
    return ("track", ("tensorboard",)) if name == "tensorboard" and value is True else (name, value)


def require_known(name: str, names: Iterable[str], what: str) -> None:
    """Raise UnknownNameError for a setting that isn't there, with a guess or, of one that is gone, what to do."""
    if name not in (names := list(names)):
        if name in GONE:
            raise UnknownNameError(f"{what} has no setting {name!r} any more: {GONE[name][1]}")
        near = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
        raise UnknownNameError(f"{what} has no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def check_types(config: Any) -> None:
    """Give every field of a frozen config the type it is to have. Raises UsageError naming the first that can't."""
    kinds, says = kinds_of(config), settings_of(config)
    for name, value in vars(config).items():
        object.__setattr__(config, name, checked(name, value, kinds[name], says[name]))


_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def checked(name: str, value: Any, kinds: tuple[str, ...], says: Setting) -> Any:
    """The value in the type that the field has. Raises UsageError naming the field, what came and what was expected."""
    if says.code or (value is None and "None" in kinds):
        return value
    found = _as_kind(value, kinds)
    if found is MISSING and says.place and not any(kind.startswith("Mapping") for kind in kinds):
        got = "nothing (None)" if value is None else type(value).__name__
        raise UsageError(f"{name}: expected a path or URL, got {got}")
    if found is MISSING:
        expected = [_EXPECTED[kind] for kind in kinds if kind in _EXPECTED]
        if takes_several(kinds):
            expected = [*expected, "a list of text"]
        if any(kind.startswith("Mapping") for kind in kinds):
            expected = [*expected, "names with a value each"]
        raise UsageError(f"{name}: got {_shown(value)}, expected {' or '.join(expected)}")
    if says.choices and found not in says.choices and found is not None:
        near = difflib.get_close_matches(str(found), says.choices, n=1)
        raise UnknownNameError(
            f"{name}: unknown {str(found)[:80]!r}, expected one of {', '.join(says.choices)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return found


def _as_kind(value: Any, kinds: tuple[str, ...]) -> Any:
    """MISSING for a value of none of the kinds. Numbers of NumPy are numbers, and paths are text."""
    truth = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if "bool" in kinds and truth:
        return bool(value)
    if truth:
        return MISSING
    if "int" in kinds and isinstance(value, numbers.Integral):
        return int(value)
    if "float" in kinds and isinstance(value, numbers.Real):
        return value if isinstance(value, int) and "str" in kinds else float(value)
    if "str" in kinds and isinstance(value, str | bytes | os.PathLike):
        return os.fsdecode(value)
    if any(kind.startswith("Callable") for kind in kinds) and callable(value):
        return value
    if takes_several(kinds) and isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return value if isinstance(value, set | frozenset) else tuple(value)
    if any(kind.startswith("Mapping") for kind in kinds) and isinstance(value, Mapping):
        return value
    return MISSING


def _shown(value: Any) -> str:
    text = (
        f"{value!r} ({type(value).__name__})"
        if not isinstance(value, dict | list | tuple)
        else (f"a {type(value).__name__}")
    )
    return text if len(text) <= 80 else text[:79] + "…"
