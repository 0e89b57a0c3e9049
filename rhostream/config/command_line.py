"""The options of a verb, made of its config's fields, and what click doesn't do by itself: headings, guesses, several
values for one option, and a file of settings below the options.

    rhostream train --config old/run.json --run new --lr 5e-4      what is typed wins over the file
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from rhostream import config as configs
from rhostream.errors import UntrustedCodeError
from rhostream.setting import GONE, Setting, defaults_of, kinds_of, option_name, settings_of, takes_several

CONFIG_HELP = (
    "A run.json, or YAML, TOML or JSON of these settings, one_word: value. What is typed here wins; "
    "--no-NAME turns a switch off."
)
_TYPES: dict[str, type] = {"int": int, "float": float}


class SettingOption(click.Option):
    """An option made of a field: under its heading, with what holds where it isn't given."""

    def __init__(self, names: list[str], *, group: str = "Options", needed: bool = False, **how: Any) -> None:
        super().__init__(names, **how)
        self.group, self.needed = group, needed

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Without the `--no-NAME` of a switch, which `--config` explains once for all."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        names, text = record
        if self.secondary_opts:
            names = names.split(" / ")[0]
        return names, text + ("  [required]" if self.needed else "")


LOG_FORMAT = SettingOption(  # read by `console.open_console`, before any other option is
    ["--log-format"], type=click.Choice(["text", "json"]), default="text", show_default=True, group="More",
    expose_value=False, help="Of standard error; json: each line one object, with time, level, verb, event, message.",
)  # fmt: skip
# Of a verb that ends with a summary; where stdout is no terminal that is JSON anyway.
JSON = SettingOption(["--json", "as_json"], is_flag=True, group="More", help="The summary as JSON, on a terminal too.")


class Choice(click.Choice[str]):
    """A choice that guesses what was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as exc:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in self.choices], n=1)
            self.fail(exc.message.rstrip(".") + (f"; did you mean {near[0]!r}?" if near else ""), param, ctx)


class Command(click.Command):
    """A command whose repeatable options take several values: `--shards a.tar b.tar`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, then let click do its work."""
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        out: list[str] = []
        current: str | None = None
        for at, arg in enumerate(args):
            if arg.startswith("-") and arg != "-":
                current = arg if arg in many else None
                out.append(arg)
            elif current and at and args[at - 1] != current:
                out += [current, arg]
            else:
                out.append(arg)
        try:
            return super().parse_args(ctx, out)
        except click.NoSuchOption as exc:
            if (name := exc.option_name.lstrip("-").replace("-", "_")) in GONE:
                raise click.UsageError(f"there is no {exc.option_name} any more: {GONE[name][1]}", ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options below their headings, those without one first, --help last."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                group = "More" if "--help" in parameter.opts else getattr(parameter, "group", "Options")
                sections.setdefault(group, []).append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


class Group(click.Group):
    """Verbs, with a guess for a mistyped one."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Raises click.UsageError for a verb that isn't there."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            raise click.UsageError(f"no such command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def verb(self, name: str, config: str) -> Callable[[Callable[[Any], None]], click.Command]:
        """Register a function of a config of `rhostream.config` as a verb; its docstring is the help."""

        def register(function: Callable[[Any], None]) -> click.Command:
            def called(**_: Any) -> None:
                function(config_of(getattr(configs, config), click.get_current_context()))

            command = _Verb(name, config, callback=called, help=function.__doc__)
            self.add_command(command)
            return command

        return register


class _Verb(Command):
    """A command whose options are made when they are first asked for: most of the time it is another verb's turn."""

    def __init__(self, name: str, config: str, **how: Any) -> None:
        self._config, self._made = config, list[click.Parameter]()
        super().__init__(name, **how)

    @property
    def params(self) -> list[click.Parameter]:
        """--config, and an option for each field of the config."""
        if not self._made:
            self._made = options_of(getattr(configs, self._config))
            if not any(option.name == "as_json" for option in self._made):
                self._made.append(JSON)
            self._made.append(LOG_FORMAT)
        return self._made

    @params.setter
    def params(self, given: list[click.Parameter]) -> None:
        """Click's own, which gives none."""


def options_of(config: type[Any]) -> list[click.Parameter]:
    """--config and an option for each field that the command line has."""
    says, kinds, defaults = settings_of(config), kinds_of(config), defaults_of(config)
    found: list[click.Parameter] = [click.Option(["--config"], metavar="FILE", help=CONFIG_HELP)]
    for name, field in says.items():
        if field.positional:  # --config may say it as well
            number = -1 if takes_several(kinds[name]) else 1
            found.append(click.Argument([name], required=False, metavar=field.metavar, nargs=number))
        elif field.command_line:
            found.append(_option(name, field, kinds[name], defaults))
    return found


def _option(name: str, says: Setting, kinds: tuple[str, ...], defaults: dict[str, Any]) -> SettingOption:
    default, option = defaults.get(name), option_name(name, says)
    how: dict[str, Any] = {
        "group": says.heading,
        "needed": name not in defaults,
        "metavar": says.metavar,
        "help": says.help + (f"  [default: {says.unset}]" if says.unset else ""),
    }
    if "bool" in kinds:
        return SettingOption([f"{option}/--no-{option[2:]}", name], default=default, **how)
    if (takes_several(kinds) or any(kind.startswith("Mapping") for kind in kinds)) and not says.joined:
        return SettingOption([option, name], multiple=True, type=int if "Iterable[int]" in kinds else str, **how)
    kind: Any = (
        Choice(says.choices)
        if says.choices
        else str
        if "str" in kinds
        else (next(_TYPES[kind] for kind in kinds if kind in _TYPES))
    )
    return SettingOption([option, name], type=kind, default=default, show_default=default is not None, **how)


def config_of(config: type[Any], ctx: click.Context) -> Any:
    """The config that the command line and its --config ask for. Raises click's errors, UsageError."""
    given: dict[str, Any] = {}
    says, kinds = settings_of(config), kinds_of(config)
    typed = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if url := ctx.params.get("config"):
        from rhostream.config.files import read_config

        given = read_config(url, config)
    for name, value in ctx.params.items():
        if name in says and name in typed:
            given[name] = value
    for name in {*given} - typed:  # what the file gave
        if says[name].imports:
            _require_typed(given[name], option_name(name, says[name]), str(url))
    for name in [*given]:
        if any(kind.startswith("Mapping[str, str]") for kind in kinds[name]) and isinstance(given[name], tuple):
            from rhostream.tables.names import parse_roots

            given[name] = parse_roots(given[name])
    for name in says:
        if name not in given and name not in defaults_of(config):
            raise click.MissingParameter(ctx=ctx, param=next(p for p in ctx.command.params if p.name == name))
    return config(**given)


def _require_typed(value: Any, option: str, url: str) -> None:
    """Raise UntrustedCodeError where a file names code that the command line doesn't: decision 012."""
    from rhostream.own_code import MODEL_PREFIXES
    from rhostream.storage import redact

    names = value.split(",") if isinstance(value, str) else list(value or ())
    for name in names:
        if name.partition(":")[0].strip() not in MODEL_PREFIXES:
            UntrustedCodeError.unless_named(name.strip(), None, redact(url), option)
