"""Shadow scoring: what other rules would have kept, beside the log, for no forward; committed and proved like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rhostream
from rhostream.audit.questions import run_question
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from rhostream.tables import parquet
from tests.support.logs import same
from tests.support.ranks import train_killed_at

RULES = "loss,small_loss,grad_norm,grad_norm_is,uniform,irreducible"


@pytest.fixture(scope="module")
def shadowed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shadowed") / "run"
    rhostream.train(
        [str(world / "shards")],
        str(world / "il"),
        str(folder),
        buffer_size=40,
        batch_size=8,
        threads=1,
        model="mlp-64",
        steps=20,
        checkpoint_every=8,
        uniform_every=5,
        shadow=RULES,
    )
    return folder


def test_each_rule_has_a_row_for_each_sample_that_was_scored_and_its_own_choice(shadowed: Path) -> None:
    with rhostream.open_ledger(str(shadowed)) as ledger:
        joined = ledger.sql("""SELECT rule, step, ordinal, shadow.score, shadow.kept, loss, il, selections.kept AS own
                               FROM shadow JOIN selections USING (run, step, shard, ordinal)
                               ORDER BY rule, step, shard, ordinal""").to_pylist()
        steps = ledger.sql("SELECT DISTINCT step FROM shadow ORDER BY step")["step"].to_pylist()
    assert steps == [s for s in range(20) if s % 5 != 4] and len(joined) == 16 * 40 * 6  # uniform steps score nothing
    for step in steps:
        for rule in RULES.split(","):
            rows = [row for row in joined if row["rule"] == rule and row["step"] == step]
            kept = sum(row["kept"] for row in rows)
            assert len(rows) == 40 and (1 < kept <= 8 if rule == "grad_norm_is" else kept == 8)
            if rule in ("loss", "small_loss", "irreducible"):
                sign = {"loss": 1, "small_loss": -1, "irreducible": -1}[rule]
                value = np.array([sign * row["il" if rule == "irreducible" else "loss"] for row in rows], np.float32)
                np.testing.assert_array_equal(value, np.array([row["score"] for row in rows], np.float32))
                best = set(np.sort(value)[-8:].tolist())
                assert all(row["kept"] == (v in best) for row, v in zip(rows, value.tolist(), strict=True))
            assert all((row["score"] is None) == (rule == "uniform") for row in rows)


def test_a_shadow_costs_no_forward_and_changes_nothing(shadowed: Path, world: Path, tmp_path: Path) -> None:
    rhostream.train(
        [str(world / "shards")],
        str(world / "il"),
        str(tmp_path / "plain"),
        buffer_size=40,
        batch_size=8,
        model="mlp-64",
        steps=20,
        uniform_every=5,
        threads=1,
    )
    costs = [json.loads((run / "cost.json").read_text()) for run in (shadowed, tmp_path / "plain")]
    assert same(shadowed, tmp_path / "plain") and costs[0]["forward_units"] == costs[1]["forward_units"]


def test_what_a_rule_would_have_kept_is_what_it_keeps_in_a_first_step_of_its_own(world: Path, tmp_path: Path) -> None:
    with_shadow = {"shadow": "rho,loss,grad_norm_is,uniform"}
    chosen = {}
    for rule in ("rho", "loss", "grad_norm_is"):
        run = tmp_path / rule
        rhostream.train(
            [str(world / "shards")],
            str(world / "il"),
            str(run),
            buffer_size=40,
            batch_size=8,
            model="mlp-64",
            steps=1,
            rule=rule,
            threads=1,
            **with_shadow,
        )
        with rhostream.open_ledger(str(run)) as ledger:
            chosen[rule] = ledger.sql("SELECT shard, ordinal FROM selections WHERE kept ORDER BY ALL").to_pylist()
            for other in ("rho", "loss", "grad_norm_is"):
                found = ledger.sql(
                    "SELECT shard, ordinal FROM shadow WHERE kept AND rule = $r ORDER BY ALL", {"r": other}
                ).to_pylist()
                assert chosen.setdefault(f"shadow {other}", found) == found
    assert all(chosen[rule] == chosen[f"shadow {rule}"] for rule in ("rho", "loss", "grad_norm_is"))


def test_a_row_takes_few_bytes_beside_its_scores(shadowed: Path) -> None:
    segments = checkpoint.latest(str(shadowed)).shadow
    assert [s["path"].split("/")[0] for s in segments] == ["shadow"] * 3
    table = parquet.read(str(shadowed / segments[0]["path"]))[0]
    assert table.schema.names[:4] == ["pass", "step", "shard", "ordinal"] and len(table.schema.names) == 4 + 2 * 6
    sized = _bytes_a_row(rows=100_000, rules=3)
    assert sized < 3 * 4.3 + 3  # the scores are floats of noise; a key, a label or a name a row would show


def _bytes_a_row(rows: int, rules: int) -> float:
    import tempfile

    import pyarrow as pa

    from rhostream.tables.shadow import ShadowWriter

    rng = np.random.default_rng(0)
    names = pa.array([f"bucket/train-{i:05d}.tar" for i in range(100)])
    with tempfile.TemporaryDirectory() as folder:
        writer = ShadowWriter(folder, 0)
        for step in range(rows // 320):
            writer.take(
                0,
                step,
                np.sort(rng.integers(0, 100, 320)).astype(np.int32),
                names,
                rng.integers(0, 10_000, 320).astype(np.int32),
                rng.random((rules, 320)).astype(np.float32),
                rng.random((rules, 320)) < 0.1,
            )
        (segment,) = writer.flush()
    return float(segment["bytes"] / segment["rows"])


def test_the_named_questions_show_agreement_and_noise(shadowed: Path) -> None:
    with rhostream.open_ledger(str(shadowed)) as ledger:
        shared = {(r["rule"], r["other"]): r for r in run_question(ledger, "shadow_agreement").to_pylist()}
        noisy = {r["rule"]: r for r in run_question(ledger, "shadow_noisy").to_pylist()}
        own = ledger.sql("""SELECT avg(b.kept::INT) AS share FROM selections AS a JOIN shadow AS b
                            USING (run, step, shard, ordinal) WHERE a.kept AND b.rule = 'loss'""")["share"].to_pylist()
    assert shared["rho (the run)", "loss"]["shared"] == pytest.approx(own[0], abs=1e-4)
    assert shared["rho (the run)", "loss"]["kept"] == 128 == noisy["rho (the run)"]["kept"]
    assert set(noisy) == {*RULES.split(","), "rho (the run)"}
    assert noisy["loss"]["noisy_share"] > 2 * noisy["uniform"]["noisy_share"] > 0


def test_a_damaged_shadow_is_found_and_a_run_without_one_has_an_empty_view(
    shadowed: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(shadowed, run)
    assert verify(str(run))["problems"] == []
    path = run / checkpoint.latest(str(run)).shadow[1]["path"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "/shadow/" in verify(str(run))["problems"][0]
    with pytest.raises(rhostream.RhostreamError, match="shadow/"):
        rhostream.open_ledger(str(run))
    with rhostream.open_ledger(str(trained(steps=2))) as ledger:
        assert ledger.sql("SELECT * FROM shadow").num_rows == 0
        assert run_question(ledger, "shadow_agreement").num_rows == 0


def test_a_rules_name_is_text_and_never_sql(shadowed: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "it's"
    shutil.copytree(shadowed, run)
    record = json.loads((run / "run.json").read_text())
    record["settings"]["shadow"] = "a' AS rule FROM runs; --,loss"
    (run / "run.json").write_text(json.dumps(record))
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("SELECT DISTINCT rule FROM shadow ORDER BY ALL")[0].to_pylist() == [
            "a' AS rule FROM runs; --",
            "loss",
        ]


def test_killed_and_started_again_the_shadow_holds_each_step_once(world: Path, tmp_path: Path, shadowed: Path) -> None:
    options = {
        "shards": [str(world / "shards")],
        "il": str(world / "il"),
        "run": str(tmp_path / "run"),
        "threads": 1,
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "steps": 20,
        "checkpoint_every": 8,
        "uniform_every": 5,
        "shadow": RULES,
    }
    train_killed_at(11, options)
    rhostream.train(**options)
    found = []
    for run in (tmp_path / "run", shadowed):
        with rhostream.open_ledger(str(run)) as ledger:
            found.append(ledger.sql("SELECT * EXCLUDE run FROM shadow ORDER BY ALL"))
    assert found[0].equals(found[1])
