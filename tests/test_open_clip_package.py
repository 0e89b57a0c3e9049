"""open_clip itself: its main.py with four lines more, killed, resumed and rolled back; its loop on two ranks.

In an environment of its own (tests/support/environments.py), the model tiny, the pairs of the recipe captions.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import runpy
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rhostream
from rhostream.audit.verify import verify
from rhostream.runs import checkpoint
from shards.make import make as make_recipe
from tests.support import environments
from tests.support import recipe_sources as sources
from tests.support.logs import ask, log_of
from tests.support.ranks import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATCH = Path(__file__).parents[1] / "examples" / "open_clip" / "main.patch"
TINY = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}
OPTIONS = [
    "--train-data", "shards", "--model", "local-dir:tiny", "--batch-size", "16", "--epochs", "2", "--workers", "1",
    "--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--warmup", "2", "--device", "cpu",
    "--precision", "fp32", "--grad-clip-norm", "1.0", "--log-every-n-steps", "1", "--name", "tiny",
]  # fmt: skip
STEPS = 7  # of an epoch: 600 pairs, 80 a buffer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as somebody works in it: open_clip_train/ with the patch, a model's config, shards/ and their il/."""
    if why := environments.make("open-clip"):
        pytest.skip(f"open_clip's environment can't be made here: {why}")
    folder, rng = tmp_path_factory.mktemp("open-clip"), np.random.default_rng(0)
    for prefix, count in (("train", 600), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for what, values in (("images-idx3", images), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            path = folder / "fashion" / f"{prefix}-{what}-ubyte.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(sources.idx(values), 1))
    shards = str(folder / "shards")
    make_recipe("captions", shards, source=folder / "fashion", samples_per_shard=200)
    rhostream.fit_il([shards], str(folder / "il-model"), model="pair-small", content="pair", loss="clip", epochs=1,
                     workers=0, image_size=28, channels=3)  # fmt: skip
    rhostream.compute_il([shards], str(folder / "il-model"), str(folder / "il"), workers=0)
    (folder / "tiny").mkdir()
    (folder / "tiny" / "open_clip_config.json").write_text(json.dumps(TINY))
    package = Path(python("import open_clip_train; print(open_clip_train.__path__[0])", folder))
    shutil.copytree(package, folder / "open_clip_train", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", str(PATCH)], cwd=folder, check=True, capture_output=True)
    return folder


def started(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{environments.ROOT}", **variables}
    return subprocess.Popen([environments.python("open-clip"), *arguments], cwd=folder, env=told, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def python(code: str, folder: Path) -> str:
    process = started(["-c", code], folder)
    said = process.communicate(timeout=200)[0].strip()
    assert process.returncode == 0, said
    return said.splitlines()[-1]


def main(folder: Path, logs: str, *more: str) -> str:
    process = started(["-m", "open_clip_train.main", *OPTIONS, "--logs", logs, *more], folder)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    return said


def saved(folder: Path, logs: str, epoch: int) -> dict[str, Any]:
    return dict(torch.load(folder / logs / "tiny" / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True))


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    moments = [[list(state.values()) for state in c["optimizer"]["state"].values()] for c in (one, other)]
    return all(torch.equal(one["state_dict"][n], other["state_dict"][n]) for n in one["state_dict"]) and all(
        torch.equal(a, b) for first, second in zip(*moments, strict=True) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """Two epochs without an interruption."""
    main(place, "whole")
    return place / "whole" / "tiny" / "rhostream"


def blocks(language: str) -> list[str]:
    """Those of openclip.md with <!-- run by tests/test_open_clip_package.py -->."""
    text = (environments.ROOT / "docs" / "openclip.md").read_text(encoding="utf-8")
    mark = f"<!-- run by tests/test_open_clip_package.py -->\n```{language}\n"
    return [part.partition("```")[0] for part in text.split(mark)[1:]]


def test_the_patch_has_the_four_lines_of_the_page() -> None:
    changed = [line for line in PATCH.read_text().splitlines() if re.match(r"[+-](?!\+\+|--)", line)]
    assert changed == blocks("diff")[0].splitlines() and len(changed) == 4


def test_what_the_page_asks_of_a_table_and_of_a_checkpoint_is_answered(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    best, seen = blocks("python")
    saw = seen.replace("epoch_1.pt", "whole/tiny/checkpoints/epoch_1.pt").replace("logs/rho", "whole/tiny")
    monkeypatch.chdir(place)
    for name, block in (("best.py", best), ("seen.py", saw)):
        (tmp_path / name).write_text(block)
    assert len(runpy.run_path(str(tmp_path / "best.py"))["best"]) == 180
    assert len(runpy.run_path(str(tmp_path / "seen.py"))["seen"]) == 16 * STEPS


def test_their_main_trains_on_what_is_kept_and_the_ledger_is_whole(place: Path, whole: Path) -> None:
    latest = checkpoint.latest(str(whole))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == 2 * STEPS
    assert verify(str(whole))["problems"] == []
    assert ask(whole, "SELECT pass, count(*) AS n, count(DISTINCT (shard, ordinal)) AS d, count(*) FILTER (kept) AS k "
                      "FROM selections GROUP BY pass ORDER BY pass") == [
        {"pass": n, "n": 600, "d": 600, "k": 16 * STEPS} for n in (0, 1)
    ]  # fmt: skip
    state = saved(place, "whole", 1)["optimizer"]
    assert {float(one["step"]) for one in state["state"].values()} == {STEPS} == {state["rhostream"]["updates"]}
    scored = ask(whole, "SELECT max(abs(score - (loss - il))) AS off FROM selections WHERE loss IS NOT NULL")
    assert scored[0]["off"] < 1e-4


def test_killed_within_an_epoch_their_resume_latest_goes_on_bit_for_bit(place: Path, whole: Path) -> None:
    process = started(["-m", "open_clip_train.main", *OPTIONS, "--logs", "killed"], place)
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(r"Train Epoch: 1 .*[34]\d%", line):
            break
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -9
    main(place, "killed", "--resume", "latest")
    assert equal(saved(place, "killed", 2), saved(place, "whole", 2))
    run = place / "killed" / "tiny" / "rhostream"
    assert log_of(run) == log_of(whole) and verify(str(run))["problems"] == []
    # Back from the end to the first epoch's checkpoint, as after a spike.
    (place / "killed" / "tiny" / "checkpoints" / "epoch_2.pt").unlink()
    main(place, "killed", "--resume", "latest")
    assert equal(saved(place, "killed", 2), saved(place, "whole", 2)) and log_of(run) == log_of(whole)


def test_the_most_recent_checkpoint_brings_back_its_own_step(place: Path, whole: Path) -> None:
    """With --save-most-recent; the process ends between the log of an epoch and its checkpoint."""
    only = ["--save-frequency", "0", "--save-most-recent", "--train-num-samples", "64"]
    process = started(["-m", "open_clip_train.main", *OPTIONS, "--logs", "recent", *only, "--epochs", "4"], place)
    assert process.stdout is not None
    for line in process.stdout:
        if "Start epoch 2" in line:
            break
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=60)
    main(place, "recent", *only, "--epochs", "4", "--resume", "latest")
    run = place / "recent" / "tiny" / "rhostream"
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and latest.step == 16 and verify(str(run))["problems"] == []
    assert ask(run, "SELECT count(*) AS n, count(DISTINCT step) AS s FROM selections WHERE kept") == [
        {"n": 256, "s": 16}
    ]


@pytest.mark.parametrize("precision", ["amp", "amp_bf16", "pure_bf16"])
def test_scores_are_made_in_their_precision(place: Path, precision: str) -> None:
    main(place, precision, "--epochs", "1", "--precision", precision)
    run = place / precision / "tiny" / "rhostream"
    assert (
        verify(str(run))["problems"] == [] and len(ask(run, "SELECT * FROM steps WHERE loss_candidates > 0")) == STEPS
    )


def test_plain_open_clip_goes_on_from_a_checkpoint_of_ours(place: Path, whole: Path) -> None:
    code = f"""
import torch, open_clip
model = open_clip.create_model("local-dir:tiny")
optimizer = torch.optim.AdamW([{{"params": [p for p in model.parameters() if p.ndim < 2]}},
                               {{"params": [p for p in model.parameters() if p.ndim > 1]}}])
saved = torch.load({str(place / "whole/tiny/checkpoints/epoch_1.pt")!r}, weights_only=True)
model.load_state_dict(saved["state_dict"])
optimizer.load_state_dict(saved["optimizer"])
print("rhostream" in optimizer.state_dict())
"""
    assert python(code, place) == "False"


LOOP = """
import logging, sys
import torch
import torch.distributed as dist
from open_clip import create_loss, create_model
from open_clip_train.params import parse_args
from open_clip_train.train import train_one_epoch
from rhostream.integrations.open_clip import OpenClipData
from rhostream.runs.state import unwrapped

logging.basicConfig(level=logging.ERROR)
args = parse_args([*{options!r}, "--accum-freq", "2", "--batch-size", "8", *sys.argv[1:]])
args.distributed, args.distill, args.wandb, args.save_logs = True, False, False, True
dist.init_process_group("gloo")
args.rank, args.world_size, args.local_rank = dist.get_rank(), dist.get_world_size(), dist.get_rank()
torch.manual_seed(0)
model = create_model(args.model, output_dict=True)
start = 0
if args.resume:
    saved = torch.load(args.resume, weights_only=True)
    start = saved["epoch"]
    model.load_state_dict(saved["state_dict"])
model = torch.nn.parallel.DistributedDataParallel(model) if args.world_size > 1 else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
if args.resume:
    optimizer.load_state_dict(saved["optimizer"])
data = {{"train": OpenClipData(args, model, optimizer, shards="shards", il="il", run=args.logs + "/run")}}
for epoch in range(start, args.epochs):
    train_one_epoch(model, data, create_loss(args), epoch, optimizer, None, lambda step: None, None, args)
    if args.rank == 0:
        state = {{"state_dict": unwrapped(model).state_dict(), "optimizer": optimizer.state_dict()}}
        torch.save({{"epoch": epoch + 1, **state}}, f"{{args.logs}}/epoch_{{epoch + 1}}.pt")
    dist.barrier()
data["train"].confirm()
dist.destroy_process_group()
"""


def on_ranks(folder: Path, ranks: int, *more: str) -> None:
    variables = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code = LOOP.format(options=OPTIONS)
    processes = [started(["-c", code, *more], folder, RANK=str(rank), **variables) for rank in range(ranks)]
    for process in processes:
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said


def test_their_loop_on_two_ranks_with_accumulation_keeps_what_one_keeps_and_goes_on(place: Path) -> None:
    more = ["--gather-with-grad", "--local-loss"]
    for name in ("one", "two"):
        (place / name).mkdir()
    on_ranks(place, 2, *more, "--logs", "two")
    on_ranks(place, 1, "--logs", "one", "--batch-size", "16")
    two = place / "two" / "run"
    assert verify(str(two))["problems"] == []
    kept = "SELECT step, shard, ordinal FROM selections WHERE kept ORDER BY ALL"
    assert ask(two, "SELECT count(*) AS n FROM selections WHERE kept") == [{"n": 32 * 2 * 3}]
    whole = ask(two, kept)
    before = torch.load(place / "two" / "epoch_2.pt", weights_only=True)["state_dict"]
    on_ranks(place, 2, *more, "--logs", "two", "--resume", "two/epoch_1.pt")
    after = torch.load(place / "two" / "epoch_2.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before) and ask(two, kept) == whole
    one = torch.load(place / "one" / "epoch_2.pt", weights_only=True)["state_dict"]
    for name, tensor in one.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-2, atol=1e-3)
    # On one rank from the checkpoint of two: the same rows but for noise in their scores.
    on_ranks(place, 1, "--logs", "two", "--batch-size", "16", "--resume", "two/epoch_1.pt")
    again = ask(two, kept)
    assert len(again) == len(whole) and verify(str(two))["problems"] == []
    assert sum(row in whole for row in again) >= 0.95 * len(whole)
