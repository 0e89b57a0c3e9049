"""A config as run.json holds it, and what of it the command that goes on has to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhostream import storage
from rhostream.config.files import VERSION
from rhostream.inert import shortened
from rhostream.setting import defaults_of, settings_of


def written(config: Any) -> dict[str, Any]:
    """The whole config, as `--config` reads it: places absolute and without secrets, code only as being there."""
    found: dict[str, Any] = {"verb": config.verb, "version": VERSION}
    for name, says in settings_of(config).items():
        value = getattr(config, name)
        if not says.kept or (says.code and value is None):
            continue
        is_place = says.place and not (says.no_place and value == says.no_place)
        found[name] = True if says.code else _place(value) if is_place else _plain(value)
    return found


def arguments_of(config: Any) -> dict[str, Any]:
    """What the run was called with beyond the defaults: the command that goes on is made of it."""
    defaults = {name: _plain(value) for name, value in defaults_of(config).items()}
    left_out = ("verb", "version", "run", "il")  # the folder and the table are known
    return {
        name: value
        for name, value in written(config).items()
        if name not in left_out and value not in (None, [], {}) and value != defaults.get(name)
    }


def brief(config: Any) -> str:
    """A config on one short line: what isn't at its default, without secrets; a list by its length."""
    shown = []
    for name, value in vars(config).items():
        says = settings_of(config)[name]
        if name in (defaults := defaults_of(config)) and value == defaults[name]:
            continue
        if says.code:
            text = "..."
        elif isinstance(value, tuple | list) and len(value) > 1:
            text = f"[{len(value):,}]"
        else:
            text = shortened(repr(_redacted(value) if says.place else _plain(value)), 50)
        shown.append(f"{name}={text}")
    return shortened(f"{type(config).__name__}({', '.join(shown)})", 200)


def _redacted(value: Any) -> Any:
    """Places as they were given, without their secrets."""
    if isinstance(value, tuple | list):
        return [_redacted(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _redacted(one) for name, one in value.items()}
    try:
        return storage.redact(value) if isinstance(value, str) else value
    except ValueError:  # no URL after all, such as an IPv6 address that is never closed
        return value.partition("://")[0] + "://..."


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _place(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_place(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _place(one) for name, one in value.items()}
    return value and storage.redact(storage.resolve(value))
