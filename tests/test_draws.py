"""What is random is a function of its words, drawn once for all who need it, and fair."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream.candidates import CANDIDATE, Reason
from rhostream.models import build
from rhostream.selection.quota import ClassQuota
from rhostream.selection.selector import Selector
from rhostream.selection.uniform import uniform_rows
from rhostream.stream.band import Band
from rhostream.stream.plan import Rows
from rhostream.stream.uniform_choice import UniformChoice
from tests.support.older import divide_logits
from tests.support.ranks import together, train
from tests.support.scoring import buffer

LIBRARY = Path(rhostream.__file__).parent


def network() -> torch.nn.Module:
    return build("mlp-64", image_size=16, channels=1, classes=4)


def kept_of(run: Path, what: str = "kept FROM selections") -> dict[int, list[tuple[str, int]]]:
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql(f"SELECT step, shard, ordinal, {what} WHERE step IS NOT NULL ORDER BY 1, 2, 3").to_pylist()
    found: dict[int, list[tuple[str, int]]] = {}
    for row in rows:
        if row["kept"]:
            found.setdefault(row["step"], []).append((row["shard"], row["ordinal"]))
    return found


# -- one uniform -------------------------------------------------------------------------------------------------------


def test_uniform_keeps_the_same_in_the_trainer_in_a_loop_of_ones_own_and_in_the_shadow(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    expected = kept_of(trained("uniform", rule="uniform", steps=8, seed=3))
    assert len(expected) == 8 and all(len(rows) == 8 for rows in expected.values())

    stream = rhostream.open_stream([str(world / "shards")], str(world / "il"), buffer_size=40, seed=3)
    selector, own = Selector(network(), "uniform", 8, seed=3), dict[int, list[tuple[str, int]]]()
    for step, candidates in zip(range(8), stream, strict=False):
        rows = selector(candidates).rows
        names = candidates.shard_names.to_pylist()
        own[step] = sorted((names[candidates.shard[row]], int(candidates.ordinal[row])) for row in rows)
    assert own == expected

    shadowed = trained("shadow", rule="rho", steps=8, seed=3, shadow="uniform,loss")
    assert kept_of(shadowed, "kept FROM (FROM shadow WHERE rule = 'uniform')") == expected
    ranks = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "two"),
        "seed": 3,
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "steps": 8,
        "lanes": 40,
        "rule": "loss",
        "shadow": "uniform",
    }
    together(tmp_path / "ranks", train, 2, [ranks])
    assert kept_of(tmp_path / "two", "kept FROM (FROM shadow WHERE rule = 'uniform')") == expected


@pytest.mark.parametrize("quota", [None, ClassQuota("share", 0.3), ClassQuota("balanced")])
def test_the_choice_before_decoding_is_the_choice_after_it(quota: ClassQuota | None) -> None:
    for seed in range(5):
        candidates = buffer(seed=seed)
        candidates.reason[seed::7] = Reason.quarantined
        joined = type(
            "Joined",
            (),
            {
                "reason": candidates.reason.copy(),
                "label": candidates.label.numpy(),
                "rows": Rows(candidates.shard, candidates.ordinal),
            },
        )()
        UniformChoice(8, seed=5, quota=quota)(joined, candidates.pass_index, candidates.index)
        selector = Selector(
            network(), "uniform", 8, seed=5, class_quota=None if quota is None else quota.value or quota.kind
        )
        assert selector(candidates).rows.tolist() == np.flatnonzero(joined.reason == CANDIDATE).tolist()


@given(st.integers(0, 9), st.integers(1, 60), st.data())
def test_who_is_left_out_before_changes_nothing_of_the_order_of_the_others(
    seed: int, n: int, data: st.DataObject
) -> None:
    place = np.array(sorted(data.draw(st.sets(st.integers(0, 59), min_size=1))), np.int64)
    words = {"planned": 60, "seed": seed, "pass_index": 1, "index": 2}
    label = np.zeros(60, np.int64)
    order = [uniform_rows(np.arange(60), label, k, **words) for k in range(1, 61)]  # nested: who comes k-th
    rank = {int(row): k for k, rows in reversed(list(enumerate(order))) for row in rows}
    kept = place[uniform_rows(place, label[place], n, **words)]
    assert kept.tolist() == sorted(sorted(place.tolist(), key=lambda row: rank[row])[:n])


# -- the shadow is nobody's options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"loss_cap": True}, {"clip": True}, {"gumbel": 3.0}, {"class_quota": 0.3}])
def test_the_options_of_a_run_change_nothing_of_what_its_shadows_would_have_kept(options: dict[str, object]) -> None:
    model, shadow = network(), "rho,loss,uniform,grad_norm_is,irreducible"
    for seed in range(5):
        candidates = buffer(seed=seed, il=buffer(seed=seed).il * 4)
        plain = Selector(model, "rho", 8, shadow=shadow)(candidates, 0).shadow
        other = Selector(model, "rho", 8, shadow=shadow, **options)(candidates, 0).shadow
        assert plain is not None and other is not None
        np.testing.assert_array_equal(plain.score, other.score)
        np.testing.assert_array_equal(plain.kept, other.kept)


# -- the first il of a model that learns along -------------------------------------------------------------------------


def test_the_first_live_il_of_a_tempered_model_is_its_tables(world: Path, tmp_path: Path) -> None:
    shards = [str(world / "shards")]
    rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=1)
    divide_logits(tmp_path / "m", [1.3, 0.7])
    rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"))
    rhostream.train(
        shards,
        str(tmp_path / "il"),
        str(tmp_path / "run"),
        model="mlp-64",
        rule="rho_updated",
        buffer_size=40,
        batch_size=8,
        steps=1,
    )
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        live = {
            (r["shard"], r["ordinal"]): r["il"]
            for r in ledger.sql(
                "SELECT shard, ordinal, il FROM selections WHERE step = 0 AND il IS NOT NULL"
            ).to_pylist()
        }
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        table = {
            (r["shard"], r["ordinal"]): r["il"] for r in ledger.sql("SELECT shard, ordinal, il FROM il").to_pylist()
        }
    assert len(live) == 40
    np.testing.assert_allclose([live[k] for k in live], [table[k] for k in live], atol=1e-5)


# -- the tail ----------------------------------------------------------------------------------------------------------


def test_a_row_of_the_tail_keeps_the_reason_that_it_has(world: Path, tmp_path: Path) -> None:
    shards = [str(world / "shards")]
    rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=1, holdout_fraction=0.3)
    rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"))
    stream = rhostream.open_stream(shards, str(tmp_path / "il"), buffer_size=150, band="20%:80%").stream
    band = next(p for p in stream.prefilters if isinstance(p, Band))
    stream.prefilters = (*stream.prefilters, UniformChoice(8, 0))  # of a tail no batch is drawn
    tail, plan = stream.tail(0), stream.plan(0).tail()
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        table = {
            (r["shard"], r["ordinal"]): r
            for r in ledger.sql("SELECT shard, ordinal, il, in_holdout FROM il").to_pylist()
        }
    expected = []
    for shard, ordinal in zip(plan.shard.tolist(), plan.ordinal.tolist(), strict=True):
        row = table[stream.table.names[shard], ordinal]
        outside = row["il"] is not None and not band.low <= row["il"] <= band.high
        expected.append(Reason.holdout if row["in_holdout"] else Reason.band if outside else Reason.tail)
    assert tail.reason.tolist() == [int(reason) for reason in expected]
    assert len({*expected}) == 3


# -- one source of chance ----------------------------------------------------------------------------------------------

# Makers of generators, and why a file may call one.
MAKERS = {"default_rng", "SeedSequence", "PCG64", "Random", "manual_seed", "seed", "Generator"}
ALLOWED = {
    "randomness.py": "the room itself",
    "storage/retry.py": "the jitter of retries must differ between processes",
    "irreducible/job.py": "jobs that start together must go through the list in different orders",
}


def test_every_generator_is_made_of_words() -> None:
    """A generator may be made only of `torch_seed(...)` or of a seed that was handed in by who made it so."""
    strangers = []
    for path in sorted(LIBRARY.rglob("*.py")):
        place = str(path.relative_to(LIBRARY))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in MAKERS or place in ALLOWED:
                continue
            bare = name in ("manual_seed", "Generator", "seed") and (not node.args or _is_worded(node.args[0]))
            if not bare:
                strangers.append(f"{place}:{node.lineno} {name}")
    assert strangers == []


def _is_worded(node: ast.expr) -> bool:
    """Made by a function of the room, or the variable `seed`, which a function takes from one."""
    made = {getattr(part.func, "id", "") for part in ast.walk(node) if isinstance(part, ast.Call)}
    named = isinstance(node, ast.Name) and node.id == "seed"
    if isinstance(node, ast.BinOp):  # numpy's takes 32 bits of it
        return _is_worded(node.left)
    return bool(made & {"torch_seed", "generator"}) or named
