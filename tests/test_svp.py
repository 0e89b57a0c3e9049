"""SVP: a proxy trained on all of D, its entropies against NumPy, the keep-list that a run uses, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import rhostream
from jobs.svp import main, svp
from rhostream.errors import UsageError
from rhostream.models import build
from rhostream.runs import checkpoint, tensors
from rhostream.selection.hardware import threads
from tests.support.logs import rows_of
from tests.support.scoring import entropy, softmax


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def test_the_keep_list_holds_the_most_uncertain_tenth_of_all_samples_and_its_cost_is_charged(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    made = svp([str(world / "shards")], str(world / "il"), str(tmp_path / "svp"), model="mlp-64", passes=1, share=0.1)
    assert (made["samples"], made["left_out"], made["kept"]) == (1003, 0, 100)
    assert made["fit_samples"] == 992  # 31 of 32: one pass
    listed = pq.read_table(tmp_path / "svp" / "keep.parquet")
    # By hand: the weights of the proxy's run, every image of the table.
    run = tmp_path / "svp" / "proxy"
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    model.load_state_dict(tensors.load_tensors(str(run), checkpoint.latest(str(run)))[0])
    expected = {}
    for candidates in rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=1003, lanes=1):
        with torch.no_grad():
            unsure = entropy(softmax(model(candidates.input).double().numpy()))
        names = candidates.shard_names.to_pylist()
        expected = {(names[s], int(o)): v for s, o, v in zip(candidates.shard, candidates.ordinal, unsure, strict=True)}
    best = sorted(expected, key=lambda one: -expected[one])[:100]
    found = dict(zip(zip(listed["shard"].to_pylist(), listed["ordinal"].to_pylist(), strict=True),
                     listed["entropy"].to_pylist(), strict=True))  # fmt: skip
    assert set(found) == set(best)
    np.testing.assert_allclose([found[one] for one in best], [expected[one] for one in best], atol=1e-5)

    target = trained(rule="uniform", keep_list=str(tmp_path / "svp" / "keep.parquet"), steps=10, threads=1)
    kept = rows_of(target).filter(rows_of(target)["kept"])
    assert set(zip(kept["shard"].to_pylist(), kept["ordinal"].to_pylist(), strict=True)) <= set(best)
    cost = json.loads((target / "cost.json").read_text())
    assert cost["keep_list"] == {"fit_samples": 992, "scored_samples": 1003, "macs": made["macs"]}
    assert cost["keep_list_units"] == 3 * 992 + 1003  # the target is of the same size
    with rhostream.open_ledger(str(target)) as ledger:
        assert ledger.sql("SELECT keep_list_units FROM runs")[0].to_pylist() == [3 * 992 + 1003]


def test_the_program_writes_the_same_and_refuses_a_share_that_is_none(world: Path, tmp_path: Path) -> None:
    arguments = [
        "--shards",
        str(world / "shards"),
        "--il",
        str(world / "il"),
        "--out",
        str(tmp_path),
        "--model",
        "mlp-64",
        "--passes",
        "1",
        "--batch-size",
        "64",
    ]
    done = CliRunner().invoke(main, [*arguments, "--share", "0.05"])
    assert done.exit_code == 0 and json.loads(done.stdout[done.stdout.index("{") :])["kept"] == 50
    again = CliRunner().invoke(main, [*arguments, "--share", "0.2"])  # the proxy is there already
    assert json.loads(again.stdout[again.stdout.index("{") :])["kept"] == 201
    assert CliRunner().invoke(main, [*arguments, "--share", "1.5"]).exit_code == 2
    with pytest.raises(UsageError, match="share"):
        svp("x", "y", "z", share=0.0)
