"""What is taken elsewhere is what the ledger says, all of it, in forms that others read; or an error and nothing."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rhostream
from rhostream.audit.export import FORMS, export
from rhostream.audit.export.datacomp import as_pairs
from rhostream.errors import UnknownNameError, UsageError
from rhostream.exports import FORMS as OFFERED
from rhostream.inert import csv_text
from rhostream.reasons import Reason
from rhostream.stream.keep_list import keep_list_account, read_keep_list
from rhostream.tables import il
from tests.support.audit_fixtures import ROWS, World, make_rows, make_run, make_world
from tests.support.command import command
from tests.support.shards import png


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def runs(made: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs over hostile keys, of several passes; the second scores nothing."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_run(made, str(folder / "rho"), make_rows(made, 30)),
        make_run(made, str(folder / "uniform"), make_rows(made, 12, rule="uniform"), rule="uniform"),
    ]


def ask(folders: Any, query: str) -> list[dict[str, Any]]:
    with rhostream.open_ledger(folders) as ledger:
        return ledger.sql(query).to_pylist()  # type: ignore[no-any-return]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ({}, "SELECT * FROM selections WHERE kept"),
        ({"where": "true"}, "SELECT * FROM selections"),
        ({"where": "reason = 'below' and il > 1 -- noise"},
         "SELECT * FROM selections WHERE reason = 'below' AND il > 1"),
        ({"sql": "SELECT run, step, test_accuracy FROM steps ORDER BY step DESC, run;"},
         "SELECT run, step, test_accuracy FROM steps ORDER BY step DESC, run"),
        ({"where": "false"}, "SELECT * FROM selections WHERE false"),
    ],
)  # fmt: skip
def test_a_table_of_rows_is_what_the_ledger_answers_in_its_order(
    runs: list[str], tmp_path: Path, asked: dict[str, str], query: str
) -> None:
    done = export(runs, str(tmp_path / "x.parquet"), **asked)  # type: ignore[arg-type]
    answer = ask(runs, query)
    assert repr(rows_of(tmp_path / "x.parquet")) == repr(answer)
    assert (done.rows, done.samples, done.unread) == (len(answer), None, 0)
    assert done.bytes == (tmp_path / "x.parquet").stat().st_size


def test_a_named_question_and_a_table_are_taken_too(runs: list[str], made: World, tmp_path: Path) -> None:
    export(runs, str(tmp_path / "q.parquet"), sql="@kept_by_class")
    with rhostream.open_ledger(runs) as ledger:
        from rhostream.audit.questions import run_question

        assert rows_of(tmp_path / "q.parquet") == run_question(ledger, "kept_by_class").to_pylist()
    assert export(str(made.table), str(tmp_path / "t.parquet")).rows == sum(p["status"] == "ok" for p in made.parts)
    assert export(str(made.table), str(tmp_path / "b.parquet"), where="status <> 'ok'").rows == 2


def test_csv_read_back_is_the_parquet(runs: list[str], tmp_path: Path) -> None:
    for name in ("x.parquet", "x.csv"):
        export(runs, str(tmp_path / name), where="true")
    exact = pq.read_table(tmp_path / "x.parquet")
    strings = pa.csv.ConvertOptions(
        column_types=exact.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    back = pa.csv.read_csv(tmp_path / "x.csv", convert_options=strings, parse_options=parse)
    expected = exact.to_pylist()
    for row in expected:
        row["key"] = csv_text(row["key"])
        row["correct"], row["kept"] = row["correct"], bool(row["kept"])
    assert repr(back.to_pylist()) == repr(expected)


# -- samples -----------------------------------------------------------------------------------------------------------


def members_of(made: World, shard: str) -> list[bytes]:
    """The pictures of a shard, as Python's tarfile reads them."""
    with tarfile.open(made.root / "shards" / shard.split("/")[1]) as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")]  # type: ignore[union-attr]


def test_with_samples_each_comes_once_by_its_last_look_with_its_bytes_as_they_lie(
    runs: list[str], made: World, tmp_path: Path
) -> None:
    done = export(runs, str(tmp_path / "x.parquet"), where="reason in ('kept', 'below')", with_samples=True)
    looks: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in ask(runs, "SELECT * FROM selections WHERE reason IN ('kept', 'below') ORDER BY pass, step, run DESC"):
        looks.setdefault((row["shard"], row["ordinal"]), []).append(row)
    pictures = {shard: members_of(made, shard) for shard in made.shards}
    found = rows_of(tmp_path / "x.parquet")
    assert [(row["shard"], row["ordinal"]) for row in found] == sorted(looks)
    for row in found:
        seen = looks[row["shard"], row["ordinal"]]
        picture, counted = row.pop("image"), (row.pop("looks"), row.pop("times_kept"))
        assert picture["bytes"] == pictures[row["shard"]][row["ordinal"]]
        assert "/" not in picture["path"] and picture["path"].isascii() and not picture["path"].startswith(".")
        assert repr(row) == repr(seen[-1]) and counted == (len(seen), sum(look["kept"] for look in seen))
    assert (done.samples, done.unread) == (len(looks), 0)
    features = json.loads(pq.read_schema(tmp_path / "x.parquet").metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and set(features) == set(
        pq.read_schema(tmp_path / "x.parquet").names
    )


def test_pairs_come_with_picture_and_caption(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    captions = ["=HYPERLINK(0)", "zwei\nZeilen", "", "snow ☃", "\ufeffmark", "x" * 5000]
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "a.tar", "w") as tar:
        for n, caption in enumerate(captions):
            for name, data in (
                (f"{n}.png", png(rng.integers(0, 255, (8, 8), np.uint8))),
                (f"{n}.txt", caption.encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "ix"), content="pair")
    export(str(tmp_path / "ix"), str(tmp_path / "x.parquet"), where="true", with_samples=True)
    found = rows_of(tmp_path / "x.parquet")
    assert [row["caption"] for row in found] == captions and all(
        row["image"]["bytes"][:4] == b"\x89PNG" for row in found
    )


# -- lists -------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.tuples(st.integers(0, 1), st.integers(0, ROWS - 1)), min_size=1, max_size=20),
       by=st.sampled_from(["ordinal", "key"]), ending=st.sampled_from(["parquet", "csv"]))  # fmt: skip
def test_a_keep_list_names_exactly_the_samples_that_were_asked_for_whatever_their_keys(
    made: World, tmp_path: Path, chosen: set[tuple[int, int]], by: str, ending: str
) -> None:
    out = tmp_path / f"keep.{ending}"
    out.unlink(missing_ok=True)
    places = ", ".join(f"('{made.shards[shard]}', {ordinal})" for shard, ordinal in sorted(chosen))
    sql = f"SELECT shard, {by}, 1 AS one FROM il WHERE (shard, ordinal) IN ({places}) ORDER BY random()"
    done = export(str(made.table), str(out), form="keep-list", sql=f"{sql}")
    table = il.open_table(str(made.table), [str(made.root / "shards" / name.split("/")[1]) for name in made.shards])
    named = np.flatnonzero(np.unpackbits(read_keep_list(str(out), table).bits.numpy(), bitorder="little"))
    assert {divmod(int(number), ROWS) for number in named} == chosen
    assert (done.samples, done.unread) == (len(chosen), 0)


def test_a_run_trains_on_exactly_the_samples_of_an_answer_though_keys_and_names_repeat(
    tmp_path: Path, capsys: Any
) -> None:
    rng, keys = np.random.default_rng(0), ["=1+1", "-x", "two\nlines", "a,b", '"q"', "'-x", "\ufeffb", "+", "z", "y"]
    for root in ("one", "two"):  # the same file name, the same keys
        (tmp_path / root).mkdir()
        with tarfile.open(tmp_path / root / "00.tar", "w") as tar:
            for key in keys:
                for extension, data in (("png", png(rng.integers(0, 255, (16, 16), np.uint8))), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    shards, table, keep = [str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "ix"), tmp_path / "keep.csv"
    roots = {"one": shards[0], "two": shards[1]}
    rhostream.index(shards, table, roots=roots)
    command(capsys, "export", table, "-o", keep, "--as", "keep-list", "--sql",
            "select shard, key from il where (shard = 'one/00.tar') = (ordinal < 4)")  # fmt: skip
    how = {"model": "mlp-64", "rule": "uniform", "buffer_size": 4, "batch_size": 2, "roots": roots}
    rhostream.train(shards, table, str(tmp_path / "run"), keep_list=str(keep), **how)
    trained = ask(str(tmp_path / "run"), "SELECT DISTINCT shard, ordinal FROM selections WHERE reason <> 'unlisted'")
    assert {(row["shard"], row["ordinal"]) for row in trained} == {
        *(("one/00.tar", n) for n in range(4)), *(("two/00.tar", n) for n in range(4, 10))
    }  # fmt: skip
    stream = rhostream.open_stream(shards, table, buffer_size=4, needs_il=False, deny=str(keep), roots=roots)
    buffers = [*stream, stream.stream.tail(0)]
    denied = {(int(s), int(o)) for c in buffers for s, o, r in zip(c.shard, c.ordinal, c.reason, strict=True)
              if r == Reason.denied}  # fmt: skip
    assert denied == {(row["shard"] == "two/00.tar", row["ordinal"]) for row in trained}


def test_a_keep_list_of_a_run_says_what_the_run_spent_and_one_of_a_table_nothing(
    runs: list[str], made: World, tmp_path: Path
) -> None:
    with rhostream.open_ledger(runs[0]) as ledger:
        spent = ledger.runs[0].cost
    export(runs[0], str(tmp_path / "a.parquet"), form="keep-list")
    assert keep_list_account(str(tmp_path / "a.parquet")) == {
        "fit_samples": spent["trained"], "scored_samples": spent["scored"], "macs": spent["macs"]
    }  # fmt: skip
    export(runs, str(tmp_path / "b.parquet"), form="keep-list")
    assert keep_list_account(str(tmp_path / "b.parquet"))["fit_samples"] == spent["trained"] + 12 * 3
    export(str(made.table), str(tmp_path / "c.parquet"), form="keep-list")
    assert keep_list_account(str(tmp_path / "c.parquet")) == {}


def test_a_list_of_uids_is_the_one_that_numpy_would_save(tmp_path: Path, capsys: Any) -> None:
    uids = [f"{n * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128:032x}" for n in range(40)]
    uids[7], uids[9], uids[11] = uids[6], "no uid", uids[11].upper()
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "a.tar", "w") as tar:
        for n, uid in enumerate(uids):
            record = json.dumps({"uid": uid, "label": 1}).encode() if n != 13 else b'{"label": 1}'
            for name, data in (
                (f"{n:03d}.png", png(rng.integers(0, 255, (8, 8), np.uint8))),
                (f"{n:03d}.json", record),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "plain"))
    with pytest.raises(UsageError, match=r"no field uid.*--keep uid:str"):
        export(str(tmp_path / "plain"), str(tmp_path / "x.npy"))
    rhostream.index([str(tmp_path / "data")], str(tmp_path / "ix"), keep={"uid": "str"})
    out, _ = command(capsys, "export", tmp_path / "ix", "-o", tmp_path / "x.npy", "--where", "ordinal < 20", code=3)
    good = {uid.lower() for n, uid in enumerate(uids[:20]) if n not in (9, 13)}
    expected = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in good], np.dtype("u8,u8"))
    expected.sort()
    sink = io.BytesIO()
    np.save(sink, expected)
    assert (tmp_path / "x.npy").read_bytes() == sink.getvalue()
    assert "unread    2 samples; shard" in out and "'no uid'" in out
    assert as_pairs([]).shape == (0,)


# -- what can't be -----------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no ending": ({}, "x", "how|--as"),
    "another ending": ({"form": "keep-list"}, "x.npy", "ends in .parquet or .csv"),
    "two selections": ({"where": "kept", "sql": "select 1 as x"}, "x.csv", "two selections"),
    "no SELECT": ({"sql": "drop view il"}, "x.csv", "one SELECT|syntax"),
    "two SELECTs": ({"sql": "select 1 as x; select 2 as x"}, "x.csv", "syntax|one SELECT"),
    "two columns of a name": ({"sql": "select step, step from steps"}, "x.csv", "two columns 'step'"),
    "an unknown column": ({"where": "ill > 3"}, "x.csv", "did you mean"),
    "no names of samples": ({"sql": "select step from steps", "form": "keep-list"}, "x.csv", "shard and ordinal"),
    "a file": ({"sql": "select * from read_csv('/etc/passwd')"}, "x.csv", "disabled|external"),
    "pictures in CSV": ({"with_samples": True}, "x.csv", "--with-samples"),
    "nothing scored": ({"form": "embedding-atlas", "where": "step is null"}, "x.parquet", "finite"),
    "no loss": ({"form": "embedding-atlas", "sql": "select shard, ordinal, il from selections"}, "x.parquet", "loss"),
}  # fmt: skip


def test_the_command_line_offers_every_form() -> None:
    assert OFFERED == FORMS


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_sentence_and_leaves_nothing(
    runs: list[str], tmp_path: Path, what: str
) -> None:
    asked, name, says = REFUSED[what]
    with pytest.raises(UsageError, match=says) as refused:
        export(runs, str(tmp_path / name), **asked)
    assert "\n" not in str(refused.value) and [*tmp_path.iterdir()] == []
    with pytest.raises(UnknownNameError, match="parquet"):
        export(runs, str(tmp_path / name), form="parquett")


def test_the_lines_of_the_page_run_as_they_stand(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    block = page.split("<!-- run by tests/test_export.py -->\n```python\n")[1].split("```")[0]
    shutil.copytree(runs[0], tmp_path / "runs" / "rho")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    found = rows_of(tmp_path / "noisy.parquet")
    assert found and all(row["reason"] == "below" and row["il"] > 1 for row in found)
    assert capsys.readouterr().out == f"{len(found)} {len(found)} 0\n"
