"""What the run of a loop of one's own pins: what its stream, its selector and its `config` decide by.

A resume must agree with all of it, and runs are seeds of one setting only where all of it but the seed is equal. The
names are those that `train` pins by. What a loop does beside (learning rate, model, augmentation) only its user knows:
it is what `config` says, else unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.randomness import DRAWS
from rhostream.runs.doubts import Plan, cheap_choice
from rhostream.runs.record import versions
from rhostream.selection.lagged import Lagged
from rhostream.selection.losses import TARGET_LOSSES
from rhostream.selection.selector import Selector
from rhostream.stream.dataset import CandidateStream
from rhostream.stream.loader import Loader
from rhostream.stream.passing import PassOver
from rhostream.stream.uniform_choice import UniformChoice
from rhostream.tables.il import Table, fingerprint

UNKNOWN = "unknown"


def plain_config(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The `config` of a run as JSON gives it back. Raises UsageError for a name or a value that JSON hasn't."""
    if config is None:
        return None
    try:
        plain = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise UsageError(
            f"config of a run: expected names and plain values (numbers, text, lists), and this one can't "
            f"be written down: {exc}"
        ) from exc
    if bad := [name for name in config if not isinstance(name, str)]:
        raise UsageError(f"config of a run: {bad[0]!r} is no name")
    return dict(plain)


def pins_of(
    loader: Loader,
    selector: Selector,
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    accumulate: int,
    seed_steps: bool,
) -> dict[str, Any]:
    """Everything that decides which samples are kept, as plain values, and what the user says of the rest."""
    stream, rule, forward = loader.stream, selector.rule, selector.forward
    join, table = stream.join_settings, stream.table
    more = {"config": UNKNOWN} if config is None else {f"config.{name}": value for name, value in config.items()}
    return {
        "loop": "own",
        "selection": "global",
        "seed": stream.seed,
        "selector_seed": selector.seed,
        "rule": rule.name,
        "buffer_size": stream.buffer_size,
        "batch_size": selector.batch_size,
        "loss": name_of(selector.loss),
        "loss_cap": selector.loss_cap,
        "missing_il": join.missing_il,
        "keep_holdout": join.keep_holdout,
        "il": table.info.fingerprint if join.needs_il or rule.needs_il else None,
        "shards": fingerprint({"names": list(table.names), "counts": table.counts.tolist()}),
        "lanes": stream.lanes,
        "classes": join.classes,
        "draws": DRAWS,
        "decoder": stream.decoder_name,
        "view_size": stream.view,
        **({} if join.sources is None else {"sources": join.sources.of}),
        "prefilters": [_shown(p) for p in stream.prefilters if not isinstance(p, UniformChoice | PassOver)],
        "chunk": forward.chunk,
        "precision": str(forward.autocast or torch.float32).removeprefix("torch."),
        "batch_norm": forward.batch_norm,
        "shortlist": selector.shortlist,
        "proxy": selector.proxy.kind if isinstance(selector.proxy, Lagged) else selector.proxy is not None,
        **selector.options.changed(),
        "accumulate": accumulate,
        "seed_steps": seed_steps,
        "model": f"{type(model).__module__}:{type(model).__qualname__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        **({"augment": loader.augment_name} if loader.augment is not None else {}),
        **stream.preprocess.pins(),
        **more,
    }


def record_of(loader: Loader, pins: Mapping[str, Any], last_step: int | None, ranks: int) -> dict[str, Any]:
    """What run.json says beside the pins."""
    stream, table = loader.stream, loader.stream.table
    doubts = Plan.of(
        stream,
        int(pins["batch_size"]),
        last_step,
        scores=pins["rule"] != "uniform",
        auto=pins.get("ratio") == "auto",
        cheap=cheap_choice(stream, pins["proxy"] is True and "a proxy", pins["shortlist"]),
    ).doubts()
    return {
        **({"doubts": doubts} if doubts else {}),
        "settings": {
            **pins,
            "workers": loader.workers,
            "passes": stream.passes,
            "steps": last_step,
            "last_step": last_step,
            **denied_samples(stream),
        },
        "il": storage.redact(table.url),
        "shards": list(table.names),
        "roots": {name: storage.redact(root) for name, root in table.info.roots.items()},
        "shard_urls": [storage.redact(url) for url in table.shards],
        "il_model": il_account(loader),
        "device": str(loader.device),
        "ranks": ranks,
        "left_out_shards": len(table.missing),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "samples": int(table.counts.sum()),
        "buffers_per_pass": stream.buffers_per_pass,
        **named_classes(table),
    }


def denied_samples(stream: CandidateStream) -> dict[str, Any]:
    """What run.json says of the deny-list that a run began with, {} where there is none."""
    denied = stream.join_settings.denied
    return {} if denied is None else {"deny": denied.digest, "denied_samples": denied.samples}


def named_classes(table: Table) -> dict[str, Any]:
    """What run.json says of the classes' names, {} where none are known."""
    names = {str(label): name for label, name in sorted(table.class_names.items())}
    return {"class_names": names} if names else {}


def il_account(loader: Loader) -> dict[str, Any]:
    """What the IL cost: its model's own account, and the samples that were scored for the table; {} without one."""
    table = loader.stream.table
    return {**table.info.model, "scored_samples": table.il_rows} if table.info.model else {}


def name_of(function: Any) -> str:
    """A function by its module and name, as far as it has them."""
    if isinstance(function, functools.partial):
        return f"{name_of(function.func)}({function.args}, {function.keywords})"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return (
        name
        if name == "cross_entropy" or TARGET_LOSSES.get(name) is function
        else f"{getattr(function, '__module__', '?')}:{name}"
    )


def _shown(prefilter: Any) -> str:
    """A prefilter by what it decides by, where it says so: an address in memory is another in each process."""
    own = type(prefilter)
    plain = dataclasses.is_dataclass(prefilter) and all(
        isinstance(getattr(prefilter, field.name), str | int | float | bool | tuple | None)
        for field in dataclasses.fields(prefilter)
    )
    if digest := getattr(prefilter, "digest", None):
        return f"{own.__qualname__} {digest}"
    return repr(prefilter) if plain else name_of(prefilter) if own.__name__ == "function" else own.__qualname__
