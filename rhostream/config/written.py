"""A config as run.json holds it, and what of it the command that goes on has to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhostream import storage
from rhostream.config.files import VERSION
from rhostream.setting import defaults_of, settings_of


def written(config: Any) -> dict[str, Any]:
    """The whole config, as `--config` reads it: places absolute and without secrets, code only as being there."""
    found: dict[str, Any] = {"verb": config.verb, "version": VERSION}
    for name, says in settings_of(config).items():
        value = getattr(config, name)
        if not says.kept or (says.code and value is None):
            continue
        found[name] = True if says.code else _place(value) if says.place else _plain(value)
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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _place(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_place(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _place(one) for name, one in value.items()}
    return value and storage.redact(storage.resolve(value))
