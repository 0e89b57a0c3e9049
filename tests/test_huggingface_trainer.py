"""Hugging Face's own Trainer on what a rule keeps: killed, resumed by its own means, rolled back, on two ranks.

In an environment of its own (tests/support/environments.py); the models are tiny, made of a config.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.audit.report import write_report
from rhostream.audit.verify import verify
from rhostream.errors import MissingExtraError
from rhostream.runs import checkpoint
from tests.support import environments
from tests.support.ledger import as_text, rows
from tests.support.ranks import free_port
from tests.support.text_world import make_text_shards

EXAMPLE = environments.ROOT / "examples" / "huggingface"
TWO = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
WHOLE: dict[str, Any] = {
    "evaluated": True,
    "arguments": {**TWO, "eval_strategy": "steps", "eval_steps": 25, "warmup_steps": 20},
}


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is not None, reason="accelerate is installed")
def test_without_accelerate_it_says_which_extra_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"rhostream\[trainer\]"):
        importlib.import_module("rhostream.integrations.huggingface")


def test_the_patch_changes_at_most_ten_lines_and_is_the_one_of_the_page(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "train.py", tmp_path)
    subprocess.run(["git", "apply", str(EXAMPLE / "selection.patch")], cwd=tmp_path, check=True)
    changed = [line for line in (EXAMPLE / "selection.patch").read_text().splitlines()
               if re.match(r"[+-](?!\+\+|--)", line) and line[1:].strip()]  # fmt: skip
    page = (environments.ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
    block = page.split("<!-- run by tests/test_huggingface_trainer.py -->\n```diff\n")[1].partition("```")[0]
    assert block.splitlines() == changed and len(changed) <= 10


def started(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    told = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(environments.ROOT), "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore", **variables,
    }  # fmt: skip
    return subprocess.Popen([environments.python("accelerate"), *arguments], cwd=folder, env=told, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def python(arguments: list[str], folder: Path, **variables: str) -> tuple[int, str, str]:
    process = started(arguments, folder, **variables)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := environments.make("accelerate"):
        pytest.skip(f"Accelerate's environment can't be made here: {why}")
    return tmp_path_factory.mktemp("trainer")


def answers(world: Path, place: Path, *asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Of runs one after another in one process, each `out` a folder of the place."""
    told = [{"world": str(world), **one, "out": str(place / one["out"])} for one in asked]
    code, out, err = python(["-m", "tests.support.trainer_script", json.dumps(told)], place)
    assert code == 0, err[-3000:]
    return list(json.loads(out.splitlines()[-1]))


def trained(world: Path, place: Path, *asked: dict[str, Any]) -> list[dict[str, Any]]:
    found = answers(world, place, *asked)
    assert not any("refused" in one for one in found), found
    return found


def killed(world: Path, place: Path, **asked: Any) -> None:
    told = [{"world": str(world), **asked, "out": str(place / asked["out"])}]
    code, _, err = python(["-m", "tests.support.trainer_script", json.dumps(told)], place)
    assert code == -9, err[-3000:]


def weights(place: Path, out: str) -> dict[str, torch.Tensor]:
    return dict(torch.load(place / out / "end.pt", weights_only=True)["model"])


def same_weights(place: Path, one: str, other: str) -> bool:
    first, second = weights(place, one), weights(place, other)
    return all(torch.equal(first[name], second[name]) for name in first)


def run_of(place: Path, out: str) -> Path:
    run = place / out / "rhostream"
    assert verify(str(run))["problems"] == []
    return run


def history(result: dict[str, Any]) -> list[dict[str, Any]]:
    timed = ("runtime", "per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in result["history"][:-1]]


@pytest.fixture(scope="module")
def whole(world: Path, place: Path) -> dict[str, Any]:
    """200 steps without an interruption, with accumulation, evaluations, warmup and an average of weights."""
    return trained(world, place, {"out": "whole", **WHOLE})[0]


def slow(function: Any) -> Any:
    return pytest.mark.slow(pytest.mark.timeout(900)(function))


@slow
def test_their_trainer_trains_on_what_is_kept_and_the_ledger_is_whole(
    place: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = run_of(place, "whole")
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == 200 == whole["step"]
    assert rows(
        run, "SELECT count(*) AS n, count(DISTINCT (pass, shard, ordinal)) AS d FROM selections WHERE kept"
    ) == [{"n": 1600, "d": 1600}]
    assert (
        rows(run, "SELECT max(abs(score - (loss - il))) AS off FROM selections WHERE loss IS NOT NULL")[0]["off"] < 1e-4
    )
    # What the Trainer logs is the mean of five steps; the last of its log is of the whole training.
    logged = [row["loss"] for row in whole["history"] if "loss" in row]
    means = rows(run, "SELECT avg(loss_kept) AS mean FROM steps GROUP BY step // 5 ORDER BY step // 5")
    assert [row["mean"] for row in means] == pytest.approx(logged, abs=1e-4)
    accuracies = [row["eval_accuracy"] for row in whole["history"] if "eval_accuracy" in row]
    entered = rows(run, "SELECT test_accuracy AS a FROM steps WHERE test_accuracy IS NOT NULL ORDER BY step")
    assert [row["a"] for row in entered] == pytest.approx(accuracies) and len(accuracies) == 8
    assert accuracies[-1] > 0.6 and whole["epoch"] == 8
    write_report([str(run)], str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 10_000


@slow
def test_killed_at_three_moments_and_resumed_it_is_the_uninterrupted_run(
    world: Path, place: Path, whole: dict[str, Any]
) -> None:
    killed(world, place, out="killed", kill={"step": 70}, **WHOLE)
    killed(world, place, out="killed", kill={"substep": 120}, resume=True, **WHOLE)
    killed(world, place, out="killed", kill={"save": 150}, resume=True, **WHOLE)
    assert (place / "killed" / "checkpoint-150").exists()  # but not whole, so that before it is taken
    [broken, result] = answers(
        world, place,
        {"out": "killed", "resume": str(place / "killed/checkpoint-150"), **WHOLE},
        {"out": "killed", "resume": True, **WHOLE},
    )  # fmt: skip
    assert "not saved whole" in broken["refused"]
    assert same_weights(place, "killed", "whole") and history(result) == history(whole)
    assert as_text(run_of(place, "killed")) == as_text(run_of(place, "whole"))
    # Back to an older checkpoint, as after a spike; what the branch that was left did is in the ledger no more.
    [again] = trained(world, place, {"out": "killed", "resume": str(place / "killed/checkpoint-50"), **WHOLE})
    assert same_weights(place, "killed", "whole") and history(again) == history(whole)
    assert as_text(run_of(place, "killed")) == as_text(run_of(place, "whole"))


@slow
def test_what_cannot_go_together_is_refused_in_a_sentence(world: Path, place: Path, whole: dict[str, Any]) -> None:
    shutil.copytree(place / "whole" / "checkpoint-50", place / "plain" / "checkpoint-50")
    (place / "plain" / "checkpoint-50" / "rhostream.pt").unlink()
    shutil.copytree(place / "whole" / "checkpoint-200", place / "broken" / "checkpoint-200")
    (place / "broken" / "checkpoint-200" / "rhostream.pt").write_bytes(b"no")
    cases = {
        "without SelectionTrainer": {"out": "plain", "resume": str(place / "plain/checkpoint-50"), **WHOLE},
        "1 without rhostream.pt": {"out": "plain", "resume": True, **WHOLE},
        "can't be read": {"out": "broken", "resume": True, **WHOLE},
        "split_batches": {"arguments": {"accelerator_config": {"split_batches": True}}},
        "dispatch_batches": {"arguments": {"accelerator_config": {"dispatch_batches": True}}},
        "auto_find_batch_size": {"arguments": {"auto_find_batch_size": True}},
        "weighs": {"options": {"rule": "grad_norm_is"}},
        "learning_rate": {"out": "whole", "resume": True, **WHOLE,
                          "arguments": {**WHOLE["arguments"], "learning_rate": 1.0}},
    }  # fmt: skip
    for part, answer in zip(
        cases, answers(world, place, *({"out": "no", **case} for case in cases.values())), strict=True
    ):
        assert part in answer.get("refused", ""), (part, answer)
    # At its end there is nothing to do, and nothing is undone.
    before = as_text(run_of(place, "whole"))
    trained(world, place, {"out": "whole", "resume": True, **WHOLE})
    assert as_text(run_of(place, "whole")) == before


PLAIN = """
import sys
import rhostream
from transformers import Trainer, TrainingArguments
from rhostream.errors import UsageError
from rhostream.integrations.batches import Batches
from rhostream.integrations.huggingface import SelectionTrainer
from tests.support.trainer_script import model_of

class Prepares(SelectionTrainer):
    def get_train_dataloader(self):
        return (dict(batch) for batch in super().get_train_dataloader())

class OwnLoss(SelectionTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        return model(**inputs).loss

world, args = sys.argv[1], TrainingArguments("plain", use_cpu=True, report_to=[], max_steps=3, disable_tqdm=True)
stream = rhostream.open_stream(world + "/shards", il=world + "/il", buffer_size=40)
run = rhostream.Run("unused", stream, rhostream.Selector(model_of("image"), batch_size=8))
given = {"shards": world + "/shards", "il": world + "/il"}
for make in (
    lambda: Trainer(model_of("image"), args, train_dataset=stream),
    lambda: Trainer(model_of("image"), args, train_dataset=Batches(run)),
    lambda: SelectionTrainer(model_of("image"), args, train_dataset=[1], **given),
    lambda: Prepares(model_of("image"), args, **given),
    lambda: OwnLoss(model_of("image"), args, **given),
):
    try:
        make().train()
        print("nothing was refused")
    except UsageError as exc:
        print(exc)
"""


@slow
def test_a_plain_trainer_or_one_that_goes_around_it_is_refused(world: Path, place: Path) -> None:
    code, out, err = python(["-c", PLAIN, str(world)], place)
    assert code == 0, err[-3000:]
    said = [line for line in out.splitlines() if not line.startswith("{")]
    for line, part in zip(
        said, ("DataLoader", "DataLoader", "leave it out", "another loader", "compute_loss of OwnLoss"), strict=True
    ):
        assert part in line


@slow
def test_an_update_that_is_broken_off_teaches_nothing(world: Path, place: Path) -> None:
    arguments = {**TWO, "max_steps": 60, "save_steps": 20}
    trained(world, place, {"out": "stopped", "stop": {"substep": 30}, "arguments": arguments})
    run = run_of(place, "stopped")
    asked = "SELECT DISTINCT step, reason FROM selections WHERE step >= 29 AND reason <> 'below' ORDER BY ALL"
    assert rows(run, asked) == [{"step": 29, "reason": "kept"}, {"step": 30, "reason": "unapplied"}]
    trained(world, place, {"out": "stopped", "resume": True, "arguments": arguments},
            {"out": "unstopped", "arguments": arguments})  # fmt: skip
    assert same_weights(place, "stopped", "unstopped")
    assert as_text(run_of(place, "stopped")) == as_text(run_of(place, "unstopped"))


@slow
def test_early_stopping_best_model_limit_of_checkpoints_and_epochs_go_on(world: Path, place: Path) -> None:
    [result, epochs] = trained(
        world, place,
        {"out": "early", "patience": 2, "evaluated": True, "arguments": {
            "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "save_total_limit": 2, "learning_rate": 1e-9,
            "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "bf16": True,
            "label_smoothing_factor": 0.1}},
        {"out": "epochs", "evaluated": True, "arguments": {
            "num_train_epochs": 2, "max_steps": -1, "save_strategy": "epoch", "eval_strategy": "epoch"}},
    )  # fmt: skip
    assert result["step"] == 30 and len([*(place / "early").glob("checkpoint-*")]) == 2
    run = run_of(place, "early")
    assert rows(run, "SELECT count(*) AS n FROM steps") == [{"n": 30}]
    assert json.loads((run / "run.json").read_text())["settings"]["precision"] == "bfloat16"
    assert epochs["step"] == 50 and sorted(p.name for p in (place / "epochs").glob("checkpoint-*")) == [
        "checkpoint-25", "checkpoint-50",
    ]  # fmt: skip
    latest = checkpoint.latest(str(run_of(place, "epochs")))
    assert latest is not None and latest.complete
    # Which samples a checkpoint saw.
    state = torch.load(place / "epochs" / "checkpoint-25" / "rhostream.pt", weights_only=True)
    assert state["run"]["step"] == 25


@pytest.fixture(scope="module")
def texts(place: Path) -> Path:
    """text/ and language/: shards/ of sentences and their il/."""
    for task, model in (("text", "text-bag"), ("language", "text-lm")):
        shards = [str(place / task / "shards")]
        make_text_shards(place / task / "shards", [200, 150, 153], labels=task == "text")
        rhostream.fit_il(shards, str(place / task / "m"), model=model, tokenizer="words:100", text_length=16, epochs=1)
        rhostream.compute_il(shards, str(place / task / "m"), str(place / task / "il"))
    return place


@slow
@pytest.mark.parametrize("kind", ["text", "language"])
def test_text_is_learned_by_its_classes_or_by_its_tokens(place: Path, texts: Path, kind: str) -> None:
    arguments = {**TWO, "max_steps": 40, "save_steps": 15, "logging_steps": 1}
    own = {"kind": kind, "arguments": arguments}
    [whole] = trained(texts / kind, place, {"out": f"{kind}-whole", **own})
    killed(texts / kind, place, out=f"{kind}-killed", kill={"step": 33}, **own)
    trained(texts / kind, place, {"out": f"{kind}-killed", "resume": True, **own})
    assert same_weights(place, f"{kind}-killed", f"{kind}-whole")
    run = run_of(place, f"{kind}-killed")
    assert as_text(run) == as_text(run_of(place, f"{kind}-whole"))
    losses = [row["loss"] for row in whole["history"] if "loss" in row]
    assert [row["l"] for row in rows(run, "SELECT loss_kept AS l FROM steps ORDER BY step")] == pytest.approx(
        losses, abs=1e-4
    )
    if kind == "language":  # of text with labels rho keeps those that aren't learned, wrong ones among them: no law
        assert sum(losses[-10:]) < sum(losses[:10])
    assert (
        rows(run, "SELECT max(abs(score - (loss - il))) AS off FROM selections WHERE loss IS NOT NULL")[0]["off"] < 1e-4
    )


@slow
@pytest.mark.parametrize("kind", ["still", "plain"])
def test_pieces_of_unlike_sizes_count_by_their_rows(world: Path, place: Path, kind: str) -> None:
    """A band of il leaves so few candidates that of many buffers fewer than n_b are kept."""
    options = {"stream": {"band": "0%:18%"}}
    results = trained(
        world, place,
        *({"kind": kind, "out": f"{kind}-{name}", "options": options,
           "arguments": {"max_steps": 25, "optim": "sgd", "learning_rate": 0.1, "logging_steps": 1, **more}}
          for name, more in (("one", {"average_tokens_across_devices": False}), ("two", TWO))),
    )  # fmt: skip
    one, two = (run_of(place, f"{kind}-{name}") for name in ("one", "two"))
    kept = "SELECT step, count(*) AS n FROM selections WHERE kept GROUP BY step ORDER BY step"
    counts = {row["n"] for row in rows(two, kept)}
    assert len({n for n in counts if n % 2}) and rows(one, kept) == rows(two, kept)
    first, second = weights(place, f"{kind}-one"), weights(place, f"{kind}-two")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5)
    losses = [[row["loss"] for row in result["history"] if "loss" in row] for result in results]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    for run in (one, two):
        logged = rows(run, "SELECT loss_kept AS l FROM steps WHERE loss_kept IS NOT NULL ORDER BY step")
        assert [row["l"] for row in logged] == pytest.approx(losses[0], abs=1e-3)


def on_two(world: Path, place: Path, dies: bool = False, **asked: Any) -> None:
    told = json.dumps([{"world": str(world), **asked, "out": str(place / asked["out"])}])
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(free_port())}  # fmt: skip
    processes = [started(["-m", "tests.support.trainer_script", told], place, RANK=str(rank), LOCAL_RANK=str(rank),
                         **variables) for rank in range(2)]  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=400)
        assert process.returncode == (-9 if dies else 0), err[-3000:]


@slow
def test_two_ranks_keep_what_one_keeps_and_go_on(world: Path, place: Path) -> None:
    arguments = {"max_steps": 40, "save_steps": 15, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    asked = {"kind": "still", "arguments": arguments}
    on_two(world, place, out="two", **asked)
    trained(world, place, {"out": "one", **asked, "arguments": {**arguments, "per_device_train_batch_size": 4}})
    kept = "SELECT step, key FROM selections WHERE kept ORDER BY ALL"
    assert rows(run_of(place, "two"), kept) == rows(run_of(place, "one"), kept)
    two, one = weights(place, "two"), weights(place, "one")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    on_two(world, place, dies=True, out="two-killed", kill={"step": 33}, **asked)
    on_two(world, place, out="two-killed", resume=True, **asked)
    assert same_weights(place, "two-killed", "two")
    assert as_text(run_of(place, "two-killed")) == as_text(run_of(place, "two"))


@slow
@pytest.mark.filterwarnings("ignore:none of these shards was seen by fit-il")  # a link to them has another name
def test_the_example_trains_with_and_without_its_patch(world: Path, place: Path) -> None:
    folder = place / "example"
    shutil.copytree(EXAMPLE, folder)
    for name in ("shards", "test"):
        (folder / name).symlink_to(world / name)
    rhostream.compute_il([str(folder / "shards")], str(world / "il-model"), str(folder / "il"))
    (folder / "model").mkdir()
    config = {"model_type": "resnet", "num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    names = {"id2label": {str(n): str(n) for n in range(4)}, "label2id": {str(n): n for n in range(4)}}
    (folder / "model" / "config.json").write_text(json.dumps({**config, **names}))
    options = ["train.py", "--max_steps", "30", "--per_device_train_batch_size", "8", "--use_cpu", "--save_steps", "10"]
    code, _, err = python([*options, "--output_dir", "plain"], folder)
    assert code == 0, err[-3000:]
    subprocess.run(["git", "apply", "selection.patch"], cwd=folder, check=True)
    code, out, err = python([*options, "--output_dir", "out"], folder)
    assert code == 0 and "eval_accuracy" in out, err[-3000:]
    assert rows(run_of(folder, "out"), "SELECT count(*) AS n FROM steps") == [{"n": 30}]
