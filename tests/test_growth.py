"""A run grows: at the end of a pass it goes on with a longer list of shards, as a recorded new plan."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy

import rhostream
from rhostream import crashpoints
from rhostream.audit.report import write_report
from rhostream.audit.runs import open_runs
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import Interrupted, MismatchError, UsageError
from rhostream.runs import checkpoint
from rhostream.stream.plan import Numbering
from rhostream.training.start import train
from tests.support import ranks
from tests.support.logs import ask, reasons, rows, same_weights
from tests.support.own_loop import network
from tests.support.waits import stop_at

pytestmark = pytest.mark.usefixtures("one_thread")
COUNTS = [200, 150, 97, 256, 1, 199, 100]
BUFFERS = {n: sum(COUNTS[:n]) // 40 for n in (3, 5, 7)}  # of 40, in a pass: 11, 17, 25


def shards_of(world: Path, n: int) -> list[str]:
    return [str(world / "shards" / f"train-{at:03d}.tar") for at in range(n)]


def go(world: Path, folder: Path, shards: int = 3, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "checkpoint_every": 4,
        "threads": 1,
        **more,
    }
    return train(shards_of(world, shards), str(world / "il"), str(folder), **settings)


def planned(folder: Path) -> list[tuple[int, int, int, int]]:
    """(pass, planned samples, different ones, shards) of each pass."""
    return [
        tuple(row.values())
        for row in ask(
            folder,
            "SELECT pass, count(*) AS n, count(DISTINCT (shard, ordinal)) AS d, count(DISTINCT shard) AS s "
            "FROM selections GROUP BY pass ORDER BY pass",
        )
    ]


@pytest.fixture(scope="module")
def begun(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pass over three shards, committed at 4, 8 and 11."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    go(world, folder)
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def test_from_the_end_of_a_pass_on_every_sample_of_the_longer_list_comes_once_a_pass(
    world: Path, run: Path, tmp_path: Path
) -> None:
    began = (run / "run.json").read_bytes()
    summary = go(world, run, 5, passes=3, grow=True)
    assert summary.steps == BUFFERS[3] + 2 * BUFFERS[5]
    assert planned(run) == [(0, 447, 447, 3), (1, 704, 704, 5), (2, 704, 704, 5)]
    found = verify(str(run))
    assert found["problems"] == [] == found["warnings"] and found["rows"] == 447 + 2 * 704
    latest = checkpoint.latest(str(run))
    assert latest is not None and len(latest.changes) == 1
    change, note = latest.changes[0], json.loads((run / "attempts" / "1.json").read_text())
    assert (change["field"], change["step"], change["pass"], change["attempt"]) == ("shards", 11, 1, 1)
    assert note["grown"]["names"] == [f"world/shards/train-{at:03d}.tar" for at in range(5)]
    assert note["grown"]["samples"] == 704
    assert note["grown"]["fingerprint"] == change["new"] != change["old"]
    assert (run / "run.json").read_bytes() == began
    assert f"shards {change['old'][:8]}" in render_status(status_of(str(run)))
    assert latest.cost["il"]["scored_samples"] == open_runs([str(run)])[0].cost["il"]["scored_samples"] > 447
    page = Path(write_report(str(run), str(tmp_path / "r.html"))).read_text()
    assert "704" in page
    assert rhostream.open_ledger(str(run)).sql("SELECT count(DISTINCT shard) AS n FROM samples")["n"].to_pylist() == [5]


def test_a_resume_inside_a_grown_pass_is_exact_with_and_without_grow(world: Path, run: Path, tmp_path: Path) -> None:
    once = Path(shutil.copytree(run, tmp_path / "once"))
    go(world, once, 5, passes=2, grow=True)
    with pytest.raises(Interrupted):
        go(world, run, 5, passes=2, grow=True, metrics=stop_at(14))
    status = status_of(str(run))
    assert status["of"] == BUFFERS[3] + BUFFERS[5]
    assert "--passes 2" in status["next"] and "train-{000..004}.tar" in status["next"]
    assert ask(run, "SELECT steps, last_step FROM runs") == [{"steps": 15, "last_step": 28}]
    with pytest.raises(Interrupted):
        go(world, run, 5, passes=2, metrics=stop_at(20))
    go(world, run, 5, passes=2, grow=True)
    go(world, run, 5, passes=2, grow=True)  # complete: nothing is left to do
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.attempt == 3 and [change["attempt"] for change in latest.changes] == [1]
    assert rows(run) == rows(once) and same_weights(run, once) and verify(str(run))["problems"] == []


def test_a_run_may_grow_twice_and_ends_by_steps_too(world: Path, run: Path) -> None:
    go(world, run, 5, passes=2, grow=True)
    assert go(world, run, 7, steps=40, grow=True).steps == 40
    assert [n for _, n, *_ in planned(run)] == [447, 704, 12 * 40]
    assert go(world, run, 7, passes=3).steps == BUFFERS[3] + BUFFERS[5] + BUFFERS[7] == 53
    assert planned(run)[2] == (2, 1003, 1003, 7) and verify(str(run))["problems"] == []
    folder = open_runs([str(run)])[0]
    assert [plan.first_step for plan in folder.plans] == [0, 11, 28] and len(folder.shards) == 7
    assert folder.shard_url(shards_of(world, 7)[6]).endswith("train-006.tar")


def test_a_list_in_another_order_keeps_the_old_shards_first(world: Path, run: Path) -> None:
    listed = shards_of(world, 5)[::-1]
    more = {"model": "mlp-64", "buffer_size": 40, "batch_size": 8, "threads": 1, "passes": 2, "grow": True}
    train(listed, str(world / "il"), str(run), **more)
    names = json.loads((run / "attempts" / "1.json").read_text())["grown"]["names"]
    assert names == [f"world/shards/train-{at:03d}.tar" for at in (0, 1, 2, 4, 3)]


@pytest.mark.parametrize(
    "more", [{"rule": "uniform"}, {"warm_up": 13}, {"ratio": "0:0.2,14:0.5"}, {"skip_buffers": "12:14"}], ids=str
)
def test_what_is_decided_before_decode_goes_by_the_step_of_the_run(
    world: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    asked = dict(more)
    skip = asked.pop("skip_buffers", None)
    go(world, run, **asked)
    go(world, run, 5, steps=16, grow=True, skip_buffers=skip, **asked)
    kept = [row["kept"] for row in ask(run, "SELECT kept FROM steps ORDER BY step")]
    decoded = [row["candidates"] for row in ask(run, "SELECT candidates FROM steps ORDER BY step")]
    if "ratio" in more:
        assert kept == [8] * 14 + [20] * 2
    elif skip:
        assert kept == [8] * 12 + [0] * 2 + [8] * 2 and decoded[12:14] == [0, 0]
        assert [step for step, why in reasons(run).items() if "passed_over" in why] == [12, 13]
    else:
        chosen = 16 if "rule" in more else 13
        assert all(n == 8 for n in decoded[:chosen]) and all(n > 8 for n in decoded[chosen:])
    assert verify(str(run))["problems"] == []


def test_a_list_is_taken_up_only_where_a_pass_ends_and_only_with_what_was_there(
    world: Path, run: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    go(world, inside, steps=6)
    with pytest.raises(UsageError, match=r"step 6, inside pass 0.*--steps 11"):
        go(world, inside, 5, passes=2, grow=True)
    go(world, inside, steps=11)
    assert go(world, inside, 5, passes=2, grow=True).steps == 28
    before = sorted((str(p), p.stat().st_mtime_ns) for p in run.rglob("*"))
    with pytest.raises(MismatchError, match=r"1 of the 3 shards.*train-002"):
        train(
            shards_of(world, 2) + shards_of(world, 5)[3:],
            str(world / "il"),
            str(run),
            model="mlp-64",
            buffer_size=40,
            batch_size=8,
            passes=2,
            grow=True,
        )
    with pytest.raises(UsageError, match=r"--grow: .* complete at step 11"):
        go(world, run, 5, grow=True)
    with pytest.raises(MismatchError, match="shards: was") as error:
        go(world, run, 5, passes=2)
    assert any("--grow" in note for note in error.value.__notes__)
    assert go(world, run, 3, grow=True).steps == 11  # the very list: nothing to do
    assert sorted((str(p), p.stat().st_mtime_ns) for p in run.rglob("*")) == before
    go(world, run, 5, passes=2, grow=True)
    with pytest.raises(MismatchError, match="shards: was") as error:
        go(world, run, 3, passes=3)
    assert "shards no longer given: 2, first" in error.value.__notes__[0]


def test_a_schedule_is_stretched_on_purpose_only(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, schedule="cosine")
    with pytest.raises(MismatchError, match="schedule_steps: was 11, now 28"):
        go(world, run, 5, passes=2, grow=True, schedule="cosine")
    for _ in range(2):
        go(world, run, 5, passes=2, grow=True, schedule="cosine", change="schedule_steps=28")
    latest = checkpoint.latest(str(run))
    assert latest is not None and [change["field"] for change in latest.changes] == ["shards", "schedule_steps"]
    (rate,) = ask(run, "SELECT learning_rate AS rate FROM steps WHERE step = 14")
    assert rate["rate"] == pytest.approx(5e-4) and verify(str(run))["problems"] == []


def test_going_back_behind_the_growth_takes_the_list_of_then(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, keep_checkpoints=20)
    go(world, run, 5, passes=2, grow=True, keep_checkpoints=20)
    go(world, run, 5, passes=2, from_step=15, skip_buffers="15:17", keep_checkpoints=20)
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [15, 16]
    assert verify(str(run))["problems"] == []
    with pytest.raises(MismatchError, match="shards: was"):
        go(world, run, 5, passes=2, from_step=8)
    go(world, run, 3, from_step=8)
    assert planned(run) == [(0, 447, 447, 3)] and len(open_runs([str(run)])[0].shards) == 3
    assert verify(str(run))["problems"] == []


def test_more_shards_bring_a_band_no_other_thresholds(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, band="20%:80%")
    go(world, run, 5, passes=2, band="20%:80%", grow=True)
    bounds = ask(
        run,
        "SELECT pass, min(il) AS low, max(il) AS high FROM selections WHERE reason IN ('kept', 'below') "
        "GROUP BY pass ORDER BY pass",
    )
    low, high = (
        float(part.split("=")[1].rstrip(")"))
        for part in json.loads((run / "run.json").read_text())["settings"]["prefilters"][0].split(",")
    )
    assert len(bounds) == 2 and all(low <= one["low"] and one["high"] <= high for one in bounds)
    outside = ask(run, f"SELECT count(*) AS n FROM selections WHERE reason = 'band' AND il BETWEEN {low} AND {high}")
    assert outside == [{"n": 0}] and verify(str(run))["problems"] == []


def test_a_note_of_the_list_that_is_gone_or_strange_is_said(world: Path, run: Path) -> None:
    go(world, run, 5, passes=2, grow=True)
    note = run / "attempts" / "1.json"
    whole = json.loads(note.read_text())
    for change in ({"names": whole["grown"]["names"][:2]}, {"fingerprint": "0"}, {"buffers_per_pass": -1}):
        note.write_text(json.dumps({**whole, "grown": {**whole["grown"], **change}}))
        assert "attempts/1.json" in verify(str(run))["problems"][0]
    note.write_text(json.dumps({**whole, "settings": 3, "grown": None}))  # what needs no list can still be asked
    assert ask(run, "SELECT last_step FROM runs") == [{"last_step": None}] and len(rows(run)) == 447 + 704
    note.write_text(json.dumps({name: value for name, value in whole.items() if name != "grown"}))
    assert "attempts/1.json" in verify(str(run))["problems"][0]


def test_a_lost_row_of_a_pass_is_found_by_the_list_of_that_pass(world: Path, run: Path) -> None:
    from rhostream.audit.verify.ledger import ledger_problems

    go(world, run, 5, passes=2, grow=True)
    folder = open_runs([str(run)])[0]
    at, record = folder.checkpoint, folder.record
    assert at is not None and ledger_problems(str(run), record, at) == []
    swapped = [{**at.changes[0], "pass": 0}]
    assert swapped != at.changes
    note = run / "attempts" / "1.json"
    whole = json.loads(note.read_text())
    note.write_text(json.dumps({**whole, "grown": {**whole["grown"], "first_pass": 0}}))
    assert any("pass 0 lacks samples of 2 shards" in problem for problem in ledger_problems(str(run), record, at))
    note.write_text(json.dumps({**whole, "grown": {**whole["grown"], "first_pass": 2}}))
    assert any(
        "pass 1 has samples of 2 shards that the run doesn't go by" in problem
        for problem in ledger_problems(str(run), record, at)
    )


@pytest.mark.parametrize(("pass_index", "index", "step"), [(1, 0, 11), (1, 16, 27), (2, 0, 28)])
def test_steps_are_numbered_on_behind_the_passes_of_before(pass_index: int, index: int, step: int) -> None:
    assert Numbering(17, 1, 11)(pass_index, index) == step


# -- a loop of one's own -----------------------------------------------------------------------------------------------


def own(
    world: Path,
    folder: Path,
    shards: int = 3,
    passes: int = 1,
    state: bool = True,
    until: int | None = None,
    saved: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The loop; without `state` it keeps its own checkpoint. Returns what it would save."""
    import torch

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    buffers = rhostream.open_stream(shards_of(world, shards), str(world / "il"), buffer_size=40, passes=passes)
    given = {"state": {"model": model, "optimizer": optimizer}, "commit_every": 4} if state else {}
    run = rhostream.Run(str(folder), buffers, rhostream.Selector(model, "rho", 8), **given, **options)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        run.load_state_dict(saved["run"])
    for kept in run:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
        run.step(loss_b)
        if until is not None and run.steps + 1 >= until:
            break
    if state:
        return {}
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "run": run.state_dict(),
    }


def test_a_loop_of_ones_own_grows_and_goes_on_the_same_way(world: Path, tmp_path: Path) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    for folder in (run, once):
        own(world, folder)
    own(world, once, 5, passes=2, grow=True)
    own(world, run, 5, passes=2, grow=True, until=13)  # dies before its first commit
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.step == 11 and latest.changes == [] and verify(str(run))["problems"] == []
    own(world, run, 5, passes=2, grow=True, until=17)  # dies behind its commit of step 15
    own(world, run, 5, passes=2, grow=True)
    assert planned(run) == [(0, 447, 447, 3), (1, 704, 704, 5)] and rows(run) == rows(once)
    assert verify(str(run))["problems"] == []
    with pytest.raises(UsageError, match="complete at step 28"):
        own(world, run, 7, passes=2, grow=True)
    with pytest.raises(MismatchError, match="shards: was"):
        own(world, run, 7, passes=3)


def test_a_loop_that_owns_its_checkpoint_grows_from_the_state_it_loads(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = own(world, run, state=False)
    second = own(world, run, 5, passes=2, state=False, saved=first, grow=True, until=16)
    own(world, run, 5, passes=2, state=False, saved=second, grow=True)
    assert planned(run) == [(0, 447, 447, 3), (1, 704, 704, 5)]
    assert verify(str(run))["problems"] == []
    own(world, run, 5, passes=2, state=False, saved=first, grow=True, until=14)  # an older state grows again
    assert verify(str(run))["problems"] == []


def die(world: str, folder: str, point: str) -> None:
    crashpoints.arm(point)
    go(Path(world), Path(folder), 5, passes=2, grow=True)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["checkpoint: attempt claimed@1", "checkpoint: committed@1", "train: step logged@7"])
def test_a_growth_that_was_killed_is_the_growth_of_one_attempt(
    world: Path, run: Path, tmp_path: Path, point: str
) -> None:
    once = Path(shutil.copytree(run, tmp_path / "once"))
    go(world, once, 5, passes=2, grow=True)
    child = ranks.CONTEXT.Process(target=die, args=(str(world), str(run), point))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and verify(str(run))["problems"] == []
    go(world, run, 5, passes=2, grow=True)
    latest = checkpoint.latest(str(run))
    assert latest is not None and len(latest.changes) == 1
    assert rows(run) == rows(once) and same_weights(run, once) and verify(str(run))["problems"] == []


# -- two ranks ---------------------------------------------------------------------------------------------------------


def test_two_ranks_turn_and_grow_as_one_does(world: Path, tmp_path: Path) -> None:
    common = {
        "il": str(world / "il"),
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "checkpoint_every": 2,
        "keep_checkpoints": 10,
    }
    turns = [
        {"shards": shards_of(world, 3)},
        {"shards": shards_of(world, 3), "from_step": 6, "skip_buffers": "7:9"},
        {"shards": shards_of(world, 5), "passes": 2, "grow": True, "skip_buffers": "13:14"},
        {"shards": shards_of(world, 5), "passes": 2, "grow": True, "from_step": 15, "skip_buffers": "20:21"},
        {"shards": shards_of(world, 5), "passes": 2},
    ]
    ranks.together(tmp_path, ranks.train, 1, [{**common, **turn, "run": str(tmp_path / "one")} for turn in turns])
    ranks.together(tmp_path, ranks.train, 2, [{**common, **turn, "run": str(tmp_path / "two")} for turn in turns])
    for name in ("one", "two"):
        run = tmp_path / name
        assert [step for step, why in reasons(run).items() if "passed_over" in why] == [7, 8, 13, 20]
        assert planned(run) == [(0, 447, 447, 3), (1, 704, 704, 5)] and verify(str(run))["problems"] == []
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "two")
    bad = [{**common, "shards": shards_of(world, 5), "passes": 3, "run": str(tmp_path / "two"), "from_step": 3}]
    answers = ranks.start(tmp_path, ranks.train, 2, bad).join()
    assert [one["exit"] for one in answers] == [2, 2] and all(
        "keeps no state of step 3" in one["error"] for one in answers
    )
