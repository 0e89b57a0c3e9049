"""The tables of `docs/settings.md`: `python -m rhostream.config.page > docs/settings.md`."""

from __future__ import annotations

from typing import Any

from rhostream.config import (
    ComputeILConfig,
    EstimateConfig,
    FitILConfig,
    IndexConfig,
    InitConfig,
    ShardsConfig,
    TrainConfig,
)
from rhostream.setting import (
    ALWAYS,
    ASKED,
    GENERAL,
    RECORDED,
    RESOLVED,
    Setting,
    defaults_of,
    kinds_of,
    option_name,
    settings_of,
)

INTRO = """# Settings: every field of every config

Made of the fields themselves by `python -m rhostream.config.page > docs/settings.md`; a test holds the two together.

A verb has one config, a frozen value: `rhostream.TrainConfig(shards=..., il=..., run=..., gumbel=0.5)`. The same fields
are the options of the command line (`--gumbel 0.5`), the keywords of Python (`rhostream.train(..., gumbel=0.5)`, or
`rhostream.train(config, seed=1)`), and the lines of a file for `--config`: YAML, TOML or JSON, or the `run.json` of a
run, whose `config` is the whole of it. What is typed wins over the file, and `--no-NAME` turns a switch off:

    rhostream train --config runs/first/run.json --run runs/second --seed 1

A file may say `verb: train` and `version: 1`; one of another verb or of a newer version is refused, as is a field that
isn't there or has another type. A file doesn't decide what code is run: `package.module:function` has to be typed as
well (`--rule my.rules:mine`). What is secret in a URL (user, query) is never written down.
"""
RESUME = {ALWAYS: "yes", ASKED: "yes, where it isn't the default"}
TRAIN = """*Resume must agree*: with what a run was begun, or the resume is refused. *`--change`*: can be changed on
purpose while the run goes on, which is recorded.
"""


def page() -> str:
    """The whole page."""
    configs: list[type[Any]] = [
        TrainConfig,
        FitILConfig,
        ComputeILConfig,
        IndexConfig,
        ShardsConfig,
        EstimateConfig,
        InitConfig,
    ]
    return "\n".join([INTRO, *(_section(config) for config in configs)])


def _section(config: type[Any]) -> str:
    says, kinds, defaults = settings_of(config), kinds_of(config), defaults_of(config)
    of_train = config is TrainConfig
    lines = [f"## {config.verb}: `{config.__name__}`", ""]
    if of_train:
        lines += [TRAIN]
    for heading in dict.fromkeys([GENERAL, *(one.heading for one in says.values())]):
        more = ("resume must agree | `--change` |", "---|---|") if of_train else ("", "")
        lines += [
            f"### {heading} of {config.verb}",
            "",
            "| field | type | default | |" + (" " + more[0]).rstrip(),
            "|---|---|---|---|" + more[1],
        ]
        for name, one in says.items():
            if one.heading == heading:
                lines.append(_row(name, one, kinds[name], defaults, of_train))
        lines.append("")
    return "\n".join(lines)


def _row(name: str, says: Setting, kinds: tuple[str, ...], defaults: dict[str, Any], of_train: bool) -> str:
    default = (
        "required"
        if name not in defaults
        else says.unset or ("" if defaults[name] in (None, ()) else f"`{defaults[name]}`")
    )
    values = list(says.choices) or [
        {"Mapping": "dict", "Iterable": "list"}.get(kind.partition("[")[0], kind) for kind in kinds if kind != "None"
    ]
    text = says.help if says.command_line else f"{says.help} Not on the command line."
    if says.positional:
        text += f" On the command line `{says.metavar}`, without a name."
    if says.option:
        text += f" `{option_name(name, says)}`."
    cells = [f"`{name}`", ", ".join(values), default, text]
    if of_train:
        resolved = f"yes, as {', '.join(f'`{pin}`' for pin in says.pinned_as)}"
        cells += [
            RESUME.get(says.pin)
            or (resolved if says.pin == RESOLVED else f"no{', recorded' if says.pin == RECORDED else ''}: {says.free}"),
            "" if says.fixed else "yes",
        ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
