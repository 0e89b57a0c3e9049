"""IL variants: older tables with il in half the bytes, and what a table is good for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rhostream
from rhostream.audit.il_quality import il_quality, write_il_report
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.errors import MismatchError, TableError, UsageError
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import compute_il, fit_il
from rhostream.repair import repair
from rhostream.tables import il, parquet
from tests.faults.hostile_artifacts import forge_part, replaced
from tests.support.older import in_float16
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four small shards."""
    return [str(p) for p in make_shards(tmp_path_factory.mktemp("il-shards") / "shards", [60, 40, 30, 50])]


@pytest.fixture(scope="module")
def models(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """IL models of every split, on the same pixels."""
    root = tmp_path_factory.mktemp("il-models")
    splits = {"halves": {}, "thirds": {"folds": 3, "seed": 5}, "fraction": {"holdout_fraction": 0.4},
              "holdout": {"holdout": shards[:1]}}  # fmt: skip
    for name, split in splits.items():
        fit_il(shards, str(root / name), model="mlp-64", epochs=1, classes=4, **split)  # type: ignore[arg-type]
    return {name: str(root / name) for name in splits}


def parts(table: Path | str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (Path(table) / "parts").rglob("*.parquet")}


def column(table: Path | str, name: str) -> list[object]:
    """A column of all parts, in the order of their names."""
    return [v for p in sorted(Path(table).rglob("*.parquet")) for v in pq.read_table(p)[name].to_pylist()]


# -- float16 ---------------------------------------------------------------------------------------------------------


def test_il_in_float16_is_the_nearest_half_and_every_reader_gets_float32(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    compute_il(shards, models["halves"], str(tmp_path / "float32"), keep={"is_noisy": "bool"})
    in_float16(shards, models["halves"], str(tmp_path / "float16"), keep={"is_noisy": "bool"})
    full, half = (np.array(column(tmp_path / d, "il"), np.float32) for d in ("float32", "float16"))
    np.testing.assert_array_equal(half, full.astype(np.float16).astype(np.float32))
    assert (half != full).any()
    url = str(next((tmp_path / "float16").rglob("*.parquet")))
    assert pq.read_schema(url).field("il").type == pa.float16()
    assert il.read_part(url).il.dtype == np.float32
    with open_ledger(str(tmp_path / "float16")) as ledger:
        answer = ledger.sql("SELECT il FROM il WHERE il > 0.01 ORDER BY shard, ordinal")
    assert answer["il"].type == pa.float32()
    np.testing.assert_array_equal(answer["il"].to_numpy(), half[half > 0.01])
    assert verify(str(tmp_path / "float16"), shards=shards)["problems"] == []
    infos = [il.open_info(str(tmp_path / d)) for d in ("float32", "float16")]
    assert infos[1].il_dtype == "float16" and infos[0].fingerprint != infos[1].fingerprint
    with pytest.raises(MismatchError, match="il_dtype differ"):
        in_float16(shards, models["halves"], str(tmp_path / "float32"), keep={"is_noisy": "bool"})


def test_a_run_reads_a_float16_table_and_its_log_holds_those_values(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    in_float16(shards, models["halves"], str(tmp_path / "t"))
    rhostream.train(shards, str(tmp_path / "t"), str(tmp_path / "run"), model="mlp-64", buffer_size=40, batch_size=8)
    with open_ledger(str(tmp_path / "run")) as ledger:
        pairs = ledger.sql(
            "SELECT selections.il AS a, il.il AS b FROM selections JOIN il USING (shard, ordinal) "
            "WHERE reason IN ('kept', 'below')"
        )
    assert len(pairs) == 160 and pairs["a"] == pairs["b"]


def test_the_command_that_status_names_fills_a_float16_table_as_it_was_begun(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    in_float16(shards[:1], models["halves"], str(tmp_path / "t"))
    assert "rhostream compute-il" in status_of(str(tmp_path / "t"), shards)["next"]
    assert compute_il(shards, models["halves"], str(tmp_path / "t")).made == 3
    assert {pq.read_schema(p).field("il").type for p in (tmp_path / "t").rglob("*.parquet")} == {pa.float16()}
    assert status_of(models["halves"])["doubts"] == load_il_model(models["halves"]).info.quality["doubts"]


def test_a_loss_beyond_float16_is_stored_as_its_largest_number_and_never_as_infinity() -> None:
    values = np.array([0, 1e-9, 2.5, 65504, 65520, 1e30, np.nan, np.inf], np.float32)
    stored = il.stored_il(values, "float16")
    assert stored.dtype == np.float16
    assert stored[:6].tolist() == [0, 0, 2.5, 65504, 65504, 65504] and np.isnan(stored[6]) and np.isinf(stored[7])
    some = np.random.default_rng(0).exponential(2, 10_000).astype(np.float32)
    error = np.abs(il.stored_il(some, "float16").astype(np.float32) - some)
    assert (error <= np.maximum(some * 2**-11, 2**-25)).all()


def test_verify_finds_an_infinite_float16_il_and_repair_makes_the_part_again(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "t"
    in_float16(shards[:1], models["halves"], str(table))
    before = parts(table)
    forge_part(table, lambda rows, _: replaced(rows, "il", np.full(len(rows), np.inf, np.float16)))
    (problem,) = verify(str(table))["problems"]
    assert "float16 il is finite" in problem
    assert repair(str(table), shards=shards[:1])["problems"] == [] and parts(table) == before
    path = table / "_table.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ingredients": {"il_dtype": "float8"}}))
    with pytest.raises(TableError, match="il_dtype is 'float8'"):
        il.open_info(str(table))


def test_float16_takes_two_bytes_less_a_row() -> None:
    values = np.random.default_rng(0).exponential(1, 20_000).astype(np.float32)
    tables = [pa.table({"il": pa.array(il.stored_il(values, dtype))}) for dtype in ("float32", "float16")]
    sizes = [len(parquet.encode(table, {}, {"il": "BYTE_STREAM_SPLIT"}, [])) for table in tables]
    assert 1.4 < (sizes[0] - sizes[1]) / 20_000 < 2.4


# -- what a table is worth -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(shards: list[str], models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of the fraction's model that says which labels are wrong."""
    folder = str(tmp_path_factory.mktemp("il-known") / "t")
    compute_il(shards, models["fraction"], folder, keep={"is_noisy": "bool", "true_label": "int"})
    return folder


def test_the_figures_of_a_table_are_those_of_plain_numpy(known: str, models: dict[str, str]) -> None:
    with open_ledger(known) as ledger:
        found = il_quality(ledger)
    loss, label, predicted, noisy, held = (
        np.array(column(known, name)) for name in ("il", "label", "predicted", "is_noisy", "in_holdout")
    )
    assert (found["rows"], found["il_dtype"]) == (180, "float32")
    assert found["mean_il"] == pytest.approx(loss.mean()) and found["accuracy"] == (predicted == label).mean()
    assert found["quantiles"]["50 %"] == pytest.approx(np.median(loss))
    for c in found["classes"]:
        own = label == c["class"]
        assert (c["n"], c["accuracy"]) == (own.sum(), (predicted == label)[own].mean())
        assert c["mean_il"] == pytest.approx(loss[own].mean())
    assert found["worst_class"]["accuracy"] == min(c["accuracy"] for c in found["classes"])
    for name, own in (("in_holdout", held), ("rest", ~held)):
        assert found[name]["n"] == own.sum() and found[name]["mean_il"] == pytest.approx(loss[own].mean())
    pairs = np.sign(loss[noisy][:, None] - loss[~noisy][None, :])
    assert found["noise"]["auroc"] == pytest.approx((pairs.mean() + 1) / 2)
    assert found["noise"]["wrong"]["mean_il"] == pytest.approx(loss[noisy].mean())
    edges, counts = np.array(found["histogram"]["edges"]), found["histogram"]["counts"]
    for name, own in (("wrong labels", noisy), ("right labels", ~noisy)):
        expected, _ = np.histogram(np.clip(loss[own], 0, edges[-1] * (1 - 1e-9)), edges)
        assert np.abs(np.array(counts[name]) - expected).sum() <= 2  # a value on an edge
    assert found["model"]["quality"]["samples"] == 180 - held.sum()


def test_wrong_labels_are_known_from_either_field_and_ties_count_half(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    compute_il(shards, models["halves"], str(tmp_path / "t"), keep={"true_label": "int"})
    compute_il(shards, models["halves"], str(tmp_path / "n"))
    with open_ledger(str(tmp_path / "t")) as ledger, open_ledger(str(tmp_path / "n")) as unknown:
        assert il_quality(ledger)["noise"]["by"] == "true_label"
        assert il_quality(unknown)["noise"] is None and set(il_quality(unknown)["histogram"]["counts"]) == {"all"}
    table = tmp_path / "one"
    compute_il(shards[:1], models["halves"], str(table), keep={"is_noisy": "bool"})
    forge_part(table, lambda rows, _: replaced(rows, "il", [1.0] * len(rows)))
    with open_ledger(str(table)) as ledger:
        assert il_quality(ledger)["noise"]["auroc"] == 0.5


def test_the_page_of_a_table_is_static_and_shows_what_was_measured(
    known: str, shards: list[str], tmp_path: Path
) -> None:
    page = Path(write_il_report(known, str(tmp_path / "il.html"))).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2 and "<script" not in page and "AUROC" in page
    for words in ("wrong labels", "expected calibration error", "learned from (in_holdout)", "By class"):
        assert words in page
    path = Path(known) / "_table.json"
    record = json.loads(path.read_text())
    rhostream.index(shards[:1], str(tmp_path / "index"))
    with pytest.raises(UsageError, match="an index: it has no il"):
        write_il_report(str(tmp_path / "index"), str(tmp_path / "x.html"))
    forged = tmp_path / "forged"
    forged.mkdir()
    quality = record["model"]["quality"]
    for change in ({"loss": "x"}, {"doubts": 5}, {"reliability": {"ece": 0.1, "count": [1], "confidence": [1]}}):
        record["model"]["quality"] = quality | change
        (forged / "_table.json").write_text(json.dumps(record))
        with pytest.raises(TableError, match="can't be understood"):
            write_il_report(str(forged), str(tmp_path / "x.html"))
    record["model"]["quality"] = quality | {"doubts": ["<script>alert(1)</script>"]}
    (forged / "_table.json").write_text(json.dumps(record))
    page = Path(write_il_report(str(forged), str(tmp_path / "y.html"))).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_report_of_a_run_says_what_its_il_was_worth(known: str, shards: list[str], tmp_path: Path) -> None:
    rhostream.train(shards, known, str(tmp_path / "run"), model="mlp-64", buffer_size=40, batch_size=8, steps=2)
    page = Path(rhostream.write_report(str(tmp_path / "run"), str(tmp_path / "r.html"))).read_text(encoding="utf-8")
    assert 'id="il"' in page and "AUROC" in page and "expected calibration error" in page


# -- splits, from one end to the other -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_holdout", [False, True])
def test_a_fraction_of_d_is_left_out_of_the_candidates_or_kept_and_flagged(
    known: str, shards: list[str], tmp_path: Path, keep_holdout: bool
) -> None:
    rhostream.train(
        shards, known, str(tmp_path / "run"), model="mlp-64", buffer_size=45, batch_size=9, keep_holdout=keep_holdout
    )
    held = sum(map(bool, column(known, "in_holdout")))
    with open_ledger(str(tmp_path / "run")) as ledger:
        (row,) = ledger.sql(
            "SELECT count(*) FILTER (reason = 'holdout') AS out, "
            "count(*) FILTER (in_holdout AND reason = 'kept') AS kept, "
            "count(*) FILTER (in_holdout AND reason <> 'holdout') AS inside "
            "FROM selections JOIN il USING (shard, ordinal)"
        ).to_pylist()
    assert 40 < held < 110
    assert (row["out"], row["inside"]) == ((0, held) if keep_holdout else (held, 0))
    assert (row["kept"] > 0) == keep_holdout


def test_without_a_holdout_every_sample_is_a_candidate_scored_by_a_model_that_never_saw_it(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    compute_il(shards, models["halves"], str(tmp_path / "t"))
    rhostream.train(shards, str(tmp_path / "t"), str(tmp_path / "run"), model="mlp-64", buffer_size=45, batch_size=9)
    assert not any(column(tmp_path / "t", "in_holdout")) and set(column(tmp_path / "t", "fold")) == {0, 1}
    with open_ledger(str(tmp_path / "run")) as ledger:
        found = ledger.sql("SELECT reason, count(*) AS n FROM selections GROUP BY ALL").to_pylist()
    assert {row["reason"]: row["n"] for row in found} == {"kept": 36, "below": 144}


def test_one_table_serves_targets_of_other_models_sizes_and_settings_and_no_run_takes_another_for_it(
    shards: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "t"
    compute_il(shards, models["halves"], str(table))
    made, fingerprint = parts(table), il.open_info(str(table)).fingerprint
    targets: list[dict[str, object]] = [
        {"model": "mlp-64"},
        {"model": "small-cnn", "image_size": 32, "lr": 3e-3},
        {"model": "mlp-256", "rule": "irreducible", "weight_decay": 0.1, "decoder": "pillow", "seed": 7},
    ]
    for n, target in enumerate(targets):
        run = str(tmp_path / f"run{n}")
        settings = {"buffer_size": 60, "batch_size": 6, "steps": 2, **target}
        rhostream.train(shards, str(table), run, **settings)  # type: ignore[arg-type]
        assert json.loads((tmp_path / f"run{n}" / "run.json").read_text())["fingerprints"]["il"] == fingerprint
        with open_ledger(run) as ledger:
            (found,) = ledger.sql(
                "SELECT bool_and(selections.il = il.il) AS same, count(*) AS n FROM selections "
                "JOIN il USING (shard, ordinal) WHERE selections.il IS NOT NULL"
            ).to_pylist()
        assert found["same"] and found["n"] == 120
    assert parts(table) == made
    other = tmp_path / "t2"
    compute_il(shards, models["thirds"], str(other))
    table.rename(tmp_path / "away")
    other.rename(table)
    for n, target in enumerate(targets):
        settings = {"buffer_size": 60, "batch_size": 6, "steps": 3, **target}
        with pytest.raises(MismatchError, match=fingerprint):
            rhostream.train(shards, str(table), str(tmp_path / f"run{n}"), **settings)  # type: ignore[arg-type]
