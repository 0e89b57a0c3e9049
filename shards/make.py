"""Make WebDataset shards: `python -m shards.make RECIPE --out DIR [options]`.

options > recipe (what the samples are) > write (tars) > a summary on stdout
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from rhostream.errors import RhostreamError, UnknownNameError, UsageError
from rhostream.making.write import Summary, write
from shards.recipes import BASES, Option, Recipe, web

Command = Callable[..., Any]
WEB_OPTIONS = tuple(name for name in inspect.signature(web.samples).parameters if name not in ("base", "seed"))


SHARED = ("source", "split", "limit", "skip", "seed")  # by every recipe


def make(
    recipe: str,
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    samples_per_shard: int = 1000,
    **options: Any,
) -> Summary:
    """Make the shards of a recipe below `out` and say what they hold.

    `options` are the recipe's: those of `shards.recipes.BASES`, and for "web" (with `base`) those of
    `shards.recipes.web.samples` beside them. Raises UsageError, with nothing written, for what can't be made.
    """
    if recipe == "web":
        if base not in BASES:
            raise UnknownNameError.of("base recipe", str(base), BASES)
        own = [option.name for option in BASES[base].options]
        _check_options(options, [*SHARED, *own, *WEB_OPTIONS], base)
        given = {name: options.pop(name) for name in list(options) if name in (*SHARED, *own)}
        samples = BASES[base].samples(**given)
        return write(
            web.samples(samples, seed=given.get("seed", 0), **options), out, samples_per_shard=samples_per_shard
        )
    if recipe not in BASES:
        raise UnknownNameError.of("recipe", recipe, [*BASES, "web"])
    if base is not None:
        raise UsageError(f"only web has a base; {recipe} is one")
    _check_options(options, [*SHARED, *(option.name for option in BASES[recipe].options)], recipe)
    return write(BASES[recipe].samples(**options), out, samples_per_shard=samples_per_shard)


def _check_options(options: Iterable[str], known: Iterable[str], recipe: str) -> None:
    names = list(known)
    for name in options:
        if name not in names:
            raise UnknownNameError.of(f"option of {recipe}", name, names)


# -- the command line -------------------------------------------------------------------------------


def _pairs(_: click.Context, __: click.Parameter, text: str | None) -> list[tuple[int, int]] | None:
    """`3:5,9:7` as pairs."""
    if text is None:
        return None
    try:
        pairs = [tuple(int(side) for side in pair.split(":")) for pair in text.split(",")]
        return [(true, wrong) for true, wrong in pairs]
    except ValueError as exc:
        raise click.BadParameter(f"got {text!r}, expected TRUE:WRONG pairs such as 3:5,9:7") from exc


def _set(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`noise-level=worse` as an item."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, sign, value) in zip(texts, pairs, strict=True):
        if not (name and sign and value):
            raise click.BadParameter(f"got {text!r}, expected NAME=VALUE such as noise-level=worse")
    return {name.replace("-", "_"): value for name, _, value in pairs}


def _common(splits: str, source: str) -> tuple[Callable[[Command], Command], ...]:
    """The options that every recipe has."""
    return (
        click.option(
            "--out", required=True, metavar="URL", help="Folder for the shards; local, or of an object store."
        ),
        click.option("--source", metavar="DIR", help=f"Where the original files are: {source}."),
        click.option("--split", default="train", show_default=True, help=f"Which samples: {splits}."),
        click.option("--limit", type=int, help="Take so many samples, chosen by seed. [default: all]"),
        click.option(
            "--skip", default=0, show_default=True, help="Leave out so many first: a set disjoint from --limit."
        ),
        click.option("--seed", default=0, show_default=True, help="Fixes every random choice."),
        click.option("--samples-per-shard", default=1000, show_default=True, help="How many samples make one tar."),
    )


def _own(option: Option) -> Callable[[Command], Command]:
    """A recipe's own option as click's."""
    flag = f"--{option.name.replace('_', '-')}"
    if option.type is bool:
        return click.option(flag, is_flag=True, default=option.default, help=option.help)
    kind = click.Choice(option.choices) if option.choices else option.type
    return click.option(
        flag, type=kind, default=option.default, show_default=option.default is not None, help=option.help
    )


WEB = (
    click.option("--base", required=True, type=click.Choice(list(BASES)), help="The recipe that gives the samples."),
    click.option(
        "--set",
        "base_options",
        multiple=True,
        callback=_set,
        metavar="NAME=VALUE",
        help="An option of the base recipe, such as noise-level=worse.",
    ),
    click.option(
        "--noise",
        type=click.Choice(["uniform", "structured", "ambiguous", "none"]),
        default="uniform",
        show_default=True,
        help="uniform: drawn over all classes (so 1/C of them stay right); structured: a confused class; ambiguous: "
        "blended with an image of a confused class, labelled as one of the two.",
    ),
    click.option("--noise-rate", type=float, help="Share that is drawn. [default: 0.4; structured: 0.5; ambiguous: 1]"),
    click.option(
        "--confuse",
        callback=_pairs,
        metavar="TRUE:WRONG,...",
        help="Pairs for structured and ambiguous noise. [default: the base's most confused classes]",
    ),
    click.option(
        "--copies", default=1, show_default=True, help="Jittered near-duplicates of an image, with own noise."
    ),
    click.option("--duplicate-fraction", default=1.0, show_default=True, help="Share of the images that are copied."),
    click.option("--imbalance", default=1.0, show_default=True, help="Long tail: largest class / smallest class."),
    click.option(
        "--relevant-classes", type=int, help="So many classes, drawn by --seed, are kept whole. [default: all]"
    ),
    click.option("--rare-share", default=0.06, show_default=True, help="Share that is kept of each other class."),
    click.option(
        "--order",
        type=click.Choice(["shuffled", "class-sorted"]),
        default="shuffled",
        show_default=True,
        help="Over all shards; class-sorted goes by the label as given.",
    ),
)


def _with(options: Iterable[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(list(options)):
            command = option(command)
        return command

    return decorate


def _run(recipe: str, **options: Any) -> None:
    try:
        print(make(recipe, **options).text())
    except RhostreamError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


class _InOrder(click.Group):
    """Commands in the order of `BASES`: image sets, text sets, what people bring."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, not sorted."""
        return list(self.commands)


@click.group(cls=_InOrder)
def main() -> None:
    """Make WebDataset shards. The same command again finishes a stopped run; nothing is ever overwritten.

    \b
    python -m shards.make fashion-mnist --split test --out data/test
    python -m shards.make cifar10n --source cifar10/ --labels CIFAR-N.zip --noise-level worse --out data/worse
    python -m shards.make web --base fashion-mnist --limit 30000 --copies 1 --noise-rate 0.4 --out data/web
    """


def _add(name: str, recipe: Recipe) -> None:
    @main.command(name, help=recipe.help)
    @_with((*_common(recipe.splits, recipe.source), *map(_own, recipe.options)))
    def _(**options: Any) -> None:
        _run(name, **options)


for _name, _recipe in BASES.items():
    _add(_name, _recipe)


@main.command("web")
@_with((*WEB, *_common("as the base's", "the base's")))
def _web(base: str, base_options: dict[str, str], **options: Any) -> None:
    """Another recipe: wrong labels, copies, rare classes."""
    _run("web", base=base, **_typed(base, base_options), **options)


def _typed(base: str, values: dict[str, str]) -> dict[str, Any]:
    """The base's own options with values of their types. Raises click.BadParameter for another name or type."""
    known = {option.name: option for option in BASES[base].options}
    typed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            names = ", ".join(option.replace("_", "-") for option in known) or "none"
            raise click.BadParameter(f"{base} has no option {name.replace('_', '-')!r} (it has: {names})")
        option = known[name]
        kind = click.Choice(option.choices) if option.choices else click.types.convert_type(option.type)
        typed[name] = kind.convert(value, None, None)
    return typed


if __name__ == "__main__":
    main()
