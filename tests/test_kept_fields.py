"""Fields are added to a table without scoring again: a new table, byte for byte what scoring with them would make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import BudgetError, MismatchError, UsageError
from rhostream.tables import il
from tests.conftest import write_shard
from tests.test_cli import run as command

BOTH = {"is_noisy": "bool", "true_label": "int"}


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of two shards: `one` keeps a field, `two` both."""
    folder = tmp_path_factory.mktemp("kept")
    for name, keep in (("one", {"is_noisy": "bool"}), ("two", BOTH)):
        rhostream.compute_il(two_of(world), str(world / "il-model"), str(folder / name), keep=keep)
    return folder


def two_of(world: Path) -> list[str]:
    return sorted(map(str, (world / "shards").glob("*.tar")))[:2]


def parts(table: Path) -> dict[str, bytes]:
    return {str(p.relative_to(table)): p.read_bytes() for p in sorted((table / "parts").rglob("*.parquet"))}


def test_a_field_that_is_added_makes_the_parts_that_scoring_with_it_makes(
    made: Path, world: Path, tmp_path: Path
) -> None:
    before = parts(made / "one")
    done = rhostream.keep_fields(two_of(world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    assert done.made == 2 and done.scored == 0 and not done.bad_shards
    assert parts(tmp_path / "new") == parts(made / "two") and parts(made / "one") == before
    assert il.open_info(str(tmp_path / "new")) == il.open_info(str(made / "two"))
    assert not verify(str(tmp_path / "new"))["problems"]
    again = rhostream.keep_fields(two_of(world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    assert (again.made, again.present) == (0, 2)


def test_a_field_of_another_type_is_read_again_and_an_index_takes_fields_too(
    made: Path, world: Path, tmp_path: Path
) -> None:
    shards = two_of(world)
    rhostream.index(shards, str(tmp_path / "ix"), keep={"true_label": "str"})
    rhostream.index(shards, str(tmp_path / "anew"), keep={"true_label": "float"})
    rhostream.keep_fields(shards, str(tmp_path / "ix"), str(tmp_path / "more"), {"true_label": "float"})
    with rhostream.open_ledger(str(tmp_path / "more")) as one, rhostream.open_ledger(str(tmp_path / "anew")) as other:
        question = "select * from samples order by shard, ordinal"
        assert one.sql(question).equals(other.sql(question))
    facts = [il.read_part_facts(url) for url in il.part_urls(str(tmp_path / "more"))]
    assert [f.bad_fields for f in facts] == [{}] * 2


def test_a_run_goes_on_with_the_table_that_has_more_fields(made: Path, world: Path, tmp_path: Path) -> None:
    how = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "threads": 1}
    rhostream.keep_fields(two_of(world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    rhostream.train(two_of(world), str(made / "one"), str(tmp_path / "run"), steps=2, **how)  # type: ignore[arg-type]
    done = rhostream.train(two_of(world), str(tmp_path / "new"), str(tmp_path / "run"), steps=4, **how)  # type: ignore[arg-type]
    assert done.steps == 4


def test_json_that_can_not_be_parsed_or_does_not_fit_is_null_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"__key__": "good", "cls": "0", "json": b'{"n": 1}', "png": b"x"},
        {"__key__": "broken", "cls": "0", "json": b"{", "png": b"x"},
        {"__key__": "other", "cls": "0", "json": b'{"n": "1"}', "png": b"x"},
        {"__key__": "none", "cls": "0", "png": b"x"},
    ]
    shard = write_shard(tmp_path / "a.tar", rows)
    rhostream.index([str(shard)], str(tmp_path / "ix"))
    done = rhostream.keep_fields([str(shard)], str(tmp_path / "ix"), str(tmp_path / "new"), {"n": "int"})
    assert done.bad_fields == {"n": 2} and done.samples == 4
    with rhostream.open_ledger(str(tmp_path / "new")) as ledger:
        assert ledger.sql("select n from samples order by ordinal")[0].to_pylist() == [1, None, None, None]


def test_a_shard_that_changed_gets_no_part_and_a_copy_of_the_same_bytes_does(
    made: Path, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in two_of(world):
        shutil.copy2(path, folder)
    rhostream.index([str(folder)], str(tmp_path / "ix"))
    first, second = sorted(folder.iterdir())
    data = bytearray(first.read_bytes())
    data[5000] ^= 1
    first.write_bytes(data)
    os.utime(second, (1, 1))
    done = rhostream.keep_fields([str(folder)], str(tmp_path / "ix"), str(tmp_path / "new"), {"n": "int"})
    assert done.made == 1 and [Path(name).name for name in done.bad_shards] == [first.name]
    with pytest.raises(MismatchError, match="sha256"):
        rhostream.keep_fields([str(folder)], str(tmp_path / "ix"), str(tmp_path / "new"), {"n": "int"}, fail_fast=True)
    with pytest.raises(BudgetError):
        rhostream.keep_fields(
            [str(folder)], str(tmp_path / "ix"), str(tmp_path / "new"), {"n": "int"}, max_bad_shards=0
        )


def test_the_refusal_of_other_fields_names_the_command_that_adds_them_and_it_works(
    made: Path, world: Path, tmp_path: Path
) -> None:
    shards = two_of(world)
    _, says = command(
        "compute-il",
        "--shards",
        *shards,
        "--il-model",
        world / "il-model",
        "--out",
        made / "one",
        "--keep",
        "is_noisy:bool,true_label:int",
        code=2,
    )
    assert "--from TABLE --keep" in says
    command(
        "compute-il", "--shards", *shards, "--from", made / "one", "--keep", "true_label:int", "--out", tmp_path / "new"
    )
    assert parts(tmp_path / "new") == parts(made / "two")
    command("index", "--shards", *shards, "--out", tmp_path / "ix")
    command("index", "--shards", *shards, "--from", tmp_path / "ix", "--keep", "n:int", "--out", tmp_path / "ix2")
    for wrong, says in (
        (("--il-model", world / "il-model"), "--il-model goes with scoring"),
        (("--il-dtype", "float16"), "--il-dtype goes with scoring"),
    ):
        _, refused = command(
            "compute-il",
            "--shards",
            *shards,
            "--from",
            made / "one",
            "--keep",
            "n:int",
            "--out",
            tmp_path / "x",
            *wrong,
            code=2,
        )
        assert says in refused
    _, refused = command("compute-il", "--shards", *shards, "--out", tmp_path / "x", code=2)
    assert "--il-model is required" in refused and not (tmp_path / "x").exists()


def test_what_adds_nothing_is_refused(made: Path, world: Path, tmp_path: Path) -> None:
    for keep, out, says in (
        ({}, tmp_path / "x", "--keep FIELD:TYPE"),
        ({"n": "int"}, made / "one", "stays as it is"),
        ({"il": "float"}, tmp_path / "x", "column of that name"),
        ({"n": "number"}, tmp_path / "x", "expected FIELD:TYPE"),
    ):
        with pytest.raises(UsageError, match=says):
            rhostream.keep_fields(two_of(world), str(made / "one"), str(out), keep)
    assert not (tmp_path / "x").exists()
