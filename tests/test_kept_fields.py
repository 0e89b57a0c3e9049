"""Fields are added to a table without scoring again: a new table, byte for byte what scoring with them would make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import BudgetError, MismatchError, UsageError
from rhostream.repair import repair
from rhostream.tables import il, parquet
from tests.support.process import run as command
from tests.support.shards import write_shard

BOTH = {"is_noisy": "bool", "true_label": "int"}


@pytest.fixture(scope="module")
def made(plain_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of two shards: `one` keeps a field, `two` both."""
    folder = tmp_path_factory.mktemp("kept")
    for name, keep in (("one", {"is_noisy": "bool"}), ("two", BOTH)):
        rhostream.compute_il(two_of(plain_world), str(plain_world / "il-model"), str(folder / name), keep=keep)
    return folder


def two_of(plain_world: Path) -> list[str]:
    return sorted(map(str, (plain_world / "shards").glob("*.tar")))[:2]


def parts(table: Path) -> dict[str, bytes]:
    return {str(p.relative_to(table)): p.read_bytes() for p in sorted((table / "parts").rglob("*.parquet"))}


def test_a_field_that_is_added_makes_the_parts_that_scoring_with_it_makes(
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    before = parts(made / "one")
    done = rhostream.keep_fields(two_of(plain_world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    assert done.made == 2 and done.scored == 0 and not done.bad_shards
    assert parts(tmp_path / "new") == parts(made / "two") and parts(made / "one") == before
    assert il.open_info(str(tmp_path / "new")) == il.open_info(str(made / "two"))
    assert not verify(str(tmp_path / "new"))["problems"]
    again = rhostream.keep_fields(two_of(plain_world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    assert (again.made, again.present) == (0, 2)


def test_a_field_of_another_type_is_read_again_and_an_index_takes_fields_too(
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    shards = two_of(plain_world)
    rhostream.index(shards, str(tmp_path / "ix"), keep={"true_label": "str"})
    rhostream.index(shards, str(tmp_path / "anew"), keep={"true_label": "float"})
    rhostream.keep_fields(shards, str(tmp_path / "ix"), str(tmp_path / "more"), {"true_label": "float"})
    with rhostream.open_ledger(str(tmp_path / "more")) as one, rhostream.open_ledger(str(tmp_path / "anew")) as other:
        question = "select * from samples order by shard, ordinal"
        assert one.sql(question).equals(other.sql(question))
    facts = [il.read_part_facts(url) for url in il.part_urls(str(tmp_path / "more"))]
    assert [f.bad_fields for f in facts] == [{}] * 2


def test_a_run_goes_on_with_the_table_that_has_more_fields(made: Path, plain_world: Path, tmp_path: Path) -> None:
    how = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "threads": 1}
    rhostream.keep_fields(two_of(plain_world), str(made / "one"), str(tmp_path / "new"), {"true_label": "int"})
    rhostream.train(two_of(plain_world), str(made / "one"), str(tmp_path / "run"), steps=2, **how)  # type: ignore[arg-type]
    done = rhostream.train(two_of(plain_world), str(tmp_path / "new"), str(tmp_path / "run"), steps=4, **how)  # type: ignore[arg-type]
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
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in two_of(plain_world):
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
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    shards = two_of(plain_world)
    _, says = command(
        "compute-il",
        "--shards",
        *shards,
        "--il-model",
        plain_world / "il-model",
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
        (("--il-model", plain_world / "il-model"), "--il-model goes with scoring"),
        (("--min-accuracy", 0.5), "--min-accuracy goes with scoring"),
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


def test_what_adds_nothing_is_refused(made: Path, plain_world: Path, tmp_path: Path) -> None:
    for keep, out, says in (
        ({}, tmp_path / "x", "--keep FIELD:TYPE"),
        ({"n": "int"}, made / "one", "stays as it is"),
        ({"il": "float"}, tmp_path / "x", "column of that name"),
        ({"n": "number"}, tmp_path / "x", "expected FIELD:TYPE"),
    ):
        with pytest.raises(UsageError, match=says):
            rhostream.keep_fields(two_of(plain_world), str(made / "one"), str(out), keep)
    assert not (tmp_path / "x").exists()


# -- the order of kept fields ----------------------------------------------------------------------------------------

ANY_ORDER = "true_label:int,is_noisy:bool"


def of_before(table: Path, out: Path) -> Path:
    """The table as it was written before fields had an order: those of its parts as `ANY_ORDER` has them."""
    shutil.copytree(table, out)
    for url in il.part_urls(str(out)):
        rows, record = parquet.read(url)
        order = [name for name in rows.column_names if name not in BOTH] + ["true_label", "is_noisy"]
        Path(url).unlink()
        Path(url).write_bytes(
            il.encode_part(rows.select(order).replace_schema_metadata(None), il.facts_of(record, url))
        )
    return out


def test_fields_kept_in_any_order_make_the_same_table_and_it_verifies(
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    rhostream.compute_il(two_of(plain_world), str(plain_world / "il-model"), str(tmp_path / "any"), keep=ANY_ORDER)
    assert parts(tmp_path / "any") == parts(made / "two")
    assert not verify(str(tmp_path / "any"))["problems"]
    again = rhostream.compute_il(two_of(plain_world), str(plain_world / "il-model"), str(tmp_path / "any"), keep=BOTH)
    assert (again.made, again.present) == (0, 2)


def test_a_table_whose_parts_have_their_fields_in_another_order_verifies_is_mended_and_goes_on(
    made: Path, plain_world: Path, tmp_path: Path
) -> None:
    old = of_before(made / "two", tmp_path / "old")
    assert parts(old) != parts(made / "two") and not verify(str(old))["problems"]
    with rhostream.open_ledger(str(old)) as one, rhostream.open_ledger(str(made / "two")) as other:
        question = "select key, is_noisy, true_label from samples order by shard, ordinal"
        assert one.sql(question).equals(other.sql(question))
    first, second = (Path(url) for url in sorted(il.part_urls(str(old))))
    kept = second.read_bytes()
    first.write_bytes(first.read_bytes()[:-9])
    assert len(verify(str(old))["problems"]) == 1
    repair(str(old), shards=two_of(plain_world), il_model=str(plain_world / "il-model"))
    assert not verify(str(old))["problems"] and second.read_bytes() == kept
    assert parts(old)[str(first.relative_to(old))] == parts(made / "two")[str(first.relative_to(old))]
    second.unlink()
    done = rhostream.compute_il(two_of(plain_world), str(plain_world / "il-model"), str(old), keep=ANY_ORDER)
    assert (done.made, done.present) == (1, 1) and parts(old) == parts(made / "two")


def test_fields_are_added_to_a_table_of_another_order(made: Path, plain_world: Path, tmp_path: Path) -> None:
    old = of_before(made / "two", tmp_path / "old")
    rhostream.keep_fields(two_of(plain_world), str(old), str(tmp_path / "new"), {"true_label": "int"})
    assert parts(tmp_path / "new") == parts(made / "two")
