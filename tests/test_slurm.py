"""The launch files of Slurm under a real Slurm of one node: arrays, signals, requeues. Slow; skipped without Slurm."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from tests.support import slurm
from tests.support.shards import make_shards
from tests.support.slurm import Cluster
from tests.support.tables import parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "examples" / "launch"
SMALL = ("--mem=900M", "--cpus-per-task=1", "--time=10")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := slurm.missing():
        pytest.skip(why)
    with slurm.started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (12 of 40), il-model/, il/, and bin/ with the programs of this environment."""
    root = tmp_path_factory.mktemp("slurm-data")
    make_shards(root / "shards", [40] * 12)
    rhostream.fit_il(str(root / "shards"), str(root / "il-model"), model="mlp-64", epochs=1)
    rhostream.compute_il(str(root / "shards"), str(root / "il-model"), str(root / "il"), workers=0)
    for name, module in (("rhostream", "rhostream.cli"), ("torchrun", "torch.distributed.run")):
        program = root / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)
    return root


def environment(data: Path, **more: object) -> dict[str, str]:
    return {
        "SHARDS": str(data / "shards"), "RHOSTREAM": str(data / "bin" / "rhostream"), "OMP_NUM_THREADS": "1",
        "TORCHRUN": str(data / "bin" / "torchrun"), "PYTHONPATH": str(ROOT), "RHOSTREAM_SPOOL": str(data / "spool"),
        **{name: str(value) for name, value in more.items()},
    }  # fmt: skip


def test_an_array_makes_the_table_of_one_job_and_a_requeued_task_goes_on(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    job = cluster.submit(
        LAUNCH / "offline.slurm",
        "--keep", "true_label:int",
        options=("--array=1-7:2%2", "--gpus=0", *SMALL),
        **environment(data, IL_MODEL=data / "il-model", TABLE=table),
    )  # fmt: skip
    cluster.until(lambda: len(list(table.rglob("*.parquet"))) > 0, "there is a part")
    running = [name for name, state in cluster.states(job).items() if state == "RUNNING"]
    cluster.requeue(running[-1])
    assert {*cluster.wait(job).values()} == {"COMPLETED"}
    assert cluster.restarts(running[-1]) == 1
    one = tmp_path / "one"
    rhostream.compute_il(str(data / "shards"), str(data / "il-model"), str(one), keep="true_label:int")
    assert parts(table) == parts(one)
    accounts = [json.loads(path.read_text()) for path in (table / "jobs").iterdir()]
    assert sorted(account["index"] for account in accounts) == ["0/4", "1/4", "2/4", "3/4"]
    assert verify(str(table), shards=[str(data / "shards")])["problems"] == []


def test_training_that_is_requeued_in_mid_run_goes_on_with_both_ranks(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = cluster.submit(
        LAUNCH / "train.slurm",
        "--model", "mlp-64", "--buffer-size", "40", "--batch-size", "8", "--steps", "600", "--checkpoint-every", "20",
        options=("--nodes=1", "--gpus-per-node=0", *SMALL),
        **environment(data, IL=data / "il", RUN=run, RANKS_PER_NODE="2"),
    )  # fmt: skip
    cluster.until(lambda: run.exists() and checkpoint.head(str(run)) is not None, "there is a checkpoint")
    cluster.requeue(job)
    assert {*cluster.wait(job).values()} == {"COMPLETED"}, cluster.logs()
    assert cluster.restarts(job) == 1
    proof = verify(str(run))
    assert proof["problems"] == [] and proof["step"] == 600
    assert checkpoint.newest_attempt(str(run)) == 1
