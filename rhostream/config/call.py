"""A function of one config, callable by the config, by keywords, or by both: what is named wins.

train(TrainConfig(shards="shards", il="il", run="run"), seed=1)
train("shards", "il", "run", seed=1)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rhostream.errors import UsageError
from rhostream.setting import defaults_of, require_known, settings_of
from rhostream.signals import end_if_unguarded

C = TypeVar("C")
R = TypeVar("R")


def configured(config: type[C], *positional: str) -> Callable[[Callable[[C], R]], Callable[..., R]]:
    """Decorate a function of a config. `positional`: fields that may be given by position.

    Called, it raises UnknownNameError for a keyword that is no field, UsageError for a field that is missing.
    """

    def decorate(function: Callable[[C], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> R:
            end_if_unguarded()
            base = given.pop("config", None)
            if base is None and args and dataclasses.is_dataclass(args[0]):
                base, args = args[0], args[1:]
            if len(args) > len(positional):
                raise TypeError(
                    f"{function.__name__}() takes {len(positional)} values by position "
                    f"({', '.join(positional)}), {len(args)} were given"
                )
            for name, value in zip(positional, args, strict=False):
                if name in given:
                    raise TypeError(f"{function.__name__}() got {name} twice: by position and by name")
                given[name] = value
            return function(config_with(config, base, given))

        called.__signature__ = _signature(function, config, positional)  # type: ignore[attr-defined]
        return called

    return decorate


def config_with(config: type[C], base: object, given: Mapping[str, Any]) -> C:
    """The config of the fields that are given, the others as in `base`, or at their defaults. Raises UsageError."""
    verb: str = config.verb  # type: ignore[attr-defined]
    for name in given:
        require_known(name, settings_of(config), verb)
    if base is not None:
        if not isinstance(base, config):
            raise UsageError(f"{verb}: config is a {type(base).__name__}, expected a {config.__name__}")
        return dataclasses.replace(base, **given)  # type: ignore[type-var]
    for name in settings_of(config):
        if name not in given and name not in defaults_of(config):
            raise UsageError(f"{verb}: {name} is missing ({settings_of(config)[name].help.rstrip('.')})")
    return config(**given)


def _signature(function: Callable[..., Any], config: type[Any], positional: tuple[str, ...]) -> inspect.Signature:
    """What `help()` and notebooks show: every field with its default, and `config`."""
    defaults, says = defaults_of(config), settings_of(config)
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    names = [*positional, *(name for name in says if name not in positional)]
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if name in positional else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in positional else defaults.get(name, inspect.Parameter.empty),
            annotation=kinds[name],
        )
        for name in names
    ]
    own = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config.__name__)
    return inspect.Signature([*parameters, own], return_annotation=inspect.signature(function).return_annotation)
