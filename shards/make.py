"""Make WebDataset shards: `python -m shards.make RECIPE --out DIR [options]`.

options > recipe (what the samples are) > write (tars) > a summary on stdout
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from rhostream.errors import RhostreamError, UnknownNameError, UsageError
from shards.recipes import BASES, web
from shards.write import Summary, write

Command = Callable[..., Any]


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
        source = {name: options.pop(name) for name in ("source", "split", "limit", "skip") if name in options}
        samples = BASES[base](**source, seed=options.get("seed", 0))
        return write(web.samples(samples, **options), out, samples_per_shard=samples_per_shard)
    if recipe not in BASES:
        raise UnknownNameError.of("recipe", recipe, [*BASES, "web"])
    if base is not None:
        raise UsageError(f"only web has a base; {recipe} is one")
    return write(BASES[recipe](**options), out, samples_per_shard=samples_per_shard)


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


COMMON = (
    click.option(
        "--out", required=True, metavar="URL", help="Folder for the shards; local, or of an object store."
    ),
    click.option(
        "--samples-per-shard", default=1000, show_default=True, help="How many samples make one tar."
    ),
    click.option(
        "--split", default="train", show_default=True, help="Names the shards; fashion-mnist: train or test."
    ),
    click.option(
        "--source", metavar="DIR", help="Where the original files are (fashion-mnist finds its own)."
    ),
    click.option("--limit", type=int, help="Take so many samples, chosen by seed. [default: all]"),
    click.option(
        "--skip", default=0, show_default=True, help="Leave out so many first: a set disjoint from --limit."
    ),
    click.option("--seed", default=0, show_default=True, help="Fixes every random choice."),
)
WEB = (
    click.option(
        "--base", required=True, type=click.Choice(list(BASES)), help="The recipe that gives the samples."
    ),
    click.option(
        "--noise",
        type=click.Choice(["uniform", "structured", "none"]),
        default="uniform",
        show_default=True,
        help="uniform: drawn over all classes (so 1/C of them stay right); structured: a confused class.",
    ),
    click.option("--noise-rate", type=float, help="Share that is drawn. [default: 0.4; structured: 0.5]"),
    click.option(
        "--confuse",
        callback=_pairs,
        metavar="TRUE:WRONG,...",
        help="Pairs for structured noise. [default: for fashion-mnist 6:0,2:4,9:7,5:7]",
    ),
    click.option(
        "--copies", default=1, show_default=True, help="Jittered near-duplicates of an image, with own noise."
    ),
    click.option(
        "--duplicate-fraction", default=1.0, show_default=True, help="Share of the images that are copied."
    ),
    click.option(
        "--imbalance", default=1.0, show_default=True, help="Long tail: largest class / smallest class."
    ),
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


@click.group()
def main() -> None:
    """Make WebDataset shards. The same command again finishes a stopped run; nothing is ever overwritten.

    \b
    python -m shards.make fashion-mnist --split test --out data/test
    python -m shards.make imagefolder --source photos/ --out data/photos
    python -m shards.make web --base fashion-mnist --limit 30000 --copies 1 --noise-rate 0.4 --out data/web
    """


@main.command("fashion-mnist")
@_with(COMMON)
def _fashion_mnist(**options: Any) -> None:
    """Fashion-MNIST as it is: 28x28 grey PNG, 10 classes."""
    _run("fashion-mnist", **options)


@main.command("imagefolder")
@_with(COMMON)
def _imagefolder(**options: Any) -> None:
    """A folder with one subfolder a class; the files' bytes are kept."""
    _run("imagefolder", **options)


@main.command("web")
@_with((*WEB, *COMMON))
def _web(**options: Any) -> None:
    """Another recipe made like the web: wrong labels, near-duplicates, rare classes."""
    _run("web", **options)


if __name__ == "__main__":
    main()
