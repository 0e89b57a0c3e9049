"""What older versions left behind is still read, proved, scored with and gone on from: see golden/make.py."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError
from rhostream.runs import checkpoint
from tests.golden.make import RUNS, STEPS, TABLES, TRAIN, decisions, table_values
from tests.support.older import in_float16
from tests.support.ranks import together, train

# A folder that was unpacked has other times than it had, and the same bytes.
pytestmark = pytest.mark.filterwarnings("ignore:shard golden/.* has a new time:UserWarning")

HERE = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name.removesuffix(".tar.gz") for path in HERE.glob("*.tar.gz"))
EXPECTED: dict[str, dict[str, Any]] = {}
for _version in VERSIONS:
    with tarfile.open(HERE / f"{_version}.tar.gz") as _tar:
        _member = _tar.extractfile("golden/expected.json")
        assert _member is not None
        EXPECTED[_version] = json.load(_member)


def cases(kind: str) -> list[tuple[str, str]]:
    return [(version, name) for version in VERSIONS for name in EXPECTED[version][kind]]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of every version, moved to another place."""
    roots = {}
    for version in VERSIONS:
        folder = tmp_path_factory.mktemp(version)
        with tarfile.open(HERE / f"{version}.tar.gz") as tar:
            tar.extractall(folder, filter="data")
        roots[version] = folder / "golden"
    return roots


def test_the_newest_golden_folder_lacks_nothing() -> None:
    assert EXPECTED[VERSIONS[-1]]["left_out"] == {}
    assert {*EXPECTED[VERSIONS[-1]]["runs"]} == {*RUNS}


@pytest.mark.parametrize(("version", "name"), cases("tables"))
def test_a_table_of_an_older_version_is_read_and_proved(golden: dict[str, Path], version: str, name: str) -> None:
    root, expected = golden[version], EXPECTED[version]["tables"][name]
    assert table_values(root / "tables" / name) == expected
    with rhostream.open_ledger(str(root / "tables" / name)) as ledger:
        (row,) = ledger.sql("select count(*) as n, count(il) as scored from il").to_pylist()
    il = [value for part in expected.values() for value in part.get("il", [])]
    rows = sum(len(part["status"]) for part in expected.values())
    assert row == {"n": rows, "scored": sum(value is not None for value in il)}
    shards = str(root / ("texts" if name == "language" else "shards"))
    assert verify(str(root / "tables" / name), shards=[shards], roots={"golden": str(root)})["problems"] == []


@pytest.mark.parametrize(("version", "name"), [case for case in cases("tables") if case[1] != "index"])
def test_an_il_model_of_an_older_version_gives_the_il_that_it_gave(
    golden: dict[str, Path], tmp_path: Path, version: str, name: str
) -> None:
    root = golden[version]
    shards = [str(root / TABLES[name].get("shards", "shards"))]
    score = in_float16 if name == "float16" else rhostream.compute_il
    score(shards, str(root / "models" / name), str(tmp_path / "il"), roots={"golden": str(root)})
    made, expected = table_values(tmp_path / "il"), EXPECTED[version]["tables"][name]
    assert made.keys() == expected.keys()
    for part, columns in made.items():
        assert columns["fold"] == expected[part]["fold"] and columns["status"] == expected[part]["status"]
        np.testing.assert_allclose(np.array(columns["il"], float), np.array(expected[part]["il"], float), atol=1e-5)


# Runs of the first edition of the draws, which are others today: refused, in one sentence that names the draw.
FIRST_DRAWS = {"2026-11-25", "2026-11-26"}
REDRAWN = {
    "augment": "augment flip-shift",
    "gumbel": "gumbel",
    "importance": "grad_norm_is",
    "shadow": "the shadow of uniform",
}


# Of the older versions, what the newest folder shows as well.
TWICE = {"two-ranks", "band", "warm-up", "uniform", "loss", "temperature", "live-il", "proxy", "float16"}


@pytest.mark.parametrize(
    ("version", "name"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] != VERSIONS[-1] and case[1] in TWICE else [])
        for case in cases("runs")
    ],
)
def test_a_run_that_an_older_version_began_is_gone_on_with_as_it_would_have(
    golden: dict[str, Path], tmp_path: Path, version: str, name: str
) -> None:
    root, run = golden[version], tmp_path / "run"
    shutil.copytree(root / "runs" / name, run)
    before = decisions(run)
    expected = EXPECTED[version]["runs"][name]
    assert before == {step: rows for step, rows in expected.items() if step in before} and 0 < len(before) < STEPS
    asked = {**TRAIN, **RUNS[name]}
    ranks, table = asked.pop("ranks", 1), asked.pop("il")
    if asked.get("rule") == "rho_updated":
        asked["il_model"] = str(root / "models" / table)
    shards = [str(root / ("texts" if name == "language" else "shards"))]
    options = {
        **asked,
        "shards": shards,
        "il": str(root / "tables" / table),
        "run": str(run),
        "steps": STEPS,
        "roots": {"golden": str(root)},
    }
    if name in REDRAWN and version in FIRST_DRAWS:
        with pytest.raises(MismatchError, match=REDRAWN[name]) as refused:
            rhostream.train(**options)
        assert not getattr(refused.value, "__notes__", []) and decisions(run) == before
        return
    if ranks > 1:
        together(tmp_path / "ranks", train, ranks, [options])
    else:
        rhostream.train(**options)
    assert decisions(run) == expected
    assert verify(str(run))["problems"] == []


def test_a_run_of_an_older_version_goes_back_to_what_that_committed(golden: dict[str, Path], tmp_path: Path) -> None:
    root, run = golden[VERSIONS[0]], tmp_path / "run"
    shutil.copytree(root / "runs" / "rho", run)
    asked = {**TRAIN, **RUNS["rho"], "keep_checkpoints": 10}
    options = {
        **asked,
        "shards": [str(root / "shards")],
        "il": str(root / "tables" / asked["il"]),
        "run": str(run),
        "roots": {"golden": str(root)},
    }
    rhostream.train(**options, steps=8)
    for steps in (6, 8):
        rhostream.train(**options, steps=steps, from_step=2, skip_buffers="3:4")
    found, expected = decisions(run), EXPECTED[VERSIONS[0]]["runs"]["rho"]
    assert sorted(map(int, found)) == [0, 1, 2, 4, 5, 6, 7] and [found[step] for step in "012"] == [
        expected[step] for step in "012"
    ]
    latest = checkpoint.latest(str(run))
    assert latest is not None and [change["old"] for change in latest.changes] == [8, None]
    assert verify(str(run))["problems"] == []
