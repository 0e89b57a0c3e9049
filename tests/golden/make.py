"""Golden folders: what one version of rhostream left behind, kept so that every later one can still read it.

    PYTHONPATH=<checkout of that version> python tests/golden/make.py tests/golden/NAME.tar.gz

Shards, IL models, tables and runs that were killed in the middle of a pass (one commit, and a step that no commit
knows of). Each run was then taken to its end in a copy: `expected.json` holds what that version kept in every step,
and the values of each table. A version makes what it knows how to make: the rest is left out.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

SIDE, CLASSES, SAMPLES, SHARDS = 16, 3, 48, 2
STEPS, COMMIT_EVERY, KILLED_AT = 12, 2, 3  # a pass has six steps
TRAIN: dict[str, Any] = {
    "model": "tests.golden.make:tiny",
    "buffer_size": 16,
    "batch_size": 4,
    "device": "cpu",
    "threads": 1,
    "checkpoint_every": COMMIT_EVERY,
    "keep_checkpoints": 1,
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]

RUNS: dict[str, dict[str, Any]] = {
    "rho": {"il": "cross-fit", "model": "mlp-64"},
    "loss": {"il": "index", "rule": "loss"},
    "holdout": {"il": "fraction"},
    "band": {"il": "cross-fit", "band": "10%:90%"},
    "proxy": {"il": "cross-fit", "shortlist": "proxy:2", "proxy_model": "mlp-64"},
    "uniform": {"il": "cross-fit", "rule": "uniform"},
    "warm-up": {"il": "cross-fit", "warm_up": 4},
    "augment": {"il": "cross-fit", "augment": "flip-shift"},
    "importance": {"il": "cross-fit", "rule": "grad_norm_is"},
    "gumbel": {"il": "cross-fit", "gumbel": 0.1},
    "shadow": {"il": "cross-fit", "shadow": "loss,uniform,grad_norm_is"},
    "live-il": {"il": "cross-fit", "rule": "rho_updated"},
    "float16": {"il": "float16"},
    "temperature": {"il": "temperature"},
    "language": {"il": "language", "model": "text-lm", "token_share": 0.5},
    "two-ranks": {"il": "cross-fit", "ranks": 2},
}
TABLES: dict[str, dict[str, Any]] = {
    "cross-fit": {"fit": {}},
    "fraction": {"fit": {"holdout_fraction": 0.3}},
    "holdout": {"fit": {"holdout": "holdout"}},
    "float16": {"fit": {}, "il_dtype": "float16"},
    "temperature": {"fit": {"temperature": True, "epochs": 40}},
    "language": {"fit": {"model": "text-lm", "tokenizer": "words:30", "text_length": 8}, "shards": "texts"},
}


def tiny(classes: int) -> Any:
    """A user's own model, small enough for its checkpoints to be kept."""
    from torch import nn

    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, classes))


def samples(seed: int, count: int) -> list[tuple[str, dict[str, bytes]]]:
    """(key, members): a bright stripe that tells the class, a fifth of the labels wrong."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        label = int(rng.integers(CLASSES))
        pixels = rng.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
        pixels[4 * label : 4 * label + 6] += 120
        noisy = bool(rng.random() < 0.2)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        made.append(
            (
                f"k{number:04d}",
                {
                    "png": sink.getvalue(),
                    "cls": str((label + noisy) % CLASSES).encode(),
                    "json": json.dumps({"is_noisy": noisy}).encode(),
                },
            )
        )
    return made


def texts(seed: int, count: int) -> list[tuple[str, dict[str, bytes]]]:
    rng = np.random.default_rng(seed)
    return [(f"t{n:04d}", {"txt": " ".join(rng.choice(WORDS, int(rng.integers(3, 8)))).encode()}) for n in range(count)]


def write_shard(path: Path, rows: list[tuple[str, dict[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in rows:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_shards(root: Path) -> None:
    for shard in range(SHARDS):
        write_shard(root / "shards" / f"{shard}.tar", samples(shard, SAMPLES))
        write_shard(root / "texts" / f"{shard}.tar", texts(shard, SAMPLES))
    write_shard(root / "holdout" / "0.tar", samples(99, SAMPLES))


def make_table(root: Path, name: str) -> dict[str, Any]:
    """Fit and score; returns il by shard name, as a reader sees it."""
    import rhostream

    asked = {**TABLES[name]} if name != "index" else {}
    shards, keep = [str(root / asked.pop("shards", "shards"))], {} if name == "language" else {"is_noisy": "bool"}
    roots = {"golden": str(root)}
    if name == "index":
        rhostream.index(shards, str(root / "tables" / name), roots=roots)
    else:
        fit = {"model": "mlp-64", "epochs": 4, "lr": 1e-2, **asked.pop("fit")}
        if "holdout" in fit:
            fit["holdout"] = [str(root / fit["holdout"])]
        model = str(root / "models" / name)
        rhostream.fit_il(shards, model, roots=roots, seed=0, **fit)
        rhostream.compute_il(shards, model, str(root / "tables" / name), roots=roots, keep=keep, **asked)
    return table_values(root / "tables" / name)


def table_values(table: Path) -> dict[str, Any]:
    """Of every part: il (null where there is none), fold and status, row by row."""
    found = {}
    for part in sorted((table / "parts").rglob("*.parquet")):
        with pq.ParquetFile(part) as file:
            columns = {name: file.read(columns=[name]).column(0).to_pylist() for name in ("il", "fold", "status")
                       if name in file.schema_arrow.names}  # fmt: skip
        found[str(part.relative_to(table))] = columns
    return found


def train(root: Path, name: str, steps: int, killed_at: int | None = None, run: str | None = None) -> None:
    """Take the run to `steps`, or as far as its death, in processes of its own."""
    asked = {**TRAIN, **RUNS[name]}
    ranks = asked.pop("ranks", 1)
    code = f"from tests.golden.make import run_one; run_one({str(root)!r}, {name!r}, {steps}, {killed_at}, {run!r})"
    here = str(Path(__file__).parent.parent.parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in (os.environ.get("PYTHONPATH", ""), here) if p),
    }
    if ranks > 1:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port)}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {})},
        )
        for r in range(ranks)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    codes = [process.returncode for process in started]
    expected = {-signal.SIGKILL} if killed_at is not None else {0}
    if not expected & {*codes} or (killed_at is None and {*codes} != {0}):
        raise RuntimeError(f"{name}: exit codes {codes}: {said[0][-2000:]}")


def run_one(root: str, name: str, steps: int, killed_at: int | None, run: str | None) -> None:
    """One process of `train`; killed by itself once the log knows of step `killed_at`."""
    import rhostream

    asked = {**TRAIN, **RUNS[name]}
    asked.pop("ranks", 1)
    table = Path(root, "tables", asked.pop("il"))

    def note(row: dict[str, Any]) -> None:
        if killed_at is not None and row["step"] >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    shards = Path(root, "texts" if name == "language" else "shards")
    more = {"roots": {"golden": root}} if not (table / "_table.json").exists() else {}
    rhostream.train(
        [str(shards)], str(table), run or str(Path(root, "runs", name)), steps=steps, metrics=note, **asked, **more
    )


def decisions(run: Path) -> dict[str, list[list[Any]]]:
    """Step -> the kept samples, [shard, ordinal] in order, of every step that the newest checkpoint names."""
    import rhostream

    kept: dict[str, list[list[Any]]] = {}
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("select step, shard, ordinal from selections where kept order by 1, 2, 3")
    for row in rows.to_pylist():
        kept.setdefault(str(row["step"]), []).append([row["shard"], row["ordinal"]])
    return kept


def main(out: str) -> None:
    """Make all that this version can, and pack it."""
    expected: dict[str, Any] = {"tables": {}, "runs": {}, "left_out": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "golden")
        make_shards(root)
        for name in ("index", *TABLES):
            try:
                expected["tables"][name] = make_table(root, name)
            except Exception as exc:
                expected["left_out"][f"tables/{name}"] = f"{type(exc).__name__}: {exc}"[:200]
                shutil.rmtree(root / "models" / name, ignore_errors=True)
                shutil.rmtree(root / "tables" / name, ignore_errors=True)
        for name in RUNS:
            try:
                train(root, name, STEPS, KILLED_AT)
                copy = Path(folder, "copies", name)
                shutil.copytree(root / "runs" / name, copy)
                train(root, name, STEPS, run=str(copy))
                expected["runs"][name] = decisions(copy)
            except Exception as exc:
                expected["left_out"][f"runs/{name}"] = f"{type(exc).__name__}: {exc}"[-300:]
                shutil.rmtree(root / "runs" / name, ignore_errors=True)
        (root / "expected.json").write_text(json.dumps(expected, sort_keys=True))
        with tarfile.open(out, "w:gz", compresslevel=9) as tar:
            tar.add(root, "golden", filter=_plain)
    print(json.dumps(expected["left_out"], indent=1))
    print({name: len(steps) for name, steps in expected["runs"].items()}, os.path.getsize(out))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main(sys.argv[1])
