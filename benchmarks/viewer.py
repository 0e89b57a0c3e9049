"""The viewer at the size that people have: `python -m benchmarks.viewer make FOLDER`, then `... measure FOLDER`.

    make       three runs (rho, loss, uniform) of 10 million rows each, in more than 1,000 commits each, by `train`
    measure    in chromium: first paint, brushes, and how soon a run's new steps are seen, while `train` runs

Both go on where they were stopped. Seconds depend on the machine and stand in docs/view.md with their date.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import rhostream
from jobs import recipes
from rhostream.runs import chain, checkpoint
from tests.support.browser import chromium, opened

N_b, EVERY, THREADS = 32, 3, {"OMP_NUM_THREADS": "1"}
# More than 10 million rows each. Compaction merges a rank's segments at every 256th commit, so that most segments are
# in force just before it: four ranks end there, with 255 segments of each rank and those that were merged.
RUNS = {"rho": (4, 3328, 3069), "loss": (1, 3200, 3126), "uniform": (1, 3200, 3126)}  # ranks, n_B, steps


@click.group()
def main() -> None:
    """Make the runs, or measure the viewer on them."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def make(folder: Path) -> None:
    """Shards of 60,000 images, an IL table and three runs."""
    web = ("web", "--base", "fashion-mnist", "--limit", "30000", "--copies", "1", "--noise-rate", "0.4")
    recipes.make(folder / "train", *web)
    train, model, table = [str(folder / "train")], str(folder / "il-model"), str(folder / "il")
    if not Path(model, "model.json").exists():
        rhostream.fit_il(train, model, model="mlp-64", epochs=3, group_by="duplicate_of")
    rhostream.compute_il(train, model, table)
    for rule, (ranks, buffer_size, steps) in RUNS.items():
        training(folder, rule, rule, ranks, buffer_size, steps).wait()


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--live-steps", default=600, show_default=True, help="that `loss` trains on while it is looked at")
@click.option("--moves", default=10, show_default=True, help="of the pointer in each of four charts")
def measure(folder: Path, live_steps: int, moves: int) -> None:
    """First paint, brushes and live steps in chromium."""
    runs = [str(folder / "runs" / name) for name in RUNS]
    ranks, buffer_size, _ = RUNS["loss"]
    sizes = {name: _size(run) for name, run in zip(RUNS, runs, strict=True)}
    committed = sum(size["rows"] for size in sizes.values())
    _tell("runs", **sizes)
    with chromium() as browser, _viewer(runs) as (url, process, started):
        _tell("the address stands", seconds=started)
        with opened(browser, url, height=1000) as page:
            page.evaluate(_WATCH)
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            _await(page, "+document.body.dataset.painted > 0")
            charts = page.evaluate("performance.now()")
            _tell("first paint", words_ms=page.evaluate(paint), charts_ms=charts)
            _await(page, f"+document.body.dataset.rows >= {committed}")
            _tell("all rows", seconds=page.evaluate("performance.now()") / 1000, server_MiB=_peak(process))
            _brushes(page, moves, "quiet")
            live = Path(runs[1])
            last = sizes["loss"]["steps"]
            trainer = training(folder, "loss", "loss", ranks, buffer_size, last + live_steps)
            commits = Commits(live)
            _await(page, f"document.querySelector('[data-run=\"1\"]').dataset.step > {last + 20}")
            _brushes(page, moves, "while `train` runs")
            trainer.wait()
            commits.close()
            page.wait_for_timeout(5000)
            _lateness(page, committed - sizes["loss"]["rows"], commits)
            _tell("at the end", server_MiB=_peak(process))


def training(folder: Path, name: str, rule: str, ranks: int, buffer_size: int, steps: int) -> subprocess.Popen[bytes]:
    """`rhostream train` of one of the runs, which goes on where it was stopped."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python", "--"]
    places = ["--shards", str(folder / "train"), "--il", str(folder / "il"), "--run", str(folder / "runs" / name)]
    sizes = {"steps": steps, "buffer-size": buffer_size, "batch-size": N_b, "checkpoint-every": EVERY, "threads": 1}
    options = [f"--{option}={value}" for option, value in {"model": "mlp-64", "rule": rule, **sizes}.items()]
    command = [*(launch if ranks > 1 else []), str(Path(sys.executable).with_name("rhostream")), "train"]
    return subprocess.Popen([*command, *places, *options], env={**os.environ, **THREADS})


# Of each frame that shows new counts: how long after the newest event of the pointer, and when with how many rows.
_WATCH = """() => {
  window.seen = {last: 0, lateness: [], rows: []};
  document.addEventListener("pointermove", (event) => { window.seen.last = event.timeStamp; }, true);
  new MutationObserver(() => {
    window.seen.lateness.push(performance.now() - window.seen.last);
    window.seen.rows.push([Date.now() / 1000, +document.body.dataset.rows]);
  }).observe(document.body, {attributeFilter: ["data-painted"]});
}"""


def _brushes(page: Any, moves: int, when: str) -> None:
    """Draw a range in four charts: after each move wait for the frame that answers it."""
    late: dict[str, list[float]] = {}
    for chart in ("il", "loss", "score", "step"):
        surface = page.locator(f"[data-chart={chart}] svg.plot")
        surface.scroll_into_view_if_needed()
        box = surface.bounding_box()
        x, y = box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        for move in range(1, moves + 1):
            page.wait_for_timeout(300)
            before = page.evaluate("window.seen.lateness.length")
            page.mouse.move(x + box["width"] * 0.5 * move / moves, y)
            _await(page, f"window.seen.lateness.length > {before}")
            late.setdefault(chart, []).append(page.evaluate(f"window.seen.lateness[{before}]"))
        page.mouse.up()
        page.locator(f"[data-chart={chart}] button", has_text="clear").first.click()
        page.wait_for_timeout(500)
    every = [one for ones in late.values() for one in ones]
    medians = {f"{chart}_ms": statistics.median(ones) for chart, ones in late.items()}
    _tell(f"from a move of the pointer to the painted frame, {when}", moves=len(every), most_ms=max(every), **medians)


class Commits:
    """When a run's commits stood, and how many rows the run had with each: looked for every 20 ms."""

    def __init__(self, run: Path) -> None:
        self.seen: list[tuple[float, int]] = []
        self._run, self._ended = str(run), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        known = chain.newest_place(self._run)
        while not self._ended.wait(0.02):
            if (place := chain.newest_place(self._run)) != known and place is not None:
                now, known = time.time(), place
                self.seen.append((now, _rows(chain.in_force(self._run, place))))

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


def _lateness(page: Any, others: int, commits: Commits) -> None:
    """How late each commit was shown, on a page with `others` rows of runs that don't go on."""
    shown = page.evaluate("window.seen.rows")
    late = [next(when for when, rows in shown if rows >= others + wanted) - at for at, wanted in commits.seen]
    _tell(
        "from a commit to the frame that shows its steps", commits=len(late), median_s=statistics.median(late),
        most_s=max(late), within_two_seconds=sum(one <= 2 for one in late) / len(late),
    )  # fmt: skip


def _rows(link: Any) -> int:
    return sum(link.counts.values())


def _size(run: str) -> dict[str, int]:
    """What is committed, and how many segments of the log are in force."""
    link = checkpoint.latest(run)
    assert link is not None
    return {"rows": _rows(link), "steps": link.step, "segments": len(link.log)}


@contextlib.contextmanager
def _viewer(runs: list[str]) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    """Its address, its process, and how long it took to be told."""
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("rhostream")), "view", *runs, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **THREADS}) as process:
        assert process.stdout is not None
        url = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        try:
            yield url, process, time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGINT)


def _peak(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _await(page: Any, condition: str) -> None:
    """Wait until it holds; asked from here, since the page's policy lets no text become code."""
    end = time.monotonic() + 300
    while not page.evaluate(f"() => Boolean({condition})"):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        page.wait_for_timeout(20)


def _tell(what: str, **figures: Any) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"what": what, **rounded, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
