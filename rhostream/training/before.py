"""Before a run's first step: what the data must allow, what was spent, what is doubtful, and what run.json says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from rhostream import storage
from rhostream.config.train import TrainConfig
from rhostream.config.written import arguments_of, written
from rhostream.errors import UsageError
from rhostream.runs import turns
from rhostream.runs.cost import Cost
from rhostream.runs.doubts import Plan, cheap_choice
from rhostream.runs.pins import denied_samples, il_account, named_classes
from rhostream.runs.record import versions
from rhostream.samples.kind import Kind
from rhostream.selection.lagged import Lagged
from rhostream.selection.live import LiveIL
from rhostream.selection.outputs import require_more_than_one
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks, own_norms
from rhostream.selection.updates import number_of_updates
from rhostream.setting import RECORDED, settings_of
from rhostream.stream.band import Band
from rhostream.stream.dataset import CandidateStream
from rhostream.stream.keep_list import keep_list_account
from rhostream.stream.loader import Loader
from rhostream.tables.il import Table, part_url, read_part
from rhostream.training.cascade import set_macs
from rhostream.training.live import set_live_macs
from rhostream.training.settings import Settings

UNPINNED = tuple(name for name, says in settings_of(TrainConfig).items() if says.pin == RECORDED)


def require_statistics(settings: Settings, network: nn.Module, seen: Kind, ranks: Ranks) -> None:
    """Raise UsageError for batch norm that would have to learn from one sample in a forward."""
    if not own_norms(network):
        return
    sizes = settings.options.kept_schedule.sizes(settings.batch_size, settings.buffer_size)
    least = min(_rows_of_a_forward(settings, n, ranks) for n in sizes)
    if least <= 1:
        asked = (
            f"--batch-size {settings.batch_size}"
            + (f" over {ranks.size} ranks" if ranks.size > 1 else "")
            + (f" in --accumulate {settings.accumulate} pieces" if settings.accumulate > 1 else "")
        )
        require_more_than_one(network, seen.example().to(next(network.parameters()).device), asked)


def _rows_of_a_forward(settings: Settings, n: int, ranks: Ranks) -> int:
    """Of the rank that has the fewest, where n are kept; an update leaves every rank two rows where it has them."""
    rows = n // ranks.size
    if settings.at_most is not None:
        rows //= number_of_updates(n, settings.at_most, max(1, rows // 2))
    return -(-rows // settings.accumulate)


def require_quota(settings: Settings, table: Table, classes: int | None) -> None:
    """Raise UsageError for a class quota that these shards can't meet."""
    quota = settings.options.quota
    if quota is None or classes is None:
        return
    settings.check_quota(classes)
    if quota.kind == "balanced":
        found = np.zeros(classes, np.int64)
        for name in table.names:
            part = read_part(part_url(table.url, name), members=table.info.members)
            own = part.label[part.usable & (settings.keep_holdout | ~part.in_holdout)].astype(np.int64)
            found += np.bincount(own[(own >= 0) & (own < classes)], minlength=classes)
        if (empty := np.flatnonzero(found == 0)).size:
            raise UsageError(
                f"--class-quota balanced: class {int(empty[0])} of {classes} has no usable sample in "
                "these shards, so no batch can be balanced; say how many there are with --classes, or "
                "give a share"
            )


def set_costs(
    cost: Cost,
    settings: Settings,
    loader: Loader,
    network: nn.Module,
    proxy: Proxy | Lagged | None,
    live: LiveIL | None,
) -> None:
    """Enter what a sample costs at each stage, and what was spent before the run."""
    stream = loader.stream
    set_macs(cost, settings.model, network, proxy, settings.listed, stream.preprocess, stream.view)
    if live is not None:
        set_live_macs(cost, live, stream.preprocess, stream.view)
    cost.il = il_account(loader) if settings.uses_il else {}
    cost.keep_list = {} if settings.keep_list is None else keep_list_account(settings.keep_list)


def plan_of(settings: Settings, stream: CandidateStream, last_step: int, cost: Cost) -> Plan:
    """What is known of the run before its first step, for what is doubtful about it."""
    listed, scores = settings.listed, settings.found_rule.score is not None
    proxied = listed is not None and listed.kind == "proxy"
    factor = None if listed is None else listed.factor
    n_B, n_b, options = settings.buffer_size, settings.batch_size, settings.options
    # The most that the run may cost: what is doubted is certain then.
    dearest = n_B if options.auto else max(options.kept_schedule.sizes(n_b, n_B))
    looks = scores and not options.auto  # a buffer that is kept whole isn't looked at
    return Plan.of(
        stream,
        n_b,
        last_step,
        scores=scores,
        il_units=cost.il_units,
        run_units=cost.planned_units(last_step, n_B, dearest, scores=looks, shortlist=factor, proxy=proxied),
        auto=options.auto,
        cheap=cheap_choice(stream, proxied and f"the proxy {settings.proxy_model}", factor),
    )


def record_of(
    settings: Settings,
    loader: Loader,
    pinned: dict[str, Any],
    last_step: int,
    threads: int,
    on: torch.device,
    ranks: Ranks,
) -> dict[str, Any]:
    """What run.json says beside the fingerprints."""
    stream, table = loader.stream, loader.stream.table
    return {
        "settings": {
            **pinned,
            **{name: getattr(settings, name) for name in UNPINNED},
            "last_step": last_step,
            "keep_list": settings.keep_list and storage.redact(storage.resolve(settings.keep_list)),
            "prefilters": [repr(p) for p in stream.prefilters if isinstance(p, Band)],
            **denied_samples(stream),
        },
        "config": written(settings),
        "arguments": arguments_of(settings),
        "il": storage.redact(storage.resolve(settings.il)),
        "shards": list(table.names),
        "roots": {k: storage.redact(root) for k, root in {**table.info.roots, **(settings.roots or {})}.items()},
        # Without user and query: a presigned URL is a secret, and one of yesterday opens nothing.
        "shard_urls": [storage.redact(url) for url in table.shards],
        "il_model": il_account(loader),
        "device": str(on),
        "ranks": ranks.size,
        "left_out_shards": len(table.missing),
        "threads": threads,
        "chunk": settings.chunk,
        "precision": settings.precision,
        "versions": versions(),
        "samples": int(table.counts.sum()),
        "buffers_per_pass": stream.buffers_per_pass,
        **named_classes(table),
    }


def last_step_of(settings: Settings, stream: CandidateStream) -> int:
    """Where the run ends: after `steps` or `passes`, whichever comes first; after one pass when neither is given."""
    passes = settings.passes or (None if settings.steps else 1)
    end = turns.last_step(stream, passes, settings.steps)
    assert end is not None
    return end
