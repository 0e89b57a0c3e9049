"""Selection via proxy (Coleman et al. 2020): a small model trained on all of D ranks it once; the top share is kept.

    python -m jobs.svp --shards "data/*.tar" --il il --out svp --model small-cnn --passes 5 --share 0.1
    rhostream train    --shards data/*.tar --il il --rule uniform --keep-list svp/keep.parquet ...

The score is the entropy of the proxy's softmax. The list holds (shard, ordinal, entropy) of the most uncertain samples,
and in its metadata what the proxy cost, which the account of a run that uses it then shows.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import rhostream
from rhostream import storage
from rhostream.candidates import CANDIDATE
from rhostream.errors import BudgetError, RhostreamError, UsageError
from rhostream.models import build
from rhostream.runs import checkpoint, tensors
from rhostream.runs.record import recorded
from rhostream.selection.forward import Forward
from rhostream.selection.hardware import device_of
from rhostream.selection.rules import entropy
from rhostream.stream.full import FullSize
from rhostream.stream.join import Join, JoinSettings
from rhostream.stream.keep_list import COST
from rhostream.tables.names import parse_roots

BUFFER = 512  # scored at once


@dataclass(frozen=True)
class Ranked:
    """The usable samples of D and how unsure the proxy is of each, in nats."""

    shard: list[str]
    ordinal: np.ndarray[Any, np.dtype[np.int32]]
    entropy: np.ndarray[Any, np.dtype[np.float32]]


def svp(
    shards: str | Iterable[str],
    il: str,
    out: str,
    *,
    model: str = "small-cnn",
    passes: int = 5,
    batch_size: int = 32,
    share: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    lr: float = 1e-3,
    device: str = "auto",
    threads: int | None = None,
    roots: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train the proxy in `out`/proxy (again: resume it), score all of D, write `out`/keep.parquet.

    `il` is any table of these shards, also one of `index`; its il isn't used. `threads`: see `train`. Returns what was
    done. Raises UsageError for a share that isn't above 0 and at most 1, and what `train` raises.
    """
    if not 0 < share <= 1:
        raise UsageError(f"--share {share:g}: expected a share of the samples, above 0 and at most 1")
    shards = [shards] if isinstance(shards, str) else list(shards)
    run = storage.join(storage.resolve(out), "proxy")
    # n_B = n_b: every sample is trained on, which is what "trained on D" means.
    rhostream.train(
        shards,
        il,
        run,
        model=model,
        rule="uniform",
        buffer_size=batch_size,
        batch_size=batch_size,
        passes=passes,
        seed=seed,
        workers=workers,
        lr=lr,
        device=device,
        threads=threads,
        roots=roots,
        missing_il="skip",
        keep_holdout=True,
    )
    network, cost = _trained(run, model, device_of(device))
    found = score(network, shards, il, seed=seed, workers=workers, device=device, roots=roots)
    count = max(1, round(share * len(found.entropy)))
    best = np.sort(np.argsort(-found.entropy, kind="stable")[:count])
    account = {"fit_samples": int(cost["trained"]), "scored_samples": len(found.entropy), "macs": int(cost["macs"])}
    table = pa.table({"shard": pa.array([found.shard[i] for i in best.tolist()]),
                      "ordinal": pa.array(found.ordinal[best], pa.int32()),
                      "entropy": pa.array(found.entropy[best], pa.float32())})  # fmt: skip
    made = {"model": model, "passes": passes, "seed": seed, "share": share}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({COST: json.dumps(account), b"svp": json.dumps(made)}), sink, compression="zstd"
    )
    path = storage.join(storage.resolve(out), "keep.parquet")
    storage.replace(path, sink.getvalue())
    left_out = int(recorded(run)["samples"]) - len(found.entropy)
    return {
        "keep_list": storage.redact(path),
        "samples": len(found.entropy),
        "left_out": left_out,
        "kept": count,
        **account,
    }


def _trained(run: str, model: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The proxy as its run left it, and what that run spent."""
    found = checkpoint.latest(run)
    assert found is not None
    known = recorded(run)["fingerprints"]
    network = build(
        model,
        image_size=known["preprocess_image_size"],
        channels=known["preprocess_channels"],
        classes=known["classes"],
    )
    network.load_state_dict(tensors.load_tensors(run, found)[0])
    return network.to(device).to(memory_format=torch.channels_last), found.cost  # type: ignore[call-overload]


def score(network: nn.Module, shards: list[str], il: str, *, seed: int = 0, **how: Any) -> Ranked:
    """The entropy of the network's prediction for each usable sample of the shards, by shard and ordinal."""
    forward, place, values = Forward(network, batch_norm="eval"), list[Any](), list[Any]()
    names = list[str]()
    for shard, ordinal, x, all_names in _all_of(shards, il, seed, **how):
        if len(ordinal):
            names = all_names
            place.append(np.stack([shard, ordinal], 1))
            values.append(entropy(forward(x)).cpu().numpy())
    if not place:
        raise BudgetError("no sample of these shards can be used: ask the table for its view quarantine")
    at = np.concatenate(place)
    order = np.lexsort((at[:, 1], at[:, 0]))
    return Ranked([names[i] for i in at[order, 0].tolist()], at[order, 1].astype(np.int32),
                  np.concatenate(values)[order].astype(np.float32))  # fmt: skip


def _all_of(shards: list[str], il: str, seed: int, **how: Any) -> Iterator[tuple[Any, Any, Any, list[str]]]:
    """Index of the shard, ordinal, input and the shards' names of every usable sample, each once."""
    device = device_of(how["device"])
    how = {**how, "needs_il": False, "keep_holdout": True, "missing_il": "skip", "device": device}
    total = rhostream.open_stream(shards, il, buffer_size=1, **{**how, "workers": 0}).stream.plan(0).total
    loader = rhostream.open_stream(shards, il, buffer_size=min(BUFFER, total), lanes=1, seed=seed, **how)
    stream = loader.stream
    names = list(stream.table.names)
    for candidates in loader:
        moved, rows = candidates.to(device), candidates.candidate_rows
        yield candidates.shard[rows], candidates.ordinal[rows], moved.inputs(rows), names
    # What fills no buffer isn't streamed: those rows are joined and read by themselves.
    join = Join(stream.table, JoinSettings(needs_il=False, keep_holdout=True, classes=stream.table.info.classes))
    tail = join(stream.plan(0).tail())
    rows = np.flatnonzero(tail.reason == CANDIDATE)
    full = FullSize(stream.table, stream.preprocess, stream.lanes)
    fields, ok = full(tail, rows)
    full.close()
    join.close()
    x = stream.preprocess.inputs(fields[torch.from_numpy(np.flatnonzero(ok))].to(device))
    yield tail.rows.shard[rows[ok]], tail.rows.ordinal[rows[ok]], x, names


@click.command()
@click.option("--shards", multiple=True, required=True, metavar="URL", help="Tar shards; may be given again.")
@click.option("--il", required=True, metavar="URL", help="Their table, of compute-il or index.")
@click.option("--out", required=True, metavar="DIR", help="Where the proxy's run and keep.parquet go.")
@click.option("--model", default="small-cnn", show_default=True, help="The proxy.")
@click.option("--passes", default=5, show_default=True, help="Over all of D.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--share", default=0.1, show_default=True, help="Of the samples, the most uncertain ones.")
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the model; by default the cores that the workers leave.")
@click.option("--root", "roots", multiple=True, metavar="NAME=URL")
def main(shards: tuple[str, ...], il: str, out: str, roots: tuple[str, ...], **options: Any) -> None:
    """Write the keep-list of the paper's baseline SVP: the samples that a proxy trained on D is least sure of."""
    try:
        click.echo(json.dumps(svp(shards, il, out, roots=parse_roots(roots), **options), indent=1))
    except RhostreamError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
