"""Fit the IL model: settings > pool of samples > one network a fold > weights, then model.json.

Three ways to learn the irreducible loss of D (paper, section 3 and Table 3): from a holdout of other shards, from a
fraction of D by hash, or, the default, by cross-fitting: model i learns from all folds but i and scores fold i.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rhostream import models, storage
from rhostream.config.call import configured
from rhostream.config.offline import FitILConfig
from rhostream.crashpoints import crash_point
from rhostream.errors import MismatchError, StaleShardError, UnknownNameError, UsageError
from rhostream.il_model.folds import FoldRule
from rhostream.il_model.info import ModelInfo, read_info, write_info
from rhostream.irreducible import gate
from rhostream.irreducible.crossfit import (
    CHECK_SAMPLES,
    JUDGES,
    Fit,
    empty_classes,
    fit_folds,
    on_d,
    quality_of,
    write_folds,
)
from rhostream.irreducible.learn import AUGMENT, BALANCE, Recipe
from rhostream.irreducible.marks import Only, Outside, Places
from rhostream.irreducible.pool import Pool, fill
from rhostream.irreducible.unfinished import Kept, clear, identity_of
from rhostream.runs.record import versions
from rhostream.samples import registry
from rhostream.samples.decoders import decoder
from rhostream.samples.kind import Kind, Wanted
from rhostream.selection.losses import find_loss, loss_name, require_taken, sequence_mean
from rhostream.selection.outputs import called, require_more_than_one, require_width
from rhostream.selection.tokens import is_language
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.advice import gaps
from rhostream.stream.budget import Budget
from rhostream.stream.label_from import label_from, numbers_of
from rhostream.stream.look import look
from rhostream.stream.scan import ScanSettings
from rhostream.tables import il
from rhostream.tables.classes import named as label_named
from rhostream.tables.classes import require_same_classes
from rhostream.tables.names import checked_roots

LOG = logging.getLogger("rhostream")
WEIGHT_DECAY = 0.01
_READ_AGAIN = "the same command reads the samples again and goes on behind the epochs that are kept"


@configured(FitILConfig, "shards", "out")
def fit_il(config: FitILConfig) -> ModelInfo:
    """Train the IL model of `shards` and write it below `out`; a complete one of the same settings is returned as is.

    `fit_samples` bounds the samples that are held and learned from, over all folds. The checkpoint is the one with the
    lowest mean loss on samples that the network doesn't learn from and that are distributed like those it learns from,
    labels as they are: the fold left out, D outside a fraction, or the tenth of a holdout that is kept back, each at
    most 10,000. Beside a holdout D never chooses: noisier, it would choose an under-trained state. The same samples
    give accuracy, loss and quality. `init`: safetensors weights that every network starts from (what may
    differ: `models.load_initial`). `allow_compressed`, `accept_missing_eof`: see `compute_il`. Deterministic by `seed`
    on a CPU. Samples and shards that can't be used are counted in `ModelInfo.read`, and more of them than `Budget` says
    stop the job. A fit that was stopped goes on, by the same call, behind the epochs that it kept: the samples are read
    again, and the weights are those of a fit in one piece.

    What the samples are, `image_size`, `channels` and `resize` ("crop", "squash" or "pad") are chosen from a look at a
    few samples of D (`look`) unless they are given, and logged. `image_member`: "jpg", or "jpg,png": of several images
    in a sample the first of these extensions is meant, and a sample without any has no image.

    Where the samples are text (`tokenizer` is given, or most of those looked at have a .txt and no image):
    `text_length` tokens of `tokenizer`, of which the model learns the `task` "label" or "language" (the default of
    text-lm, which needs no labels).

    `loss`: what is learned and what il will be, of (output, target): "cross_entropy" of labels; a kind whose target is
    no class names another one, "squared_error", "binary_cross_entropy" or your `module:function`.

    `balance`: "sample" draws every class equally often, "weight" weighs its losses; the checkpoint is then that of the
    lowest mean over classes. What is doubtful about the model is said,
    and stands in `ModelInfo.quality`; worse than `min_accuracy` or than guessing it is refused, though it is kept.

    Raises UsageError, MismatchError naming the setting that changed, BudgetError, QualityError, Interrupted after a
    signal.
    """
    budget = Budget(fraction=config.max_bad_fraction, samples=config.max_bad_samples, shards=config.max_bad_shards)
    rule = _rule(config.holdout, config.holdout_fraction, config.folds, config.seed, config.group_by)
    if config.augment not in AUGMENT:
        raise UsageError(f"augment {config.augment!r}: expected one of {', '.join(AUGMENT)}")
    if config.balance not in BALANCE:
        raise UnknownNameError.of("balance", config.balance, BALANCE)
    gate.require_share(config.min_accuracy)
    for name, value in (
        ("epochs", config.epochs),
        ("fit-samples", config.fit_samples),
        ("batch-size", config.batch_size),
    ):
        if value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    out, model = storage.resolve(config.out), config.model
    roots = checked_roots(config.roots)
    data = named(config.shards, roots)
    own = named(storage.listed(config.holdout, "--holdout"), roots) if config.holdout is not None else data
    asked = {
        "model": model,
        "shards": _digest(data),
        "holdout": _digest(own) if rule.mode == "holdout" else None,
        **rule.to_json(),
        "mean": list(config.mean),
        "std": list(config.std),
        "decoder": decoder(config.decoder_name)[0],
        **{
            name: getattr(config, name)
            for name in (
                "fit_samples",
                "epochs",
                "batch_size",
                "lr",
                "classes",
                "image_size",
                "channels",
                "augment",
                "tokenizer",
                "text_length",
                "task",
            )
        },
    }
    image_member, classes = registry.checked_member(config.image_member), config.classes
    options_on = {
        "image_member": image_member,
        "label": config.label,
        "class_names": config.class_names and _digest_of_names(config.class_names),
        "resize": config.resize,
        "kind": config.kind,
        "balance": config.balance != "none" and config.balance,
        "loss": config.loss != "cross_entropy" and config.loss,
        "init": config.init and hashlib.sha256(storage.read_bytes(storage.resolve(config.init))).hexdigest(),
    }
    asked |= {name: value for name, value in options_on.items() if value}  # older folders know none of these
    there = read_info(out)
    if there is not None:
        there = _same(there, asked, out)
        _require_unchanged(there, {name: url for url, name in [*data, *own]}, out)
        LOG.info("IL model %s is complete already", redact(out))
        clear(out)
        return gate.passed(there, config.min_accuracy, out)
    storage.probe_writable(out)
    started = time.monotonic()
    lenient: Any = {"allow_compressed": config.allow_compressed, "accept_missing_eof": config.accept_missing_eof}
    label = label_from(config.label, config.class_names, data, **lenient)
    preprocess = _kind_of(data, config, image_member, lenient)
    label.require_beside(preprocess)
    if classes is None and label.names:
        classes = max(label.names.values()) + 1
    loss = _require_fitting(preprocess, config)
    _try(model, preprocess, classes, config, loss)
    preprocess = preprocess.with_decoder(asked["decoder"])
    decoding = preprocess.decoder
    settings = ScanSettings(
        kind=preprocess,
        classes=classes,
        label=label,
        group_by=config.group_by,
        mark=rule,
        watch=None if config.group_by else "duplicate_of",
        **lenient,
    )
    options: dict[str, Any] = {
        "memory_bytes": config.memory_bytes,
        "workers": config.workers,
        "budget": budget,
        "fail_fast": config.fail_fast,
    }
    retried = storage.retried()
    with StopRequest("fit-il", again=_READ_AGAIN):
        pool, of_d = _pools(rule, data, own, settings, config.fit_samples, config.seed, options)
    theirs = {} if of_d is None else of_d.class_names
    require_same_classes(label.class_names, {**theirs, **pool.class_names}, "--class-names", "the shards")
    require_same_classes(pool.class_names, theirs, "the holdout", "the shards")  # a fraction's are the same shards
    labels = pool.labels if of_d is None else of_d.labels  # of all of D, drawn or not
    # A holdout may lack a class of D, whose samples are samples all the same.
    if preprocess.target is None:
        classes = classes or count_classes(torch.tensor(sorted({*pool.labels, *labels}) or [0]))
    recipe = Recipe(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=WEIGHT_DECAY,
        augment=config.augment,
        seed=config.seed,
        balance=config.balance,
    )
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made_of = {
        **asked, "classes": classes, "preprocess": preprocess.to_json(), "decoding": decoding, "device": device.type,
        "versions": versions(),
    }  # fmt: skip
    identity = identity_of(made_of, [pool, *([] if of_d is None else [of_d])])
    fit = Fit(
        model,
        classes,
        preprocess,
        recipe,
        device,
        config.init,
        loss,
        lambda number: Kept(out, identity, number, rule.models, config.epochs),
    )
    empty = [] if not preprocess.needs_label else empty_classes(rule, pool, labels) + gaps(labels, label.class_names)
    for says in empty:
        LOG.warning("%s", says)
    read = {
        "samples": sum(pool.statuses.values()),
        **pool.statuses,
        "bad_shards": pool.bad_shards,
        "retried": storage.retried_since(retried),
    }
    info = ModelInfo(
        architecture=model, classes=classes, preprocess=_plain(preprocess), decoder=decoding,
        split=rule.to_json(), folds=[], accuracy=None, loss=loss, val_loss=0.0, cost={}, asked=asked,
        learned_from=sorted(pool.shards), read=read, quality={"empty_classes": empty},
        sample={"taken": len(pool), "seen": sum(pool.seen.values())},
        shards={name: list(of) for name, of in {**(of_d.versions if of_d else {}), **pool.versions}.items()},
        on_d={"samples": 0, "left_out": _seen_in(of_d, own)} if rule.mode == "holdout" and of_d is not None else {},
        class_names=dict(sorted({**theirs, **pool.class_names, **label.class_names}.items())), label=label.to_json(),
        versions={"torch": torch.__version__, "python": platform.python_version()},
    )  # fmt: skip
    with StopRequest("fit-il", again=_READ_AGAIN):
        info, before = _fitted(fit, rule, (pool, of_d), out, info)
    info = replace(info, cost=info.cost | {"seconds": round(before + time.monotonic() - started, 3)})
    crash_point("fit-il: before model.json")
    write_info(out, info)
    crash_point("fit-il: model.json written")
    clear(out)
    worst = info.quality.get("worst_class")
    LOG.info(
        "IL model %s: %s%s on samples it didn't learn from (%s of %s)%s; %s samples, %.0f s",
        redact(out),
        info.in_words(),
        f" (worst class {label_named(info.class_names, worst['class'])}: {worst['accuracy']:.4f})" if worst else "",
        f"{info.judged['samples']:,}",
        info.judged["on"],
        f"{_if_known(', accuracy {:.4f}', info.on_d.get('accuracy'))}, loss {info.on_d['loss']:.4f} on D"
        if info.on_d.get("samples")
        else "",
        f"{info.cost['fit_samples']:,}",
        info.cost["seconds"],
    )
    return gate.passed(info, config.min_accuracy, out)


def _if_known(words: str, value: float | None) -> str:
    return "" if value is None else words.format(value)


def _try(model: str, preprocess: Kind, classes: int | None, config: FitILConfig, loss: str) -> None:
    """Refuse a model that can't be fitted before a shard is read. Raises UsageError."""
    labelled = preprocess.target is None
    trial = models.build(model, classes=(classes or 2) if labelled else None, **preprocess.model_arguments())
    if config.init:
        models.load_initial(trial, config.init)
    if config.batch_size == 1:
        require_more_than_one(trial, preprocess.example(), "--batch-size 1")
    with torch.no_grad():
        logits = called(trial.eval(), preprocess.example())
        if not labelled:
            require_taken(loss, preprocess, logits)
    if classes is not None and not is_language(trial):
        require_width(model, logits, classes)


def _fitted(
    fit: Fit, rule: FoldRule, pools: tuple[Pool, Pool | None], out: str, info: ModelInfo
) -> tuple[ModelInfo, float]:
    """Train the networks and write their weights.

    Returns what model.json will say, and the seconds of training in earlier processes that it goes on from.
    """
    pool, of_d = pools
    check = of_d if rule.mode == "fraction" and of_d is not None else pool
    folds = fit_folds(fit, rule, pool, check)
    learned = [fold.learned for fold in folds]
    quality, measured = dict[str, Any](), 0  # samples through the networks after their training
    if fit.preprocess.needs_label and fit.loss == "cross_entropy":  # else nothing is calibrated
        quality, measured = quality_of(fit, folds, pool, check)
        quality |= info.quality
    of_data = info.on_d
    if rule.mode == "holdout" and of_d is not None and len(of_d):
        found = on_d(fit, learned[0], of_d)
        measured += len(of_d)
        figures = {"loss": found.loss, "loss_error": found.loss_error, "accuracy": found.accuracy}
        # JSON has no number for an infinite loss.
        known = {name: value if math.isfinite(value) else 1e30 for name, value in figures.items() if value is not None}
        of_data = info.on_d | {"samples": len(of_d)} | known
    records = write_folds(out, folds)
    weight = sum(record["val_samples"] for record in records)
    loss, accuracy = (
        sum(record[name] * record["val_samples"] for record in records) / weight
        if all(record[name] is not None for record in records)
        else None
        for name in ("val_loss", "val_accuracy")
    )
    assert loss is not None
    info = replace(
        info,
        folds=records,
        quality=quality,
        accuracy=accuracy,
        val_loss=loss,
        on_d=of_data,
        judged={"on": JUDGES[rule.mode], "samples": sum(len(fold.check) for fold in folds)},
        cost={
            "macs": folds[-1].macs,
            "seconds": round(sum(one.seconds for one in learned), 3),
            "fit_samples": sum(one.samples for one in learned),
            "checked_samples": sum(one.checked for one in learned) + measured,
        },
    )
    if quality:
        info = replace(info, quality={**quality, "doubts": gate.doubts(info)})
    return info, sum(one.seconds_before for one in learned)


def named(shards: Iterable[str], roots: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """(URL, name) of the shards that the arguments mean. Raises UsageError when two have the same name."""
    return [(url, name) for name, url in il.named_shards(storage.expand(shards), roots or {}).items()]


def _seen_in(pool: Pool, shards: Iterable[tuple[str, str]]) -> int:
    """How many samples some of the shards that a pool was drawn from have."""
    return sum(pool.seen.get(name, 0) for _, name in shards)


def count_classes(label: Tensor) -> int:
    """Largest label + 1. Raises UsageError when so few of those classes occur that a wrong label is likelier."""
    classes, distinct = int(label.max()) + 1, int(torch.unique(label).numel())
    if classes > 4 * distinct + 16:
        raise UsageError(
            f"the largest label is {classes - 1:,}, but only {distinct:,} labels occur: give the number "
            "of classes with --classes (labels beyond it are quarantined)"
        )
    return classes


def _rule(
    holdout: Iterable[str] | None, fraction: float | None, folds: int, seed: int, group_by: str | None
) -> FoldRule:
    if holdout is not None and fraction is not None:
        raise UsageError("give --holdout or --holdout-fraction, not both")
    if holdout is not None:
        return FoldRule(mode="holdout", folds=1, seed=seed)
    if fraction is not None:
        return FoldRule(mode="fraction", folds=1, seed=seed, group_by=group_by, fraction=fraction)
    return FoldRule(mode="folds", folds=folds, seed=seed, group_by=group_by)


def _digest(shards: list[tuple[str, str]]) -> dict[str, Any]:
    names = "\n".join(sorted(name for _, name in shards))
    return {"count": len(shards), "sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]}


def _digest_of_names(place: str) -> str:
    names = json.dumps(numbers_of(place), sort_keys=True)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _same(there: ModelInfo, asked: dict[str, Any], out: str) -> ModelInfo:
    if there.checkpoint:
        raise MismatchError(f"{redact(out)} is a checkpoint of another fit; use another --out")
    for name in dict.fromkeys([*asked, *there.asked]):
        old, new = there.asked.get(name), asked.get(name)
        if old != new:
            raise MismatchError(
                f"{redact(out)} holds an IL model with {name} {old!r}, this job has {new!r}; "
                "use the same settings or another --out"
            )
    return there


def _require_unchanged(there: ModelInfo, urls: Mapping[str, str], out: str) -> None:
    """Raise StaleShardError for a shard that isn't what the model was made of any more, relabelled in place, say.

    Size, time and ETag tell that a look is due; only then a shard is read, and its sha256 decides.
    """

    def changed(name: str) -> bool:
        size, tag, digest = there.shards[name]
        today = storage.identity(urls[name])
        if today.size != size:
            return True
        return bool(today.tag != tag and digest and storage.digest_of(urls[name])[1] != digest)

    names = sorted({*there.shards} & {*urls})
    with ThreadPoolExecutor(16) as pool:
        stale = [name for name, yes in zip(names, pool.map(changed, names), strict=True) if yes]
    if stale:
        raise StaleShardError(
            f"{len(stale)} shards changed since the IL model {redact(out)} learned from them, first "
            f"{stale[0]}: make a new one with another --out"
        )


def _kind_of(shards: list[tuple[str, str]], config: FitILConfig, member: str | None, lenient: dict[str, Any]) -> Kind:
    """What samples of D are decoded to: the kind that is named or that options are of, else what most of those looked
    at are."""
    model, where = config.model, redact(shards[0][0])
    wanted = Wanted(
        image_size=config.image_size,
        channels=config.channels,
        resize=config.resize,
        member=member,
        mean=tuple(config.mean),
        std=tuple(config.std),
        tokenizer=config.tokenizer or (model if model.startswith("hf:") else None),
        text_length=config.text_length,
        task=config.task or models.task_of(model),
    )
    if config.kind is not None:
        return registry.made(config.kind, wanted, None, tuple, where)
    asked = registry.asked(wanted)
    if wanted.tokenizer is not None and asked is not None:
        kind = registry.made(asked, wanted, None, tuple, where)
        if not look(shards, content=asked, **lenient).kinds:
            raise UsageError(
                f"--tokenizer {wanted.tokenizer} reads .{kind.main[0]} members, and the "
                f"first samples of {where}, ... hold none that can be used"
            )
        return kind
    seen = look(shards, **lenient)
    given = config.image_size and config.channels
    content = seen.content or registry.IMAGES.name if given else seen.require_usable()
    if asked is not None:
        if content != asked and not seen.kinds[asked]:
            raise UsageError(
                f"--image-size, --channels, --resize and --image-member are for images, and {where}, ... hold {content}"
            )
        content = asked
    seen.say_mixed(content, member)
    if registry.takes(content, "member"):
        wanted = replace(wanted, member=member or seen.member or None)
    return registry.made(content, wanted, None, lambda: seen.sizes, where)


def _require_fitting(preprocess: Kind, config: FitILConfig) -> str:
    """The name of the loss. Raises UsageError for an option that such samples don't have."""
    if not preprocess.pictures and config.augment != "none":
        raise UsageError(f"augment {config.augment!r} is for images, and these samples are {preprocess.holds}")
    if preprocess.task == "language" and config.balance != "none":
        raise UsageError("--balance is for models of labels, and language has none")
    if preprocess.target is not None:
        given = {"--classes": config.classes, "--min-accuracy": config.min_accuracy,
                 "--balance": None if config.balance == "none" else config.balance}  # fmt: skip
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} {value} is for classes, and {preprocess.target_in_words}")
    loss_name(preprocess, config.loss)
    if find_loss(config.loss) is sequence_mean:
        raise UsageError("--loss sequence_mean takes a label for each token, and a sample of a shard has one")
    return config.loss


def _plain(preprocess: Kind) -> dict[str, Any]:
    """As it is read again from JSON, tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in preprocess.to_json().items()}


def _pools(
    rule: FoldRule,
    data: list[tuple[str, str]],
    own: list[tuple[str, str]],
    settings: ScanSettings,
    samples: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[Pool, Pool | None]:
    """What is learned from, the fold or slice that judges included; and samples of D that are in no holdout."""
    if rule.mode == "fraction":
        settings = replace(settings, mark=Only(rule, 1))
    elif rule.mode == "holdout":
        settings = replace(settings, mark=Places(seed))
    pool = fill(own, settings, samples=samples, seed=seed, title="fit-il: reading", **options)
    if pool.watched:
        warnings.warn(
            f"{pool.watched:,} samples are marked as duplicates (duplicate_of), and copies of one image can "
            "fall into different folds, which leaks; keep them together with --group-by duplicate_of",
            stacklevel=3,
        )
    if rule.mode == "folds":
        return pool, None
    outside = Outside(frozenset(name for _, name in own)) if rule.mode == "holdout" else Only(rule, 0)
    of_d = fill(
        data,
        replace(settings, mark=outside, watch=None),
        samples=min(CHECK_SAMPLES, samples),
        seed=seed + 1,
        title="fit-il: reading a sample of D",
        may_be_empty=rule.mode == "holdout",
        **options,
    )
    return pool, of_d
