"""What a run of `train` is made of: its stream, its networks, its selector and the IL model that learns along."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rhostream import storage
from rhostream.errors import MismatchError, UsageError, users_code
from rhostream.models import build, load_initial
from rhostream.randomness import torch_seed
from rhostream.runs import turns
from rhostream.runs.fitting import choose_before_decoding
from rhostream.samples.geometry import CROP
from rhostream.selection.lagged import Lagged
from rhostream.selection.live import LiveIL
from rhostream.selection.losses import loss_name
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks
from rhostream.selection.scorers import Scorers
from rhostream.selection.selector import Selector
from rhostream.stream.band import Band, resolve_band
from rhostream.stream.loader import Loader
from rhostream.stream.open import open_stream
from rhostream.tables.il import Table, part_url, read_part
from rhostream.training.cascade import OF_BEFORE, make_proxy
from rhostream.training.live import load_live
from rhostream.training.parallel import compiled, recomputed, sharded
from rhostream.training.ranks import with_synchronized_norms
from rhostream.training.settings import Settings


def open_at(
    turn: turns.Turn, settings: Settings, on: torch.device, ranks: Ranks, before: Mapping[str, Any]
) -> tuple[Settings, Loader]:
    """The stream from the turn on. More shards bring a run neither more classes nor other thresholds of its band."""
    order = turn.plans[-1].names if turn.plans else None
    more = settings.grow or len(turn.plans) > 1
    if more and settings.classes is None:
        settings = replace(settings, classes=(before.get("fingerprints") or {}).get("classes"))
    loader = _open(settings, on, ranks, before, order)
    if more and turn.plans and settings.band is not None:
        band = resolve_band(settings.band, loader.stream.table, settings.seed, names=turn.plans[0].names)
        loader.stream.prefilters = tuple(band if isinstance(p, Band) else p for p in loader.stream.prefilters)
    turns.take_up(turn, loader.stream)
    return settings, loader


def _open(
    settings: Settings, on: torch.device, ranks: Ranks, before: Mapping[str, Any], order: Sequence[str] | None
) -> Loader:
    """This rank's slice of the buffers. A run that goes on keeps its lanes, whatever the number of ranks now, and the
    order of its shards, whatever that of the list, and the size and channels of its images."""
    then = before.get("settings", {})
    centred = CROP if "preprocess_image_size" in then else None  # a run of before there were other geometries
    own = settings.lanes is None and then.get("buffer_size") == settings.buffer_size
    carried = then["lanes"] if own and isinstance(then.get("lanes"), int) else None
    loader = open_stream(
        settings.shards, settings.il, buffer_size=settings.buffer_size, seed=settings.seed, passes=None,
        workers=settings.workers, image_size=settings.image_size or then.get("preprocess_image_size"),
        channels=settings.channels or then.get("preprocess_channels"), lanes=settings.lanes, decoder=settings.decoder,
        resize=settings.resize or then.get("preprocess_resize") or centred,
        missing_il=settings.missing_il, keep_holdout=settings.keep_holdout, needs_il=settings.found_rule.needs_il,
        roots=settings.roots, band=settings.band, keep_list=settings.keep_list, view_size=settings.view_size,
        device=on, classes=settings.classes, rank=ranks.rank, ranks=ranks.size, with_fold=settings.found_rule.live,
        tokenizer=settings.asked_tokenizer, text_length=settings.text_length, task=settings.found_task,
        il_tokens=settings.token_share is not None, carried_lanes=carried, order=order,
        kind=settings.kind or settings.content, augment=settings.augment_by_sample,
        deny=settings.deny, sources=settings.sources, columns=settings.options.columns_for(settings.found_rule),
        vectors=settings.found_rule.needs_reference, readers=settings.scorers or None,
    )  # fmt: skip
    choose_before_decoding(loader, settings.options, settings.found_rule, settings.batch_size, settings.seed)
    return loader


def make_networks(
    settings: Settings,
    loader: Loader,
    classes: int | None,
    on: torch.device,
    ranks: Ranks,
    scoring: torch.dtype | None,
) -> tuple[nn.Module, Proxy | Lagged | None]:
    """The target and, where there is one, the proxy; on every rank with rank 0's weights."""
    preprocess = loader.stream.preprocess
    torch.manual_seed(torch_seed(settings.seed, "weights"))
    if settings.make_model:
        with users_code("make_model"):
            network = settings.make_model()
    else:
        network = build(settings.model, classes=classes, **preprocess.model_arguments())
    if settings.init:
        load_initial(network, settings.init)
    if not ranks.alone:
        network, says = with_synchronized_norms(network, on, not settings.scorers)
        if says and ranks.first and settings.found_rule.score is not None:
            warnings.warn(says, stacklevel=5)
    spread = settings.parallel == "fsdp" and not ranks.alone
    # Pixels come as NHWC: channels-last needs no transpose and is the faster layout for convolutions. FSDP has none.
    layout = torch.contiguous_format if spread else torch.channels_last
    network.to(on).to(memory_format=layout)  # type: ignore[call-overload]
    ranks.copy_from_first(network)
    if settings.compile and not settings.compiles_whole:
        network = compiled(network)
    if settings.activation_checkpointing:
        network = recomputed(network)
    if spread:
        network = sharded(network, on)
    if settings.listed is None or settings.listed.kind == "view":
        return network, None
    if settings.listed.kind in OF_BEFORE:
        return network, Lagged(network, batch_norm=settings.batch_norm, autocast=scoring, chunk=settings.chunk)
    proxy = make_proxy(
        settings.proxy_model,
        loader.stream.preprocess,
        loader.stream.view,
        classes,
        lr=settings.lr,
        seed=settings.seed,
        device=on,
        synchronized=not ranks.alone,
        loss=settings.own_loss,
    )
    ranks.copy_from_first(proxy.model)
    return network, proxy


def make_selector(
    settings: Settings,
    network: nn.Module,
    proxy: Proxy | Lagged | None,
    live: LiveIL | None,
    scoring: torch.dtype | None,
    ranks: Ranks,
) -> Selector:
    """The selector of all ranks."""
    listed = settings.listed
    return Selector(
        network,
        settings.rule,
        settings.batch_size,
        chunk=settings.chunk,
        loss=settings.own_loss,
        live=live,
        **vars(settings.options),
        batch_norm=settings.batch_norm,
        loss_cap=settings.loss_cap,
        seed=settings.seed,
        autocast=scoring,
        compile=settings.compiles_whole,
        proxy=proxy,
        scorers=scorers_of(settings, proxy, ranks),
        shortlist=listed.factor if listed else None,
        group=ranks,
    )


def scorers_of(settings: Settings, proxy: Proxy | Lagged | None, ranks: Ranks) -> Scorers | None:
    """Who scores while others train. Collective."""
    if not settings.scorers:
        return None
    assert isinstance(proxy, Lagged)
    return Scorers(ranks=ranks, count=settings.scorers, lagged=proxy)


def make_live(settings: Settings, loader: Loader, on: torch.device) -> LiveIL | None:
    """The IL model that learns along, where the rule has one.

    Raises MismatchError where a rule compares the loss with an il of another one that was asked for; of il that is
    cross-entropy, as all of classes was before there was a choice, it only warns.
    """
    stream, made = loader.stream, loader.stream.table.info.ingredients.get("loss", "cross_entropy")
    own = loss_name(stream.preprocess, settings.loss)
    if settings.found_rule.needs_il and made != own:
        says = (
            f"the il of {storage.redact(stream.table.url)} is {made}, and the run's loss is {own}: the "
            f"rule {settings.rule} compares two different losses"
        )
        if made != "cross_entropy":
            raise MismatchError(f"{says}; make il of it with `rhostream fit-il --loss {own}`, or take --loss {made}")
        warnings.warn(says, stacklevel=5)
    if not settings.found_rule.live:
        return None
    return load_live(
        stream.table,
        settings.il_model,
        stream.preprocess,
        on,
        lr=settings.lr * settings.il_lr_scale,
        view=stream.view,
        code=settings.il_code,
    )


def count_classes(table: Table) -> int:
    largest = max(int(read_part(part_url(table.url, name)).label.max(initial=-1)) for name in table.names)
    if largest < 0:
        raise UsageError("no label in any shard; give --classes")
    return largest + 1
