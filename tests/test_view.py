"""`rhostream view`: every count is the ledger's, what is committed comes in, and nobody else gets an answer."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rhostream.audit.viewer.answers import Viewer
from rhostream.audit.viewer.crossfilter import CHARTS
from rhostream.audit.viewer.rows import REASONS
from rhostream.audit.viewer.server import Server
from rhostream.audit.views import open_ledger
from rhostream.cli import cli
from rhostream.errors import UnknownNameError, UsageError
from tests.support.audit_fixtures import HOSTILE, World, make_rows, make_run, make_world
from tests.support.growing_run import GrowingRun

PATIENCE = 20.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module")
def rho(made: World) -> str:
    return make_run(made, str(made.root / "rho"), make_rows(made, 40), cut=20)


@contextmanager
def viewing(*runs: str, **roots: str) -> Iterator[Viewer]:
    viewer = Viewer(runs, roots)
    viewer.start()
    try:
        until(lambda: all(run["rows"] >= run["committed"] for run in viewer.state({"seen": -1})["runs"]))
        yield viewer
    finally:
        viewer.close()


def until(there: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := there()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


# -- counts ------------------------------------------------------------------------------------------------------------

_BIN = "least(greatest(floor(({0}::DOUBLE - $low) / $width), 0), $bins - 1)::INT + 1"


def of_sql(ledger: Any, chart: str, axes: dict[str, Any], filters: dict[str, Any], run: str) -> dict[Any, int]:
    """{(bin, reason): rows} of a chart, asked of the ledger: its own filters don't count."""
    where, bound = ["run = $run"], {"run": run}
    for name, value in filters.items():
        if name in CHARTS[chart]:
            continue
        if name in ("label", "reason"):
            where.append(
                f"list_contains($of_{name}, coalesce({name}, -1))"
                if name == "label"
                else "list_contains($of_reason, reason)"
            )
            bound[f"of_{name}"] = value
            continue
        where.append(f"{name} IS NOT NULL AND isfinite({name}::DOUBLE)")
        kind = "BIGINT" if name == "step" else "FLOAT"
        for end, sign, given in (("from", ">=", value[0]), ("to", "<=", value[1])):
            if given is not None:
                where.append(f"{name} {sign} ${end}_{name}::{kind}")
                bound[f"{end}_{name}"] = given
    if chart in ("step", "over_steps"):
        what, axis = "CASE WHEN step IS NULL THEN 0 ELSE step // $width::BIGINT + 1 END", axes["step"]
        bound |= {"width": int(axis["width"])}
    elif chart == "reason":
        what = "reason"
    elif chart == "label":
        what = "coalesce(label, -1)"
    else:
        what, axis = f"CASE WHEN isfinite({chart}) THEN {_BIN.format(chart)} ELSE 0 END", axes[chart]
        bound |= {"low": axis["low"], "width": axis["width"], "bins": axis["bins"]}
    text = f"SELECT {what} AS bin, reason, count(*) AS n FROM selections WHERE {' AND '.join(where)} GROUP BY ALL"
    return {(row["bin"], row["reason"]): row["n"] for row in ledger.sql(text, bound).to_pylist()}


def of_page(answer: dict[str, Any], chart: str, run: int) -> dict[Any, int]:
    counts = answer["runs"][run][chart]
    if chart == "reason":
        return {(reason, reason): n for reason, n in counts.items()}
    names = answer["labels"]["shown"] if chart == "label" else range(1 << 20)
    return {(names[at], reason): n for reason, bins in counts.items() for at, n in enumerate(bins) if n}


def some_filters(chance: random.Random) -> dict[str, Any]:
    every = {
        "il": sorted(chance.uniform(0, 4) for _ in range(2)),
        "loss": [chance.choice([None, chance.uniform(0, 2)]), chance.uniform(2, 6)],
        "score": [0.1, None],
        "step": sorted(chance.randrange(40) for _ in range(2)),
        "label": chance.sample([0, 1, 2, -1], 2),
        "reason": chance.sample(["kept", "below", "quarantined", "tail", "nonfinite"], 3),
    }
    return {name: every[name] for name in chance.sample([*every], chance.randrange(5))}


@pytest.mark.parametrize("seed", range(6))
def test_every_count_under_any_filter_is_the_answer_of_the_ledger(made: World, rho: str, seed: int) -> None:
    other = made.root / "uniform"
    if not other.exists():
        make_run(made, str(other), make_rows(made, 30, rule="uniform", seed=5), rule="uniform")
    filters = some_filters(random.Random(seed))
    with viewing(rho, str(other)) as viewer, open_ledger([rho, str(other)]) as ledger:
        answer = viewer.charts({"filters": filters})
        for number, run in enumerate(("rho", "uniform")):
            for chart in set(CHARTS) - {"cell", "samples"}:
                assert of_page(answer, chart, number) == of_sql(ledger, chart, answer["axes"], filters, run), (
                    chart,
                    run,
                )
        selected = sum(of_sql(ledger, "over_steps", answer["axes"], filters, "rho").values())
        assert answer["runs"][0]["selected"] == selected
        assert sum(answer["runs"][0]["cell"]["n"]) <= answer["runs"][0]["rows"] == len(make_rows(made, 40))


@pytest.mark.parametrize("seed", range(4))
def test_answers_made_of_earlier_ones_are_those_of_a_page_that_never_asked_before(rho: str, seed: int) -> None:
    chance = random.Random(seed)
    with viewing(rho) as viewer:
        filters: dict[str, Any] = {}
        for _ in range(25):  # ranges that are drawn wider and narrower, and others taken away
            name = chance.choice(["il", "loss", "score", "step"])
            if chance.random() < 0.2:
                filters.pop(name, None)
            else:
                ends = [chance.choice([None, chance.uniform(0, 3)]), chance.choice([None, chance.uniform(1, 6)])]
                filters = filters | {name: [round(end * 6) if end and name == "step" else end for end in ends]}
            fresh = Viewer([rho])
            fresh._follower.runs, fresh._axes, fresh._axes_of = viewer._follower.runs, viewer._axes, viewer._axes_of
            assert viewer.charts({"filters": filters}) == fresh.charts({"filters": filters}), filters


@pytest.mark.parametrize(
    "filters",
    [[], {"colour": [0, 1]}, {"il": [1]}, {"il": ["a", 1]}, {"label": ["x"]}, {"reason": ["no"]}, {"label": [1e40]}],
)
def test_a_filter_that_means_nothing_is_refused(rho: str, filters: Any) -> None:
    with viewing(rho) as viewer, pytest.raises(UsageError):
        viewer.charts({"filters": filters})


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "by"), [("loss_high", "loss DESC"), ("il_low", "il"), ("newest", "step DESC")])
def test_the_first_samples_of_an_order_are_the_ledgers_each_once(rho: str, order: str, by: str) -> None:
    text = f"""SELECT shard, ordinal FROM selections WHERE reason = 'below' AND isfinite(loss) QUALIFY row_number() OVER
        (PARTITION BY shard, ordinal ORDER BY {by}, step) = 1 ORDER BY {by}, shard, ordinal LIMIT 20 OFFSET 5"""
    with viewing(rho) as viewer, open_ledger(rho) as ledger:
        asked = {"filters": {"reason": ["below"], "loss": [None, 99]}, "order": order, "start": 5, "count": 20}
        page = viewer.rows(asked)
        assert [(row["shard"], row["ordinal"]) for row in page["rows"]] == [
            (row["shard"], row["ordinal"]) for row in ledger.sql(text).to_pylist()
        ]
        with pytest.raises(UnknownNameError):
            viewer.rows({"order": "by_beauty"})


def test_a_samples_history_is_every_row_of_it_and_its_picture_is_made_here(made: World, rho: str) -> None:
    with viewing(rho) as viewer, open_ledger(rho) as ledger:
        asked = {"run": 0, "shard": made.shards[0], "ordinal": 2}
        (rows,) = viewer.history(asked)["runs"]
        there = ledger.sql(
            "SELECT count(*) AS n FROM selections WHERE shard = $shard AND ordinal = 2", {"shard": asked["shard"]}
        )
        assert len(rows) == there["n"][0].as_py() > 1
        sample = viewer.sample(asked)
        assert (
            sample["key"] == HOSTILE[2] and sample["image"].startswith("data:image/png;base64,") and not sample["why"]
        )


def test_without_table_or_shards_the_charts_stand_and_the_gallery_says_what_to_do(made: World, tmp_path: Path) -> None:
    run = make_run(
        made, str(tmp_path / "moved"), make_rows(made, 5), shard_urls=[], roots={"web": str(tmp_path / "nowhere")}
    )
    with viewing(run) as viewer:
        assert viewer.charts({})["runs"][0]["rows"] > 0
        row = viewer.rows({"count": 1})["rows"][0]
        assert "--root" in viewer.sample(row | {"run": 0})["why"]
    with viewing(run, web=str(made.root / "shards")) as viewer:
        assert viewer.sample(row | {"run": 0})["image"]
    run = make_run(made, str(tmp_path / "no-table"), make_rows(made, 5), il=str(tmp_path / "gone"))
    with viewing(run) as viewer:
        row = next(row for row in viewer.rows({"count": 60})["rows"] if row["ordinal"] == 20)
        assert viewer.sample(row | {"run": 0})["key"] in ("k0020", "k1020")  # of the log


# -- runs that go on ---------------------------------------------------------------------------------------------------


def rows_of(viewer: Viewer) -> int:
    return int(viewer.charts({})["runs"][0]["rows"])


def test_new_commits_come_in_and_nothing_is_read_twice(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rhostream.audit.viewer import live

    read, really = [], live.read_segment
    monkeypatch.setattr(
        live, "read_segment", lambda run, record, shards: (read.append(record["path"]), really(run, record, shards))[1]
    )
    run, rows = GrowingRun(made, str(tmp_path / "live")), [row for row in make_rows(made, 9) if row["step"] is not None]
    with viewing(run.url) as viewer:
        assert rows_of(viewer) == 0 and viewer.state({"seen": -1})["runs"][0]["step"] == 0
        for step in range(0, 9, 3):
            run.add([row for row in rows if step <= row["step"] < step + 3])
            until(lambda step=step: viewer.charts({"filters": {"step": [2, 7]}})["runs"][0]["rows"] == 12 * (step + 3))
        assert len(read) == len(set(read)) == 3
        with open_ledger(run.url) as ledger:
            answer = viewer.charts({"filters": {"step": [2, 7]}})
            assert of_page(answer, "il", 0) == of_sql(ledger, "il", answer["axes"], {"step": [2, 7]}, "live")


def test_rows_of_a_branch_that_was_superseded_go_away(made: World, tmp_path: Path) -> None:
    run, rows = (
        GrowingRun(made, str(tmp_path / "forked")),
        [row for row in make_rows(made, 9) if row["step"] is not None],
    )
    first = run.add([row for row in rows if row["step"] < 3])
    run.add([row for row in rows if 3 <= row["step"] < 9])
    with viewing(run.url) as viewer:
        assert rows_of(viewer) == 9 * 12
        run.take_over(first)
        run.add([row for row in rows if row["step"] == 3])
        until(lambda: rows_of(viewer) == 4 * 12)
        with open_ledger(run.url) as ledger:
            answer = viewer.charts({})
            assert of_page(answer, "step", 0) == of_sql(ledger, "step", answer["axes"], {}, "forked")


def test_a_merged_segment_takes_the_place_of_its_parts_without_being_read(rho: str) -> None:
    with viewing(rho) as viewer:
        rows = viewer._follower.runs[0].rows
        before = rows.snapshot()
        parts = sorted(rows.loaded)
        rows.rename("log/merged.parquet", parts)
        assert rows.loaded == {"log/merged.parquet"} and rows.snapshot() is before
        rows.drop({"log/merged.parquet"})
        assert rows.snapshot().rows == 0


def test_a_damaged_segment_is_named_and_the_rest_is_shown(
    made: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_run(made, str(tmp_path / "damaged"), make_rows(made, 20), cut=10)
    segment = sorted(Path(url).glob("log/**/*.parquet"))[0]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    viewer = Viewer([url])
    viewer.start()
    try:
        until(lambda: viewer.state({"seen": -1})["runs"][0]["damaged"])
        until(lambda: 0 < rows_of(viewer) < len(make_rows(made, 20)))
        (why,) = viewer.state({"seen": -1})["runs"][0]["damaged"]
        assert segment.name in why and segment.name in caplog.text
        with pytest.raises(Exception, match=segment.name):
            viewer.sql({"text": "SELECT count(*) FROM selections"})
    finally:
        viewer.close()


def test_a_run_whose_folder_vanishes_is_said_and_still_shown(made: World, tmp_path: Path) -> None:
    url = make_run(made, str(tmp_path / "vanishes"), make_rows(made, 5))
    with viewing(url) as viewer:
        shutil.rmtree(url)
        until(lambda: "gone" in viewer.state({"seen": -1})["runs"][0]["problem"])
        assert rows_of(viewer) == len(make_rows(made, 5))


# -- the server --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(*runs: str) -> Iterator[Server]:
    with viewing(*runs) as viewer, Server(viewer.answers()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            viewer.close()


def asked(server: Server, name: str, body: Any = None, method: str = "POST", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and body of one request; with the token unless `Authorization` says otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    try:
        given = {
            "Authorization": f"Bearer {server.token}",
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        connection.request(method, name, None if method == "GET" else json.dumps({} if body is None else body), given)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_page_is_served_under_a_policy_that_lets_in_its_own_files_alone(rho: str) -> None:
    with serving(rho) as server:
        status, headers, page = asked(server, "/", method="GET")
        assert status == 200 and b"view.js" in page and b"<script>" not in page and server.token.encode() not in page
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers
        for path in ("/view.js", "/view.css"):
            assert asked(server, path, method="GET")[0] == 200
        for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/api/state", "//etc/passwd"):
            assert asked(server, path, method="GET")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_who_has_no_token_or_comes_from_elsewhere_gets_nothing(rho: str, headers: dict[str, str], status: int) -> None:
    with serving(rho) as server:
        got, _, body = asked(server, "/api/state", **headers)
        assert got == status and [*json.loads(body)] == ["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_no_other_method_is_known(rho: str, method: str) -> None:
    with serving(rho) as server:
        assert asked(server, "/api/state", method=method)[0] == 501


def test_what_is_no_request_is_refused_in_a_sentence(rho: str) -> None:
    with serving(rho) as server:
        for body in ([1], "x", {"filters": {"il": "all"}}, {"filters": {"il": [0, 1], "step": [1]}}):
            status, _, answer = asked(server, "/api/charts", body)
            assert status == 400 and json.loads(answer)["error"]
        for megabytes in (1, 12):
            status, _, answer = asked(server, "/api/charts", {"x": "y" * (megabytes << 20)})
            assert status == 413 and "1,048,576 bytes" in json.loads(answer)["error"]
        assert asked(server, "/api/charts", {"x": "y" * (4 << 20)}, Authorization="")[0] == 401
        assert asked(server, "/api/nothing")[0] == 404


def test_the_sql_box_reads_and_does_nothing_else(rho: str) -> None:
    with serving(rho) as server:
        status, _, body = asked(
            server, "/api/sql", {"text": "SELECT reason, count(*) AS n FROM selections GROUP BY ALL ORDER BY n DESC"}
        )
        answer = json.loads(body)
        assert (
            status == 200
            and answer["columns"] == ["reason", "n"]
            and answer["rows"][0][0] == "below"
            and not answer["more"]
        )
        answer = json.loads(asked(server, "/api/sql", {"text": "SELECT * FROM range(5000)"})[2])
        assert len(answer["rows"]) == 1000 and answer["more"]
        assert json.loads(asked(server, "/api/sql", {"text": "@kept_by_class"})[2])["rows"]
        for text in (
            "COPY (SELECT 1) TO '/tmp/x'",
            "SELECT * FROM read_text('/etc/passwd')",
            "ATTACH 'x'",
            "",
            "SELECT 1; SELECT 2",
            "SET memory_limit = '100GB'",
            "SELECT getenv('HOME')",
        ):
            assert asked(server, "/api/sql", {"text": text})[0] == 400, text


def test_a_question_that_takes_too_long_is_stopped(rho: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rhostream.audit.viewer import questions

    with viewing(rho) as viewer:
        viewer.sql({"text": "SELECT 1"})
        monkeypatch.setattr(questions, "SECONDS", 0.3)
        with pytest.raises(UsageError, match="within"):
            many = "range(100000)"
            viewer.sql(
                {"text": f"SELECT count(*) FROM {many} a, {many} b, {many} c WHERE a.range + b.range % 7 = c.range"}
            )


def test_a_port_in_use_and_a_run_that_is_not_there_are_a_sentence(made: World, rho: str, tmp_path: Path) -> None:
    with Server({}) as server, pytest.raises(UsageError, match=str(server.server_port)):
        Server({}, server.server_port)
    with pytest.raises(UsageError, match="neither a run folder"):
        Viewer([str(tmp_path / "nothing")])
    with pytest.raises(UsageError, match="IL table"):
        Viewer([str(made.root / "il")])
    with pytest.raises(UsageError, match="5 runs"):
        Viewer([rho] * 5)
    assert "127.0.0.1" in CliRunner().invoke(cli, ["view", "--help"]).output


def test_every_reason_has_a_colour_and_a_code_of_its_own() -> None:
    from rhostream.audit.viewer.crossfilter import R
    from rhostream.audit.viewer.looks import LOOKS

    assert len(REASONS) <= R and len({look["colour"] for look in LOOKS}) == len(REASONS)
