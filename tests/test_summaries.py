"""What people see: bars and lines while a job works, a summary when it is done, and short reprs in a notebook."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import rhostream
from rhostream import summaries
from rhostream.il_model.info import read_info
from rhostream.il_model.networks import load_il_model
from rhostream.progress import Progress
from rhostream.runs.step import Evaluation
from rhostream.tables import il

SHORT = 200


def at_a_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code and all that a verb writes to a terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))  # rows, columns
    environment = {**os.environ, "TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [sys.executable, "-c", "from rhostream.cli import main; main()", *map(str, arguments)],
        stdin=follower, stdout=follower, stderr=follower, env=environment,
    )  # fmt: skip
    os.close(follower)
    written = b""
    with open(leader, "rb", buffering=0) as screen:
        while True:
            try:
                some = screen.read(1 << 16)
            except OSError:  # the other side is closed
                break
            if not some:
                break
            written += some
    return job.wait(), written.decode().replace("\r\n", "\n")


def test_on_a_terminal_a_fit_shows_a_bar_and_ends_with_lines_for_people(world: Path, tmp_path: Path) -> None:
    code, screen = at_a_terminal(
        "fit-il", "--shards", world / "shards", "--out", tmp_path / "m", "--model", "mlp-64", "--epochs", 2
    )
    assert code == 0, screen
    assert "model 1 of 2" in screen and "epoch 2 of 2" in screen and "on others" in screen  # the bar
    ending = screen[screen.rindex("IL model ") :]
    assert str(tmp_path / "m") in ending and " nats" in ending and "{" not in ending
    assert f"next: rhostream compute-il --il-model {tmp_path / 'm'} --out il --shards {world / 'shards'}" in ending


def test_a_summary_is_json_where_it_is_asked_for_or_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(terminal: bool, asked: bool) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
        with click.Context(click.Command("verb")) as ctx:
            ctx.params["as_json"] = asked
            summaries.show({"a": 1}, iter([("a", "one")]), doubts=["odd"], next_="rhostream status x")
        return capsys.readouterr().out

    assert json.loads(shown(False, False)) == json.loads(shown(True, True)) == {"a": 1}
    assert shown(True, False) == "a  one\ndoubtful  odd\nnext: rhostream status x\n"


def test_every_verb_that_ends_with_a_summary_takes_json() -> None:
    from rhostream.cli import cli

    for name in ("fit-il", "compute-il", "index", "train", "status", "verify", "estimate", "doctor"):
        assert any("--json" in option.opts for option in cli.commands[name].params), name


def test_people_read_in_a_summary_what_its_json_says() -> None:
    train = {
        "run": "runs/\x1b[2J", "steps": 1200, "planned": 384_000, "kept": 38_400, "skipped": 1, "tail": 0,
        "reasons": {"kept": 38_400, "below": 345_000, "holdout": 600}, "retried": {"s3://b": {"http 503": 2}},
        "test_accuracy": 0.8712, "test_samples": 10_000, "test_left_out": {"decode:broken": 3}, "doubts": [],
    }  # fmt: skip
    lines = dict(summaries.train_lines(train))
    assert lines["kept"].startswith("38,400 (10.0 %) of 384,000")
    assert lines["skipped"] == "345,000 below, 600 holdout" and lines["tried again"] == "s3://b: 2 http 503"
    assert lines["accuracy"] == "87.12 % of 10,000 test samples; left out: 3 decode:broken"
    assert "accuracy" not in dict(summaries.train_lines(train | {"test_accuracy": None}))
    assert summaries.command("report", "my runs/rho") == "rhostream report 'my runs/rho'"
    assert summaries.shards_again(["a b.tar"]) == "'a b.tar'" and "9" in summaries.shards_again(["x"] * 9)


def test_an_evaluation_is_a_line_where_there_is_no_bar(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rhostream"), Progress("train", 10, "step") as progress:
        progress.advance(loss=1.0)
        progress.note(Evaluation(0.5, 0.875, None, 100).in_words(), "evaluation")
    assert "step 1 of 10" in caplog.text and "accuracy 87.5 %" in caplog.text and "0.500" in caplog.text


def test_train_says_its_accuracy_when_it_is_evaluated(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rhostream"):
        summary = rhostream.train(
            str(world / "shards"), str(world / "il"), str(tmp_path / "run"), model="mlp-64", steps=4, buffer_size=40,
            batch_size=8, test_shards=[str(world / "shards")], eval_every=2, threads=1,
        )  # fmt: skip
    said = [record.getMessage() for record in caplog.records if "accuracy" in record.getMessage()]
    assert len([line for line in said if "of 4, accuracy" in line]) == 2
    assert f"accuracy {100 * summary.test_accuracy:.1f} %" in said[-1]


def handed_out(world: Path, folder: Path) -> Iterator[Any]:
    """What the library hands to a notebook."""
    stream = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
    model(stream.stream.preprocess.example(2))
    selector = rhostream.Selector(model, batch_size=8)
    yield from (stream, selector, stream.stream.table, stream.stream.table.info)
    with closing(iter(stream)) as buffers:
        candidates = next(buffers)
        yield from (candidates, candidates.take(candidates.candidate_rows[:0]), selector(candidates))
    yield candidates  # after its slot was given back
    part = il.read_part(il.part_url(stream.stream.table.url, stream.stream.table.names[0]))
    info = read_info(str(world / "il-model"))
    yield from (part, part.facts, info, load_il_model(str(world / "il-model")))
    yield rhostream.index([str(world / "shards")], str(folder / "index"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    run = rhostream.Run(str(folder / "run"), other, selector, state={"model": model, "optimizer": optimizer})
    yield run
    with closing(iter(run)) as batches:
        kept = next(batches)
        yield from (run, kept)


def test_the_repr_of_whatever_is_handed_out_is_one_short_line(world: Path, tmp_path: Path) -> None:
    for number, thing in enumerate(handed_out(world, tmp_path)):
        text = repr(thing)
        assert len(text) <= SHORT and text.isprintable() and " at 0x" not in text, (number, text)
    assert number == 15


def test_the_repr_of_a_buffer_says_how_many_samples_it_has_and_where_they_are(world: Path) -> None:
    candidates = next(iter(rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)))
    assert "40 samples" in repr(candidates) and "on cpu" in repr(candidates) and "uint8" in repr(candidates)
