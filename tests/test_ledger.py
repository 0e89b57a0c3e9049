"""The ledger in SQL: views over committed and verified files only, a locked door, questions with the right answers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from rhostream.audit.questions import QUESTIONS, run_question
from rhostream.audit.views import VIEWS, open_ledger
from rhostream.errors import MismatchError, TableError, UnknownNameError, UsageError
from rhostream.runs import chain
from rhostream.runs.link import url_of
from rhostream.tables import il as il_table
from tests.support.audit_fixtures import HOSTILE, KEEP, N_B, World, columns_of, make_rows, make_run, make_world

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def log(made: World) -> Rows:
    return make_rows(made, 40)


@pytest.fixture(scope="module")
def run(made: World, log: Rows) -> str:
    return make_run(made, str(made.root / "runs" / "rho"), log, cut=20)


@pytest.fixture
def copy(run: str, tmp_path: Path) -> Path:
    """The run, to be broken."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def record(run: Path, **changes: Any) -> None:
    """Change run.json."""
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def ordered(rows: Rows) -> Rows:
    return sorted(rows, key=lambda r: (r["step"] is None, r["step"], r["pass"], r["shard"], r["ordinal"]))


def groups(rows: Rows, *names: str) -> dict[Any, Rows]:
    found: dict[Any, Rows] = defaultdict(list)
    for row in rows:
        found[tuple(row[n] for n in names) if len(names) > 1 else row[names[0]]].append(row)
    return found


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# -- views -----------------------------------------------------------------------------------------------------------


def test_the_selections_view_is_the_log_row_by_row(run: str, log: Rows) -> None:
    with open_ledger(run) as ledger:
        found = ledger.sql("SELECT * FROM selections")
    assert found.column_names == columns_of("selections")
    assert ordered(found.to_pylist()) == ordered([{**row, "source": None, "run": "rho"} for row in log])


def test_an_aggregate_is_what_numpy_makes_of_the_same_rows(run: str, log: Rows) -> None:
    with open_ledger(run) as ledger:
        found = ledger.sql(
            "SELECT label, avg(loss) AS loss, count(*) FILTER (kept) AS kept FROM selections "
            "WHERE isfinite(loss) GROUP BY label ORDER BY label"
        ).to_pylist()
    for row in found:
        same = [r for r in log if r["label"] == row["label"] and finite(r["loss"])]
        assert row["loss"] == pytest.approx(np.mean([r["loss"] for r in same]))
        assert row["kept"] == sum(r["kept"] for r in same)


def test_views_of_the_parts_are_the_parts(made: World, run: str) -> None:
    with open_ledger(run) as ledger:
        il = ledger.sql("SELECT * FROM il ORDER BY shard, ordinal")
        bad = ledger.sql("SELECT * FROM quarantine ORDER BY shard, ordinal")
        samples = ledger.sql("SELECT * FROM samples ORDER BY shard, ordinal")
    assert il.to_pylist() == made.parts
    assert il.column_names == columns_of("il")
    assert bad.to_pylist() == [{k: p[k] for k in columns_of("quarantine")} for p in made.parts if p["status"] != "ok"]
    assert samples.to_pylist() == [{k: p[k] for k in columns_of("samples")} for p in made.parts]


def test_the_runs_view_says_what_a_run_was_and_spent(run: str, log: Rows) -> None:
    with open_ledger(run) as ledger:
        (row,) = ledger.sql("SELECT * FROM runs").to_pylist()
        seconds = ledger.sql("SELECT sum(seconds) AS s FROM steps")["s"][0].as_py()
    scored, kept = sum(r["loss"] is not None for r in log), sum(r["kept"] for r in log)
    expected = {
        "run": "rho",
        "rule": "rho",
        "buffer_size": N_B,
        "steps": 40,
        "complete": True,
        "il_accuracy": 0.75,
        "forward_units": scored + 3 * kept,
        "il_units": (3 * 60 + 58) / 2,
        "macs": 20,
    }
    assert {k: row[k] for k in expected} == expected
    assert row["final_test_accuracy"] == pytest.approx(1 - 0.9 / 41)
    assert seconds == 40 * 0.75


def test_a_table_alone_can_be_asked(made: World) -> None:
    with open_ledger(str(made.table)) as ledger:
        assert ledger.sql("SELECT count(*) AS n FROM il").to_pylist() == [{"n": len(made.parts)}]
        assert ledger.sql("SELECT * FROM selections").num_rows == ledger.sql("SELECT * FROM runs").num_rows == 0
        assert run_question(ledger, "suspected_label_errors").num_rows > 0


def test_an_empty_log_has_its_views_and_no_row(made: World, tmp_path: Path) -> None:
    with open_ledger(make_run(made, str(tmp_path / "empty"), [])) as ledger:
        for view in ("selections", "steps"):
            found = ledger.sql(f"SELECT * FROM {view}")
            assert (found.num_rows, found.column_names) == (0, columns_of(view))
        assert ledger.sql("SELECT steps, complete FROM runs").to_pylist() == [{"steps": 0, "complete": False}]
        assert ledger.sql("SELECT * FROM il").num_rows == len(made.parts)
        for question in QUESTIONS:
            run_question(ledger, question)


def test_a_run_in_an_object_store_reads_like_one_on_disk(made: World, run: str, log: Rows) -> None:
    remote = make_run(made, "memory://audit/far/rho", log, cut=20)
    query = "SELECT * FROM selections s JOIN samples USING (shard, ordinal) ORDER BY step, shard, ordinal, pass"
    with open_ledger(run) as here, open_ledger(remote) as there:
        assert there.sql(query).equals(here.sql(query))
        assert there.sql("SELECT * FROM runs").equals(here.sql("SELECT * FROM runs"))


def test_several_runs_stand_in_one_view_under_names_that_tell_them_apart(made: World, run: str, log: Rows) -> None:
    other = make_run(made, str(made.root / "others" / "rho"), log[:N_B])
    with open_ledger([run, other]) as ledger:
        counts = ledger.sql("SELECT run, count(*) AS n FROM selections GROUP BY run ORDER BY run").to_pylist()
    assert counts == [{"run": "others/rho", "n": N_B}, {"run": "runs/rho", "n": len(log)}]
    with pytest.raises(UsageError, match="named twice"):
        open_ledger([run, run])


def test_a_folder_name_is_never_a_pattern(made: World, log: Rows, tmp_path: Path) -> None:
    odd = make_run(made, str(tmp_path / "lr[1]'*"), log[:N_B])
    make_run(made, str(tmp_path / "lr1'x"), log)
    with open_ledger(odd) as ledger:
        assert ledger.sql("SELECT DISTINCT run FROM selections").to_pylist() == [{"run": "lr[1]'*"}]
        assert ledger.sql("SELECT * FROM selections").num_rows == N_B


def test_bound_parameters_reach_the_query(run: str) -> None:
    with open_ledger(run) as ledger:
        assert ledger.sql("SELECT $key AS k", {"key": HOSTILE[8]}).to_pylist() == [{"k": HOSTILE[8]}]
        assert ledger.sql("SELECT ordinal FROM samples WHERE key = ?", [HOSTILE[4]]).to_pylist() == [{"ordinal": 4}]


def test_every_view_of_the_contract_is_shown(run: str) -> None:
    with open_ledger(run) as ledger:
        assert set(VIEWS) <= set(ledger.sql("SHOW TABLES")["name"].to_pylist())


def test_kept_fields_whose_names_differ_by_case_alone_stay_apart(tmp_path: Path) -> None:
    il_table.make_or_match(str(tmp_path), il_table.TableInfo(kind="index", keep={"Label": "str", 'q"x y': "int"}))
    with open_ledger(str(tmp_path)) as ledger:
        names = ledger.sql("SELECT * FROM samples").column_names
    assert names[:4] == ["shard", "ordinal", "key", "label"] and 'q"x y' in names
    assert len(set(map(str.lower, names))) == len(names) == 6


# -- only what is committed, and proved --------------------------------------------------------------------------------


def test_segments_that_no_checkpoint_lists_are_invisible(copy: Path, log: Rows) -> None:
    segment = next((copy / "log").rglob("*.parquet"))
    shutil.copy(segment, segment.with_name("9999999990-9999999999.parquet"))
    (copy / "log" / "attempt=9" / "rank=0").mkdir(parents=True)
    shutil.copy(segment, copy / "log" / "attempt=9" / "rank=0" / segment.name)
    with open_ledger(str(copy)) as ledger:
        assert ledger.sql("SELECT * FROM selections").num_rows == len(log)


def test_an_older_checkpoint_ends_the_ledger_where_its_weights_ended(copy: Path, log: Rows) -> None:
    newest = chain.head(str(copy))
    assert newest is not None and newest.step == 40
    Path(url_of(str(copy), newest.attempt, newest.number)).unlink()
    with open_ledger(str(copy)) as ledger:
        found = ledger.sql("SELECT * FROM selections").num_rows
    assert found == sum(r["step"] is not None and r["step"] < 20 for r in log)


@pytest.mark.parametrize("what", ["log", "steps"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_segment_is_refused_by_its_name(copy: Path, what: str, harm: str) -> None:
    segment = sorted((copy / what).rglob("*.parquet"))[-1]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        segment.unlink()
    else:
        segment.write_bytes(data if harm == "flip" else data[:-9])
    with pytest.raises(TableError, match=re.escape(f"{what}/attempt=0/rank=0/{segment.name}")):
        open_ledger(str(copy))


def test_a_segment_that_goes_bad_after_it_was_opened_is_named(copy: Path) -> None:
    with open_ledger(str(copy)) as ledger:
        ledger.sql("SELECT count(*) FROM selections")
        segment = next((copy / "log").rglob("*.parquet"))
        segment.write_bytes(b"PAR1")
        with pytest.raises(TableError, match=re.escape(segment.name)):
            ledger.sql("SELECT * FROM selections")


def test_a_flipped_bit_in_a_part_is_found_and_named(made: World, copy: Path, tmp_path: Path) -> None:
    table = Path(shutil.copytree(made.table, tmp_path / "il"))
    record(copy, il=str(table))
    part = sorted(table.rglob("*.parquet"))[1]
    whole = part.read_bytes()
    footer, caught = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), 0
    for at in [*range(4, footer, 61), whole.index(b"is_noisy", footer), whole.index(b"predicted", footer)]:
        data = bytearray(whole)
        data[at] ^= 0x10
        part.write_bytes(data)
        with open_ledger(str(copy)) as ledger:
            try:
                found = ledger.sql("SELECT * FROM il ORDER BY shard, ordinal")
            except TableError as exc:
                assert part.name in str(exc)
                caught += 1
            else:  # a bit that means nothing: in a page's header
                assert at < footer and found.to_pylist() == made.parts
    assert caught > 15


def test_a_missing_table_hurts_only_the_questions_that_need_it(made: World, copy: Path, log: Rows) -> None:
    record(copy, il=str(copy / "il"))
    with open_ledger(str(copy)) as ledger:
        assert ledger.sql("SELECT il FROM selections").num_rows == len(log)
        for query in ("SELECT * FROM il", "SELECT key FROM samples", "SELECT * FROM quarantine"):
            with pytest.raises(UsageError, match="is no IL table"):
                ledger.sql(query)
        assert ledger.sql("SELECT il FROM selections").num_rows == len(log)
        shutil.copytree(made.table, copy / "il")
        assert ledger.sql("SELECT * FROM il").num_rows == len(made.parts)


def test_another_table_in_the_place_of_the_first_is_refused(copy: Path) -> None:
    record(copy, fingerprints={"il": "0" * 16})
    with open_ledger(str(copy)) as ledger, pytest.raises(MismatchError, match="0000000000000000"):
        ledger.sql("SELECT * FROM il")


def test_runs_of_two_tables_can_be_asked_of_everything_but_il(made: World, run: str, copy: Path) -> None:
    record(copy, il=str(shutil.copytree(made.table, copy / "il")))
    with open_ledger([run, str(copy)]) as ledger:
        assert ledger.sql("SELECT DISTINCT run FROM selections ORDER BY run")["run"].to_pylist() == ["copy", "rho"]
        with pytest.raises(UsageError, match="several IL tables"):
            ledger.sql("SELECT * FROM samples")


def test_a_folder_that_is_neither_run_nor_table_is_said_so(run: str) -> None:
    with pytest.raises(UsageError, match=r"neither a run folder.*did you mean rho"):
        open_ledger(run + "o")


# -- the locked door -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "COPY selections TO '{out}'",
        "COPY (SELECT 1) TO '{out}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "PRAGMA enable_profiling",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW selections",
        "EXPLAIN ANALYZE COPY selections TO '{out}'",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY selections TO '{out}'",
        "",
        "-- nothing",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{segment}')",
        "SELECT * FROM parquet_metadata('{segment}')",
        "SELECT * FROM here",
    ],
)
def test_the_ledger_reads_its_views_and_nothing_else(run: str, tmp_path: Path, text: str) -> None:
    segment = next(Path(run, "log").rglob("*.parquet"))
    before, here = segment.read_bytes(), pa.table({"x": [1]})
    with open_ledger(run) as ledger:
        ledger.sql("SELECT count(*) FROM selections, il")
        with pytest.raises(UsageError):
            ledger.sql(text.format(out=tmp_path / "out", segment=segment))
        assert ledger.sql("SELECT count(*) AS n FROM selections")["n"][0].as_py() > 0
    assert not (tmp_path / "out").exists() and segment.read_bytes() == before and here.num_rows == 1


def test_even_the_bare_connection_can_touch_no_file(run: str, tmp_path: Path) -> None:
    segment = next(Path(run, "log").rglob("*.parquet"))
    before = segment.read_bytes()
    with open_ledger(run) as ledger:
        ledger.sql("SELECT count(*) FROM selections, steps, il")
        for place in (segment, tmp_path / "x.parquet"):
            with pytest.raises(duckdb.PermissionException):
                ledger._con.execute(f"COPY (SELECT 1) TO '{place}' (FORMAT parquet, USE_TMP_FILE false)")
        with pytest.raises(duckdb.PermissionException):
            ledger._con.execute(f"SELECT * FROM read_parquet('{segment}')").fetchall()
    assert segment.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT * FROM selection", "unknown view 'selection'; did you mean 'selections'"),
        ("SELECT losss FROM selections", "unknown column 'losss'; did you mean 'loss'"),
        ("SELECT s.orinal FROM selections s", "unknown column 'orinal'; did you mean 'ordinal'"),
        ("SELECT * FROM samples WHERE is_noise", "unknown column 'is_noise'; did you mean 'is_noisy'"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest_one(run: str, text: str, says: str) -> None:
    with open_ledger(run) as ledger, pytest.raises(UnknownNameError, match=says):
        ledger.sql(text)


@pytest.mark.parametrize("text", ["SELEC 1", "SELECT 'a\x1b[31m'::INT", "SELECT count(* FROM selections", "SELECT $x"])
def test_a_query_that_can_not_be_is_one_printable_sentence(run: str, text: str) -> None:
    with open_ledger(run) as ledger, pytest.raises(UsageError) as caught:
        ledger.sql(text)
    assert str(caught.value).isprintable()


# -- the named questions, each against plain Python --------------------------------------------------------------------


def looked_at(log: Rows) -> Rows:
    return [r for r in log if r["reason"] in ("kept", "below")]


def joined(made: World, log: Rows) -> Rows:
    known = {(p["shard"], p["ordinal"]): p for p in made.parts}
    return [{**{k: known[r["shard"], r["ordinal"]][k] for k in KEEP}, **r} for r in looked_at(log)]


def by_hand_kept_by_class(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    for label, rows in sorted(groups([r for r in log if r["reason"] != "tail"], "label").items()):
        kept = sum(r["kept"] for r in rows)
        yield {
            "label": label,
            "planned": len(rows),
            "kept": kept,
            "kept_rate": round(kept / len(rows), 4),
            "mean_loss": np.mean([r["loss"] for r in rows if finite(r["loss"])]),
            "mean_il": np.mean([r["il"] for r in rows if finite(r["il"])]),
        }


def by_hand_skipped_by_reason(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    counts = Counter(r["reason"] for r in log)
    for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield {"reason": reason, "samples": n, "share": round(n / len(log), 4)}


def by_hand_most_skipped(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    found = []
    for (shard, ordinal), rows in groups(looked_at(log), "shard", "ordinal").items():
        if not any(r["kept"] for r in rows):
            found.append((-len(rows), np.mean([r["score"] for r in rows]), shard, ordinal, rows[0]["key"]))
    for skipped, score, shard, ordinal, key in sorted(found)[:20]:
        yield {"shard": shard, "ordinal": ordinal, "key": key, "skipped": -skipped, "mean_score": score}


def by_hand_suspected_label_errors(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    suspects = [p for p in made.parts if p["status"] == "ok" and p["predicted"] != p["label"]]
    looks = groups(log, "shard", "ordinal")
    for p in sorted(suspects, key=lambda p: (-p["il"], p["shard"], p["ordinal"]))[:20]:
        rows = looks[p["shard"], p["ordinal"]]
        yield {
            "key": p["key"],
            "il": p["il"],
            "looks": len(rows),
            "kept": sum(r["kept"] for r in rows),
            "last_loss": [r for r in rows if finite(r["loss"])][-1]["loss"],
        }


def by_hand_already_learnt(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    looks = groups([r for r in log if finite(r["loss"]) and finite(r["il"])], "shard", "ordinal")
    learnt = sum(not rows[-1]["kept"] and rows[-1]["loss"] < 0.1 and rows[-1]["il"] < 0.1 for rows in looks.values())
    yield {"samples": len(looks), "learnt": learnt, "share": round(learnt / len(looks), 4)}
    assert learnt


def by_hand_noisy_share(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    for kept, rows in sorted(groups(joined(made, log), "kept").items(), reverse=True):
        known = [r["is_noisy"] for r in rows if r["is_noisy"] is not None]
        yield {
            "kept": kept,
            "rows": len(rows),
            "noisy": sum(known),
            "noisy_share": round(sum(known) / len(known), 4),
            "unknown": len(rows) - len(known),
        }


def by_hand_duplicates_share(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    for kept, rows in sorted(groups(joined(made, log), "kept").items(), reverse=True):
        copies = sum(bool(r["duplicate_of"]) for r in rows)
        yield {"kept": kept, "rows": len(rows), "duplicates": copies, "duplicates_share": round(copies / len(rows), 4)}


def by_hand_never_kept(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    looks = groups(looked_at(log), "shard", "ordinal").values()
    for n, count in sorted(Counter(len(rows) for rows in looks).items()):
        never = sum(not any(r["kept"] for r in rows) for rows in looks if len(rows) == n)
        yield {"looks": n, "samples": count, "never_kept": never, "share": round(never / count, 4)}


def by_hand_kept_over_time(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    for at in range(20):
        rows = [r for r in log if r["step"] in (2 * at, 2 * at + 1) and finite(r["loss"])]
        kept = [r for r in rows if r["kept"]]
        yield {
            "from_step": 2 * at,
            "to_step": 2 * at + 1,
            "looks": len(rows),
            "kept": len(kept),
            "loss_kept": np.mean([r["loss"] for r in kept]),
            "loss_all": np.mean([r["loss"] for r in rows]),
            "il_kept": np.mean([r["il"] for r in kept]),
            "already_correct": np.mean([r["correct"] for r in kept]),
        }


def by_hand_effective_classes(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    by_step = {}
    for step, rows in groups([r for r in log if r["kept"]], "step").items():
        shares = [n / len(rows) for n in Counter(r["label"] for r in rows).values()]
        by_step[step] = np.exp(-sum(p * np.log(p) for p in shares))
    for at in range(20):
        kept = [by_step[step] for step in (2 * at, 2 * at + 1)]
        yield {"from_step": 2 * at, "to_step": 2 * at + 1, "kept": np.mean(kept), "by_chance": 2.5}
        assert 1 <= min(kept) <= 3


def by_hand_worst_classes(made: World, log: Rows) -> Iterator[dict[str, Any]]:
    last = 1 - 0.9 / 41
    rates = {row["label"]: row for row in by_hand_kept_by_class(made, log)}
    for label, accuracy in ((1, last / 2), (0, last), (2, None)):
        yield {
            "label": label,
            "accuracy": accuracy,
            "planned": rates[label]["planned"],
            "kept_rate": rates[label]["kept_rate"],
        }


@pytest.mark.parametrize("name", [name for name in QUESTIONS if not name.startswith("shadow_")])
def test_a_named_question_answers_what_plain_python_does(made: World, run: str, log: Rows, name: str) -> None:
    by_hand: Callable[[World, Rows], Iterator[dict[str, Any]]] = globals()[f"by_hand_{name}"]
    with open_ledger(run) as ledger:
        found, expected = run_question(ledger, name).to_pylist(), list(by_hand(made, log))
    assert len(found) == len(expected) > 0
    for row, want in zip(found, expected, strict=True):
        for column, value in want.items():
            assert row[column] == (pytest.approx(value, abs=6e-4) if isinstance(value, float) else value), column
        assert row.get("run", "rho") == "rho"


def test_every_question_says_in_one_line_what_it_answers() -> None:
    assert all(len(q.says) > 20 and q.says[0].isupper() and q.says.isprintable() for q in QUESTIONS.values())
    assert {name: q.needs for name, q in QUESTIONS.items() if q.needs} == {
        "noisy_share": ("is_noisy:bool",),
        "shadow_noisy": ("is_noisy:bool",),
        "duplicates_share": ("duplicate_of:str",),
    }


def test_a_question_whose_field_was_not_kept_says_how_to_keep_it(run: str, tmp_path: Path) -> None:
    il_table.make_or_match(str(tmp_path), il_table.TableInfo(kind="index"))
    with open_ledger(str(tmp_path)) as ledger, pytest.raises(UsageError, match="--keep is_noisy:bool"):
        run_question(ledger, "noisy_share")
    with open_ledger(run) as ledger, pytest.raises(UnknownNameError, match="did you mean 'noisy_share'"):
        run_question(ledger, "noisy_shar")
