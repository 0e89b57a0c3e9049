"""What a job says while it works: a bar at a terminal, a line now and then elsewhere, lines of JSON where asked for."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from rhostream import events, progress
from rhostream.progress import Progress
from tests.support.process import run as command
from tests.support.small_run import go

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
EVERY_LINE = {"time", "level", "verb", "event", "message"}


def lines_of(text: str) -> list[dict[str, Any]]:
    """Each line as the object that it must be."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({*line} >= EVERY_LINE for line in found)
    assert [line["event"] for line in (found[0], found[-1])] == ["start", "end"]
    return found


# -- lines of JSON -----------------------------------------------------------------------------------------------------


VERBS: dict[str, list[object]] = {
    "fit-il": ["--shards", "{shards}", "--out", "{out}", "--model", "mlp-64", "--epochs", 1],
    "compute-il": ["--shards", "{shards}", "--il-model", "{world}/il-model", "--out", "{out}"],
    "index": ["--shards", "{shards}", "--out", "{out}"],
    "train": [
        "--shards", "{shards}", "--il", "{world}/il", "--run", "{out}", "--model", "mlp-64", "--buffer-size", 40,
        "--batch-size", 8, "--steps", 6, "--test-shards", "{world}/test", "--eval-every", 3,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow if "il" in verb else ()) for verb in VERBS]
)  # fmt: skip
def test_a_verb_says_all_it_has_to_say_in_lines_of_json(verb: str, world: Path, tmp_path: Path) -> None:
    places = {"world": world, "shards": world / "shards", "out": tmp_path / "out"}
    out, err = command(verb, *(str(word).format(**places) for word in VERBS[verb]), "--log-format", "json")
    lines = lines_of(err)
    assert json.loads(out) and {line["verb"] for line in lines} == {verb}
    assert lines[-1]["exit_code"] == 0 and lines[-1]["seconds"] > 0
    last = [line for line in lines if line["event"] == "progress"][-1]
    assert last["done"] == last["total"] and last["per_second"] > 0 and last["seconds_left"] == 0
    if verb != "train":
        return
    assert last["kept_share"] == 0.2 and last["loss"] > 0 and last["memory_bytes"] > 1e6 and last["unit"] == "step"
    evaluations = [line for line in lines if line["event"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [3, 6] and 0 <= evaluations[0]["accuracy"] <= 1
    warned = [line for line in lines if line["event"] == "warning"]
    assert warned and all(line["level"] == "warning" and not line["message"].startswith("warning") for line in warned)


def test_what_is_wrong_is_a_line_of_json_too(world: Path, tmp_path: Path) -> None:
    error = lines_of(command("train", "--log-format=json", "--gumbell", 1, code=2)[1])[1]
    assert error["event"] == "error" and error["exit_code"] == 2 and "--gumbel" in error["message"]
    folder = ("shards", tmp_path / "nowhere", "--out", tmp_path / "out", "--log-format", "json")
    error = lines_of(command(*folder, code=2)[1])[1]
    assert error["error"] == "UsageError" and error["verb"] == "shards" and error["level"] == "error"
    (cut := tmp_path / "cut.tar").write_bytes((world / "shards" / "train-000.tar").read_bytes()[:50_000])
    words = ("index", "--shards", cut, world / "shards" / "train-006.tar", "--out", tmp_path / "i")
    lines = lines_of(command(*words, "--log-format", "json", code=3)[1])
    bad = next(line for line in lines if line["event"] == "bad_shard")
    assert bad["shard"].endswith("cut.tar") and lines[-1]["exit_code"] == 3
    assert "text, json" in command("train", "--log-format", "xml", code=2)[1].replace("'", "")


def test_a_secret_and_a_strangers_letters_are_as_harmless_in_json_as_in_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rhostream import console

    monkeypatch.setattr(events, "as_json", True)
    console.say("https://me:hunter2@host/a.tar?sig=hunter2\n\x1b[31m", "error", shard="x")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hunter2" not in said and "\x1b" not in said and json.loads(said)["shard"] == "x"


# -- for people --------------------------------------------------------------------------------------------------------


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, work: Any) -> str:
    """What `work` writes to a terminal that is this process's standard error."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 140, 0, 0))  # rows, columns
    read: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                some = os.read(leader, 1 << 16)
            except OSError:
                return
            read.append(some)

    thread = threading.Thread(target=listen)
    thread.start()
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        work()
    thread.join()
    os.close(leader)
    return b"".join(read).decode()


def test_at_a_terminal_a_run_is_one_line_with_rate_share_loss_memory_and_what_is_left(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, mininterval=0))
    more = {"test_shards": str(world / "test"), "eval_every": 3}
    screen = at_a_terminal(monkeypatch, lambda: go(world, tmp_path / "run", 6, **more))
    bar = next(part for part in reversed(screen.split("\r")) if part.strip())
    assert "train: " in bar and "6/6 [" in bar and "step" in bar and "kept 20.0 %" in bar
    assert "loss " in bar and " GB" in bar and "accuracy" in bar
    assert screen.count("\n") <= 1  # nothing stays of it


def test_where_nobody_watches_there_is_no_bar_but_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO", "rhostream"), Progress("train", 1000, "step") as counted:
        for _ in range(100):
            now[0] += 1.0
            counted.advance(loss=0.5, kept_share=0.1)
    assert caplog.messages == [
        f"train: step {n} of 1,000 (1.0/s), kept 10.0 %, loss 0.500, about {1000 - n} s left" for n in (30, 60, 90)
    ]


def test_a_script_or_a_notebook_that_never_configured_logging_sees_the_lines_too_and_no_bar() -> None:
    code = """
from rhostream import progress
progress.EVERY_SECONDS = 0.0
with progress.Progress("train", 3, "step") as counted:
    for _ in range(3):
        counted.advance(loss=1.0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "\r" not in done.stderr and len(done.stderr.splitlines()) == 3 and "step 3 of 3" in done.stderr


def test_what_draws_a_bar_is_one_file() -> None:
    drawing = {str(p.relative_to(ROOT)) for p in (ROOT / "rhostream").rglob("*.py") if "tqdm import" in p.read_text()}
    assert drawing == {"rhostream/progress.py"}
