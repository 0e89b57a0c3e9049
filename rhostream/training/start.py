"""`train`: settings are checked and resolved, the run folder is claimed or resumed, and the loop is started."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rhostream import storage
from rhostream.checkpoint import load_proxy, load_tensors
from rhostream.errors import TableError, UnknownNameError, UsageError
from rhostream.models import build, load_weights
from rhostream.selection.hardware import device_of
from rhostream.selection.hardware import threads as threads_in_use
from rhostream.selection.rules import find_rule
from rhostream.selection.selector import Selector
from rhostream.stream.band import Band
from rhostream.stream.dataset import CandidateStream, Loader
from rhostream.stream.join import UniformChoice
from rhostream.stream.open import open_stream
from rhostream.tables.il import Table, fingerprint, part_url, read_part
from rhostream.training.augment import KINDS
from rhostream.training.cascade import make_proxy, parse_shortlist, set_macs
from rhostream.training.evaluate import TestSet
from rhostream.training.hardware import autocast, threads_of
from rhostream.training.loop import Metrics, Trainer
from rhostream.training.ranks import require_single
from rhostream.training.run import Run, versions


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run: str
    steps: int
    planned: int  # rows in the log
    reasons: dict[str, int]
    test_accuracy: float | None
    cost: dict[str, Any]


def train(shards: str | Iterable[str], il: str, run: str, *, model: str = "mlp", rule: str = "rho",
          buffer_size: int = 320, batch_size: int = 32, test_shards: Iterable[str] = (), passes: int | None = None,
          steps: int | None = None, workers: int = 0, seed: int = 0, missing_il: str = "error",
          init: str | None = None, accumulate: int = 1, lr: float = 1e-3, weight_decay: float = 0.01,
          lanes: int | None = None, loss_cap: bool = False, chunk: int | None = None, precision: str = "float32",
          train_precision: str = "float32", batch_norm: str = "buffer", band: str | None = None,
          keep_list: str | None = None, shortlist: str | None = None, proxy_model: str = "mlp-64",
          view_size: int | None = None, augment: str = "none", keep_holdout: bool = False, eval_every: int = 100,
          smoothing: int = 5, checkpoint_every: int = 500, keep_checkpoints: int = 2, device: str = "auto",
          threads: int | None = None, compile: bool = False, classes: int | None = None,
          image_size: int | None = None, decoder: str = "auto", roots: Mapping[str, str] | None = None,
          metrics: Metrics | None = None, make_model: Callable[[], nn.Module] | None = None) -> Summary:
    """Train `model` on the shards with selection, in the run folder `run`; the same call again resumes.

    `buffer_size` is n_B, `batch_size` n_b. Without `passes` and `steps`: one pass; with `steps` alone: as many passes
    as they need. AdamW with the paper's settings. `test_shards` are for reporting only and change nothing.
    `eval_every`, `checkpoint_every` in steps; `smoothing` evaluations are averaged by reports. `metrics` is called
    with each step's row, one step late. `make_model` overrides `model`, which then only names it.

    The cascade: `band` ("20%:90%", or nats) and `keep_list` drop samples before they are read; `shortlist`
    ("proxy:4", "view:4") lets a `proxy_model` or a view of `view_size` pixels choose 4 n_b, of which the target's fresh
    scores choose; a view without a shortlist is what is scored, and only what is kept is decoded at full size.
    `precision` is that of scoring, `train_precision` that of the gradient step (losses are float32 always); `threads`
    are the model's, by default the cores that the workers leave, and stay those of the run's start when it is resumed.

    Raises UsageError and its kin before any work, Interrupted after a signal, NonFiniteError when training diverges.
    """
    require_single()
    run, own_rule = storage.resolve(run), find_rule(rule)
    needs_il = own_rule.needs_il
    _check(buffer_size, batch_size, accumulate, eval_every, checkpoint_every,
           *(n for n in (steps, passes) if n is not None))
    on = device_of(device)
    scoring_dtype = autocast("--precision", precision, on)
    training_dtype = autocast("--train-precision", train_precision, on)
    if augment not in KINDS:
        raise UnknownNameError.of("augmentation", augment, KINDS)
    listed = parse_shortlist(shortlist, rule=rule, buffer_size=buffer_size, batch_size=batch_size, view_size=view_size)
    loader = open_stream(
        shards, il, buffer_size=buffer_size, seed=seed, passes=None, workers=workers, image_size=image_size,
        lanes=lanes, decoder=decoder, missing_il=missing_il, keep_holdout=keep_holdout, needs_il=needs_il, roots=roots,
        band=band, keep_list=keep_list, view_size=view_size, device=on, classes=classes,
        prefilter=UniformChoice(batch_size, seed) if rule == "uniform" else None,
    )
    stream, info = loader.stream, loader.stream.table.info
    classes = classes or info.classes or _count_classes(stream.table)
    last_step = min([*([steps] if steps else []), *([(passes or 1) * stream.buffers_per_pass] if passes or not steps
                                                    else [])])
    torch.manual_seed(seed)
    preprocess = stream.preprocess
    network = make_model() if make_model else build(model, image_size=preprocess.image_size,
                                                    channels=preprocess.channels, classes=classes)
    if init:
        load_weights(network, init)
    # Pixels come as NHWC: channels-last needs no transpose and is the faster layout for convolutions.
    network.to(on).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    proxy = None
    if listed is not None and listed.kind == "proxy":
        proxy = make_proxy(proxy_model, stream.decoded, classes, lr=lr, seed=seed, device=on)
    uses_il = needs_il or band is not None
    pinned = {
        "il": info.fingerprint if uses_il else None, "shards": _digest(stream), "seed": seed, "model": model,
        "rule": rule, "buffer_size": buffer_size, "batch_size": batch_size, "lanes": stream.lanes,
        "loss_cap": loss_cap, "lr": lr, "weight_decay": weight_decay, "missing_il": missing_il, "chunk": chunk,
        "precision": precision, "train_precision": train_precision, "batch_norm": batch_norm, "augment": augment,
        "band": band, "keep_list": None if keep_list is None else _sha256(keep_list), "shortlist": shortlist,
        "proxy_model": proxy_model if proxy else None, "view_size": view_size, "compile": compile,
        "keep_holdout": keep_holdout, "accumulate": accumulate, "classes": classes, "decoder": stream.decoder_name,
        "init": init and storage.redact(init), **{f"preprocess_{k}": v for k, v in preprocess.to_json().items()},
    }
    attempt = Run(run, pinned)
    threads = threads_of(threads, workers, attempt.recorded_threads)
    storage.probe_writable(run)
    with threads_in_use(threads):
        set_macs(attempt.cost, model, network, proxy, listed, preprocess, stream.view)
    attempt.cost.il = _il_account(loader) if uses_il else {}
    found = attempt.open({
        "settings": {**pinned, "passes": passes, "steps": steps, "last_step": last_step, "workers": workers,
                     "eval_every": eval_every, "smoothing": smoothing, "checkpoint_every": checkpoint_every,
                     "keep_list": keep_list and storage.redact(storage.resolve(keep_list)),
                     "prefilters": [repr(p) for p in stream.prefilters if isinstance(p, Band)]},
        "il": storage.redact(storage.resolve(il)), "shards": list(stream.table.names),
        "roots": {name: storage.redact(root) for name, root in {**info.roots, **(roots or {})}.items()},
        # Without user and query: a presigned URL is a secret, and one of yesterday opens nothing.
        "shard_urls": [storage.redact(url) for url in stream.table.shards], "il_model": _il_account(loader),
        "device": str(on),
        "left_out_shards": len(stream.table.missing), "threads": threads, "chunk": chunk,
        "precision": precision, "versions": versions(), "samples": int(stream.table.counts.sum()),
        "buffers_per_pass": stream.buffers_per_pass,
    })
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay,
                                  fused=True)
    tests = TestSet(test_shards, preprocess, classes, stream.decoder_name, workers) if test_shards else None
    selector = Selector(network, rule, batch_size, chunk=chunk, batch_norm=batch_norm, loss_cap=loss_cap, seed=seed,
                        autocast=scoring_dtype, compile=compile, proxy=proxy,
                        shortlist=listed.factor if listed else None)
    trainer = Trainer(loader, selector, network, optimizer, attempt, on, seed, last_step, accumulate, augment, tests,
                      eval_every, checkpoint_every, keep_checkpoints, metrics, training_dtype, compile)
    if found is not None:
        attempt.settle(found, keep_checkpoints)
        weights, state = load_tensors(run, found)
        try:
            network.load_state_dict(weights)
            optimizer.load_state_dict(state)
            if proxy is not None:
                proxy.load_state_dict(load_proxy(run, found))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise TableError(f"the checkpoint of step {found.step} in {storage.redact(run)} doesn't fit the model "
                             f"{model!r}: {' '.join(str(exc).split())[:300]}") from exc
        loader.load_state_dict({"pass": found.pass_index, "buffer": found.buffer})
    if attempt.step < last_step:
        attempt.claim()
        with threads_in_use(threads):
            trainer.loop()
    accuracy = trainer.evaluation.accuracy if trainer.evaluation else None
    return Summary(run, attempt.step, sum(attempt.counts.values()), dict(attempt.counts), accuracy,
                   attempt.cost.as_json())


def _check(buffer_size: int, batch_size: int, accumulate: int, *intervals: int) -> None:
    if not 1 <= batch_size <= buffer_size:
        raise UsageError(f"--batch-size {batch_size} of --buffer-size {buffer_size}: expected 1 <= n_b <= n_B")
    if accumulate < 1 or min(intervals) < 1:
        raise UsageError("--steps, --passes, --accumulate, --eval-every and --checkpoint-every must be at least 1")


def _sha256(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(storage.resolve(url))).hexdigest()


def _digest(stream: CandidateStream) -> str:
    return fingerprint({"names": list(stream.table.names), "counts": stream.table.counts.tolist()})


def _il_account(loader: Loader) -> dict[str, Any]:
    """What the IL cost: its model's own account, and the samples that were scored for the table."""
    table = loader.stream.table
    return {**table.info.model, "scored_samples": table.il_rows} if table.info.model else {}


def _count_classes(table: Table) -> int:
    largest = max(int(read_part(part_url(table.url, name)).label.max(initial=-1)) for name in table.names)
    if largest < 0:
        raise UsageError("no label in any shard; give --classes")
    return largest + 1
