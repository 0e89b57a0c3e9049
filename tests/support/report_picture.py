"""README's picture of a report: the top of the page that `make demo` writes, small enough to be kept in the repository.

python -m tests.support.report_picture demo/report.html docs/figures/report.png
"""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image

from tests.support.browser import chromium, opened

WIDTH, HEIGHT = 1100, 820  # of the window, in pixels
COLOURS = 64


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--height", default=HEIGHT, show_default=True)
def main(report: Path, picture: Path, height: int) -> None:
    with chromium() as browser, opened(browser, report.resolve().as_uri(), width=WIDTH, height=height) as page:
        seen = Image.open(io.BytesIO(page.screenshot()))
    small = seen.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.parent.mkdir(parents=True, exist_ok=True)
    small.save(picture, optimize=True)
    click.echo(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
