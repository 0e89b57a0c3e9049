"""Score every shard once: model > table > missing shards > scan > forward by fold > one part a shard.

The same command again computes only what is missing. A part depends on its shard and the model alone: chunks are cut
by ordinal, never by workers or by what else is in the list, so parts are byte-equal however often a job was killed.
Several jobs may fill one table: split by `index` ("0/4", "1/4", ...), or each at
whatever is missing.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rhostream import storage
from rhostream.config.call import configured
from rhostream.config.offline import ComputeILConfig, IndexConfig
from rhostream.errors import MismatchError, UntrustedCodeError, UsageError
from rhostream.il_model.info import ModelInfo
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import gate
from rhostream.irreducible.accounts import Summary
from rhostream.irreducible.asked import named
from rhostream.irreducible.banks import require_vectors_fit
from rhostream.irreducible.decoded import label_of, require_one_kind
from rhostream.irreducible.engines.chosen import device_here, engine_of
from rhostream.irreducible.job import Job
from rhostream.irreducible.referenced import examine, of_reference, require_one_source
from rhostream.irreducible.score import Scorer
from rhostream.irreducible.share import parse_index
from rhostream.irreducible.target import Target
from rhostream.irreducible.work import Engine
from rhostream.samples import registry
from rhostream.samples.geometry import checked_resize
from rhostream.samples.kind import Kind
from rhostream.samples.wanted import Wanted
from rhostream.storage import redact
from rhostream.stream.budget import Budget
from rhostream.stream.label_from import LabelFrom
from rhostream.stream.look import look
from rhostream.stream.scan import ScanSettings
from rhostream.tables import il
from rhostream.tables.il import TableInfo
from rhostream.tables.names import checked_roots
from rhostream.tables.places import moved_hint, todays_roots

LOG = logging.getLogger("rhostream")
__all__ = ["compute_il", "index", "parse_index", "scored_into"]


@configured(ComputeILConfig, "shards", "il_model", "out")
def compute_il(config: ComputeILConfig) -> Summary:
    """Write the irreducible loss of every sample of `shards` into the table `out`, one part a shard.

    `keep`: {field of the json: bool | int | float | str} columns to keep. `index` "I/N": only every N-th shard by
    name, from the I-th on (from 0), so that N machines share the work without talking; "auto": as the Slurm array,
    indexed Job of Kubernetes or SkyPilot numbers this job. A bad sample is a row with a status, a bad shard is named in
    `Summary.bad_shards` and the others go on, unless `fail_fast`; what a job bears of both is in `Budget`, and each of
    N has one of its own. `threads`: of the model on a CPU; parts are equal to the byte for as many on such a
    machine, else il to 1e-5 nats. `model`: the name of the IL model's code, where that is your own
    (`package.module:function`). `allow_compressed`: gzip shards are inflated into the spool (a table of those can be
    asked, not streamed from); `accept_missing_eof`: a tar without its end marker counts as whole. A doubtful model,
    and at the end a table whose il leak, are said and stand in `Summary.doubts`; a model worse than `min_accuracy` or
    than guessing is refused.

    `reference`: instead of an IL model a model that exists, `package.module:function` or that function itself, called
    once, or a `torch.nn.Module`. What it gives is a network of logits, or takes (fields, target) and gives one loss a
    sample, (n,) float32. `reference_id` names one that has no `identity()`. What the samples are is given by
    `content`, `image_size`, `tokenizer`, `kind`, ... as to `fit_il`, or found by a look; `loss` says what il is,
    cross_entropy by default.

    Raises UsageError (settings, unwritable place, code that wasn't named), MismatchError (a table of another model),
    QualityError, BudgetError (too much is bad), Interrupted after a signal.
    """
    return scored_into(config)


def scored_into(config: ComputeILConfig, il_dtype: str | None = None) -> Summary:
    """`compute_il`, il stored as "float32" or "float16"; None: as the table that is there stores it, else float32."""
    with engine_of(config) as engine:
        return _scored(config, il_dtype, engine)


def _scored(config: ComputeILConfig, il_dtype: str | None, engine: Engine) -> Summary:
    _require_scoring(config)
    require_one_source(config)
    budget = Budget(fraction=config.max_bad_fraction, samples=config.max_bad_samples, shards=config.max_bad_shards)
    gate.require_share(config.min_accuracy)
    if config.threads is not None and config.threads < 1:
        raise UsageError(f"--threads {config.threads}: expected 1 or more")
    sources, roots, keep = storage.listed(config.shards), checked_roots(config.roots), il.checked_keep(config.keep)
    out = storage.resolve(config.out)
    if config.reference is not None:
        table, settings, scorer = of_reference(config, sources, roots, keep, il_dtype)
        target = Target(out, table, scored=True)
        target.examine = partial(examine, info=table, labels=target.summary.labels)
        return Job(sources, target, settings, budget, config, engine, scorer).run()
    assert config.il_model
    model = load_il_model(config.il_model, config.model, config.kind)
    info, rule = model.info, model.info.rule
    _require_loss(info, config)
    gate.passed(info, config.min_accuracy, config.il_model)
    device = device_here(config)
    scorer = Scorer(
        model.networks, model.preprocess, info.loss, device, rule, info.learned_from, model.banks,
        info.asked.get("batch_size", 0), config.vectors is not None,
    )  # fmt: skip
    require_vectors_fit(config, model.banks)
    there = il.find_info(out)
    table = TableInfo(
        kind="il",
        ingredients=info.ingredients(il_dtype or (there.il_dtype if there else "float32"))
        | ({} if config.vectors is None else {"vectors": config.vectors}),
        classes=info.classes,
        preprocess=info.preprocess,
        keep=keep,
        roots=_roots_of(there, roots, info.learned_from),
        model=info.figures(),
        places=il.places_of(sources, config.il_model),
        content=model.preprocess.name,
        class_names=info.class_names,
    )
    settings = ScanSettings(
        kind=model.preprocess,
        classes=info.classes,
        label=LabelFrom.from_json(info.label),
        keep=keep,
        group_by=rule.group_by,
        allow_compressed=config.allow_compressed,
        accept_missing_eof=config.accept_missing_eof,
        mark=rule if rule.mode != "holdout" else None,
    )
    target = Target(out, table, partial(gate.examine, info=info), scored=True)
    job = Job(sources, target, settings, budget, config, engine, scorer)
    if rule.mode in ("folds", "fraction") and not rule.group_by and not scorer.knows(job.names):
        moved = moved_hint(job.urls, info.learned_from).removesuffix("; else ")
        how = moved or "if they are the same data in another place, name it with --root as it was then"
        warnings.warn(
            "none of these shards was seen by fit-il, whose folds depend on the shards' names: a network "
            f"may score what it learned from; {how}",
            stacklevel=4,
        )
    model.preprocess.log(f"as those of {redact(config.il_model)}")
    return job.run()


def _require_loss(info: ModelInfo, config: ComputeILConfig) -> None:
    """Raise MismatchError for another loss than the IL model's, UntrustedCodeError for one that nobody named."""
    where = redact(config.il_model or "")
    if config.loss not in (None, info.loss):
        raise MismatchError(
            f"{where} was made with --loss {info.loss}, not {config.loss}: il is the loss it learned by"
        )
    UntrustedCodeError.unless_named(info.loss, config.loss, where, "--loss")


def _require_scoring(config: ComputeILConfig | IndexConfig) -> None:
    """Raise UsageError for a config whose rows are to be copied, and for an --index that names no job."""
    parse_index(config.index)
    if config.table is not None:
        raise UsageError(
            f"table {redact(config.table)} is one whose rows are copied: keep_fields(shards, table, out, "
            "keep) does that"
        )


def _roots_of(there: TableInfo | None, roots: Mapping[str, str], learned_from: Sequence[str]) -> dict[str, str]:
    """The roots by which shards have the names that fit-il knew them by, unless the table there knows them itself."""
    known = set(roots) <= set(there.roots if there else ())
    return dict(roots) if known else todays_roots({}, roots, lambda: learned_from)


@configured(IndexConfig, "shards", "out")
def index(config: IndexConfig) -> Summary:
    """Write the table of `compute_il` without il, predicted and fold, and without decoding an image.

    `content`: image, text (.txt), tokens (.npy), or pair, of an image and a caption (the .txt, or with `caption` a
    field of the .json); by default what most of a few samples are, a pair never. `image_member`: "jpg", or
    "jpg,png": of several images in a sample the first of these extensions is meant, and a sample without any has no
    image. `resize`: how a run over the index makes squares of its images, "crop", "squash" or "pad"; by default chosen
    from a few of them, stored and logged. A damaged image is found by the trainer only. Raises as `compute_il`.
    """
    _require_scoring(config)
    budget = Budget(fraction=config.max_bad_fraction, samples=config.max_bad_samples, shards=config.max_bad_shards)
    sources, roots, keep = storage.listed(config.shards), checked_roots(config.roots), il.checked_keep(config.keep)
    there = il.find_info(storage.resolve(config.out))
    shards = functools.cache(lambda: named(sources, None))  # listed once, where they are looked at
    kind, label = _kind_of(config, there, shards), label_of(config, there, shards)
    label.require_beside(kind)
    ingredients = kind.ingredients() | {"label": label.to_json()}
    info = TableInfo(
        kind="index",
        ingredients={name: value for name, value in ingredients.items() if value},  # older tables know none of these
        keep=keep,
        roots=roots,
        places=il.places_of(sources),
        content=kind.name,
        preprocess=kind.to_json() if kind.fields() else None,
        class_names=label.class_names,
    )
    settings = ScanSettings(keep=info.keep, kind=kind, decodes=False, label=label, **config.lenient)
    with engine_of(config) as engine:
        return Job(sources, Target(config.out, info), settings, budget, config, engine).run()


def _kind_of(config: IndexConfig, there: TableInfo | None, shards: Callable[[], list[tuple[str, str]]]) -> Kind:
    """What the samples are, which image of one is meant and how it becomes a square: as asked, else as the table that
    is there says, else by a look at D; images where nothing can be used.

    A shard that can't be read is no reason to stop: the job itself says so.
    """
    wanted = Wanted(content=config.content, caption=config.caption, resize=checked_resize(config.resize),
                    member=registry.checked_member(config.image_member))  # fmt: skip
    out, name = storage.resolve(config.out), config.content
    require_one_kind(config)
    if config.kind is not None:
        return registry.made(config.kind, wanted, None, tuple, redact(out))
    named_kind = registry.asked(replace(wanted, member=None, resize=None))  # those are of images unless it says other
    asked = None if named_kind is None else registry.undecided(named_kind, wanted)
    if there is not None:
        if asked is None or name == there.content:
            asked = there.kind_of_samples(None, redact(out))
        return asked.indexed(wanted, None)
    storage.probe_writable(out)  # before anything is read
    if asked is not None and asked.guessed and (wanted.resize or not registry.takes(asked.name, "resize")):
        return asked.indexed(wanted, None)  # without a look; several images of a sample are counted and warned of
    seen = look(shards(), kind=asked, once=True, **config.lenient)
    if asked is not None and not asked.guessed and seen.looked:
        seen.require_of(asked)
    if asked is None:
        asked = registry.undecided(registry.asked(wanted) or seen.content or registry.IMAGES.name)
        seen.say_mixed(asked.name, wanted.member)
        if registry.takes(asked.name, "member"):
            wanted = replace(wanted, member=wanted.member or seen.member or None)
    return asked.indexed(wanted, lambda: seen.sizes)
