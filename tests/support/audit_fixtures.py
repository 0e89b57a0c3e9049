"""A small world for the audit wing: tars, IL parts and runs by the real writers, and the same facts as plain rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import webdataset as wds
from PIL import Image

from rhostream import storage
from rhostream.candidates import Candidates
from rhostream.reasons import Reason
from rhostream.runs import chain, checkpoint
from rhostream.runs.cost import Cost
from rhostream.runs.link import Link
from rhostream.runs.tensors import payload
from rhostream.selection.balance import effective_classes
from rhostream.stream.tar import TarWalk
from rhostream.tables import il, selections, steps
from rhostream.tables.selections import LogWriter
from rhostream.tables.steps import StepsWriter

CLASSES, SHARDS, ROWS = 3, 2, 31
N_B, N_b = 12, 3
KEEP = {"is_noisy": "bool", "true_label": "int", "duplicate_of": "str"}
HOSTILE = [
    "<script>alert(1)</script>",
    "[/red]",
    "=cmd|' /C calc'!A0",
    "@sum(1)",
    "nul\0esc\x1b[31mred\x07",
    "two\nlines\r\ttab",
    "left\u202eright",
    "snow😀é",
    "\"quoted', \\back",
    "{{ 7 * 7 }} {% x %} $\\alpha",
]


@dataclass
class World:
    """Where it all lies, and the rows of the parts as dicts (with shard)."""

    root: Path
    table: Path
    parts: list[dict[str, Any]]
    shards: list[str] = field(default_factory=list)  # names


def png(label: int, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
    pixels[..., label] += 120
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def make_world(root: Path) -> World:
    """Two shards of 31 samples; sample 7 of each can't be used, and the first keys of each are hostile in the part."""
    rng = np.random.default_rng(0)
    world = World(root, root / "il", [])
    info = il.TableInfo(
        kind="il",
        ingredients={"by": "hand"},
        classes=CLASSES,
        keep=KEEP,
        roots={"web": str(root / "shards")},
        model={"accuracy": 0.75, "macs": 10},
    )
    il.make_or_match(str(world.table), info)
    (root / "shards").mkdir(parents=True)
    for s in range(SHARDS):
        name = f"web/train-{s:03d}.tar"
        rows = [_part_row(s, i, rng) for i in range(ROWS)]
        path = root / "shards" / f"train-{s:03d}.tar"
        with wds.TarWriter(str(path), mtime=0) as writer:
            for i, row in enumerate(rows):
                writer.write({"__key__": f"k{s}{i:03d}", "png": png(row["true_label"], rng), "cls": str(row["label"])})
        with storage.open_reader(str(path)) as reader:
            for row, sample in zip(rows, TarWalk(reader, name), strict=True):
                row["members"] = [{"ext": e, "offset": o, "size": n} for e, o, n in sample.members]
        used = sum(len(row["members"]) for row in rows)
        bad = sum(row["status"] != "ok" for row in rows)
        facts = il.PartFacts(
            fingerprint=info.fingerprint,
            kind="il",
            shard=name,
            shard_size=path.stat().st_size,
            shard_tag=str(path.stat().st_mtime_ns),
            samples=ROWS,
            statuses={"decode:broken": bad, "ok": ROWS - bad},
            members_seen=used,
            members_used=used,
            members_ignored=0,
            il_rows=ROWS - bad,
        )
        part = il.encode_part(pa.Table.from_pylist(rows, info.schema), facts)
        storage.create(il.part_url(str(world.table), name), part)
        world.parts += [{**row, "shard": name} for row in rows]
        world.shards.append(name)
    return world


def _part_row(shard: int, i: int, rng: np.random.Generator) -> dict[str, Any]:
    truth, noisy, bad = i % CLASSES, bool(rng.random() < 0.3), i == 7
    label = (truth + 1) % CLASSES if noisy else truth
    return {
        "key": HOSTILE[i] if shard == 0 and i < len(HOSTILE) else f"k{shard}{i:03d}",
        "ordinal": i,
        "label": label,
        "il": None if bad else float(np.float32(rng.uniform(1.5, 4) if noisy else rng.uniform(0, 0.5))),
        "predicted": None if bad else truth,
        "fold": 0,
        "in_holdout": False,
        "members": [],
        "status": "decode:broken" if bad else "ok",
        "error": "truncated" if bad else None,
        "il_tokens": None,
        "is_noisy": None if i == 20 else noisy,
        "true_label": truth,
        "duplicate_of": f"k0{i - 1:03d}" if i % 9 == 1 else None,
    }


def make_rows(world: World, n_steps: int, *, rule: str = "rho", seed: int = 0) -> list[dict[str, Any]]:
    """The log of a run as plain rows: a random plan, a loss that falls, the rule's choice; the last pass has a tail."""
    rng, rows, plan = np.random.default_rng(seed), [], []
    passes = 0
    for step in range(n_steps):
        if len(plan) < N_B:
            rows += [_log_row(p, passes - 1, None, "tail") for p in plan]
            plan, passes = [world.parts[i] for i in rng.permutation(len(world.parts))], passes + 1
        buffer, plan = plan[:N_B], plan[N_B:]
        rows += _buffer(buffer, passes - 1, step, rule, rng)
    return rows


def _buffer(buffer: list[dict[str, Any]], pass_index: int, step: int, rule: str, rng: Any) -> list[dict[str, Any]]:
    rows = [_log_row(p, pass_index, step, "below" if p["status"] == "ok" else "quarantined") for p in buffer]
    usable = [row for row in rows if row["reason"] == "below"]
    if rule == "uniform":
        for at in rng.permutation(len(usable))[:N_b]:
            usable[at] |= {"kept": True, "reason": "kept"}
        return rows
    for row in usable:
        row["loss"] = float(np.float32((row["il"] or 0) + rng.exponential(2.0) * 0.9**step))
        row["score"] = float(np.float32(row["loss"] - row["il"]))
        row["correct"] = bool(row["loss"] < 0.7)
    if step % 5 == 4:  # a bad loss now and then
        usable[0] |= {"loss": float("inf"), "score": float("inf"), "reason": "nonfinite"}
        usable = usable[1:]
    for row in sorted(usable, key=lambda r: -r["score"])[:N_b]:
        row |= {"kept": True, "reason": "kept"}
    return rows


def _log_row(part: dict[str, Any], pass_index: int, step: int | None, reason: str) -> dict[str, Any]:
    return {
        "pass": pass_index,
        "step": step,
        "key": part["key"],
        "shard": part["shard"],
        "ordinal": part["ordinal"],
        "label": part["label"],
        "loss": None,
        "il": part["il"],
        "score": None,
        "correct": None,
        "kept": False,
        "reason": reason,
        "weight": 1.0,
    }


def log_rows(log: LogWriter, rows: list[dict[str, Any]], at_step: int) -> None:
    """Log plain rows as a loop logs its buffers: those of one pass and step together."""
    for (pass_index, step), group in groupby(rows, lambda row: (row["pass"], row["step"])):
        buffer = list(group)
        names = list(dict.fromkeys(row["shard"] for row in buffer))

        def column(name: str, dtype: type, null: Any, buffer: list[dict[str, Any]] = buffer) -> Any:
            return np.array([null if row[name] is None else row[name] for row in buffer], dtype)

        candidates = Candidates(
            pass_index,
            0,
            np.array([names.index(row["shard"]) for row in buffer], np.int32),
            column("ordinal", np.int32, None),
            pa.array([row["key"] for row in buffer], pa.string()),
            torch.from_numpy(column("label", np.int64, -1)),
            torch.from_numpy(column("il", np.float32, np.nan)),
            np.zeros(len(buffer), np.uint8),
            None,
            shard_names=pa.array(names),
        )
        columns = {
            "loss": column("loss", np.float32, np.nan),
            "score": column("score", np.float32, np.nan),
            "correct": column("correct", np.bool_, False),
            "kept": column("kept", np.bool_, None),
            "reason": np.array([Reason[row["reason"]] for row in buffer], np.uint8),
            "weight": column("weight", np.float32, None),
        }
        log.take(candidates, step, columns, at_step)


def make_run(
    world: World,
    url: str,
    rows: list[dict[str, Any]],
    *,
    rule: str = "rho",
    seed: int = 0,
    n_b: int = N_b,
    accuracy: Callable[[int], float] = lambda step: 1 - 0.9 / (step + 2),
    eval_every: int = 2,
    complete: bool = True,
    cut: int = 0,
    bill: dict[str, Any] | None = None,
    **record: Any,
) -> str:
    """A run folder with these log rows, by the real writers; `cut` > 0 makes a checkpoint there too.

    `bill`: what the irreducible loss cost, where it isn't 60 samples fitted and 58 scored.
    """
    cost = Cost(macs=20, il=(bill or {"fit_samples": 60, "scored_samples": 58, "macs": 10}) if rule == "rho" else {})
    settings = {
        "rule": rule,
        "buffer_size": N_B,
        "batch_size": n_b,
        "seed": seed,
        "model": "mlp",
        "smoothing": 2,
        "loss_cap": False,
        "last_step": 1 + max((r["step"] for r in rows if r["step"] is not None), default=0),
    }
    body = {
        "version": 1,
        "settings": settings,
        "fingerprints": {},
        "il": str(world.table),
        "shards": world.shards,
        "shard_urls": [str(world.root / "shards" / n.split("/")[1]) for n in world.shards],
        "roots": {"web": str(world.root / "shards")},
        "il_model": {"accuracy": 0.75},
        "samples": len(world.parts),
    }
    storage.create(storage.join(url, "run.json"), json.dumps({**body, **record}).encode())
    attempt = checkpoint.claim_attempt(url, {})
    log, curve = LogWriter(url, attempt), StepsWriter(url, attempt)
    for step in range(settings["last_step"] if rows else 0):
        now = [r for r in rows if r["step"] == step]
        log_rows(log, now, step)
        kept = sum(r["kept"] for r in now)
        cost.scored += sum(r["loss"] is not None for r in now)
        cost.trained += kept
        tested = (
            {
                "test_accuracy": accuracy(step),
                "test_loss": 1.0,
                "test_samples": 99,
                "class_accuracy": [accuracy(step), accuracy(step) / 2, None],
            }
            if (step + 1) % eval_every == 0
            else {}
        )
        curve.append(
            {
                "step": step,
                "pass": 0,
                "kept": kept,
                "effective_classes": effective_classes(np.array([r["label"] for r in now if r["kept"]])),
                "effective_classes_uniform": 2.5,
                "forward_units": cost.forward_units,
                "seconds_wait": 0.5,
                "seconds_train": 0.25,
                **tested,
            }
        )
        if step + 1 == cut:
            _commit(url, step + 1, attempt, False, log, curve, cost)
    tails = [r for r in rows if r["step"] is None]
    if tails:
        log_rows(log, tails, settings["last_step"])
    if rows:
        cost.seconds = {"wait": 1.5, "score": 2.0, "train": 3.0}
        _commit(url, settings["last_step"], attempt, complete, log, curve, cost)
    return url


def _commit(url: str, step: int, attempt: int, complete: bool, log: Any, curve: Any, cost: Cost) -> None:
    before = chain.head(url)
    link = Link(
        step=step,
        pass_index=0,
        buffer=step,
        attempt=attempt,
        complete=complete,
        number=0 if before is None else before.number + 1,
        previous=None if before is None else before.place,
        whole=before is None,
        log=log.flush(),
        steps=curve.flush(),
        cost=cost.as_json(),
    )
    chain.commit(url, chain.save_files(url, link, payload({"w": torch.zeros(2)}, {})))


def columns_of(view: str) -> list[str]:
    """What a view must show, whatever it holds."""
    return {
        "selections": [*selections.WITH_SOURCE.names, "run"],
        "steps": [*steps.SCHEMA.names, "run", "seconds"],
        "il": [*il.SCHEMA.names, *sorted(KEEP), "shard"],
        "samples": ["shard", "ordinal", "key", "label", *sorted(KEEP)],
        "quarantine": ["shard", "ordinal", "key", "status", "error"],
    }[view]
