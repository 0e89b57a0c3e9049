"""The real packages of trackers, each in an environment of its own, without a network: they hold what a ledger has."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import rhostream
from tests.support import environments
from tests.support.tracked import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NOWHERE = "http://127.0.0.1:9"  # nobody listens on this port


def in_environment(name: str, module: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A module run where the package of that name is; its telemetry and its network are off."""
    if why := environments.make(name):
        pytest.skip(f"{name} can't be had here: {why}")
    quiet = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "0",
        "OMP_NUM_THREADS": "1", "RHOSTREAM_TRACEBACK": "1",
    }  # fmt: skip
    return subprocess.run(
        [environments.python(name), "-m", module, *map(str, arguments)], cwd=environments.ROOT,
        env={**os.environ, **quiet, **variables}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_run_that_was_stopped_and_went_on_is_one_run_of_the_tracker_with_each_step_once_and_in_order(
    name: str, world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = in_environment(name, "tests.support.tracked", name, world, run, **store)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 1 and found["ended"]
    assert found["steps"] == [*range(STEPS)] and found["evaluations"] == [6, 13]
    assert int(found["config"]) == 8 and int(found["summary"]) == 8 * STEPS
    with rhostream.open_ledger(str(run)) as ledger:
        table = ledger.sql("select step, loss_kept from steps").to_pylist()
    assert {int(step): loss for step, loss in found["loss"].items()} == pytest.approx(
        {row["step"]: row["loss_kept"] for row in table}, rel=1e-6
    )


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        (
            "wandb",
            {"WANDB_MODE": "online", "WANDB_BASE_URL": NOWHERE, "WANDB_API_KEY": "x" * 40, "WANDB_INIT_TIMEOUT": "5"},
        ),
        ("mlflow", {"MLFLOW_TRACKING_URI": NOWHERE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}),
    ],
    ids=["wandb", "mlflow"],
)  # fmt: skip
def test_a_server_that_is_not_there_is_said_once_and_the_run_ends_as_without_it(
    name: str, variables: dict[str, str], world: Path, tmp_path: Path
) -> None:
    words = (
        "train", "--shards", world / "shards", "--il", world / "il", "--run", tmp_path / "run", "--model", "mlp-64",
        "--buffer-size", 40, "--batch-size", 8, "--steps", 6, "--track", name,
    )  # fmt: skip
    done = in_environment(name, "tests.support.main", *words, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kept"] == 48
    assert done.stderr.count(f"warning: tracker {name}: ") == 1 and "lacks" in done.stderr
