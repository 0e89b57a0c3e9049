"""Trackers look on: they show what the ledger holds, go on with a run that goes on, and never change or stop one."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import rhostream
from rhostream.cli import cli
from rhostream.errors import MissingExtraError, UnknownNameError, UsageError
from rhostream.trackers import checked_trackers, tracking
from rhostream.trackers.names import TRACKERS
from rhostream.trackers.tracking import flat
from tests.support import ranks
from tests.support.small_run import go
from tests.support.waits import alive, eventually

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]


def events(folder: Path) -> Any:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    shown.Reload()
    return shown


def steps_table(run: Path) -> dict[int, dict[str, Any]]:
    """{step: row} of all segments; of a step that was taken twice, the newest attempt's."""
    paths = sorted((run / "steps").rglob("*.parquet"))
    return {row["step"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def stop(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_tensorboard_shows_each_step_once_and_as_the_ledger_has_it_though_the_run_was_stopped_between_commits(
    world: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"track": "tensorboard", "track_every": 2, "test_shards": str(world / "test")}
    with pytest.raises(KeyboardInterrupt):  # steps 6 to 9 are no commit's
        go(world, tmp_path / "run", 14, metrics=stop_at(9), eval_every=5, **more)
    go(world, tmp_path / "run", 14, eval_every=5, **more)
    shown, table = events(tmp_path / "run" / "tensorboard"), steps_table(tmp_path / "run")
    tracked = [0, 2, 4, 6, 8, 9, 10, 12, 13]  # every second, and those of evaluations (4, 9, 13)
    for name in ("loss_kept", "learning_rate", "forward_units", "kept"):
        found = {event.step: event.value for event in shown.Scalars(name)}
        assert [event.step for event in shown.Scalars(name)] == tracked, name
        assert found == pytest.approx({step: table[step][name] for step in tracked}), name
    assert [event.step for event in shown.Scalars("test_accuracy")] == [4, 9, 13]
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        rows = ledger.sql(
            "select step, avg(score) filter (kept) score_kept, avg(il) filter (kept) il_kept, "
            "avg(kept::int) kept_share from selections group by step"
        )
    means = {row["step"]: row for row in rows.to_pylist() if row["step"] in tracked}
    for name in ("score_kept", "il_kept", "kept_share"):
        found = {event.step: event.value for event in shown.Scalars(name)}
        assert found == pytest.approx({step: row[name] for step, row in means.items()}, abs=1e-6), name
    assert all(event.value > 0 for event in shown.Scalars("samples_per_second"))
    texts = {name: shown.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in ("config", "summary")}
    assert "batch_size: 8" in texts["config"] and "rows/kept: 112" in texts["summary"] and "verdict" in texts["summary"]


def left(run: Path) -> dict[str, bytes]:
    """The bytes of the ledger and of the tensors."""
    folders = ("log", "steps", "shadow", "checkpoints")
    paths = [path for name in folders for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def test_weights_log_and_chance_are_those_of_a_run_without_trackers(world: Path, tmp_path: Path) -> None:
    draws = []
    for name, track in (("plain", ()), ("tracked", ["tensorboard"])):
        go(world, tmp_path / name, 6, track=track, track_every=1, gumbel=0.5)
        draws.append((random.random(), torch.rand(1).item()))
    plain, tracked = (left(tmp_path / name) for name in ("plain", "tracked"))
    assert draws[0] == draws[1]
    for path, data in plain.items():
        if path.startswith("steps/"):  # which hold seconds
            one, two = (pq.read_table(tmp_path / name / path) for name in ("plain", "tracked"))
            names = [column for column in one.column_names if not column.startswith("seconds")]
            assert one.select(names) == two.select(names)
        else:
            assert data == tracked[path], path
    assert {*plain} == {*tracked} and any(path.startswith("checkpoints/") for path in plain)


def test_a_tracker_may_change_between_two_attempts_and_a_loop_of_ones_own_has_them_too(
    world: Path, tmp_path: Path
) -> None:
    def loop(steps: int, **more: Any) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
        selector = rhostream.Selector(model, batch_size=8)
        state = {"model": model, "optimizer": optimizer}
        run = rhostream.Run(str(tmp_path / "run"), stream, selector, state=state, steps=steps, commit_every=3, **more)
        for kept in run:
            loss_b = torch.nn.functional.cross_entropy(model(kept.input), kept.label, reduction="none")
            optimizer.zero_grad()
            kept.mean(loss_b).backward()
            optimizer.step()
            run.step(loss_b)

    loop(3)
    loop(6, track=f"tensorboard:{tmp_path / 'shown'}", track_every=1, config=None)
    shown = events(tmp_path / "shown")
    assert [event.step for event in shown.Scalars("loss_kept")] == [3, 4, 5]
    with pytest.raises(UsageError, match="track_every 0"):
        loop(9, track_every=0)


@pytest.mark.slow
def test_of_two_ranks_the_first_alone_has_trackers_and_means_are_over_both(world: Path, tmp_path: Path) -> None:
    options = {
        "shards": str(world / "shards"), "il": str(world / "il"), "run": str(tmp_path / "run"), "model": "mlp-64",
        "buffer_size": 40, "batch_size": 8, "steps": 4, "track": "tensorboard", "track_every": 1,
    }  # fmt: skip
    ranks.together(tmp_path / "answers", ranks.train, 2, [options])
    assert len([*(tmp_path / "run" / "tensorboard").iterdir()]) == 1
    shown = events(tmp_path / "run" / "tensorboard")
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        kept = ledger.sql("select step, avg(score) as score, avg(il) as il from selections where kept group by step")
    for name in ("score", "il"):
        found = {event.step: event.value for event in shown.Scalars(f"{name}_kept")}
        assert found == pytest.approx({row["step"]: row[name] for row in kept.to_pylist()}, abs=1e-5), name


# -- trackers that fail: packages that stand in for one, in its process -----------------------------------------------

BROKEN = {
    "gives_up_at_once": "raise SystemExit('no account')",
    "refuses": "def init(**_): raise OSError(28, 'No space left on device')",
    "dies": "import os\ndef init(**_): os._exit(7)",
    "refuses_each_row": """
class Run:
    _next_step = 0
    def log(self, row, step): raise ConnectionError('no route to host')
    def finish(self): raise ConnectionError('no route to host')
def init(**_): return Run()
def alert(*_): pass
class AlertLevel: INFO = 1
""",
    "hangs": """
import os, pathlib, time
from rhostream.trackers import child
child.LAST_SECONDS = 3
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
def init(**_): time.sleep(3600)
""",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_tracker_that_fails_is_said_once_and_the_run_is_as_without_it(
    how: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "trackio.py").write_text(BROKEN[how])
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(tracking, "END_SECONDS", 0.3 if how == "hangs" else 20.0)
    with caplog.at_level(logging.INFO, "rhostream"):
        pid_of = tmp_path / "packages" / "pid"
        watch = (lambda _: eventually(pid_of.exists)) if how == "hangs" else None  # its patience counts from the end on
        summary = go(world, tmp_path / "run", 6, track="trackio", track_every=1, metrics=watch)
    assert summary.steps == 6
    warned = [line for line in caplog.messages if "warning: tracker trackio" in line]
    if how == "hangs":
        assert not warned and "nobody waits for it" in caplog.text
        pid = int(pid_of.read_text())
        eventually(lambda: not alive({pid}))  # nobody is left who would end it
        return
    assert len(warned) == 2 and "the run goes on without it" in warned[0], warned
    says = {
        "gives_up_at_once": "no account", "refuses": "No space left", "dies": "code 7", "refuses_each_row": "no route",
    }  # fmt: skip
    assert says[how] in warned[0] and "6 of 6 rows" in warned[1]


def test_a_tracker_ends_by_itself_with_what_it_was_given_when_the_trainer_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from rhostream.trackers.names import AskedTracker
from rhostream.trackers.process import TrackerProcess
about = {{"id": "x", "name": "run", "folder": {str(tmp_path)!r}, "step": 0, "config": {{}}}}
tracker = TrackerProcess(AskedTracker("tensorboard", ""), about)
for step in range(5):
    tracker.put({{"step": step, "numbers": {{"loss": 1.0}}}})
while tracker._taken < 5:
    pass
tracker.put({{"step": 5, "numbers": {{"loss": 1.0}}}})
print(tracker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    pid = int(killed.stdout)
    eventually(lambda: not alive({pid}), seconds=30)  # it doesn't outlive its trainer
    steps = [event.step for event in events(tmp_path / "tensorboard").Scalars("loss")]
    assert steps in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_a_missing_package_is_said_with_the_line_that_brings_it_before_any_work(world: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'rhostream\[wandb\]'"):
        go(world, tmp_path / "run", 6, track="wandb:mine")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("track", "error", "says"),
    [
        ("tensorbord", UnknownNameError, "did you mean 'tensorboard'"),
        (["tensorboard", "tensorboard:x"], UsageError, "asked for twice"),
        ("tensorboard:", UsageError, "expected tensorboard:FOLDER"),
    ],
)
def test_a_tracker_that_can_not_be_is_refused(track: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        checked_trackers(track)


def test_each_tracker_has_a_file_and_an_extra() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*TRACKERS} <= {*extras}
    assert all((ROOT / "rhostream" / "trackers" / f"{name}.py").exists() for name in TRACKERS)


def test_settings_are_told_flat_and_short() -> None:
    tree = {"a": {"b": 1, "c": [1, 2]}, "long": "x" * 9000, "many": list(range(10**5)), "nan": float("nan"), "d": None}
    told = dict(flat(tree))
    assert told["a/b"] == 1 and told["a/c"] == "[1, 2]" and told["d"] is None
    assert len(told["long"]) == 500 and len(told["many"]) < 200 and told["nan"] == "nan"


def test_the_switch_of_before_is_read_from_old_runs_and_refused_with_what_replaced_it(tmp_path: Path) -> None:
    from rhostream.config import TrainConfig
    from rhostream.config.files import read_config

    (path := tmp_path / "c.yaml").write_text("tensorboard: true\nlr: 0.1\n")
    assert read_config(str(path), TrainConfig) == {"track": ("tensorboard",), "lr": 0.1}
    path.write_text("tensorboard: false\n")
    assert read_config(str(path), TrainConfig) == {}
    assert "--track tensorboard" in CliRunner().invoke(cli, ["train", "--tensorboard"]).output
    with pytest.raises(UnknownNameError, match="--track tensorboard"):
        rhostream.train("s", "i", "r", tensorboard=True)
