"""Lightning itself: an ordinary project with five lines changed, killed, resumed and rolled back; two ranks by ddp.

In an environment of its own (tests/support/environments.py), on the tests' small world.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from tests.support import environments
from tests.support.ledger import as_text, rows
from tests.support.ranks import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOOP = Path(__file__).parent / "support" / "lightning_loop.py"
EXAMPLE = environments.ROOT / "examples" / "lightning"
KEPT = "SELECT step, shard, ordinal FROM selections WHERE kept ORDER BY ALL"
STEPS = 200  # eight passes of 25 buffers
Spec = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    began = time.monotonic()
    if why := environments.make("lightning"):
        pytest.skip(f"Lightning's environment can't be made here: {why}")
    print(f"Lightning's environment: {time.monotonic() - began:.1f} s")


def started(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(environments.ROOT), **variables}
    return subprocess.Popen([environments.python("lightning"), *arguments], cwd=folder, env=told, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def fits(folder: Path, world: Path, specs: list[Spec], code: int = 0, ranks: int = 1) -> list[Spec]:
    """What became of them, one after another in one process of each rank; of the first rank."""
    specs = [{"world": str(world), **spec, "folder": str(folder / spec["folder"])} for spec in specs]
    port, processes = str(free_port()), []
    for rank in range(ranks):
        more = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if ranks > 1 else {}
        processes.append(started([str(LOOP), json.dumps(specs)], folder, **more))
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * ranks, "\n".join(said)
    return [json.loads(line[4:]) for line in said[0].splitlines() if line.startswith("FIT ")]


def saved(folder: Path, name: str = "end.ckpt") -> Spec:
    return dict(torch.load(folder / name, weights_only=True))


def equal(one: Spec, other: Spec) -> bool:
    """Weights, moments, schedules and counters, bit for bit."""
    return _same(one["state_dict"], other["state_dict"]) and all(
        _same(one[what], other[what]) for what in ("optimizer_states", "lr_schedulers", "global_step", "epoch")
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def is_whole(run: Path, steps: int) -> None:
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == steps
    assert verify(str(run))["problems"] == []


ACCUMULATED = {"trainer": {"accumulate_grad_batches": 2}, "data": {"batch_size": 4}}
# Validation in the middle of an epoch, half precision, an average of weights, clipping: as a demanding project has it.
DEMANDING = {
    "net": "cnn", "callbacks": {"EMAWeightAveraging": {"decay": 0.9}},
    "trainer": {"precision": "bf16-mixed", "val_check_interval": 10, "gradient_clip_val": 0.5, "max_epochs": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """Fits without an interruption."""
    folder = tmp_path_factory.mktemp("lightning")
    plain, accumulated, demanding = fits(folder, world, [
        {"folder": "whole"}, {"folder": "accumulated", **ACCUMULATED}, {"folder": "demanding", **DEMANDING},
    ])  # fmt: skip
    assert plain == {"error": "", "steps": STEPS, "epoch": 8, "losses": STEPS, "validated": 18, "batches": 25,
                     "estimated": STEPS}  # fmt: skip
    assert accumulated == {**plain, "losses": 2 * STEPS, "batches": 50}
    assert demanding == {**plain, "steps": 75, "epoch": 3, "losses": 75, "validated": 14, "estimated": 75}
    is_whole(folder / "whole" / "run", STEPS)
    is_whole(folder / "accumulated" / "run", STEPS)
    is_whole(folder / "demanding" / "run", 75)
    return folder


def test_the_ledger_is_whole_and_the_report_shows_it(place: Path) -> None:
    run = place / "whole" / "run"
    counts = "SELECT pass, count(*) AS n, count(DISTINCT (shard, ordinal)) AS d, count(*) FILTER (kept) AS k " \
             "FROM selections GROUP BY pass ORDER BY pass"  # fmt: skip
    assert rows(run, counts) == [{"pass": n, "n": 1003, "d": 1003, "k": 200} for n in range(8)]
    assert rows(run, "SELECT count(*) AS n FROM steps WHERE loss_kept > 0") == [{"n": STEPS}]
    scored = rows(run, "SELECT max(abs(score - (loss - il))) AS off FROM selections WHERE loss IS NOT NULL")
    assert scored[0]["off"] < 1e-4
    page = Path(rhostream.write_report([str(run)], str(place / "report.html"))).read_text()
    assert "Not complete" not in page
    # Accumulated: the first batch is the same one, in two pieces, under another dropout.
    losses = [rows(place / name / "run", "SELECT loss_kept FROM steps WHERE step = 0")[0]["loss_kept"]
              for name in ("whole", "accumulated")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=0.3)


def test_killed_at_three_moments_and_resumed_it_is_the_uninterrupted_run(place: Path, world: Path) -> None:
    plain = {"folder": "killed"}
    fits(place, world, [{**plain, "kill": "step", "at": 57}], code=-9)
    fits(place, world, [{**plain, "kill": "validation", "at": 75, "resume": "last"}], code=-9)
    # Half of a checkpoint lies there, under the name that is taken for the newest.
    fits(place, world, [{**plain, "kill": "save", "at": 140, "resume": "last"}], code=-9)
    fits(place, world, [{**plain, "resume": "checkpoints/120.ckpt"}])
    is_whole(place / "killed" / "run", STEPS)
    assert as_text(place / "killed" / "run") == as_text(place / "whole" / "run")
    assert equal(saved(place / "killed"), saved(place / "whole"))
    # Back to an older checkpoint, as after a spike.
    fits(place, world, [{**plain, "resume": "checkpoints/60.ckpt"}])
    assert as_text(place / "killed" / "run") == as_text(place / "whole" / "run")
    assert equal(saved(place / "killed"), saved(place / "whole"))


@pytest.mark.parametrize("name, spec, steps", [("accumulated", ACCUMULATED, STEPS), ("demanding", DEMANDING, 75)])
def test_killed_within_more_than_the_plain(place: Path, world: Path, name: str, spec: Spec, steps: int) -> None:
    fits(place, world, [{**spec, "folder": f"{name}-killed", "kill": "step", "at": 47}], code=-9)
    fits(place, world, [{**spec, "folder": f"{name}-killed", "resume": "last"}])
    is_whole(place / f"{name}-killed" / "run", steps)
    assert as_text(place / f"{name}-killed" / "run") == as_text(place / name / "run")
    assert equal(saved(place / f"{name}-killed"), saved(place / name))
    if "callbacks" in spec:
        averaged = [saved(place / one)["state_dict"] for one in (name, f"{name}-killed")]
        assert _same(*averaged)


def test_the_trainer_ends_and_leaves_out_as_it_always_did(place: Path, world: Path) -> None:
    short, by_steps = {"max_epochs": 2}, {"accumulate_grad_batches": 2, "max_epochs": -1}
    ended, longer, stopped, limited, manual, none, late, swa = fits(place, world, [
        {"folder": "ended", **ACCUMULATED, "schedule": STEPS, "trainer": {**by_steps, "max_steps": 33}},
        {"folder": "ended", **ACCUMULATED, "schedule": STEPS, "trainer": {**by_steps, "max_steps": 60},
         "resume": "last"},
        {"folder": "stopped", "callbacks": {"EarlyStopping": {"monitor": "accuracy", "mode": "max", "patience": 1,
                                                              "min_delta": 1.0}}},
        {"folder": "limited", "trainer": {"limit_train_batches": 10, "max_epochs": 4}, "saver": {}},
        {"folder": "manual", "manual": 1, "trainer": short},
        {"folder": "none", "none_at": 3, "trainer": short},
        {"folder": "async", "async": 1, "trainer": short},
        {"folder": "swa", "net": "cnn", "callbacks": {"StochasticWeightAveraging": {"swa_lrs": 1e-3}},
         "trainer": {"max_epochs": 3}},
    ])  # fmt: skip
    assert [one["error"] for one in (ended, longer, stopped, limited, manual, none, late, swa)] == [""] * 8
    assert ended["losses"] == 66 and longer["steps"] == 60
    is_whole(place / "ended" / "run", 60)
    assert rows(place / "ended" / "run", KEPT) == [row for row in rows(place / "accumulated" / "run", KEPT)
                                                   if row["step"] < 60]  # fmt: skip
    assert stopped["epoch"] == 2 and limited["steps"] == 40
    is_whole(place / "stopped" / "run", 50)
    is_whole(place / "limited" / "run", 40)
    is_whole(place / "manual" / "run", 50)
    is_whole(place / "async" / "run", 50)
    left = rows(place / "none" / "run", "SELECT DISTINCT step FROM selections WHERE reason = 'unapplied' ORDER BY 1")
    assert [row["step"] for row in left] == [3, 28]


def test_a_checkpoint_of_an_exception_or_a_signal_goes_on(place: Path, world: Path) -> None:
    saver = {"save_on_exception": True, "every_n_train_steps": 20}
    two = {"folder": "inside", **ACCUMULATED, "saver": saver}
    raised, again, inside, never, term, after = fits(place, world, [
        {"folder": "raised", "raises": 1, "at": 33, "saver": saver},
        {"folder": "raised", "resume": "checkpoints/33.ckpt"},
        {**two, "raises": 1, "at": 33},
        {**two, "resume": "checkpoints/33.ckpt"},
        {"folder": "term", "signal": "SIGTERM", "at": 44, "saver": saver},
        {"folder": "term", "resume": "checkpoints/45.ckpt"},
    ])  # fmt: skip
    assert raised["error"] == "ValueError: on purpose" and again["error"] == "" and again["steps"] == STEPS
    left = rows(place / "raised" / "run", "SELECT DISTINCT step FROM selections WHERE reason = 'unapplied'")
    assert [row["step"] for row in left] == [33] and verify(str(place / "raised" / "run"))["problems"] == []
    assert inside["error"].startswith("ValueError") and "inside an update of 2" in never["error"]
    assert term["error"].startswith("SIGTERMException") and after["error"] == ""
    assert as_text(place / "term" / "run") == as_text(place / "whole" / "run")
    assert equal(saved(place / "term"), saved(place / "whole"))


def test_a_job_that_slurm_puts_back_goes_on_from_where_its_signal_came(place: Path, world: Path) -> None:
    begun = {"at": 33, "schedule": STEPS, "trainer": {"max_steps": 36, "max_epochs": -1}}
    answers = fits(place, world, [
        {**begun, "folder": "scored", "requeued": "scored"}, {"folder": "scored", "resume": "hpc_ckpt_1.ckpt"},
        {**begun, "folder": "trained", "requeued": "trained"}, {"folder": "trained", "resume": "hpc_ckpt_1.ckpt"},
    ])  # fmt: skip
    assert [(one["error"], one["steps"]) for one in answers] == [("", 36), ("", STEPS)] * 2
    assert as_text(place / "scored" / "run") == as_text(place / "whole" / "run")
    assert equal(saved(place / "scored"), saved(place / "whole"))
    left = rows(place / "trained" / "run", "SELECT DISTINCT step FROM selections WHERE reason = 'unapplied'")
    assert [row["step"] for row in left] == [33] and verify(str(place / "trained" / "run"))["problems"] == []


def test_what_selection_cannot_go_with_is_refused_in_a_sentence(place: Path, world: Path) -> None:
    asked: dict[str, Spec] = {
        "overfit_batches": {"trainer": {"overfit_batches": 2}},
        "precision 64-true": {"trainer": {"precision": "64-true"}},
        "inside an update of 2": {"trainer": {"accumulate_grad_batches": 2, "limit_train_batches": 7}},
        "LearningRateFinder": {"callbacks": {"LearningRateFinder": {}}},
        "accumulate_grad_batches became 4": {"scheduling": {1: 4}, "data": {"batch_size": 4}},
        "no optimizer of its own": {"manual": 2},
        "weighs": {"data": {"rule": "grad_norm_is"}},
        "expected 1 or 1": {"data": {"mean": [0.1, 0.2, 0.3], "std": [0.2]}},
    }  # fmt: skip
    answers = fits(place, world, [{"folder": f"refused-{n}", **spec} for n, spec in enumerate(asked.values())])
    for words, answer in zip(asked, answers, strict=True):
        assert words in answer["error"] and answer["error"].startswith("UsageError"), answer["error"]


def test_two_ranks_keep_what_one_keeps_and_go_on(place: Path, world: Path) -> None:
    steps = {"max_epochs": -1, "max_steps": 60}
    one = {"dropout": 0, "trainer": steps}
    two = {"dropout": 0, "data": {"batch_size": 4}, "trainer": {**steps, "devices": 2, "strategy": "ddp"}}
    fits(place, world, [{**one, "folder": "one"}])
    fits(place, world, [{**two, "folder": "two"}], ranks=2)
    fits(place, world, [{**two, "folder": "two-killed", "kill": "step", "at": 31}], code=-9, ranks=2)
    fits(place, world, [{**two, "folder": "two-killed", "resume": "last"}], ranks=2)
    for name in ("two", "two-killed"):
        is_whole(place / name / "run", 60)
    assert rows(place / "two" / "run", KEPT) == rows(place / "one" / "run", KEPT)
    assert rows(place / "two" / "run", KEPT) == rows(place / "two-killed" / "run", KEPT)
    weights = [saved(place / name)["state_dict"] for name in ("one", "two", "two-killed")]
    assert _same(weights[1], weights[2])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_the_example_with_its_patch_runs_and_goes_on(tmp_path: Path, world: Path, package: str) -> None:
    (tmp_path / "train.py").write_text((EXAMPLE / "train.py").read_text())
    subprocess.run(["git", "apply", str(EXAMPLE / "rhostream.patch")], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "train.py").read_text()
    changes = {"pixels=784, classes=10": "pixels=256, classes=4", "every_n_train_steps=100": "every_n_train_steps=3",
               "max_epochs=5": "max_epochs=2", '"shards"': f'"{world}/shards"', '"il"': f'"{world}/il"',
               '"test"': f'"{world}/test"'}  # fmt: skip
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    if package != "lightning":
        text = text.replace("import lightning as L", "import pytorch_lightning as L")
        text = text.replace("from lightning.pytorch.", "from pytorch_lightning.")
    (tmp_path / "train.py").write_text(text)
    for epochs in (2, 4):
        process = started(["train.py"], tmp_path)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        is_whole(tmp_path / "runs" / "rho", 3 * epochs)
        script = (tmp_path / "train.py").read_text()
        (tmp_path / "train.py").write_text(script.replace("max_epochs=2", "max_epochs=4"))
