"""Fit the IL model: settings > pool of samples > one network a fold > weights, then model.json.

Three ways to learn the irreducible loss of D (paper, section 3 and Table 3): from a holdout of other shards, from a
fraction of D by hash, or, the default, by cross-fitting: model i learns from all folds but i and scores fold i.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from rhostream import storage
from rhostream.config.call import configured
from rhostream.config.offline import FitILConfig
from rhostream.crashpoints import crash_point
from rhostream.il_model.bounds import most_epochs
from rhostream.il_model.folds import FoldRule
from rhostream.il_model.info import ModelInfo, write_info
from rhostream.irreducible import gate
from rhostream.irreducible.asked import asked_of, checked_rule, finished, named
from rhostream.irreducible.crossfit import (
    JUDGES,
    Fit,
    empty_classes,
    fit_folds,
    on_d,
    quality_of,
    write_folds,
)
from rhostream.irreducible.decoded import count_classes, kind_of, require_fitting, require_model
from rhostream.irreducible.drawn import drawn
from rhostream.irreducible.engines.chosen import engine_of
from rhostream.irreducible.learn import Recipe
from rhostream.irreducible.pool import Pool
from rhostream.irreducible.unfinished import Kept, clear, identity_of
from rhostream.runs.record import versions
from rhostream.selection.hardware import device_of
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.advice import gaps
from rhostream.stream.budget import Budget
from rhostream.stream.label_from import label_from
from rhostream.stream.scan import ScanSettings
from rhostream.tables.classes import named as label_named
from rhostream.tables.classes import require_same_classes
from rhostream.tables.names import checked_roots

LOG = logging.getLogger("rhostream")
WEIGHT_DECAY = 0.01
_READ_AGAIN = "the same command reads the samples again and goes on behind the epochs that are kept"


@configured(FitILConfig, "shards", "out")
def fit_il(config: FitILConfig) -> ModelInfo:
    """Train the IL model of `shards` and write it below `out`; a complete one of the same settings is returned as is.

    `fit_samples` bounds the samples that are held and learned from, over all folds. Without `epochs` a network learns
    at a constant rate, its weights are averaged, and it ends when the average's loss on others no longer falls
    (`until_flat`); with them it learns so many at a rate that falls to 0. The checkpoint is the one with the
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
    in a sample the first of these extensions is meant, and a sample without any has no image. `content` names a kind:
    image, text, tokens, or pair, whose captions are the .txt, or the field `caption` of the .json.

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
    rule = checked_rule(config)
    out, model = storage.resolve(config.out), config.model
    roots = checked_roots(config.roots)
    data = named(config.shards, roots)
    own = named(storage.listed(config.holdout, "--holdout"), roots) if config.holdout is not None else data
    asked = asked_of(config, rule, data, own)
    there = finished(out, asked, {name: url for url, name in [*data, *own]})
    if there is not None:
        clear(out)
        return gate.passed(there, config.min_accuracy, out)
    storage.probe_writable(out)
    started = time.monotonic()
    label = label_from(config.label, config.class_names, data, **config.lenient)
    preprocess, classes = kind_of(config, data), config.classes
    label.require_beside(preprocess)
    if classes is None:
        classes = label.classes
    loss = require_fitting(preprocess, config)
    require_model(model, preprocess, classes, config, loss)
    preprocess = preprocess.with_decoder(asked["decoder"])
    decoding = preprocess.decoder
    settings = ScanSettings(
        kind=preprocess,
        classes=classes,
        label=label,
        group_by=config.group_by,
        mark=rule,
        watch=None if config.group_by else "duplicate_of",
        **config.lenient,
    )
    options: dict[str, Any] = {
        "memory_bytes": config.memory_bytes,
        "workers": config.workers,
        "budget": budget,
        "fail_fast": config.fail_fast,
    }
    retried = storage.retried()
    with StopRequest("fit-il", again=_READ_AGAIN), engine_of(config) as engine:
        options["engine"] = engine
        pool, of_d = drawn(rule, data, own, settings, config.fit_samples, config.seed, options)
    theirs = {} if of_d is None else of_d.class_names
    require_same_classes(label.class_names, {**theirs, **pool.class_names}, "--class-names", "the shards")
    require_same_classes(pool.class_names, theirs, "the holdout", "the shards")  # a fraction's are the same shards
    labels = pool.labels if of_d is None else of_d.labels  # of all of D, drawn or not
    # A holdout may lack a class of D, whose samples are samples all the same.
    if preprocess.target is None:
        classes = classes or count_classes(torch.tensor(sorted({*pool.labels, *labels}) or [0]))
    recipe = Recipe(
        epochs=config.epochs
        or most_epochs(len(pool) * (rule.models - 1) // rule.models if rule.models > 1 else len(pool)),
        stops=config.epochs is None,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=WEIGHT_DECAY,
        augment=config.augment,
        seed=config.seed,
        balance=config.balance,
    )
    device = device_of(config.device or "auto")
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
        lambda number: Kept(out, identity, number, rule.models, recipe.epochs),
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
        architecture=model, classes=classes, preprocess=preprocess.record(), decoder=decoding,
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
        "IL model %s: %s%s on samples it didn't learn from (%s of %s)%s; it cost %s",
        redact(out),
        info.in_words(),
        f" (worst class {label_named(info.class_names, worst['class'])}: {worst['accuracy']:.4f})" if worst else "",
        f"{info.judged['samples']:,}",
        info.judged["on"],
        f"{_if_known(', accuracy {:.4f}', info.on_d.get('accuracy'))}, loss {info.on_d['loss']:.4f} on D"
        if info.on_d.get("samples")
        else "",
        _bill(info.cost),
    )
    return gate.passed(info, config.min_accuracy, out)


def _bill(cost: Mapping[str, Any]) -> str:
    """What a fit cost: samples, multiply-adds (a backward counts two forwards), seconds."""
    learned, checked = cost["fit_samples"], cost["checked_samples"]
    return (
        f"{learned:,} samples learned from and {checked:,} looked at, "
        f"{(3 * learned + checked) * cost['macs']:.2g} multiply-adds, {cost['seconds']:.0f} s"
    )


def _if_known(words: str, value: float | None) -> str:
    return "" if value is None else words.format(value)


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
    records = write_folds(out, folds, fit, rule, pools)
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


def _seen_in(pool: Pool, shards: Iterable[tuple[str, str]]) -> int:
    """How many samples some of the shards that a pool was drawn from have."""
    return sum(pool.seen.get(name, 0) for _, name in shards)
