"""One call from shards and a table to buffers of candidates: what a user's own loop starts with."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from rhostream import storage
from rhostream.errors import BudgetError, MismatchError, UsageError
from rhostream.randomness import generator
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.samples.own import is_own
from rhostream.samples.wanted import Wanted
from rhostream.stream.band import column_of, resolve_band
from rhostream.stream.dataset import CandidateStream
from rhostream.stream.deny_list import read_deny_list
from rhostream.stream.join import JoinSettings, Prefilter, checked_columns
from rhostream.stream.keep_list import read_keep_list
from rhostream.stream.loader import Loader
from rhostream.stream.look import SAMPLES, SHARDS
from rhostream.stream.plan import few_lanes
from rhostream.stream.sources import read_sources
from rhostream.stream.vectors import width_of
from rhostream.tables import il as il_table
from rhostream.tables.names import checked_roots

LOG = logging.getLogger("rhostream")


def open_stream(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    il: str | os.PathLike[str],
    *,
    buffer_size: int = 320,
    seed: int = 0,
    passes: int | None = 1,
    workers: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
    resize: str | None = None,
    lanes: int | None = None,
    decoder: str = "auto",
    missing_il: str = "error",
    keep_holdout: bool = False,
    needs_il: bool = True,
    roots: Mapping[str, str] | None = None,
    band: str | None = None,
    keep_list: str | os.PathLike[str] | None = None,
    deny: str | os.PathLike[str] | None = None,
    view_size: int | None = None,
    prefilter: Prefilter | None = None,
    device: str | torch.device = "cpu",
    rank: int | None = None,
    ranks: int | None = None,
    readers: int | None = None,
    classes: int | None = None,
    with_fold: bool = False,
    tokenizer: str | None = None,
    text_length: int | None = None,
    task: str | None = None,
    kind: str | None = None,
    il_tokens: bool = False,
    sources: str | None = None,
    order: Sequence[str] | None = None,
    carried_lanes: int | None = None,
    augment: str = "none",
    columns: Sequence[str] = (),
    vectors: bool = False,
) -> Loader:
    """Open shards joined with their IL table (or index) as buffers of `buffer_size` planned samples.

    `shards`: paths, URLs, brace ranges, folders. `passes=None` streams without end. Samples that the IL model was
    trained on are left out (reason `holdout`) unless `keep_holdout`. `missing_il`: "error" or "skip" (reason
    `missing_il`). Image size, channels and `resize` ("crop", "squash" or "pad":
    `stream/geometry.py`) are the table's unless given; size and channels over an index are chosen from a few of its
    images (`look.choose`), and logged. Iterate the result for `Candidates`;
    `state_dict()` and `load_state_dict()` resume exactly, behind the buffer that was handed out last.

    What costs neither a read nor a decode: `band`, "LOW:HIGH" in nats or per cent of the table's il ("20%:90%"), drops
    the il outside; `keep_list`, a Parquet, CSV or JSON file of (shard, ordinal) or (shard, key), drops what it doesn't
    name; `deny`, such a file, drops what it names (reason `denied`), and "none" ends what a run was given before;
    `prefilter` is a decision of your own. `view_size`: images are decoded at that many pixels, a cheap view to
    score on, and a `Selector` reads what it keeps (or shortlists) at full size. `device`: a GPU gets the next buffer
    while the current one is worked on. `classes`: samples whose label is beyond are quarantined; the table's unless
    given. `with_fold`: candidates carry the fold of their IL model, for a `LiveIL`.

    Of a table of text the candidates are `text_length` token ids of `tokenizer` (bytes, words:N, hf:NAME; ids:N for
    .npy), each the table's unless given. `task`: "label", or "language" for samples that need no label. `il_tokens`:
    the candidates bring the il of each token too, of a table that a language model made of the very same tokens.

    `sources`: "root", or the name of a kept field of the table: candidates say which source each sample is of
    (`source` and `source_names`), and a run's log does.

    `columns`: kept fields of numbers, or `similarity`, that candidates bring for a rule which looks at them; a sample
    without a value goes by `missing_il`. `vectors`: candidates bring what the table's reference saw of each pair
    (`reference`), for a rule that chooses pairs together, of a table made with vectors.

    `kind`: the name of a kind of your own, `package.module:name`, of which the table is: its code is imported only so.
    Or "image", "text", "tokens" or "pair": a table of another kind is refused.

    `augment`: what a `Selector` keeps is decoded again: of images by some of random_resized_crop, flip, colour and
    randaugment, in this order and joined by "-" (but "flip" alone), "decode" of a kind of your own that can; or it is
    changed by your `package.module:function` of (input_b, seed_b). What is scored stays plain. All draws are a function
    of (seed, pass, shard, ordinal).

    `rank` of `ranks`: whose slice of each buffer is read; where torch.distributed is initialised those of its default
    group unless given (`ranks=1` for none).

    A loop over the result goes through `passes`, a second one through the next. Its order is a function of the list's
    order: `order`, the names of shards as they stood when a plan began, puts those that are given into that order.
    `carried_lanes`: those of a plan that began with another number of ranks; a cursor that is loaded brings its own.

    Raises UsageError and its kin before any work: no table, missing parts, a shard list or buffer that can't be.
    """
    rank, ranks = _place(rank, ranks)
    urls, roots, url = storage.expand(shards), checked_roots(roots), storage.resolve(il)
    if order is not None:
        urls = _ordered(urls, order, il_table.roots_today(url, il_table.open_info(url), roots))
    table = il_table.open_table(storage.text_of(il), urls, roots, allow_missing=not needs_il or missing_il != "error")
    if table.missing:
        warnings.warn(
            f"{len(table.missing)} shards have no part in {storage.redact(table.url)} and are left out, "
            f"first {table.missing[0]}",
            stacklevel=2,
        )
    if needs_il and table.info.kind != "il":
        raise UsageError(f"{storage.redact(table.url)} is an index without il; this rule needs `rhostream compute-il`")
    preprocess = preprocess_of(
        table, image_size, channels, resize, tokenizer=tokenizer, text_length=text_length, task=task, kind=kind
    )
    if needs_il:
        _require_same_task(table, preprocess)
    prefilters: list[Prefilter] = [
        *([read_keep_list(keep_list, table)] if keep_list is not None else []),
        *([resolve_band(band, table, seed)] if band is not None else []),
        *([prefilter] if prefilter is not None else []),
    ]
    stream = CandidateStream(
        table,
        preprocess,
        buffer_size=buffer_size,
        seed=seed,
        passes=passes,
        lanes=lanes,
        decoder_name=decoder,
        prefilters=prefilters,
        view=None if view_size is None else preprocess.viewed(view_size, lambda: _sizes(table, preprocess)),
        rank=rank,
        ranks=ranks,
        readers=readers,
        carried_lanes=carried_lanes,
        join=JoinSettings(
            needs_il=needs_il,
            missing_il=missing_il,
            keep_holdout=keep_holdout,
            classes=classes or table.info.classes,
            with_fold=with_fold,
            tokens=_tokens_of(table, preprocess) if il_tokens else 0,
            denied=None if deny is None else read_deny_list(deny, table),
            sources=None
            if sources is None
            else read_sources(sources, table, il_table.roots_today(url, table.info, roots)),
            columns=checked_columns(columns, table),
            filters=tuple(filter(None, [band and column_of(band)])),
            vectors=width_of(table) if vectors else 0,
        ),
    )
    if (
        lanes is None
        and carried_lanes is None
        and rank == 0
        and (says := few_lanes(buffer_size, stream.lanes, len(table.names)))
    ):
        LOG.warning("warning: %s", says)
    return Loader(stream, workers, device=torch.device(device), augment=augment)


def _place(rank: int | None, ranks: int | None) -> tuple[int, int]:
    """(rank, ranks) as given, else of torch's default group where one is initialised, else (0, 1)."""
    if rank is None and ranks is None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return rank or 0, 1 if ranks is None else ranks


def _ordered(urls: list[str], order: Sequence[str], roots: Mapping[str, str]) -> list[str]:
    """The shards in the order of these names, those that it doesn't name behind them."""
    place = {name: number for number, name in enumerate(order)}
    return sorted(urls, key=lambda url: place.get(il_table.shard_name(url, roots), len(place)))


def _require_same_task(table: il_table.Table, preprocess: Kind) -> None:
    """Raise MismatchError for an il of labels where language is learned, or the other way round."""
    made = (table.info.preprocess or {}).get("task", preprocess.task)
    if made != preprocess.task:
        raise MismatchError(
            f"the il in {storage.redact(table.url)} is of the task {made}, and this model learns "
            f"{preprocess.task}: losses that can't be compared; make a table for it, or take a rule "
            "that needs no il"
        )


def _tokens_of(table: il_table.Table, preprocess: Kind) -> int:
    """T. Raises UsageError where the table has no il of tokens, MismatchError where they are of other tokens."""
    where, made = storage.redact(table.url), table.info.preprocess or {}
    if table.info.kind != "il" or made.get("task") != "language":
        raise UsageError(
            f"{where} has no il of tokens (il_tokens): make it with a language model, `rhostream fit-il "
            "--model text-lm` and `rhostream compute-il`"
        )
    for name, here in preprocess.to_json().items():
        if here != made.get(name) and name != "task":
            raise MismatchError(
                f"the il of tokens in {where} is of {name} {made.get(name)!r}, this run has {here!r}: "
                "token by token they must be the same"
            )
    return int(made["length"])


def preprocess_of(table: il_table.Table, image_size: int | None = None, channels: int | None = None,
                  resize: str | None = None, *, tokenizer: str | None = None, text_length: int | None = None,
                  task: str | None = None, kind: str | None = None) -> Kind:  # fmt: skip
    """What the table's samples are decoded to: as given, else as the table says, else as a few of its images are.

    Raises UsageError for options of another kind.
    """
    where, info = storage.redact(table.url), table.info
    if kind not in (None, info.content):
        way = "" if kind is None or is_own(kind) else f": --content {registry.undecided(kind).name} makes a table of it"
        raise MismatchError(f"{where} holds samples of the kind {info.content}, not {kind}{way}")
    wanted = Wanted(image_size=image_size, channels=channels, resize=resize, tokenizer=tokenizer,
                    text_length=text_length, task=task)  # fmt: skip
    known = info.kind_of_samples(kind, where)
    return registry.made(info.content, wanted, known, lambda: _sizes(table, known), where)


def _sizes(table: il_table.Table, kind: Kind) -> list[Any]:
    """Sides and channels of up to 64 images of up to 8 shards, drawn by the shards' names.

    Raises BudgetError where none can be used.
    """
    named = sorted(zip(table.names, table.shards, strict=True))
    found, looked, each = list[Any](), 0, -(-SAMPLES // max(1, min(len(named), SHARDS)))
    for shard in generator("look", len(named)).permutation(len(named)).tolist():
        name, url = named[shard]
        part = il_table.read_part(il_table.part_url(table.url, name), members=table.info.members)
        usable = part.usable.nonzero()[0]
        if not len(usable):
            continue
        with storage.open_reader(url) as reader:
            for row in sorted(generator("look", name).permutation(usable)[:each].tolist()):
                read = partial(reader.pread, offset=int(part.offset[0, row]))
                _, size = kind.probe(read, int(part.size[0, row]))
                found += [size] if size is not None else []
        looked += 1
        if looked >= SHARDS and found:
            return found
    if not found:
        raise BudgetError(
            f"{storage.redact(table.url)}: no sample can be used: no readable image in "
            f"{len(table.names)} shards; ask `rhostream sql` for its view quarantine"
        )
    return found
