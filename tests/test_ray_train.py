"""Ray Train runs `rhostream.train` on two workers; killed, they are started again and the ledger is whole."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

import rhostream
from rhostream.audit.verify import verify
from tests.support import environments
from tests.support.ray_cluster import REPOSITORY, SECONDS, Cluster
from tests.support.shards import make_shards
from tests.support.waits import eventually

STEPS = 120


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_ray_train_goes_on_behind_a_killed_worker(tmp_path: Path) -> None:
    if why := environments.make("ray"):
        pytest.skip(why)
    make_shards(tmp_path / "shards", [40] * 8)
    rhostream.fit_il(str(tmp_path / "shards"), str(tmp_path / "m"), model="mlp-64", epochs=1)
    rhostream.compute_il(str(tmp_path / "shards"), str(tmp_path / "m"), str(tmp_path / "il"))
    run, log = tmp_path / "run", tmp_path / "log"
    with Cluster(tmp_path, [{}, {}, {}]) as cluster, log.open("w") as out:
        driver = subprocess.Popen(
            [environments.python("ray"), "examples/ray_train/ray_train.py", run, tmp_path / "shards", tmp_path / "il",
             "--steps", str(STEPS)],
            cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**cluster.environment, "RAY_ADDRESS": cluster.address, "HOME": str(tmp_path)},
        )  # fmt: skip
        try:
            eventually(lambda: len(list((run / "commits").glob("*"))) >= 2, SECONDS)
            workers = [pid for pid, title in cluster.processes().items() if "RayTrainWorker" in title]
            os.kill(workers[-1], signal.SIGKILL)
            assert driver.wait(SECONDS) == 0, log.read_text()[-3000:]
        finally:
            driver.kill()
            driver.wait()
    assert not verify(str(run))["problems"]
    with rhostream.open_ledger(str(run)) as ledger:
        steps = ledger.sql("select count(*) as n, count(distinct step) as different from steps").to_pylist()
    assert steps == [{"n": STEPS, "different": STEPS}]
    assert len(list((run / "attempts").iterdir())) > 1
