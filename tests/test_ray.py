"""Parts made by the actors of a real Ray cluster, whatever dies meanwhile, are those of one machine to the byte."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rhostream
from tests.support import environments, poison
from tests.support.ray_cluster import Cluster
from tests.support.shards import make_shards
from tests.support.waits import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHARDS = 16
JUDGED = ("--reference", "tests.support.poison:slow_judge", "--kind", "tests.support.poison:Deadly", "--classes", 3)


def parts(table: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (table / "parts").rglob("*.parquet")}


def accounts(table: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((table / "jobs").iterdir())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two raylets; no process of theirs is left behind."""
    if why := environments.make("ray"):
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "shards"
    folder.mkdir()
    for number in range(SHARDS):
        poison.shard(folder / f"{number:02}.tar", 40 + number)
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts that one machine makes, with one thread."""
    table = tmp_path_factory.mktemp("whole") / "t"
    options: dict[str, Any] = {"reference": JUDGED[1], "kind": JUDGED[3], "classes": 3, "threads": 1}
    assert rhostream.compute_il(str(shards), None, str(table), **options).made == SHARDS
    return parts(table)


def command(shards: Path, table: Path, *more: object) -> tuple[object, ...]:
    return ("compute-il", "--shards", shards, "--out", table, *JUDGED, "--engine", "ray", *more)


def test_more_actors_than_there_is_room_for_make_the_parts_of_one_machine(
    cluster: Cluster, shards: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """`--actors` is a maximum: what finds no room waits for it, and the job ends without."""
    code, said = cluster.run(*command(shards, tmp_path / "t", "--actors", 8))
    assert code == 0, said
    assert parts(tmp_path / "t") == whole
    (account,) = accounts(tmp_path / "t")
    assert (account["made"], account["threads"], account["bad_shards"]) == (SHARDS, 1, {})
    eventually(lambda: not cluster.actors())


def test_a_killed_actor_and_a_killed_driver_cost_no_part_and_two_drivers_are_harmless(
    cluster: Cluster, shards: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    driver = cluster.start(*command(shards, tmp_path / "t"))
    eventually(lambda: len(parts(tmp_path / "t")) >= 2, 120)
    os.kill(cluster.actors()[0], signal.SIGKILL)
    eventually(lambda: len(parts(tmp_path / "t")) >= 6, 120)
    driver.kill()
    left = parts(tmp_path / "t")
    assert left.items() <= whole.items() and 6 <= len(left) < SHARDS
    eventually(lambda: not cluster.actors(), 60)
    drivers = [cluster.start(*command(shards, tmp_path / "t")) for _ in range(2)]
    for code, said in [driver.wait() for driver in drivers]:
        assert code == 0, said
    assert parts(tmp_path / "t") == whole
    assert all(account["made"] + account["present"] == SHARDS for account in accounts(tmp_path / "t"))


def test_a_shard_that_ends_its_actors_is_named_as_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    (folder := tmp_path / "shards").mkdir()
    for number in range(3):
        poison.shard(folder / f"{number}.tar", 20)
    deadly = poison.shard(folder / "deadly.tar", 20, poison.DEADLY)
    code, said = cluster.run(*command(folder, tmp_path / "t"))
    assert code == 3, said
    assert accounts(tmp_path / "t")[0]["bad_shards"] == {deadly: "ended its worker 3 times"}
    assert len(parts(tmp_path / "t")) == 3 and f"bad shard {deadly}: ended its worker 3 times" in said


def test_ctrl_c_ends_the_actors_and_leaves_whole_parts(
    cluster: Cluster, shards: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    driver = cluster.start(*command(shards, tmp_path / "t"))
    eventually(lambda: len(parts(tmp_path / "t")) >= 2, 120)
    os.kill(driver.pid, signal.SIGINT)
    code, said = driver.wait()
    assert code == 130 and "of 16 parts are there; the same command resumes" in said and "Traceback" not in said, said
    assert parts(tmp_path / "t").items() <= whole.items()
    eventually(lambda: not cluster.actors(), 60)


def test_an_index_and_the_samples_of_a_fit_are_those_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", [30, 40, 20, 25])
    shards = str(tmp_path / "shards")
    rhostream.index(shards, str(tmp_path / "ix"))
    fitted = rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=1, fit_samples=60)
    code, said = cluster.run("index", "--shards", shards, "--out", tmp_path / "ray-ix", "--engine", "ray")
    assert code == 0, said
    assert parts(tmp_path / "ray-ix") == parts(tmp_path / "ix")
    code, said = cluster.run("fit-il", "--shards", shards, "--out", tmp_path / "ray-m", "--model", "mlp-64",
                             "--epochs", 1, "--fit-samples", 60, "--engine", "ray")  # fmt: skip
    assert code == 0, said
    model = json.loads((tmp_path / "ray-m" / "model.json").read_text())
    assert [fold["train_samples"] for fold in model["folds"]] == [fold["train_samples"] for fold in fitted.folds]
    assert (model["sample"], model["learned_from"]) == (fitted.sample, fitted.learned_from)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--gpus-per-actor", 1), "no node of the cluster can hold an actor of 1 cores and 1 GPUs"),
        (("--cpus-per-actor", 2), "the largest of its 2 have 1 cores"),
        (("--ray-address", "127.0.0.1:1"), "--ray-address 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_cannot_do_it_is_refused_before_work(
    cluster: Cluster, shards: Path, tmp_path: Path, more: tuple[object, ...], words: str
) -> None:
    code, said = cluster.run(*command(shards, tmp_path / "t", *more))
    assert code == 2 and words in said and "Traceback" not in said, said
    assert not (tmp_path / "t").exists()


def test_nodes_of_another_version_are_refused_by_name(shards: Path, tmp_path: Path) -> None:
    if why := environments.make("ray"):
        pytest.skip(why)
    if [*Path(rhostream.__file__).parents[1].glob("*.egg-info")]:
        # Ray puts the driver's path before a node's own, and there an editable install says which version it is.
        pytest.skip("the metadata of this repository comes before that of the other version on every node")
    other = tmp_path / "other"
    (other / "rhostream-0.0.1.dist-info").mkdir(parents=True)
    (other / "rhostream-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rhostream\nVersion: 0.0.1\n"
    )
    with Cluster(tmp_path, [{"PYTHONPATH": f"{other}:{Path(rhostream.__file__).parents[1]}"}]) as older:
        code, said = older.run(*command(shards, tmp_path / "t"))
    assert code == 2 and "has rhostream 0.0.1, and here is" in said and "Traceback" not in said, said
    assert not list((tmp_path / "t" / "parts").rglob("*.parquet"))


def test_a_killed_raylet_costs_no_part(cluster: Cluster, shards: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """The last of this file: the cluster is a node less afterwards."""
    driver = cluster.start(*command(shards, tmp_path / "t", "--actors", 2))
    eventually(lambda: len(parts(tmp_path / "t")) >= 2, 120)
    os.kill(cluster.raylets[1], signal.SIGKILL)
    code, said = driver.wait()
    assert code == 0, said
    assert parts(tmp_path / "t") == whole
