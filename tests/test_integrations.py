"""The IL join inside a plain webdataset pipeline."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

import rhostream
from rhostream.errors import MissingPartError, UsageError
from rhostream.integrations.webdataset import join_il
from rhostream.tables import il
from tests.support.shards import make_shards, sample, write_shard

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def samples(shards: list[Path], **options: object) -> list[dict[str, object]]:
    stage = join_il(str(options.pop("table")), **options)
    return list(wds.DataPipeline(wds.SimpleShardList([str(s) for s in shards]), wds.tarfile_to_samples(), stage))


def test_every_sample_of_a_pipeline_gets_the_il_of_its_row(plain_world: Path) -> None:
    shards = sorted((plain_world / "shards").iterdir())
    found = {(s["__url__"], s["__key__"]): s["__il__"] for s in samples(shards, table=plain_world / "il")}
    assert len(found) == 1003
    for shard in shards:
        part = il.read_part(il.part_url(str(plain_world / "il"), str(shard)))
        for key, value in zip(part.key.to_pylist(), part.il.tolist(), strict=True):
            assert found[str(shard), key] == value


def test_over_nodes_and_workers_each_sample_comes_once_with_the_il_of_its_row(
    plain_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, joined = sorted((plain_world / "shards").iterdir()), list[tuple[str, str, float]]()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        stages = [wds.split_by_node, wds.split_by_worker, wds.tarfile_to_samples(), join_il(str(plain_world / "il"))]
        pipeline = wds.DataPipeline(wds.SimpleShardList([str(s) for s in shards]), *stages, wds.shuffle(50))
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=2, multiprocessing_context="fork")
        joined += [(s["__url__"], s["__key__"], s["__il__"]) for s in loader]
    parts = {str(shard): il.read_part(il.part_url(str(plain_world / "il"), str(shard))) for shard in shards}
    rows = [(url, key, value) for url, part in parts.items()
            for key, value in zip(part.key.to_pylist(), part.il.tolist(), strict=True)]  # fmt: skip
    assert sorted(joined) == sorted(rows) and len(rows) == 1003


def test_a_sample_without_il_is_an_error_dropped_or_nan_as_asked(plain_world: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path, [5])
    with pytest.raises(MissingPartError, match="compute-il"):
        samples(other, table=plain_world / "il")
    assert samples(other, table=plain_world / "il", missing="skip") == []
    assert all(math.isnan(s["__il__"]) for s in samples(other, table=plain_world / "il", missing="nan"))


@pytest.fixture(scope="module")
def halved(plain_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of which the IL model learned from a third of the samples."""
    out = tmp_path_factory.mktemp("halved")
    rhostream.fit_il([str(plain_world / "shards")], str(out / "m"), model="mlp-64", epochs=1, holdout_fraction=0.3)
    rhostream.compute_il([str(plain_world / "shards")], str(out / "m"), str(out / "il"))
    return out / "il"


def test_samples_that_the_il_model_learned_from_are_left_out_as_the_stream_leaves_them(
    plain_world: Path, halved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = sorted((plain_world / "shards").iterdir())
    streamed = set()
    for candidates in rhostream.open_stream(str(plain_world / "shards"), str(halved), buffer_size=1003, lanes=1):
        names = candidates.shard_names.to_pylist()
        streamed = {(names[candidates.shard[row]], candidates.key[row].as_py()) for row in candidates.candidate_rows}
    with caplog.at_level("WARNING", "rhostream"):
        found = samples(shards, table=halved)
    assert {(s["__url__"], s["__key__"]) for s in found} == streamed and 600 < len(streamed) < 800
    assert f"holdout {1003 - len(streamed)} (left out)" in caplog.text
    kept = samples(shards, table=halved, keep_holdout=True)
    marked = Counter(s["__il_status__"] for s in kept)
    assert marked == {"ok": len(streamed), "holdout": 1003 - len(streamed)}
    assert {(s["__url__"], s["__key__"]) for s in kept if s["__il_status__"] == "ok"} == streamed


def test_a_holdout_of_shards_of_its_own_is_left_out(plain_world: Path, tmp_path: Path) -> None:
    shards = sorted((plain_world / "shards").iterdir())
    rhostream.fit_il(
        [str(s) for s in shards[1:]], str(tmp_path / "m"), model="mlp-64", epochs=1, holdout=[str(shards[0])]
    )
    rhostream.compute_il([str(plain_world / "shards")], str(tmp_path / "m"), str(tmp_path / "il"))
    found = samples(shards, table=tmp_path / "il")
    assert len(found) == 803 and str(shards[0]) not in {s["__url__"] for s in found}


@pytest.fixture(scope="module")
def repeats(plain_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A shard in which two samples repeat the key of an earlier one, with other pixels; and its table."""
    out, rng = tmp_path_factory.mktemp("repeats"), np.random.default_rng(5)
    rows = [sample(number, rng) for number in range(20)]
    rows[7]["__key__"], rows[15]["__key__"] = rows[3]["__key__"], rows[0]["__key__"]
    shard = write_shard(out / "a.tar", rows)
    with pytest.warns(UserWarning, match="seen by fit-il"):
        rhostream.compute_il([str(shard)], str(plain_world / "il-model"), str(out / "il"))
    return shard, out / "il"


def test_a_repeated_key_never_gets_the_il_of_another_sample(repeats: tuple[Path, Path]) -> None:
    shard, table = repeats
    part = il.read_part(il.part_url(str(table), str(shard)))
    stage = join_il(str(table), missing="nan")
    found = list(wds.DataPipeline(wds.SimpleShardList([str(shard)] * 2), wds.tarfile_to_samples(), stage))
    assert [s["__il_status__"] == "dup" for s in found] == [at in (7, 15) for at in range(20)] * 2
    assert all(s["__il__"] == part.il[at % 20] for at, s in enumerate(found) if at % 20 not in (7, 15))
    assert all(math.isnan(s["__il__"]) for s in found if s["__il_status__"] == "dup")
    assert stage.counts == {"ok": 36, "dup": 4}
    assert len(samples([shard], table=table, missing="skip")) == 18
    with pytest.raises(MissingPartError, match="repeats a key"):
        samples([shard], table=table)


def test_out_of_the_shards_order_no_sample_of_a_repeated_key_gets_an_il(repeats: tuple[Path, Path]) -> None:
    shard, table = repeats
    for seed in range(5):
        shuffled = wds.shuffle(30, rng=random.Random(seed))
        found = list(
            wds.DataPipeline(
                wds.SimpleShardList([str(shard)]),
                wds.tarfile_to_samples(),
                shuffled,
                join_il(str(table), missing="nan"),
                wds.decode("l8"),
            )
        )
        assert Counter(s["__il_status__"] for s in found) == {"ok": 16, "dup": 4}


def test_an_index_is_refused_before_the_pipeline_runs(plain_world: Path, tmp_path: Path) -> None:
    rhostream.index([str(plain_world / "shards")], str(tmp_path / "index"))
    with pytest.raises(UsageError, match="index without il"):
        join_il(str(tmp_path / "index"))


def test_no_sample_of_the_holdout_is_handed_out_with_a_nan(tmp_path: Path) -> None:
    """Repeated keys and samples that can't be used are what they are, in the holdout too."""
    rng = np.random.default_rng(0)
    rows = [sample(number % 40, rng) for number in range(80)]  # each key twice
    rows[5] = {**rows[5], "png": b"no picture"}
    write_shard(tmp_path / "d" / "a.tar", rows)
    rhostream.fit_il(
        [str(tmp_path / "d")], str(tmp_path / "m"), model="mlp-64", epochs=1, holdout_fraction=0.6, max_bad_fraction=0.9
    )
    rhostream.compute_il([str(tmp_path / "d")], str(tmp_path / "m"), str(tmp_path / "il"), max_bad_fraction=0.9)
    shards = [tmp_path / "d" / "a.tar"]
    got = [
        (s["__il_status__"], s["__il__"])
        for s in samples(shards, table=tmp_path / "il", keep_holdout=True, missing="nan")
    ]
    assert len(got) == 80 and {status for status, _ in got} == {"ok", "holdout", "dup", "quarantined"}
    assert all(math.isnan(il) == (status in ("dup", "quarantined")) for status, il in got)


def pipeline(plain_world: Path, *stages: object, shuffle: int = 0) -> list[dict[str, object]]:
    shards = [str(s) for s in sorted((plain_world / "shards").iterdir())]
    mixed = [wds.shuffle(shuffle, rng=random.Random(1))] if shuffle else []
    return list(wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples(), *mixed, *stages))


def test_the_join_stands_before_and_behind_webdatasets_decoder(plain_world: Path) -> None:
    before = pipeline(plain_world, join_il(str(plain_world / "il")), wds.decode("l8"))
    behind = pipeline(plain_world, wds.decode("l8"), join_il(str(plain_world / "il"), field="il"))
    assert [s["__il__"] for s in before] == [s["il"] for s in behind] and len(before) == 1003
    assert {s["__il_status__"] for s in before} == {s["il_status"] for s in behind} == {"ok"}
    assert isinstance(before[0]["__il__"], float) and isinstance(before[0]["png"], np.ndarray)


def test_behind_a_shuffle_each_part_is_read_once_and_no_il_is_another_samples(
    plain_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {(s["__url__"], s["__key__"]): s["__il__"] for s in pipeline(plain_world, join_il(str(plain_world / "il")))}
    read, opened = il.read_part, list[str]()
    monkeypatch.setattr(il, "read_part", lambda url, **how: opened.append(url) or read(url, **how))
    stage = join_il(str(plain_world / "il"))
    for _ in range(2):  # epochs
        mixed = pipeline(plain_world, stage, shuffle=500)
        assert {(s["__url__"], s["__key__"]): s["__il__"] for s in mixed} == plain
        assert [s["__key__"] for s in mixed] != [key for _, key in plain]
    assert len(opened) == len(set(opened)) == len({url for url, _ in plain})
    assert stage.__getstate__()["_parts"] == {}  # a worker reads its own


def test_parts_beyond_the_bound_are_read_again_and_the_il_stay_right(
    plain_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {(s["__url__"], s["__key__"]): s["__il__"] for s in pipeline(plain_world, join_il(str(plain_world / "il")))}
    monkeypatch.setattr("rhostream.integrations.webdataset.ROWS_KEPT", 300)
    stage = join_il(str(plain_world / "il"))
    mixed = pipeline(plain_world, stage, shuffle=500)
    assert {(s["__url__"], s["__key__"]): s["__il__"] for s in mixed} == plain
    assert sum(map(len, stage._parts.values())) <= 300
