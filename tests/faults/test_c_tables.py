"""Section C: what an IL table can have wrong with it, and that a run, a job, SQL, verify and its repair know it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rhostream
from rhostream import storage
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.candidates import Reason
from rhostream.errors import MismatchError, MissingPartError, RhostreamError, TableError, UsageError
from rhostream.repair import repair
from rhostream.tables import il, parquet
from rhostream.tables.il.part import DICTIONARY, ENCODINGS
from tests.faults import tally
from tests.support.shards import make_shards

KEEP = {"is_noisy": "bool", "true_label": "int"}
TRAIN = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "steps": 3}
Change = Callable[[pa.Table, il.PartFacts], tuple[pa.Table, il.PartFacts]]


@pytest.fixture
def table(world: Path, tmp_path: Path) -> Path:
    """A copy of the world's IL table, to be damaged."""
    return Path(shutil.copytree(world / "il", tmp_path / "il"))


def parts_of(table: Path) -> list[Path]:
    return sorted((table / "parts").rglob("*.parquet"))


def content(table: Path) -> dict[str, bytes]:
    return {str(p.relative_to(table)): p.read_bytes() for p in parts_of(table)}


def rewrite(part: Path, change: Change) -> None:
    """Write a part again as a foreign writer may: sealed and whole, whatever its laws."""
    rows, record = parquet.read(str(part))
    rows, facts = change(rows, il.PartFacts(**record))
    part.write_bytes(parquet.encode(rows, asdict(facts), ENCODINGS, DICTIONARY))


def open_stream(world: Path, table: Path, **options: Any) -> Any:
    return rhostream.open_stream([str(world / "shards")], str(table), buffer_size=40, **options)


def keys_of(loader: Any) -> list[list[str]]:
    return [candidates.key.to_pylist() for candidates in loader]


def set_il(rows: pa.Table, values: dict[int, float | None]) -> pa.Table:
    column = rows["il"].to_pylist()
    for row, value in values.items():
        column[row] = value
    return rows.set_column(rows.schema.get_field_index("il"), "il", pa.array(column, pa.float32()))


# -- C1, C2: what is missing -----------------------------------------------------------------------------------------


def test_C1_missing_parts_stop_a_run_before_its_first_step_or_are_left_out_and_counted(
    world: Path, table: Path, tmp_path: Path
) -> None:
    """A run whose table lacks parts stops before anything is made, with exit code 2, listing the first five shards and
    the count; with `--missing-il skip` these shards are left out, with a warning, and counted in run.json.
    """
    for part in parts_of(table)[:6]:
        part.unlink()
    run = tmp_path / "run"
    with pytest.raises(MissingPartError) as refused:
        rhostream.train([str(world / "shards")], str(table), str(run), **TRAIN)
    says = str(refused.value)
    assert "no part for 6 of 7 shards" in says and "train-004.tar and 1 more" in says and "compute-il" in says
    assert refused.value.exit_code == 2 and not run.exists()
    with pytest.warns(UserWarning, match=r"6 shards have no part .* left out"):
        done = rhostream.train(
            [str(world / "shards")], str(table), str(tmp_path / "skip"), missing_il="skip", **{**TRAIN, "steps": 2}
        )
    record = json.loads((tmp_path / "skip" / "run.json").read_text())
    assert (done.steps, done.planned, record["left_out_shards"]) == (2, 100, 6)


def test_C2_a_part_that_lacks_a_row_is_refused_by_name(world: Path, table: Path) -> None:
    """A part that lacks a sample of its shard contradicts its own footer: verify, a run and SQL's proof refuse it by
    name, and `verify --repair` makes it again.
    """
    whole = content(table)
    first, second = parts_of(table)[:2]
    rewrite(first, lambda rows, facts: (rows.slice(1), facts))
    rewrite(
        second,
        lambda rows, facts: (
            pa.concat_tables([rows.slice(0, 9), rows.slice(10)]),
            replace(
                facts,
                samples=facts.samples - 1,
                statuses={il.OK: facts.samples - 1},
                il_rows=facts.samples - 1,
                members_used=facts.members_used - 3,
                members_seen=facts.members_seen - 3,
            ),
        ),
    )
    damaged, found = content(table), verify(str(table))
    assert [first.name in found["problems"][0], second.name in found["problems"][1]] == [True, True]
    for part, says in ((first, "has 199 rows, its footer says 200"), (second, r": ordinals are not 0\.\.148")):
        for name, data in whole.items():
            (table / name).write_bytes(damaged[name] if name.endswith(part.name) else data)
        with pytest.raises(TableError, match=part.name + says.replace("has", " has")):
            keys_of(open_stream(world, table))
    first.write_bytes(damaged[str(first.relative_to(table))])
    assert repair(str(table))["problems"] == [] and content(table) == whole


def test_C2_a_sample_without_an_il_is_an_error_or_a_row_of_the_log_with_its_reason(
    world: Path, table: Path, tmp_path: Path
) -> None:
    """A single sample whose il is missing follows `--missing-il`: `error` names its key and shard, `skip` logs it with
    reason `missing_il`.
    """
    rewrite(
        parts_of(table)[0], lambda rows, facts: (set_il(rows, {3: None}), replace(facts, il_rows=facts.il_rows - 1))
    )
    with pytest.raises(MissingPartError, match=r"sample 's000003' of shard .*train-000.tar has no il"):
        rhostream.train([str(world / "shards")], str(table), str(tmp_path / "error"), **{**TRAIN, "steps": 25})
    done = rhostream.train(
        [str(world / "shards")], str(table), str(tmp_path / "skip"), missing_il="skip", **{**TRAIN, "steps": 25}
    )
    assert done.reasons["missing_il"] == 1
    with rhostream.open_ledger(str(tmp_path / "skip")) as ledger:
        asked = ledger.sql("SELECT key, loss FROM selections WHERE reason = 'missing_il'").to_pylist()
    assert asked == [{"key": "s000003", "loss": None}]


# -- C3, C4: of another making ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another IL model, and its table in `il2`."""
    root = tmp_path_factory.mktemp("other")
    shards, roots = [str(world / "shards")], {"world": str(world)}
    rhostream.fit_il(shards, str(root / "model"), model="mlp-64", epochs=1, seed=9, roots=roots)
    rhostream.compute_il(shards, str(root / "model"), str(root / "il2"), keep=KEEP, roots=roots)
    return root


def test_C3_il_of_another_model_never_mixes_and_a_resumed_run_refuses_it(
    world: Path, other: Path, table: Path, tmp_path: Path
) -> None:
    """compute-il refuses a table that another model made ("fingerprint a1b2 != c3d4: weights differ"), a run that is
    resumed with another table names both fingerprints, and a target may have another size and architecture than the
    IL model.
    """
    with pytest.raises(MismatchError, match=r"fingerprint [0-9a-f]{16} != [0-9a-f]{16}: .*weights.* differ"):
        rhostream.compute_il([str(world / "shards")], str(other / "model"), str(table), keep=KEEP)
    run = str(tmp_path / "run")
    rhostream.train([str(world / "shards")], str(table), run, image_size=20, **{**TRAIN, "model": "small-cnn"})
    old, new = (il.open_info(str(t)).fingerprint for t in (table, other / "il2"))
    with pytest.raises(MismatchError, match=f"il: was '{old}', now '{new}'"):
        rhostream.train(
            [str(world / "shards")],
            str(other / "il2"),
            run,
            image_size=20,
            **{**TRAIN, "model": "small-cnn", "steps": 5},
        )
    with pytest.raises(MismatchError, match="weights"):
        parts_of(table)[0].unlink()
        repair(str(table), shards=[str(world / "shards")], il_model=str(other / "model"))


def test_C4_two_fingerprints_in_one_table_are_refused_everywhere_and_mended(
    world: Path, other: Path, table: Path
) -> None:
    """A part of another model in a table is refused by name by a run, SQL, compute-il and verify, and `verify --repair`
    makes the right one.
    """
    whole = content(table)
    part = parts_of(table)[2]
    shutil.copy(other / "il2" / part.relative_to(table), part)
    with pytest.raises(MismatchError, match=r"train-002.tar has fingerprint .* its table has"):
        open_stream(world, table)
    with (
        pytest.raises(MismatchError, match=r"train-002.tar.parquet has fingerprint"),
        rhostream.open_ledger(str(table)) as ledger,
    ):
        ledger.sql("SELECT count(*) FROM il")
    with pytest.raises(MismatchError, match=r"train-002.tar.parquet has fingerprint"):
        rhostream.compute_il([str(world / "shards")], str(world / "il-model"), str(table), keep=KEEP)
    assert "another making" in verify(str(table))["problems"][0]
    assert repair(str(table))["problems"] == [] and content(table) == whole


# -- C5, C6: the shard is another one --------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[list[Path], Path]:
    """Three shards and their index."""
    shards = make_shards(tmp_path / "shards", [60, 60, 60])
    rhostream.index([str(tmp_path / "shards")], str(tmp_path / "index"))
    return shards, tmp_path / "index"


def test_C5_shards_that_changed_are_counted_and_scored_again_on_request(
    indexed: tuple[list[Path], Path], tmp_path: Path
) -> None:
    """Shards whose bytes changed after they were scored are found by size, else by sha256, counted, and never used:
    verify says "re-score N shards: rhostream verify --repair", a job or a run that meets one names it and that command;
    the repair scores exactly these again.
    """
    shards, table = indexed
    before = content(table)
    changed = bytearray(shards[0].read_bytes())
    changed[changed.index(b"IDAT") + 9] ^= 1  # the same size
    shards[0].write_bytes(changed)
    make_shards(tmp_path / "new", [90], seed=5)[0].rename(shards[1])
    folder = str(tmp_path / "shards")
    assert verify(str(table))["problems"] == []  # the table alone is whole
    found = verify(str(table), shards=[folder])
    assert len(found["problems"]) == 2 and found["next"].startswith("re-score 2 shards: rhostream verify")
    with pytest.raises(MismatchError, match=r"re-score what changed: `rhostream verify TABLE --repair --shards URL"):
        rhostream.index([folder], str(table))
    with pytest.raises(MismatchError, match="re-score what changed"):
        list(rhostream.open_stream(folder, str(table), buffer_size=20, needs_il=False))
    mended = repair(str(table), shards=[folder], max_bad_fraction=1.0)
    assert mended["problems"] == [] and len(mended["repaired"]) == 2
    rhostream.index([folder], str(tmp_path / "fresh"), max_bad_fraction=1.0)
    assert content(table) == content(tmp_path / "fresh") and content(table) != before


def test_C6_the_same_bytes_with_a_new_time_are_a_copy(indexed: tuple[list[Path], Path], tmp_path: Path) -> None:
    """Shards uploaded again with the same bytes (a new time or ETag) are compared by their sha256: one warning, and
    nothing has to be done.
    """
    shards, table = indexed
    for shard in shards:
        os.utime(shard, (1, 1))
    found = verify(str(table), shards=[str(tmp_path / "shards")])
    assert found["problems"] == [] and len(found["warnings"]) == 1
    assert "3 shards have a new time or ETag" in found["warnings"][0] and "same bytes (sha256)" in found["warnings"][0]
    with pytest.warns(UserWarning, match="taken for a copy"):
        assert (
            len(list(rhostream.open_stream(str(tmp_path / "shards"), str(table), buffer_size=20, needs_il=False))) == 9
        )
    assert repair(str(table), shards=[str(tmp_path / "shards")])["repaired"] == []
    # Without a recorded sha256 nothing can be compared, and the warning says so.
    for part in parts_of(table):
        rewrite(part, lambda rows, facts: (rows, replace(facts, shard_sha256="")))
    found = verify(str(table), shards=[str(tmp_path / "shards")])
    assert found["problems"] == [] and "no sha256 was recorded" in found["warnings"][0]


# -- C7: damaged bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1]],
    ids=["empty", "cut", "one byte short"],
)
def test_C7_a_damaged_part_is_named_by_every_reader_and_rewritten_only_on_request(
    world: Path, table: Path, damage: Callable[[bytes], bytes]
) -> None:
    """An empty or cut part is an error that names the part, in a run, SQL, compute-il and verify (exit code 3). No job
    replaces it; `verify --repair` does, from its shard, and the new part is byte-equal to what was lost.
    """
    whole, part = content(table), parts_of(table)[3]
    part.write_bytes(damage(part.read_bytes()))
    damaged = content(table)
    for read in (
        lambda: open_stream(world, table),
        lambda: _ask(table),
        lambda: rhostream.compute_il([str(world / "shards")], str(world / "il-model"), str(table), keep=KEEP),
    ):
        with pytest.raises(TableError, match=rf"{part.name}.*verify --repair") as refused:
            read()
        assert refused.value.exit_code == 3
    assert content(table) == damaged
    found = verify(str(table))
    assert len(found["problems"]) == 1 and part.name in found["problems"][0] and "--repair" in found["next"]
    mended = repair(str(table))
    assert mended["problems"] == [] and [n.rsplit("/", 1)[1] for n in mended["repaired"]] == ["train-003.tar"]
    assert content(table) == whole


def _ask(table: Path) -> None:
    with rhostream.open_ledger(str(table)) as ledger:
        ledger.sql("SELECT sum(il) FROM il")


def test_C7_sixty_flipped_bits_are_found_sixty_times_by_verify_and_by_the_join(
    world: Path, table: Path, record_property: Callable[[str, object], None]
) -> None:
    """Any single bit that flips in a part, in its pages or in Parquet's own metadata, is found by verify and stops the
    join: never another value.
    """
    part = parts_of(table)[1]
    whole, rng = part.read_bytes(), np.random.default_rng(1)
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    bits = [*rng.integers(0, 8 * len(whole), 40), *rng.integers(8 * footer, 8 * len(whole), 20)]
    verified = joined = 0
    one = Path(shutil.copytree(table, table.with_name("one"), ignore=shutil.ignore_patterns("*.parquet")))
    target = one / part.relative_to(table)
    target.parent.mkdir(parents=True, exist_ok=True)
    shard = str(world / "shards" / "train-001.tar")
    for bit in map(int, bits):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        target.write_bytes(damaged)
        verified += len(verify(str(one))["problems"]) == 1
        with contextlib.suppress(RhostreamError):
            next(iter(rhostream.open_stream(shard, str(one), buffer_size=40)))
            continue
        joined += 1
    record_property("bit flips", f"verify {verified} of {len(bits)}, join {joined} of {len(bits)}")
    tally.say(f"bit flips in a part: {verified} of 60 found by verify, {joined} of 60 by the join")
    assert (verified, joined) == (60, 60)


def test_C7_a_part_written_before_there_were_seals_is_still_read(world: Path, table: Path) -> None:
    """A part of an older version, without a seal over the whole file, is read ; verify says what isn't proved."""
    part = parts_of(table)[1]
    rows, record = parquet.read(str(part))
    data = parquet.encode(rows, record, ENCODINGS, DICTIONARY)
    # What the writer of then wrote: no mark in the record, no seal beside it.
    sink, metadata = pa.BufferOutputStream(), {b"rhostream": json.dumps(record).encode()}
    import hashlib

    import pyarrow.parquet as pq

    metadata[b"rhostream_sha256"] = hashlib.sha256(metadata[b"rhostream"]).hexdigest().encode()
    pq.write_table(rows.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    part.write_bytes(sink.getvalue().to_pybytes())
    assert part.read_bytes() != data
    found = verify(str(table))
    assert found["problems"] == [] and "1 parts were written before parts were sealed" in found["warnings"][0]
    assert keys_of(open_stream(world, table)) == keys_of(open_stream(world, world / "il"))


def test_C7_a_repair_that_can_not_be_made_changes_nothing_and_says_what_to_pass(
    world: Path, table: Path, tmp_path: Path
) -> None:
    """A repair first looks for the shards and the IL model; without them it changes nothing and names the option that
    is needed.
    """
    shards, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(world / "shards", shards)
    shutil.copytree(world / "il-model", model)
    with pytest.warns(UserWarning, match="none of these shards was seen"):  # its names are those of another folder
        rhostream.compute_il([str(shards)], str(model), str(tmp_path / "own"), keep=KEEP)
    own = tmp_path / "own"
    whole = content(own)
    parts_of(own)[0].write_bytes(b"")
    damaged = content(own)
    model.rename(tmp_path / "moved-model")
    with pytest.raises(UsageError, match=r"pass --il-model DIR, that of fingerprint [0-9a-f]{16}; nothing was changed"):
        repair(str(own))
    (tmp_path / "moved-model").rename(model)
    shards.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"1 of 1 shards .* are not where they were.*--shards URL"):
        repair(str(own))
    assert content(own) == damaged
    (tmp_path / "moved").rename(shards)
    (shards / "train-000.tar").write_bytes((shards / "train-000.tar").read_bytes()[:1000])
    with pytest.warns(UserWarning, match="none of these shards was seen"):
        found = repair(str(own))  # a shard that is bad itself
    assert content(own) == damaged and "incomplete" in next(iter(found["not_repaired"].values()))
    shutil.copy(world / "shards" / "train-000.tar", shards)
    os.utime(shards / "train-000.tar", ns=(0, (world / "shards" / "train-000.tar").stat().st_mtime_ns))
    with pytest.warns(UserWarning, match="none of these shards was seen"):
        assert repair(str(own))["problems"] == []
    if (world / "shards" / "train-000.tar").stat().st_mtime_ns == (shards / "train-000.tar").stat().st_mtime_ns:
        assert content(own) == whole


# -- C9, C10, C11: parts that don't belong ---------------------------------------------------------------------------


def test_C9_a_part_of_a_newer_version_is_named_and_left_alone(world: Path, table: Path) -> None:
    """A part or table that a newer rhostream wrote is refused with that sentence, and never overwritten by a repair."""
    part = parts_of(table)[0]
    rewrite(part, lambda rows, facts: (rows, replace(facts, version=il.VERSION + 1)))
    newer = content(table)
    for read in (
        lambda: open_stream(world, table),
        lambda: _ask(table),
        lambda: rhostream.compute_il([str(world / "shards")], str(world / "il-model"), str(table), keep=KEEP),
    ):
        says = rf"{part.name} was written by a newer rhostream \(part version {il.VERSION + 1}"
        with pytest.raises(TableError, match=says):
            read()
    found = repair(str(table))
    assert "written by a newer rhostream" in found["problems"][0] and "upgrade rhostream" in found["next"]
    assert content(table) == newer
    info = json.loads((table / "_table.json").read_text())
    (table / "_table.json").write_text(json.dumps({**info, "version": il.VERSION + 1}))
    with pytest.raises(TableError, match="written by a newer rhostream"):
        verify(str(table))


def test_C10_parts_of_shards_that_are_not_asked_for_are_ignored(world: Path, table: Path) -> None:
    """Parts of shards that are not in the list change nothing; `verify --shards` and `status --shards` count and name
    them.
    """
    shards = sorted(map(str, (world / "shards").iterdir()))[:5]
    alone = Path(shutil.copytree(table, table.with_name("alone")))
    for part in parts_of(alone)[5:]:
        part.unlink()
    with_stale, without = (keys_of(rhostream.open_stream(shards, str(t), buffer_size=40)) for t in (table, alone))
    assert with_stale == without
    found = verify(str(table), shards=shards)
    assert found["problems"] == [] and "2 parts are of shards that are not in the list" in found["warnings"][0]
    state = status_of(str(table), shards)
    assert state["stale"] == 2 and state["missing"] == 0 and "train-005.tar" in state["first_stale"][0]


def test_C11_two_parts_for_one_shard_are_an_error_unless_they_say_the_same(world: Path, table: Path) -> None:
    """A second part for a shard, under another name, is never read by a run. verify names it: with the same footer a
    warning, else an error; `verify --repair` removes it once the shard's own part is proved.
    """
    whole, part = content(table), parts_of(table)[0]
    twin = part.with_name("copy-of-" + part.name)
    shutil.copy(part, twin)
    found = verify(str(table))
    assert found["problems"] == [] and "copy-of-" in found["warnings"][0] and "ignored" in found["warnings"][0]
    rewrite(twin, lambda rows, facts: (rows, replace(facts, shard_size=1)))
    found = verify(str(table))
    assert len(found["problems"]) == 1 and "two parts claim that shard" in found["problems"][0]
    with pytest.raises(TableError, match=r"copy-of-train-000\.tar\.parquet is the part of another shard"):
        _ask(table)
    assert keys_of(open_stream(world, table)) == keys_of(open_stream(world, world / "il"))
    assert repair(str(table))["problems"] == [] and content(table) == whole


# -- C12, C14: values and order --------------------------------------------------------------------------------------


def test_C12_null_nan_and_infinite_il_are_missing_il(world: Path, table: Path, tmp_path: Path) -> None:
    """An il that is null, NaN or infinite counts as missing, never as a number: such samples get reason `missing_il`,
    and verify counts them.
    """
    rewrite(
        parts_of(table)[0],
        lambda rows, facts: (
            set_il(rows, {1: None, 2: float("nan"), 3: float("inf"), 4: float("-inf")}),
            replace(facts, il_rows=facts.il_rows - 1),
        ),
    )
    found = verify(str(table))
    assert found["problems"] == []
    assert "4 usable samples of 1 parts have no il that can be used (null 1, NaN or infinite 3)" in found["warnings"][0]
    buffers = list(open_stream(world, table, missing_il="skip"))
    lost = {k for c in buffers for k, r in zip(c.key.to_pylist(), c.reason, strict=True) if r == Reason.missing_il}
    assert lost == {"s000001", "s000002", "s000003", "s000004"}
    done = rhostream.train(
        [str(world / "shards")],
        str(table),
        str(tmp_path / "run"),
        missing_il="skip",
        band="10%:90%",
        **{**TRAIN, "steps": 25},
    )
    assert done.reasons.get("missing_il", 0) + done.reasons["band"] >= 4
    with rhostream.open_ledger(str(tmp_path / "run")) as ledger:
        kept = ledger.sql(
            "SELECT count(*) FROM selections WHERE kept AND ordinal BETWEEN 1 AND 4 AND shard LIKE '%train-000.tar'"
        )[0].to_pylist()
    assert kept == [0]


def test_C14_rows_of_a_part_in_another_order_are_joined_by_ordinal(world: Path, table: Path) -> None:
    """A part whose rows stand in another order than its shard is joined by ordinal: the same keys, labels and il come
    out.
    """
    rng = np.random.default_rng(0)
    for part in parts_of(table):
        rewrite(part, lambda rows, facts: (rows.take(rng.permutation(len(rows))), facts))
    for one, other in zip(open_stream(world, table), open_stream(world, world / "il"), strict=True):
        assert one.key.equals(other.key) and one.image.equal(other.image)
        assert one.label.equal(other.label) and one.il.equal(other.il)
    assert verify(str(table))["problems"] == []


# -- repair, all at once ---------------------------------------------------------------------------------------------


def test_C7_verify_repair_mends_many_parts_in_one_go_and_alone(world: Path, table: Path, capsys: Any) -> None:
    """`rhostream verify TABLE --repair` finds the shards and the IL model itself, makes every bad part again and exits
    with 0; only bad parts are touched.
    """
    from tests.support.command import command

    whole, untouched = content(table), parts_of(table)[6]
    for number, part in enumerate(parts_of(table)[:6]):
        part.write_bytes(part.read_bytes()[: number * 500])
    stamp = untouched.stat().st_mtime_ns
    out, _ = command(capsys, "verify", table, code=3)
    assert "6 problems" in out and f"next: make again 6 shards: rhostream verify {table} --repair" in out
    out, _ = command(capsys, "verify", table, "--repair")
    assert "proved: nothing is wrong" in out and out.count("repaired:") == 6
    assert content(table) == whole and untouched.stat().st_mtime_ns == stamp
    assert storage.list_files(str(table), ".tmp") == []
