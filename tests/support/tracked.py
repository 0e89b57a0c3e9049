"""A run that is stopped between two commits and goes on, shown in a real tracker and read back from it.

    python -m tests.support.tracked NAME WORLD FOLDER        prints {"steps": [...], "loss": {step: value}, ...} as JSON

In an environment that has the tracker's package; everything stays on this machine.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS, STOPPED = 14, 9  # commits at 6 and 12


def run(name: str, world: Path, folder: Path) -> None:
    """Train, stop, train on."""
    from tests.support.small_run import go

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == STOPPED:
            raise KeyboardInterrupt

    more = {"track": f"{name}:rhostream-test", "track_every": 1, "test_shards": str(world / "test"), "eval_every": 7}
    with contextlib.suppress(KeyboardInterrupt):
        go(world, folder, STEPS, metrics=stop, **more)
    go(world, folder, STEPS, **more)


def of_mlflow(folder: Path) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("rhostream-test").experiment_id])
    history = {name: client.get_metric_history(runs[0].info.run_id, name) for name in ("loss_kept", "test_accuracy")}
    return {
        "runs": len(runs), "steps": [m.step for m in history["loss_kept"]],
        "loss": {m.step: m.value for m in history["loss_kept"]},
        "evaluations": [m.step for m in history["test_accuracy"]],
        "config": runs[0].data.params["batch_size"], "summary": runs[0].data.tags["rows/kept"],
        "ended": runs[0].info.status == "FINISHED",
    }  # fmt: skip


def of_trackio(folder: Path) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    names = SQLiteStorage.get_runs("rhostream-test")
    rows = SQLiteStorage.get_logs("rhostream-test", names[0])
    config = SQLiteStorage.get_run_config("rhostream-test", names[0]) or {}
    alerts = SQLiteStorage.get_alerts("rhostream-test", run_name=names[0])
    return {
        "runs": len(names), "steps": [row["step"] for row in rows],
        "loss": {row["step"]: row["loss_kept"] for row in rows},
        "evaluations": [row["step"] for row in rows if "test_accuracy" in row],
        "config": config["batch_size"], "summary": json.loads(alerts[0]["text"])["rows/kept"], "ended": True,
    }  # fmt: skip


def of_wandb(folder: Path) -> dict[str, Any]:
    """From the files that `wandb sync` would send, in the order of the attempts."""
    from wandb.proto import wandb_internal_pb2 as pb

    rows: list[dict[str, Any]] = []
    ids, config, summary, code = set(), {}, {}, None
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: item.value_json for item in record.run.config.update}
            if record.HasField("config"):
                config |= {item.key: item.value_json for item in record.config.update}
            if record.HasField("history"):
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
            if record.HasField("summary"):
                summary |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
            if record.HasField("exit"):
                code = record.exit.exit_code
    return {
        "runs": len(ids), "steps": [row["_step"] for row in rows],
        "loss": {row["_step"]: row["loss_kept"] for row in rows},
        "evaluations": [row["_step"] for row in rows if "test_accuracy" in row],
        "config": config["batch_size"], "summary": summary["rows/kept"], "ended": code == 0,
    }  # fmt: skip


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb: those of LevelDB's log, in blocks of 32 KiB, behind seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""


if __name__ == "__main__":
    tracker, world, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    run(tracker, world, folder)
    print(json.dumps({"mlflow": of_mlflow, "trackio": of_trackio, "wandb": of_wandb}[tracker](folder)))
