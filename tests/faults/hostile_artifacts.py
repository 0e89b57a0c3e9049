"""Artifacts from a stranger: IL models, tables, runs and keep-lists that are consistent and lie.

Each begins as a real one, made by the product, and is changed in one place with every checksum made right again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rhostream
from rhostream.tables import parquet
from tests.faults.hostile_samples import evil, torch_zip
from tests.faults.hostile_tars import GOOD_PNG, tar_of

# ruff: noqa: E501
EVIL_MODULE = "hostile_code"  # a module that lies beside a model and makes the canary when it is imported


def make_real(folder: Path) -> None:
    """A small shard, its IL model, table and run."""
    members = [(f"{i:03d}.{e}", d) for i in range(60) for e, d in (("png", GOOD_PNG), ("cls", b"%d" % (i % 4)))]
    (folder / "a.tar").write_bytes(tar_of(members))
    shards, roots = [str(folder / "a.tar")], {"r": str(folder)}
    rhostream.fit_il(shards, str(folder / "model"), model="mlp-64", epochs=1, roots=roots)
    rhostream.compute_il(shards, str(folder / "model"), str(folder / "table"), roots=roots)
    rhostream.train(
        shards,
        str(folder / "table"),
        str(folder / "run"),
        model="mlp-64",
        buffer_size=8,
        batch_size=2,
        steps=4,
        roots=roots,
    )


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A JSON file after `change`; what it returns, where not None, is the whole new record."""
    record = json.loads(path.read_bytes())
    new = change(record)
    path.write_text(json.dumps(record if new is None else new), encoding="utf-8")


def part_of(table: Path) -> Path:
    """The one part."""
    return next(table.rglob("*.parquet"))


def forge_part(table: Path, change: Callable[[pa.Table, dict[str, Any]], pa.Table]) -> None:
    """The part after `change` of its rows and footer, its own digest right."""
    path = part_of(table)
    rows = pq.read_table(path)
    facts = json.loads(rows.schema.metadata[b"rhostream"])
    path.write_bytes(parquet.encode(change(rows, facts), facts, {}, []))


def replaced(rows: pa.Table, name: str, values: Any) -> pa.Table:
    """The rows with another column of that name."""
    column = pa.array(values, rows.schema.field(name).type)
    return rows.set_column(rows.schema.get_field_index(name), name, column)


def members_at(rows: pa.Table, offset: int, size: int) -> pa.Table:
    """Every member at that place."""
    return replaced(rows, "members", [[{"ext": "png", "offset": offset, "size": size}]] * len(rows))


def lying_safetensors() -> dict[str, bytes]:
    """Headers that promise what isn't there."""

    def of(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + body

    entry = '{"0.weight":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
    return {
        "length-2^63": of(b"{}", 2**63), "length-8gb": of(b"{}", 8 << 30), "empty": b"", "no-json": of(b"[[[["),
        "shape-2^60": of((entry % (f"{2**60},{2**60}", "0,16")).encode(), body=bytes(16)),
        "offsets-beyond": of((entry % ("4", "0,99999999")).encode(), body=bytes(16)),
        "offsets-backwards": of((entry % ("4", "16,0")).encode(), body=bytes(16)),
        "deep": of(b'{"__metadata__":' + b"[" * 100_000),
        "other-tensors": of((entry % ("4", "0,16")).encode(), body=bytes(16)),
    }  # fmt: skip


def models(canary: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, what is done to a copy of the IL model)."""

    def record(**fields: Any) -> Callable[[Path], None]:
        return lambda folder: rewritten(folder / "model.json", lambda r: r.update(fields))

    def weights(name: str) -> Callable[[Path], None]:
        return lambda folder: rewritten(folder / "model.json", lambda r: r["folds"][0].update(weights=name))

    def code(folder: Path) -> None:
        (folder / f"{EVIL_MODULE}.py").write_text(f"open({canary!r}, 'w').close()\n", encoding="utf-8")
        record(architecture=f"{EVIL_MODULE}:make")(folder)

    def bytes_of(data: bytes) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            (folder / "fold-0.safetensors").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            rewritten(folder / "model.json", lambda r: r["folds"][0].update(sha256=digest))

        return change

    yield "names-code", code
    yield "names-os-system", record(architecture="os:system")
    yield "architecture-a-list", record(architecture=["mlp-64"])
    for name in ("../../../etc/passwd", "/etc/passwd", "..", "a/b.safetensors", "pipe:id", ".hidden", "x\0y", ""):
        yield f"weights-{name!r}", weights(name)
    yield "image-size-10^9", record(preprocess={"image_size": 10**9, "channels": 3, "mean": [0.5], "std": [0.5]})
    yield "std-zero", record(preprocess={"image_size": 16, "channels": 3, "mean": [0.5], "std": [0.0]})
    yield "channels-10^6", record(preprocess={"image_size": 16, "channels": 10**6, "mean": [0.5], "std": [0.5]})
    yield "classes-10^12", record(classes=10**12)
    yield "classes-negative", record(classes=-1)
    yield "no-folds", record(folds=[])
    yield "million-folds", record(folds=[{"weights": "fold-0.safetensors", "sha256": "0"}] * 100_000)
    yield "split-strange", record(split={"mode": "__import__", "folds": 2, "seed": 0})
    yield "decoder-strange", record(decoder="os:system")
    yield "version-2", record(version=2)
    yield "temperature-zero", record(temperature=[0.0, 1.0])
    yield "temperature-text", record(temperature="1,1")
    yield "temperature-10^9", record(temperature=[1e9, 1e9])
    yield "quality-empty-bins", record(quality={"reliability": {"count": [], "ece": 0}})
    yield "quality-a-list", record(quality=["x"])
    yield "checkpoint-outside", record(checkpoints=[{"folder": "../../../etc"}])
    yield "checkpoints-number", record(checkpoints=7)
    yield "unknown-field", record(__class__="x")
    yield "deep-json", lambda folder: (folder / "model.json").write_bytes(b"[" * 100_000) and None
    yield "a-list", lambda folder: (folder / "model.json").write_bytes(b"[]") and None
    yield "pickle", bytes_of(evil(canary))
    yield "torch-zip", bytes_of(torch_zip(canary))
    for name, data in lying_safetensors().items():
        yield f"safetensors-{name}", bytes_of(data)


def tables() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, what is done to a copy of the table)."""

    def info(**fields: Any) -> Callable[[Path], None]:
        return lambda table: rewritten(table / "_table.json", lambda r: r.update(fields))

    def part(change: Callable[[pa.Table, dict[str, Any]], pa.Table]) -> Callable[[Path], None]:
        return lambda table: forge_part(table, change)

    def facts(**fields: Any) -> Callable[[Path], None]:
        return part(lambda rows, footer: footer.update(fields) or rows)

    def row_bomb(rows: pa.Table, footer: dict[str, Any]) -> pa.Table:
        n = 5_000_000
        footer.update(samples=n, statuses={"ok": n}, shard_size=1 << 60)
        same = pa.RecordBatch.from_pydict({name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), rows[name].combine_chunks(
            )[:1]) for name in ("key", "status")})  # fmt: skip
        return pa.table({"ordinal": pa.array(np.zeros(n, np.int32)), **{k: same.column(k) for k in ("key", "status")}})

    yield "kind-strange", info(kind="__import__")
    yield "keep-strange", info(keep={"x": "os:system"})
    yield "keep-a-list", info(keep=["x"])
    yield "classes-10^12", info(classes=10**12)
    yield "preprocess-10^9", info(preprocess={"image_size": 10**9, "channels": 3, "mean": [0.5], "std": [0.5]})
    yield "preprocess-a-list", info(preprocess=[1])
    yield "il-dtype-strange", info(ingredients={"il_dtype": "os:system"})
    yield "il-dtype-a-list", info(ingredients={"il_dtype": ["float16"]})
    yield "quality-text", info(model={"quality": "x"})
    yield "roots-numbers", info(roots={"r": 5})
    yield "roots-pipe", info(roots={"r": "pipe:touch x"})
    yield "version-99", info(version=99)
    yield "unknown-field", info(evil=1)
    yield "deep-json", lambda table: (table / "_table.json").write_bytes(b'{"a":' * 100_000) and None
    yield "members-8tb", part(lambda rows, _: members_at(rows, 0, 8 << 40))
    yield "members-negative-offset", part(lambda rows, _: members_at(rows, -512, 16))
    yield "members-negative-size", part(lambda rows, _: members_at(rows, 0, -1))
    yield "members-overflow", part(lambda rows, _: members_at(rows, 2**63 - 1, 2**63 - 1))
    yield "members-beyond-the-end", part(lambda rows, _: members_at(rows, 10**6, 16))
    yield "labels-minus-100", part(lambda rows, _: replaced(rows, "label", [-100] * len(rows)))
    yield "labels-beyond", part(lambda rows, _: replaced(rows, "label", [2**31 - 1] * len(rows)))
    yield "il-nan", part(lambda rows, _: replaced(rows, "il", [float("nan")] * len(rows)))
    yield "ordinals-strange", part(lambda rows, _: replaced(rows, "ordinal", [2**31 - 1] * len(rows)))
    yield "column-missing", part(lambda rows, _: rows.drop(["members"]))
    yield "column-of-another-type", part(lambda rows, _: rows.set_column(5, "il", pa.array(["x"] * len(rows))))
    yield "members-of-another-type", part(lambda rows, _: rows.set_column(2, "members", pa.array(["x"] * len(rows))))
    yield "samples-2^62", facts(samples=2**62)
    yield "samples-negative", facts(samples=-1)
    yield "samples-text", facts(samples="60")
    yield "statuses-a-list", facts(statuses=["ok"])
    yield "fingerprint-other", facts(fingerprint="0" * 16)
    yield "shard-elsewhere", facts(shard="/etc/passwd")
    yield "version-part-99", facts(version=99)
    yield "footer-unknown-field", facts(evil=1)
    yield "rows-5-million", part(row_bomb)
    yield "part-no-parquet", lambda table: part_of(table).write_bytes(b"PAR1" + b"\xff" * 4096 + b"PAR1") and None
    yield "part-footer-length", lambda table: part_of(table).write_bytes(b"PAR1" + b"\xff\xff\xff\x7fPAR1") and None
    yield "part-foreign", lambda table: pq.write_table(pa.table({"key": ["a"]}), part_of(table))
    yield "part-html", lambda table: part_of(table).write_bytes(b"<html>" * 1000) and None


def newest_link(run: Path) -> Path:
    """The commit that the run is read by."""
    return max((run / "commits").rglob("*.json"))


def runs(canary: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, what is done to a copy of the run)."""

    def point(**fields: Any) -> Callable[[Path], None]:
        return lambda run: rewritten(newest_link(run), lambda r: r.update(fields))

    def tensors(name: str, data: bytes) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            path = next(run.rglob(name))
            path.write_bytes(data)
            digest, key = hashlib.sha256(data).hexdigest(), str(path.relative_to(run))
            rewritten(newest_link(run), lambda r: r["files"].update({key: digest}))

        return change

    def record(**fields: Any) -> Callable[[Path], None]:
        return lambda run: rewritten(run / "run.json", lambda r: r.update(fields))

    segment = {"path": "../../../../etc/passwd", "rows": 1, "bytes": 1, "sha256": ""}
    yield "optimizer-pickle", tensors("optimizer.pt", evil(canary))
    yield "optimizer-torch-zip", tensors("optimizer.pt", torch_zip(canary))
    yield "model-pickle", tensors("model.safetensors", evil(canary))
    for name, data in lying_safetensors().items():
        yield f"model-{name}", tensors("model.safetensors", data)
    yield "segment-outside", point(log=[segment])
    yield "segment-absolute", point(log=[{**segment, "path": "/etc/passwd"}])
    yield "segment-no-path", point(log=[{}])
    yield "log-text", point(log="x")
    yield "files-outside", point(files={"../../etc/passwd": "0" * 64})
    yield "files-a-list", point(files=[])
    yield "step-text", point(step="4; DROP TABLE")
    yield "step-2^70", point(step=2**70)
    yield "counts-text", point(counts={"kept": "many"})
    yield "checkpoint-version-99", point(version=99)
    yield "checkpoint-deep", lambda run: newest_link(run).write_bytes(b"[" * 100_000) and None
    yield "link-first-beyond", point(first=7)
    yield "link-number-other", point(number=2**40, first=2**40)
    yield "link-previous-text", point(previous="x", whole=False)
    yield "link-previous-itself", point(previous={"attempt": 0, "number": 0, "step": 4, "sha256": ""}, whole=False)
    yield "link-not-whole", point(whole=False)
    yield "link-whole-text", point(whole="yes")
    yield "link-merged-outside", point(merged=[{"path": "../x", "of": []}])
    yield "link-unknown-field", point(evil=1)
    yield "note-from-text", lambda run: rewritten(run / "attempts" / "0.json", lambda r: r.update({"from": "x"}))
    yield (
        "note-from-beyond",
        lambda run: rewritten(
            run / "attempts" / "0.json",
            lambda r: r.update({"from": {"attempt": 0, "number": 2**61, "step": 0, "sha256": ""}}),
        ),
    )
    yield "run-json-list", lambda run: (run / "run.json").write_bytes(b"[]") and None
    yield "run-json-deep", lambda run: (run / "run.json").write_bytes(b"[" * 100_000) and None
    yield "run-settings-text", record(settings="x")
    yield "run-il-pipe", record(il="pipe:touch " + canary)
    yield "run-il-number", record(il=5)
    yield "run-roots-text", record(roots="x", shards=5, shard_urls=7)


def keep_lists(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file)."""

    def write(name: str, data: bytes) -> tuple[str, Path]:
        path = folder / f"keep-{name}.csv"
        path.write_bytes(data)
        return name, path

    yield write("no-columns", b"a,b\n1,2\n")
    yield write("empty", b"")
    yield write("nul", bytes(100_000))
    yield write("binary", bytes(range(256)) * 100)
    yield write("ordinals-text", b"shard,ordinal\nr/a.tar,x\n")
    yield write("ordinals-huge", b"shard,ordinal\nr/a.tar,99999999999999999999999\n")
    yield write("ordinals-negative", b"shard,ordinal\nr/a.tar,-1\nr/a.tar,1000000\n")
    yield write("one-line-of-60mb", b"shard,ordinal\n" + b"x" * 60_000_000)
    yield write("100k-columns", b",".join(b"c%d" % n for n in range(100_000)) + b"\n")
    yield write("fake-parquet", b"PAR1" + b"\xff" * 1000 + b"\xff\xff\xff\x7fPAR1")
    yield write("deep-quotes", b'shard,ordinal\n"' * 10_000)
    yield write("traversal", b"shard,key\n../../../etc/passwd,a\n")


def copies(real: Path, folder: Path, canary: str) -> Iterator[tuple[str, str, Path]]:
    """(kind, name, path) of every hostile artifact, made below `folder` from the real ones."""
    for kind, of, changes in (
        ("model", "model", models(canary)),
        ("table", "table", tables()),
        ("run", "run", runs(canary)),
    ):
        for number, (name, change) in enumerate(changes):
            path = folder / f"{kind}-{number:02d}"
            shutil.copytree(real / of, path)
            change(path)
            yield kind, name, path
    for name, path in keep_lists(folder):
        yield "keep-list", name, path
