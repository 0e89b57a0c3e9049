"""The paper's CIFAR-10 row (Table 2): epochs of rho and of uniform to 80 and 87.5 %, clean and with 10 % noise.

D is 25,000 training images, the clean holdout the other 25,000; the IL model the small CNN "similar to LeNet", the
target the ResNet-18 of small images, 32 of 320, AdamW as the paper's. An epoch is a pass over D. Of what is left of the
part's time rho gets half and uniform the rest, and their epochs are what they came to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rhostream
from benchmarks.gpu.budget import Clock
from benchmarks.gpu.speed import Found, device
from rhostream.errors import Interrupted
from rhostream.selection.hardware import bf16_supported

PAPER = {  # epochs of Table 2 to (80 %, 87.5 %); None: not reached
    "paper-clean": {"rho": (39, 65)},
    "paper-noise": {"rho": (27, 49)},
}
TARGETS = (0.80, 0.875)
IL_EPOCHS = 20
RECORD = 1 + 3 * 32 * 32  # bytes of an image in CIFAR-10's binary files


def rows(part: str, clock: Clock, toy: bool, work: Path, workers: int, source: Path | None) -> Found:
    """Train rho and uniform for as long as there is time; goes on with what lies in `work`."""
    place = work / f"{part}{'-toy' if toy else ''}{'' if source else '-made-up'}"
    files = source or made_up(work / ("cifar10-toy" if toy else "cifar10"), 320 if toy else 10_000)
    size = 640 if toy else 25_000
    train, holdout, test = (str(place / name) for name in ("train", "holdout", "test"))
    noise = () if part == "paper-clean" else ("--noise", "uniform", "--noise-rate", "0.1")
    _make(
        train, files, "web", "--base", "cifar10", "--copies", "0", *(noise or ("--noise", "none")), "--limit", str(size)
    )
    _make(
        holdout,
        files,
        "web",
        "--base",
        "cifar10",
        "--copies",
        "0",
        "--noise",
        "none",
        "--skip",
        str(size),
        "--limit",
        str(size),
    )
    _make(test, files, "cifar10", "--split", "test", *(("--limit", "320") if toy else ()))
    roots = {"gpu": str(place.resolve())}
    model, table = str(place / "il-model"), str(place / "il")
    if not (place / "il.json").exists():
        fitted = rhostream.fit_il([train], model, holdout=[holdout], roots=roots, model="small-cnn-lenet",
                                  epochs=1 if toy else IL_EPOCHS, augment="shift-flip", workers=workers)  # fmt: skip
        rhostream.compute_il([train], model, table, roots=roots, workers=workers)
        (place / "il.json").write_text(json.dumps({"accuracy": fitted.accuracy, "seconds": clock.spent}))
    il = json.loads((place / "il.json").read_text())
    figures: dict[str, Any] = {"IL model's accuracy on the holdout, labels as given": il["accuracy"],
                               "IL made in, s": il["seconds"]}  # fmt: skip
    stopped = False
    for left, rule in ((2, "rho"), (1, "uniform")):
        curve, whole = _train(rule, place, (train, table, test), roots, clock.left / left, toy, workers)
        stopped |= not whole
        figures[f"{rule}, epochs"] = max(curve, default=0)
        figures[f"{rule}, best accuracy on the test set"] = max(curve.values(), default=None)
        for number, target in enumerate(TARGETS):
            there = PAPER[part].get(rule)
            beside = f" (paper: {there[number]})" if there else ""
            reached = next((epoch for epoch in sorted(curve) if curve[epoch] >= target), None)
            figures[f"{rule}, epochs to {100 * target:g} %"] = f"{reached or 'not reached'}{beside}"
        figures[f"{rule}, accuracy by epoch"] = {str(epoch): round(curve[epoch], 4) for epoch in sorted(curve)}
    says = f"rho took {figures['rho, epochs']} epochs, uniform {figures['uniform, epochs']}, until the time was over"
    return "stopped" if stopped else "done", says if stopped else "both runs came to their end", figures


def _train(
    rule: str, place: Path, of: tuple[str, str, str], roots: dict[str, str], seconds: float, toy: bool, workers: int
) -> tuple[dict[int, float], bool]:
    """{epoch: accuracy} of a run that is stopped, with a commit, when its time is over; whether it came to its end."""
    train, table, test = of
    told, clock = place / f"curve-{rule}.json", Clock(seconds)
    curve: dict[int, float] = {int(k): v for k, v in json.loads(told.read_text()).items()} if told.exists() else {}
    per_epoch = (640 if toy else 25_000) // 320
    fast = "bfloat16" if bf16_supported(device()) and not toy else "float32"

    def watch(row: dict[str, Any]) -> None:
        if (accuracy := row.get("test_accuracy")) is not None:
            curve[(row["step"] + 1) // per_epoch] = accuracy
            told.write_text(json.dumps(curve))
        if not clock.left:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        rhostream.train(
            [train],
            table,
            str(place / f"run-{rule}"),
            roots=roots,
            rule=rule,
            workers=workers,
            model="small-cnn" if toy else "resnet18-small-unpooled",
            augment="flip-shift",
            steps=per_epoch * (2 if toy else 150),
            test_shards=[test],
            eval_every=per_epoch,
            checkpoint_every=10 * per_epoch,
            precision=fast,
            train_precision=fast,
            metrics=watch,
        )
    except Interrupted:
        return curve, False
    return curve, True


def made_up(folder: Path, of_a_file: int) -> Path:
    """Files of CIFAR-10's form whose pictures are a coarse pattern of their class under noise; made once."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    for name in names:
        label = rng.integers(0, 10, of_a_file)
        pixels = 0.35 * pattern[label] + 0.65 * rng.integers(0, 256, (of_a_file, 3, 32, 32))
        records = np.empty((of_a_file, RECORD), np.uint8)
        records[:, 0], records[:, 1:] = label, pixels.astype(np.uint8).reshape(of_a_file, -1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def _make(out: str, source: Path, *asked: str) -> None:
    """Shards by a recipe; the same command finds what is there already."""
    command = [sys.executable, "-m", "shards.make", *asked, "--source", str(source), "--out", out]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {(made.stderr.strip().splitlines() or ['no reason given'])[-1]}")
