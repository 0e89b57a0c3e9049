"""After a loss spike: back to an older commit, past the buffers that are skipped, recorded and done once."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rhostream
from rhostream import crashpoints
from rhostream.audit.alike import digest_of, setting_of
from rhostream.audit.runs import open_runs
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import Interrupted, SupersededError, UsageError
from rhostream.runs import chain, checkpoint
from rhostream.stream.passing import parse_stretch
from rhostream.training.start import train
from tests.support.logs import ask, reasons, rows, same_weights
from tests.support.own_loop import network
from tests.support.process import run as command
from tests.support.ranks import CONTEXT
from tests.support.waits import stop_at

pytestmark = pytest.mark.usefixtures("one_thread")
SPIKE = {"from_step": 6, "skip_buffers": "7:9"}


def go(world: Path, folder: Path, steps: int = 12, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "checkpoint_every": 2,
        "keep_checkpoints": 10,
        "threads": 1,
        "steps": steps,
        **more,
    }
    return train(str(world / "shards"), str(world / "il"), str(folder), **settings)


# -- train -------------------------------------------------------------------------------------------------------------


def test_a_run_goes_back_and_passes_over_the_buffers_of_a_spike_and_its_ledger_is_one_branch(
    world: Path, tmp_path: Path
) -> None:
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    go(world, run)
    left = rows(run)
    summary = go(world, run, **SPIKE)
    assert summary.steps == 12 and summary.reasons["passed_over"] == 2 * 40 - summary.reasons.get("quarantined", 0)
    found = reasons(run)
    assert sorted(found) == list(range(12))
    assert [step for step, why in found.items() if "passed_over" in why] == [7, 8]
    assert all("kept" not in found[step] for step in (7, 8)) and "kept" in found[9]
    assert ask(run, "SELECT step, kept, candidates FROM steps WHERE candidates = 0") == [
        {"step": 7, "kept": 0, "candidates": 0},
        {"step": 8, "kept": 0, "candidates": 0},
    ]
    assert summary.cost["decoded"] == summary.cost["trained"] // 8 * 40 == 400
    assert rows(run)[: 7 * 40] == left[: 7 * 40] and rows(run)[-40:] != left[-40:]
    assert verify(str(run))["problems"] == []
    # What it came to is what it would be had the buffers been skipped from the beginning.
    go(world, fresh, skip_buffers="7:9")
    assert rows(run) == rows(fresh) and same_weights(run, fresh)


def test_the_turn_is_recorded_said_and_makes_another_setting(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, 8)
    before, began = setting_of(open_runs([str(run)])[0]), (run / "run.json").read_bytes()
    go(world, run, 10, **SPIKE)
    changes = [
        {"field": "from_step", "old": 8, "new": 6, "step": 6, "attempt": 1},
        {"field": "skip_buffers", "old": None, "new": "7:9", "step": 6, "attempt": 1},
    ]
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.changes == changes and (run / "run.json").read_bytes() == began
    note = json.loads((run / "attempts" / "1.json").read_text())
    assert note["from_step"] == 6 and [change["new"] for change in note["changes"]] == [6, "7:9"]
    text = render_status(status_of(str(run)))
    assert "from_step 8 to 6 from step 6 (attempt 1)" in text and "skip_buffers none to 7:9 from step 6" in text
    assert digest_of(setting_of(open_runs([str(run)])[0])) != digest_of(before)


def test_the_same_command_again_resumes_and_skips_stay_in_force_without_it(world: Path, tmp_path: Path) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    for folder in (run, once):
        go(world, folder, 10)
    go(world, once, 14, **SPIKE)
    with pytest.raises(Interrupted):
        go(world, run, 14, metrics=stop_at(6), **SPIKE)  # inside the stretch
    go(world, run, 12, **SPIKE)
    go(world, run, 14)
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.attempt == 3 and [change["attempt"] for change in latest.changes] == [1, 1]
    assert rows(run) == rows(once) and same_weights(run, once) and verify(str(run))["problems"] == []


def test_going_back_takes_a_changed_rate_back_too_and_a_schedule_to_its_step(world: Path, tmp_path: Path) -> None:
    run, fresh, more = tmp_path / "run", tmp_path / "fresh", {"schedule": "cosine", "ema": 0.9, "schedule_steps": 20}
    go(world, run, 8, **more)
    go(world, run, 10, change="lr=0.1", **more)
    go(world, run, 12, **SPIKE, **more)
    go(world, fresh, 12, skip_buffers="7:9", **more)
    rates = [
        [row["rate"] for row in ask(folder, "SELECT learning_rate AS rate FROM steps ORDER BY step")]
        for folder in (run, fresh)
    ]
    assert rates[0] == rates[1] and rates[0][10] == pytest.approx(5e-4)
    assert rows(run) == rows(fresh) and same_weights(run, fresh)


def test_a_second_spike_is_a_second_turn_and_going_back_behind_the_first_forgets_it(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    go(world, run, 8, checkpoint_every=2)
    go(world, run, 12, from_step=4, skip_buffers="5:6")
    go(world, run, 14, from_step=10, skip_buffers=" 010:011 ")
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [5, 10]
    go(world, run, 16, from_step=4, skip_buffers="5:6")  # in force: nothing is done twice
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [5, 10]
    go(world, run, 16, from_step=4, skip_buffers="6:7", change="lr=0.01")
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [6]
    latest = checkpoint.latest(str(run))
    assert latest is not None and [c["field"] for c in latest.changes] == ["from_step", "skip_buffers", "lr"]
    go(world, run, 17, from_step=4, skip_buffers="6:7", change="lr=0.01")
    assert len(rows(run)) == 17 * 40 and verify(str(run))["problems"] == []


@pytest.mark.parametrize(("asked", "says"), [
    ({"skip_buffers": "7"}, "expected A:B"), ({"skip_buffers": "9:7"}, "A < B"), ({"skip_buffers": "7:7"}, "A < B"),
    ({"skip_buffers": "-1:3"}, "expected A:B"), ({"skip_buffers": ":"}, "expected A:B"),
    ({"skip_buffers": "1:2:3"}, "expected A:B"), ({"skip_buffers": "3:5"}, "goes on from step 6.*--from-step"),
    ({"from_step": 5}, "keeps no state of step 5; kept are those of step 2, 4, 6"),
    ({"from_step": 8}, "kept are those of step 2, 4, 6"), ({"from_step": -1}, "expected the step"),
    ({"from_step": 4, "skip_buffers": "3:5"}, "goes on from step 4"),
])  # fmt: skip
def test_a_turn_that_can_not_be_is_refused_before_any_work(
    world: Path, tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    go(world, tmp_path / "run", 6)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says):
        go(world, tmp_path / "run", 8, **asked)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_a_turn_needs_a_commit_to_go_back_to_and_a_step_to_take(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no commit to go back to"):
        go(world, tmp_path / "run", from_step=2)
    go(world, tmp_path / "run", 4)
    with pytest.raises(UsageError, match=r"--skip-buffers.*complete at step 4"):
        go(world, tmp_path / "run", 4, skip_buffers="4:5")
    with pytest.raises(UsageError, match=r"--from-step.*complete at step 4"):
        go(world, tmp_path / "run", 4, from_step=4)


def test_uniform_steps_and_the_tail_keep_their_reasons(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, 26, rule="uniform", skip_buffers="24:26", checkpoint_every=26)
    counts = {
        (r["step"], r["reason"]): r["n"]
        for r in ask(
            run, "SELECT step, reason, count(*) n FROM selections WHERE step >= 24 OR step IS NULL GROUP BY ALL"
        )
    }
    assert set(counts) == {(24, "passed_over"), (25, "passed_over"), (None, "tail")}
    assert verify(str(run))["problems"] == []


@pytest.mark.parametrize("text", ["0:1", "120:160", " 7:9 "])
def test_a_stretch_is_two_numbers(text: str) -> None:
    first, end = parse_stretch(text)
    assert f"{first}:{end}" == text.strip()


# -- death -------------------------------------------------------------------------------------------------------------


def die(world: str, folder: str, point: str) -> None:
    crashpoints.arm(point)
    go(Path(world), Path(folder), 12, from_step=6, skip_buffers="7:9")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["checkpoint: attempt claimed@1", "train: step logged@3", "checkpoint: committed@1"])
def test_a_turn_that_was_killed_is_made_again_to_the_same_effect(world: Path, tmp_path: Path, point: str) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    go(world, run, 10)
    shutil.copytree(run, once)
    go(world, once, 12, **SPIKE)
    child = CONTEXT.Process(target=die, args=(str(world), str(run), point))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert verify(str(run))["problems"] == []
    go(world, run, 12, **SPIKE)
    latest = checkpoint.latest(str(run))
    assert latest is not None and [(c["old"], c["new"]) for c in latest.changes] == [(10, 6), (None, "7:9")]
    assert rows(run) == rows(once) and same_weights(run, once) and verify(str(run))["problems"] == []


# -- a loop of one's own -----------------------------------------------------------------------------------------------


def own(
    world: Path,
    folder: Path,
    steps: int = 12,
    state: bool = True,
    saved: dict[str, Any] | None = None,
    save_at: int = -1,
    until: int | None = None,
    every: int = 2,
    **options: Any,
) -> dict[str, Any]:
    """The loop; without `state` it keeps its own checkpoint, of which it returns the one of `save_at`."""
    model, found = network(), dict[str, Any]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    buffers = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    given: dict[str, Any] = (
        {"state": {"model": model, "optimizer": optimizer}, "commit_every": every, "keep_checkpoints": 10}
        if state
        else {}
    )
    run = rhostream.Run(str(folder), buffers, rhostream.Selector(model, "rho", 8), steps=steps, **given, **options)
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
        if run.steps + 1 == save_at:
            found = {"run": run.state_dict(), **_copied(model, optimizer)}
        if until is not None and run.steps >= until:
            break
    return found if state or save_at >= 0 else {"run": run.state_dict(), **_copied(model, optimizer)}


def _copied(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def test_a_loop_of_ones_own_goes_back_and_passes_over_too(world: Path, tmp_path: Path) -> None:
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    own(world, run)
    own(world, run, until=6, **SPIKE)  # dies before its first commit: nothing is in force
    latest = checkpoint.latest(str(run))
    assert latest is not None and (latest.step, latest.changes) == (6, [])
    own(world, run, until=9, **SPIKE)
    own(world, run, **SPIKE)
    own(world, fresh, skip_buffers="7:9")
    assert rows(run) == rows(fresh) and same_weights(run, fresh) and verify(str(run))["problems"] == []
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.attempt == 3
    assert [(c["attempt"], c["old"]) for c in latest.changes] == [(2, 12), (2, None)]
    with pytest.raises(UsageError, match="complete at step 12"):
        own(world, run, skip_buffers="14:15")
    with pytest.raises(UsageError, match="kept are those of step"):
        own(world, run, from_step=7)
    own(world, run, 13)
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [7, 8]


def test_a_loop_that_owns_its_checkpoint_goes_back_by_loading_an_older_state(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved = own(world, run, state=False, save_at=6)
    with pytest.raises(UsageError, match="load_state_dict the state of an older one"):
        own(world, run, state=False, saved=saved, **SPIKE)
    with pytest.raises(UsageError, match="goes on from step 6"):
        own(world, run, state=False, saved=saved, skip_buffers="5:7")
    later = own(world, run, 10, state=False, saved=saved, skip_buffers="7:9")
    assert [step for step, why in reasons(run).items() if "passed_over" in why] == [7, 8]
    own(world, run, state=False, saved=later, skip_buffers="7:9")
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.step == 12 and [c["attempt"] for c in latest.changes] == [1]
    assert len(rows(run)) == 12 * 40 and verify(str(run))["problems"] == []


def test_the_attempt_that_was_left_can_not_commit_any_more(world: Path, tmp_path: Path) -> None:
    run, made = tmp_path / "run", network()
    own(world, run, 8)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    buffers = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40)
    old = rhostream.Run(
        str(run),
        buffers,
        rhostream.Selector(made, "rho", 8),
        commit_every=2,
        steps=12,
        state={"model": made, "optimizer": optimizer},
    )
    with pytest.raises(SupersededError):  # the other goes back while this one is in its loop
        for kept in old:
            if old.steps == 9:
                own(world, run, 10, **SPIKE)
            old.step(cross_entropy(made(kept.input), kept.label, reduction="none"))
    latest = chain.head(str(run))
    assert latest is not None and latest.attempt == 2 and latest.step == 10
    assert verify(str(run))["problems"] == []


def test_a_cost_account_of_an_earlier_end_is_made_again(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(world, run, 4)
    earlier = (run / "cost.json").read_bytes()
    go(world, run, 6)
    now = (run / "cost.json").read_bytes()
    for stale in (earlier, b"{"):
        (run / "cost.json").write_bytes(stale)  # as a crash between the commit and the account would leave it
        go(world, run, 6)
        assert (run / "cost.json").read_bytes() == now != earlier


def test_the_command_line_has_the_options_and_refuses_in_one_sentence(world: Path, tmp_path: Path) -> None:
    argv = [
        "train",
        "--shards",
        str(world / "shards"),
        "--il",
        str(world / "il"),
        "--run",
        str(tmp_path / "run"),
        "--model",
        "mlp-64",
        "--buffer-size",
        "40",
        "--batch-size",
        "8",
        "--checkpoint-every",
        "2",
    ]
    command(*argv, "--steps", 6)
    command(*argv, "--steps", 6, "--from-step", 4, "--skip-buffers", "4:5")
    assert [step for step, why in reasons(tmp_path / "run").items() if "passed_over" in why] == [4]
    for wrong in (["--skip-buffers", "5:4"], ["--from-step", "1"], ["--skip-buffers", "1:2"]):
        _, says = command(*argv, "--steps", 8, *wrong, code=2)
        assert wrong[1] in says
