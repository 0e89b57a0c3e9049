"""`python -m benchmarks.gpu`: every part within its time, a record written after each, and the page at the end."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree as ElementTree  # of a file that pytest writes here
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import page as pages
from benchmarks.gpu import page, record
from benchmarks.gpu.budget import SHARES, Clock, is_too_little, seconds_of
from benchmarks.gpu.speed import Found

REPOSITORY = Path(__file__).resolve().parents[2]
Part = Callable[[Clock], Found]


@click.command()
@click.option("--part", "asked", multiple=True, type=click.Choice([*SHARES]), help="only these, again if they are done")
@click.option(
    "--minutes", default=25.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="for all of it"
)
@click.option("--out", default=record.FOLDER, type=click.Path(path_type=Path), help="[default: benchmarks/results/gpu]")
@click.option("--work", default=Path(tempfile.gettempdir(), "rhostream-gpu"), type=click.Path(path_type=Path),
              help="folder of shards and runs, which the same command goes on with")  # fmt: skip
@click.option(
    "--source", multiple=True, metavar="cifar10=DIR", help="where CIFAR-10's files are; else they are made up"
)
@click.option("--workers", type=click.IntRange(0), help="of the loader  [default: 8 with a GPU, else 0]")
@click.option("--toy", is_flag=True, help="all of it in minutes at toy size, on a CPU as well")
@click.option("--page/--no-page", "write_page", default=True, help="write docs/performance/gpu.md at the end")
def main(
    asked: tuple[str, ...],
    minutes: float,
    out: Path,
    work: Path,
    source: tuple[str, ...],
    workers: int | None,
    toy: bool,
    write_page: bool,
) -> None:
    """Measure all that is to be known on a GPU; what was done today is not done again."""
    files = source_of(source)
    gpu = torch.cuda.is_available()
    if not gpu and not toy:
        raise click.UsageError("no CUDA device is seen here; --toy tries all of it at toy size on the CPU")
    workers = workers if workers is not None else 8 if gpu and not toy else 0
    work.mkdir(parents=True, exist_ok=True)
    data = "CIFAR-10" if files else "made-up pictures in the form of CIFAR-10's files"
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    path, found = record.begin(out, command, toy=toy, data=data, minutes=minutes)
    done = {name for name, part in found["parts"].items() if part["state"] == "done"}
    wanted = [name for name in SHARES if (name in asked if asked else name not in done)]
    run_parts(
        wanted,
        parts_of(toy, work, workers, files),
        Clock(60 * minutes),
        lambda name, part: _enter(path, found, name, part),
    )
    click.echo(f"wrote {path}", err=True)
    if write_page and not toy:
        click.echo(f"wrote {write(out)}", err=True)


def run_parts(
    wanted: list[str], parts: dict[str, Part], total: Clock, enter: Callable[[str, dict[str, Any]], None]
) -> None:
    """Each part with its share of what is left; one that raises, or that there is no time for, hinders no other."""
    for number, name in enumerate(wanted):
        limit = seconds_of(name, total.left, wanted[number:])
        if is_too_little(name, limit, total.limit):
            enter(name, _entry("skipped", f"of {total.limit / 60:g} minutes {total.left / 60:.1f} were left", 0.0, {}))
            continue
        clock = Clock(limit)
        click.echo(f"{name}: {limit:.0f} s at most", err=True)
        try:
            state, says, figures = parts[name](clock)
        except Exception as exc:
            traceback.print_exc()
            state, says, figures = "failed", f"{type(exc).__name__}: {str(exc)[:300]}", {}
        enter(name, _entry(state, says, clock.spent, figures))


def parts_of(toy: bool, work: Path, workers: int, files: Path | None) -> dict[str, Part]:
    """The parts by name; what they need is imported when they begin."""

    def tests(clock: Clock) -> Found:
        return run_tests(clock, work)

    def speed(what: str, *more: Any) -> Part:
        def part(clock: Clock) -> Found:
            from benchmarks.gpu import speed

            return getattr(speed, what)(clock, toy, *more)  # type: ignore[no-any-return]

        return part

    def paper(name: str) -> Part:
        def part(clock: Clock) -> Found:
            from benchmarks.gpu.paper import rows

            return rows(name, clock, toy, work, workers, files)

        return part

    return {
        "tests": tests, "step": speed("step"), "copies": speed("copies"), "idle": speed("idle", work, workers),
        "paper-clean": paper("paper-clean"), "paper-noise": paper("paper-noise"),
    }  # fmt: skip


def run_tests(clock: Clock, work: Path) -> Found:
    """`tests/test_gpu.py` by pytest: how many passed, failed and were skipped, and what was said of each."""
    if importlib.util.find_spec("pytest") is None:
        return "skipped", "pytest isn't installed", {}
    told = work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", f"--junitxml={told}"]
    try:
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=max(clock.left, 1.0))
    except subprocess.TimeoutExpired:
        return "stopped", f"the tests took more than {clock.limit:.0f} s", {}
    last = (ran.stdout.strip().splitlines() or ran.stderr.strip().splitlines() or ["nothing was said"])[-1]
    found = outcome(told)
    state = "done" if "passed" in found.values() else "skipped"
    return (state if ran.returncode in (0, 5) else "failed"), last.strip("= "), found


def outcome(path: Path) -> dict[str, Any]:
    """{test: "passed", or what was said} of a JUnit file; {} where there is none."""
    if not path.exists():
        return {}
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        said = [f"{one.tag}: {(one.get('message') or '')[:200]}" for one in case]
        found[str(case.get("name"))] = said[0] if said else "passed"
    return found


def source_of(given: tuple[str, ...]) -> Path | None:
    """The folder of CIFAR-10's files. Raises a click error for another name, or none."""
    folders = dict(text.partition("=")[::2] for text in given)
    if unknown := [name for name in folders if name != "cifar10"]:
        raise click.BadParameter(f"{unknown[0]}: expected cifar10=DIR", param_hint="--source")
    folder = folders.get("cifar10")
    if folder is not None and not Path(folder).is_dir():
        raise click.BadParameter(f"{folder} is no folder", param_hint="--source")
    return None if folder is None else Path(folder)


def write(folder: Path, docs: Path = pages.DOCS) -> Path:
    """The page, of the newest record of a GPU in a folder."""
    path = docs / "performance" / "gpu.md"
    path.write_text(page.render(record.newest(folder)))
    return path


def _enter(path: Path, found: record.Record, name: str, part: dict[str, Any]) -> None:
    found["parts"][name] = part
    record.save(path, found)
    click.echo(f"{name}: {part['state']}, {part['says']}", err=True)


def _entry(state: str, says: str, seconds: float, figures: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "says": says, "seconds": round(seconds, 1), "figures": figures}


if __name__ == "__main__":
    main()
