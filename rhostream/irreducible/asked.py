"""What a fit is asked for, as model.json keeps it: a finished model of the same is returned, one of another refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rhostream import storage
from rhostream.config.offline import FitILConfig
from rhostream.errors import MismatchError, StaleShardError, UnknownNameError, UsageError
from rhostream.il_model.folds import FoldRule
from rhostream.il_model.info import ModelInfo, read_info
from rhostream.irreducible import gate
from rhostream.irreducible.learn import AUGMENT, BALANCE
from rhostream.samples import registry
from rhostream.samples.decoders import decoder
from rhostream.storage import redact
from rhostream.stream.label_from import numbers_of
from rhostream.tables import il

LOG = logging.getLogger("rhostream")
EPOCHS_OF_BEFORE = 5  # of a fit that nobody gave a number, before it stopped by itself


def checked_rule(config: FitILConfig) -> FoldRule:
    """Which samples are learned from and which judge. Raises UsageError for settings that can't be."""
    if config.augment not in AUGMENT:
        raise UsageError(f"augment {config.augment!r}: expected one of {', '.join(AUGMENT)}")
    if config.balance not in BALANCE:
        raise UnknownNameError.of("balance", config.balance, BALANCE)
    gate.require_share(config.min_accuracy)
    for name, value in (
        ("epochs", 1 if config.epochs is None else config.epochs),
        ("fit-samples", config.fit_samples),
        ("batch-size", config.batch_size),
    ):
        if value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    holdout, fraction, seed = config.holdout, config.holdout_fraction, config.seed
    if holdout is not None and fraction is not None:
        raise UsageError("give --holdout or --holdout-fraction, not both")
    if holdout is not None:
        return FoldRule(mode="holdout", folds=1, seed=seed)
    if fraction is not None:
        return FoldRule(mode="fraction", folds=1, seed=seed, group_by=config.group_by, fraction=fraction)
    return FoldRule(mode="folds", folds=config.folds, seed=seed, group_by=config.group_by)


def named(shards: Iterable[str], roots: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """(URL, name) of the shards that the arguments mean. Raises UsageError when two have the same name."""
    return [(url, name) for name, url in il.named_shards(storage.expand(shards), roots or {}).items()]


def asked_of(
    config: FitILConfig, rule: FoldRule, data: list[tuple[str, str]], own: list[tuple[str, str]]
) -> dict[str, Any]:
    """All settings that the weights hang on; `data` and `own`: (URL, name) of the shards of D and of the holdout."""
    asked = {
        "model": config.model,
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
    options_on = {
        "image_member": registry.checked_member(config.image_member),
        "label": config.label,
        "class_names": config.class_names and _digest_of_names(config.class_names),
        "resize": config.resize,
        "kind": config.kind,
        "balance": config.balance != "none" and config.balance,
        "loss": config.loss != "cross_entropy" and config.loss,
        "init": config.init and hashlib.sha256(storage.read_bytes(storage.resolve(config.init))).hexdigest(),
    }
    if config.end_of_text is not None:
        asked["end_of_text"] = config.end_of_text  # which may be 0
    return asked | {name: value for name, value in options_on.items() if value}  # older folders know none of these


def _digest(shards: list[tuple[str, str]]) -> dict[str, Any]:
    names = "\n".join(sorted(name for _, name in shards))
    return {"count": len(shards), "sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]}


def _digest_of_names(place: str) -> str:
    names = json.dumps(numbers_of(place), sort_keys=True)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def finished(out: str, asked: dict[str, Any], urls: Mapping[str, str]) -> ModelInfo | None:
    """The model that is complete at `out`, None where none is. `urls`: name -> URL of today's shards.

    Raises MismatchError for one of other settings, StaleShardError for one of other bytes.
    """
    there = read_info(out)
    if there is not None:
        _require_same(there, asked, out)
        _require_unchanged(there, urls, out)
        LOG.info("IL model %s is complete already", redact(out))
    return there


def _require_same(there: ModelInfo, asked: dict[str, Any], out: str) -> None:
    if there.checkpoint:
        raise MismatchError(f"{redact(out)} is a checkpoint of another fit; use another --out")
    for name in dict.fromkeys([*asked, *there.asked]):
        old, new = there.asked.get(name), asked.get(name)
        if name == "epochs" and new is None and old == EPOCHS_OF_BEFORE:
            continue  # the same command, when it had this default
        if old != new:
            raise MismatchError(
                f"{redact(out)} holds an IL model with {name} {old!r}, this job has {new!r}; "
                "use the same settings or another --out"
            )


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
