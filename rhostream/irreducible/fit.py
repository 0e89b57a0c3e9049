"""Fit the IL model: settings > pool of samples > one network a fold > weights, then model.json.

Three ways to learn the irreducible loss of D (paper, section 3 and Table 3): from a holdout of other shards, from a
fraction of D by hash, or, the default, by cross-fitting: model i learns from all folds but i and scores fold i.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rhostream import cost, models, storage
from rhostream.crashpoints import crash_point
from rhostream.errors import MismatchError, UsageError
from rhostream.irreducible.accounts import Budget
from rhostream.irreducible.folds import FoldRule, Only
from rhostream.irreducible.learn import AUGMENT, Learned, Recipe, learn
from rhostream.irreducible.model import ModelInfo, read_info
from rhostream.irreducible.pool import Pool, fill
from rhostream.signals import StopRequest
from rhostream.storage import redact
from rhostream.stream.decode import Preprocess, decoder
from rhostream.stream.inputs import AnyPreprocess, decoder_for, probe_shards, require_text
from rhostream.stream.plan import generator
from rhostream.stream.scan import ScanSettings
from rhostream.stream.text import text_preprocess
from rhostream.tables import il

LOG = logging.getLogger("rhostream")
CHECK_SAMPLES = 10_000  # of D, for the choice of the checkpoint
WEIGHT_DECAY = 0.01


def fit_il(shards: Iterable[str], out: str, *, model: str, holdout: Iterable[str] | None = None,
           holdout_fraction: float | None = None, folds: int = 2, group_by: str | None = None,
           fit_samples: int = 100_000, epochs: int = 5, seed: int = 0, batch_size: int = 64, lr: float = 1e-3,
           classes: int | None = None, image_size: int | None = None, channels: int | None = None,
           mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.5,), decoder_name: str = "auto",
           augment: str = "none", workers: int = 0, roots: Mapping[str, str] | None = None,
           memory_bytes: int = 8 << 30, max_bad_fraction: float = 0.01, max_bad_samples: int | None = None,
           max_bad_shards: float = 0.1, fail_fast: bool = False, device: str | None = None,
           allow_compressed: bool = False, accept_missing_eof: bool = False, tokenizer: str | None = None,
           text_length: int | None = None, task: str | None = None) -> ModelInfo:
    """Train the IL model of `shards` and write it below `out`; a complete one of the same settings is returned as is.

    `fit_samples` bounds the samples that are held and learned from, over all folds. Labels may be noisy: the
    checkpoint is the one with the lowest mean loss on samples of D that the network doesn't learn from, labels as
    they are. `allow_compressed`, `accept_missing_eof`: see `compute_il`. Where the samples are text (`tokenizer` is
    given, or the first that can be used has a .txt and no image): `text_length` tokens of `tokenizer`, of
    which the model learns the `task` "label" or "language" (the default of text-lm, which needs no labels).

    Deterministic by `seed` on a CPU. Samples and shards that can't be used are counted in `ModelInfo.read`, and more of
    them than `Budget` says stop the job. Raises UsageError, MismatchError naming the setting that changed, BudgetError,
    Interrupted after a signal.
    """
    budget = Budget(fraction=max_bad_fraction, samples=max_bad_samples, shards=max_bad_shards)
    rule = _rule(holdout, holdout_fraction, folds, seed, group_by)
    if augment not in AUGMENT:
        raise UsageError(f"augment {augment!r}: expected one of {', '.join(AUGMENT)}")
    for name, value in (("epochs", epochs), ("fit-samples", fit_samples), ("batch-size", batch_size)):
        if value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    out = storage.resolve(out)
    data = named(shards, roots)
    own = named(holdout, roots) if holdout is not None else data
    asked = {
        "model": model, "shards": _digest(data), "holdout": _digest(own) if rule.mode == "holdout" else None,
        **rule.to_json(), "fit_samples": fit_samples, "epochs": epochs, "batch_size": batch_size, "lr": lr,
        "classes": classes, "image_size": image_size, "channels": channels, "mean": list(mean), "std": list(std),
        "decoder": decoder(decoder_name)[0], "augment": augment, "tokenizer": tokenizer, "text_length": text_length,
        "task": task,
    }
    there = read_info(out)
    if there is not None:
        return _same(there, asked, out)
    storage.probe_writable(out)
    started = time.monotonic()
    lenient: Any = {"allow_compressed": allow_compressed, "accept_missing_eof": accept_missing_eof}
    preprocess = _preprocess(own, image_size, channels, mean, std, tokenizer, text_length, model, task, lenient)
    if preprocess.kind == "text" and augment != "none":
        raise UsageError(f"augment {augment!r} is for images, and these samples are text")
    models.build(model, classes=classes or 2, **preprocess.model_arguments())
    decoding = decoder_for(preprocess, asked["decoder"])[0]
    settings = ScanSettings(preprocess=preprocess, decoder_name=decoding, classes=classes, group_by=group_by,
                            mark=rule, watch=None if group_by else "duplicate_of", **lenient)
    options: dict[str, Any] = {"memory_bytes": memory_bytes, "workers": workers, "budget": budget,
                               "fail_fast": fail_fast}
    retried = storage.retried()
    with StopRequest("fit-il"):
        learn_from, check = _pools(rule, data, own, settings, fit_samples, seed, options)
    classes = classes or count_classes(learn_from.label)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=WEIGHT_DECAY, augment=augment, seed=seed)
    fit = _Fit(model, classes, preprocess, recipe,
               torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    with StopRequest("fit-il"):
        records, samples, macs = _fit_folds(fit, rule, learn_from, check, out)
    weight = sum(r["val_samples"] for r in records)
    info = ModelInfo(
        architecture=model, classes=classes, preprocess=_plain(preprocess),
        decoder=decoding, split=rule.to_json(), folds=records,
        accuracy=sum(r["val_accuracy"] * r["val_samples"] for r in records) / weight,
        val_loss=sum(r["val_loss"] * r["val_samples"] for r in records) / weight,
        cost={"fit_samples": samples, "macs": macs, "seconds": round(time.monotonic() - started, 3)},
        asked=asked, learned_from=sorted(learn_from.shards),
        versions={"torch": torch.__version__, "python": platform.python_version()},
        read={"samples": sum(learn_from.statuses.values()), **learn_from.statuses, "bad_shards": learn_from.bad_shards,
              "retried": storage.retried_since(retried)},
    )
    crash_point("fit-il: before model.json")
    storage.create(storage.join(out, "model.json"), info.encode())
    crash_point("fit-il: model.json written")
    LOG.info("IL model %s: accuracy %.4f, loss %.4f nats on samples it didn't learn from; %s samples, %.0f s",
             redact(out), info.accuracy, info.val_loss, f"{samples:,}", info.cost["seconds"])
    return info


def named(shards: Iterable[str], roots: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """(URL, name) of the shards that the arguments mean. Raises UsageError when two have the same name."""
    found: dict[str, str] = {}
    for url in storage.expand([shards] if isinstance(shards, str) else shards):
        name = il.shard_name(url, roots or {})
        if name in found:
            raise UsageError(f"shards {redact(found[name])} and {redact(url)} have the same name {name}; "
                             "name their folders with --root NAME=URL")
        found[name] = url
    return [(url, name) for name, url in found.items()]


def count_classes(label: Tensor) -> int:
    """Largest label + 1. Raises UsageError when so few of those classes occur that a wrong label is likelier."""
    classes, distinct = int(label.max()) + 1, int(torch.unique(label).numel())
    if classes > 4 * distinct + 16:
        raise UsageError(f"the largest label is {classes - 1:,}, but only {distinct:,} labels occur: give the number "
                         "of classes with --classes (labels beyond it are quarantined)")
    return classes


def _rule(holdout: Iterable[str] | None, fraction: float | None, folds: int, seed: int,
          group_by: str | None) -> FoldRule:
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


def _same(there: ModelInfo, asked: dict[str, Any], out: str) -> ModelInfo:
    for name, new in asked.items():
        old = there.asked.get(name)
        if old != new:
            raise MismatchError(f"{redact(out)} holds an IL model with {name} {old!r}, this job has {new!r}; "
                                "use the same settings or another --out")
    LOG.info("IL model %s is complete already", redact(out))
    return there


def _preprocess(shards: list[tuple[str, str]], image_size: int | None, channels: int | None, mean: tuple[float, ...],
                std: tuple[float, ...], tokenizer: str | None, text_length: int | None, model: str,
                task: str | None, lenient: dict[str, Any]) -> AnyPreprocess:
    """What samples become: text where a tokenizer is given or the first usable sample has no image, else images."""
    tokenizer, task = tokenizer or (model if model.startswith("hf:") else None), task or models.task_of(model)
    if tokenizer is not None and (image_size or channels):
        raise UsageError(f"--tokenizer {tokenizer} is for text and --image-size for images: give one of them")
    if tokenizer is not None:
        preprocess = text_preprocess(tokenizer, text_length, task)
        if probe_shards(shards, content=preprocess.content, **lenient) is None:
            raise UsageError(f"--tokenizer {tokenizer} reads .{il.CONTENTS[preprocess.content][0]} members, and the "
                             f"first samples of {redact(shards[0][0])} hold none that can be used")
        return preprocess
    if image_size is None or channels is None:
        found = probe_shards(shards, **lenient)
        if found is None:
            raise UsageError("no readable image and no text was found; give --image-size and --channels, or "
                             "--tokenizer")
        if found.content != "image":
            require_text(found.content, tokenizer, redact(shards[0][0]))
            return text_preprocess(tokenizer, text_length, task)
        image_size, channels = image_size or found.side, channels or found.channels
    if text_length is not None:
        raise UsageError(f"--text-length {text_length} is for text, and these samples are images")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UsageError(f"{name} has {len(values)} values, expected 1 or {channels} (one a channel)")
    return Preprocess(image_size=image_size, channels=channels, mean=tuple(mean), std=tuple(std))


def _plain(preprocess: AnyPreprocess) -> dict[str, Any]:
    """As it is read again from JSON, tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in preprocess.to_json().items()}


def _pools(rule: FoldRule, data: list[tuple[str, str]], own: list[tuple[str, str]], settings: ScanSettings,
           samples: int, seed: int, options: dict[str, Any]) -> tuple[Pool, Pool]:
    """What is learned from, and the samples of D that choose the checkpoint; the same pool when cross-fitting."""
    if rule.mode == "fraction":
        settings = replace(settings, mark=Only(rule, 1))
    pool = fill(own, settings, samples=samples, seed=seed, title="fit-il: reading", **options)
    if pool.watched:
        warnings.warn(f"{pool.watched:,} samples are marked as duplicates (duplicate_of), and copies of one image can "
                      "fall into different folds, which leaks; keep them together with --group-by duplicate_of",
                      stacklevel=3)
    if rule.mode == "folds":
        return pool, pool
    settings = replace(settings, mark=Only(rule, 0), watch=None)
    return pool, fill(data, settings, samples=min(CHECK_SAMPLES, samples), seed=seed + 1,
                      title="fit-il: reading a sample of D", **options)


@dataclass(frozen=True)
class _Fit:
    """What all folds share."""

    model: str
    classes: int
    preprocess: AnyPreprocess
    recipe: Recipe
    device: torch.device

    def fold(self, number: int, pool: Pool, train: Tensor, check: Pool, rows: Tensor) -> tuple[Learned, int]:
        """Train the network of one fold; its initial weights and dropout are functions of (seed, fold)."""
        with torch.random.fork_rng():
            torch.manual_seed(int(generator(self.recipe.seed, "fit", number).integers(2**62)))
            network = models.build(self.model, classes=self.classes, **self.preprocess.model_arguments())
            normalize = self.preprocess.normalize
            macs = cost.macs_per_sample(network, normalize(pool.image[:1]))
            learned = learn(network, pool.image, pool.label, train, rows, check_image=check.image,
                            check_label=check.label, recipe=self.recipe, normalize=normalize,
                            device=self.device)
        return learned, macs


def _fit_folds(fit: _Fit, rule: FoldRule, pool: Pool, check: Pool, out: str) -> tuple[list[dict[str, Any]], int, int]:
    records, samples, macs = [], 0, 0
    inside = check.label < fit.classes  # a holdout may lack a class of D
    for number in range(rule.models):
        if rule.mode == "folds":
            train, rows = (pool.mark != number).nonzero()[:, 0], (pool.mark == number).nonzero()[:, 0]
        else:
            train, rows = torch.arange(len(pool)), inside.nonzero()[:, 0]
        rows = _some(rows, fit.recipe.seed, number)
        if not len(train) or not len(rows):
            raise UsageError(f"fold {number} has {len(train):,} samples to learn from and {len(rows):,} to check on: "
                             "too few samples for this split")
        learned, macs = fit.fold(number, pool, train, check, rows)
        samples += learned.samples
        name = f"fold-{number}.safetensors" if rule.models > 1 else "weights.safetensors"
        weights = save_safetensors(learned.state)
        # Weights without a model.json are the rest of a fit that was stopped: nothing can refer to them.
        storage.replace(storage.join(out, name), weights)
        crash_point("fit-il: weights written")
        records.append({
            "weights": name, "sha256": hashlib.sha256(weights).hexdigest(), "val_loss": learned.val_loss,
            "val_accuracy": learned.val_accuracy, "best_epoch": learned.best_epoch, "curve": learned.curve,
            "train_samples": len(train), "val_samples": len(rows), "seconds": round(learned.seconds, 3),
        })
        LOG.info("fit-il: model %d of %d: loss %.4f, accuracy %.4f on D (epoch %.1f of %d)", number + 1,
                 rule.models, learned.val_loss, learned.val_accuracy, learned.best_epoch, fit.recipe.epochs)
    return records, samples, macs


def _some(rows: Tensor, seed: int, number: int) -> Tensor:
    """At most `CHECK_SAMPLES` of the rows, the same ones for every network of that fold."""
    if len(rows) <= CHECK_SAMPLES:
        return rows
    chosen = generator(seed, "check", number).permutation(len(rows))[:CHECK_SAMPLES]
    return rows[torch.from_numpy(chosen).sort().values]
