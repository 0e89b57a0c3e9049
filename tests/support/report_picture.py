"""README's picture of a report: its verdict and its curves, small enough to be kept in the repository.

make demo
.venv/bin/python -m tests.support.report_picture demo/report.html docs/figures/report.png
"""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image

from tests.support.browser import chromium, opened

WIDTH, TOP, CURVES = 1100, 505, 445  # pixels of the page: its width, what is shown of its top, and of its curves
SHOWN, COLOURS = 880, 128


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def main(report: Path, picture: Path) -> None:
    with chromium() as browser, opened(browser, report.resolve().as_uri(), width=WIDTH) as page:
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        curves = round(page.get_by_role("heading", name="Accuracy", exact=True).first.bounding_box()["y"])
    seen = Image.new("RGB", (WIDTH, TOP + CURVES), "white")
    seen.paste(whole.crop((0, 0, WIDTH, TOP)), (0, 0))
    seen.paste(whole.crop((0, curves - 20, WIDTH, curves - 20 + CURVES)), (0, TOP))
    small = seen.resize((SHOWN, SHOWN * seen.height // WIDTH), Image.Resampling.LANCZOS)
    picture.parent.mkdir(parents=True, exist_ok=True)
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
    click.echo(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
