"""The IL join inside a plain webdataset pipeline."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import webdataset as wds

from rhostream.errors import MissingPartError
from rhostream.integrations.webdataset import join_il
from rhostream.tables import il
from tests.conftest import make_shards

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def samples(shards: list[Path], **options: object) -> list[dict[str, object]]:
    stage = join_il(str(options.pop("table")), **options)
    return list(wds.DataPipeline(wds.SimpleShardList([str(s) for s in shards]), wds.tarfile_to_samples(), stage))


def test_every_sample_of_a_pipeline_gets_the_il_of_its_row(world: Path) -> None:
    shards = sorted((world / "shards").iterdir())
    found = {(s["__url__"], s["__key__"]): s["il"] for s in samples(shards, table=world / "il")}
    assert len(found) == 1003
    for shard in shards:
        part = il.read_part(il.part_url(str(world / "il"), str(shard)))
        for key, value in zip(part.key.to_pylist(), part.il.tolist(), strict=True):
            assert found[str(shard), key] == value


def test_a_sample_without_il_is_an_error_dropped_or_nan_as_asked(world: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path, [5])
    with pytest.raises(MissingPartError, match="compute-il"):
        samples(other, table=world / "il")
    assert samples(other, table=world / "il", missing="skip") == []
    assert all(math.isnan(s["il"]) for s in samples(other, table=world / "il", missing="nan"))
