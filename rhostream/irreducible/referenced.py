"""What `compute-il --reference` scores with, and the table that it makes: nothing was fitted, so nothing says what the
samples are. They are what the options say, else what the table that is there says, else what a look at a few says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from rhostream import storage
from rhostream.config.offline import ComputeILConfig
from rhostream.errors import UntrustedCodeError, UsageError
from rhostream.il_model.reference import Reference, load_reference, name_of_reference
from rhostream.irreducible.asked import named
from rhostream.irreducible.decoded import kind_of, label_of, require_one_kind, wanted_of
from rhostream.irreducible.gate import beyond_classes
from rhostream.irreducible.score import Scorer
from rhostream.runs.macs import macs_per_sample
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.selection.hardware import device_of
from rhostream.selection.losses import loss_name, require_loss_of_samples, require_taken
from rhostream.selection.outputs import called, described
from rhostream.setting import defaults_of, option_name, settings_of
from rhostream.storage import redact
from rhostream.stream.scan import ScanSettings
from rhostream.tables import il
from rhostream.tables.il import TableInfo, reference_doubts

OF_A_REFERENCE = (
    "reference_id", "classes", "content", "caption", "image_size", "channels", "resize", "image_member", "mean", "std",
    "label", "class_names", "tokenizer", "text_length",
)  # fmt: skip
_OF_SAMPLES = (
    "kind", "content", "caption", "image_size", "channels", "resize", "image_member", "mean", "std", "tokenizer",
    "text_length",
)  # fmt: skip
_OF_AN_IL_MODEL = ("il_model", "model", "min_accuracy")


def require_one_source(config: ComputeILConfig) -> None:
    """Raise UsageError unless there is either an IL model or a reference, with the options of that one alone."""
    if config.reference is None and not config.il_model:
        raise UsageError(
            "an IL model or a reference is needed: the folder that fit-il wrote (--il-model), or a model that exists "
            "(--reference module:function)"
        )
    others, source = (OF_A_REFERENCE, "--reference") if config.reference is None else (_OF_AN_IL_MODEL, "--il-model")
    for name in _given(config, others):
        option = option_name(name, settings_of(config)[name])
        if name == "il_model":
            raise UsageError("give --il-model or --reference, not both: a table has one source of il")
        why = "an IL model says so itself" if config.reference is None else "nothing was fitted or measured"
        raise UsageError(f"{option} goes with {source}: {why}")


def _given(config: ComputeILConfig, names: Sequence[str]) -> list[str]:
    defaults = defaults_of(config)
    return [name for name in names if getattr(config, name) != defaults[name]]


def of_reference(
    config: ComputeILConfig,
    sources: Sequence[str],
    roots: Mapping[str, str],
    keep: dict[str, str],
    il_dtype: str | None,
) -> tuple[TableInfo, ScanSettings, Scorer]:
    """The table that a reference makes, how its shards are read, and what scores them. Raises UsageError and its kin
    before a shard is read, but for the look at a few samples."""
    assert config.reference is not None
    out, name = storage.resolve(config.out), name_of_reference(config.reference)
    there = il.find_info(out)
    if there is not None and not there.reference:
        there = None  # of another making: `Target.open` says so
    shards = functools.cache(lambda: named(sources, roots))  # listed once, where they are looked at
    kind, label = _kind(config, there, shards), label_of(config, there, shards)
    label.require_beside(kind)
    classes = config.classes or label.classes or (there.classes if there else None)
    if kind.target is not None and config.classes is not None:
        raise UsageError(f"--classes {config.classes} is for classes, and {kind.target_in_words}")
    loss = _loss(config, kind, there)
    device = device_of(config.device or "auto")
    reference = load_reference(config.reference, kind, classes, device, config.reference_id)
    macs = None
    if isinstance(reference.scores, nn.Module):
        classes, macs = _tried(reference, reference.scores, kind, classes, loss, device)
    stored = il_dtype or (there.il_dtype if there else "float32")
    record = kind.record()
    options = {"il_dtype": stored if stored != "float32" else None, "label": label.to_json()}
    table = TableInfo(
        kind="il",
        ingredients={key: value for key, value in options.items() if value}
        | {
            "reference": reference.to_json(), "preprocess": record, "decoder": kind.decoder, "classes": classes,
            "loss": loss,
        },
        classes=classes,
        preprocess=record,
        keep=keep,
        roots=dict(roots),
        model={"reference": reference.to_json(), "learned_from": "unknown", "fit_samples": 0, "checked_samples": 0}
        | ({} if macs is None else {"macs": macs}),
        places=il.places_of(sources),
        content=kind.name,
        class_names=label.class_names,
    )  # fmt: skip
    settings = ScanSettings(kind=kind, classes=classes, label=label, keep=keep, **config.lenient)
    kind.log(f"for the reference {name}")
    return table, settings, Scorer([reference.scores], kind, loss, device)


def examine(table: str, names: Sequence[str], quarantined: Mapping[str, int], info: TableInfo) -> list[str]:
    """What is doubtful about the il of a reference: labels beyond its classes, and all that isn't known of it."""
    return beyond_classes(quarantined, info.classes, "the reference") + reference_doubts(info.reference)


def _kind(config: ComputeILConfig, there: TableInfo | None, shards: Callable[[], list[tuple[str, str]]]) -> Kind:
    require_one_kind(config)
    if there is not None and not [name for name in _given(config, _OF_SAMPLES) if name != "kind"]:
        known = there.kind_of_samples(config.kind, redact(config.out))
        return known.with_decoder(str(there.ingredients.get("decoder")))
    if config.kind is not None:
        return registry.made(config.kind, wanted_of(config), None, tuple, redact(config.out)).with_decoder("auto")
    return kind_of(config, shards()).with_decoder("auto")


def _loss(config: ComputeILConfig, kind: Kind, there: TableInfo | None) -> str:
    """The loss that il is of, by name."""
    asked = config.loss
    if asked is None and there is not None:
        asked = str(there.ingredients.get("loss"))
        UntrustedCodeError.unless_named(asked, None, redact(config.out), "--loss")
    asked = loss_name(kind, asked or "cross_entropy")
    if ":" not in asked:  # code that gives the losses itself is never run for this
        require_loss_of_samples(asked)
    return asked


def _tried(
    reference: Reference, network: nn.Module, kind: Kind, classes: int | None, loss: str, device: torch.device
) -> tuple[int | None, int]:
    """The number of classes, and the multiply-adds of one sample. Raises UsageError naming a reference whose output
    the loss can't take, or that knows other classes."""
    example = kind.example().to(device)
    try:
        with torch.no_grad():
            output = called(network, example)
        if kind.target is not None:
            require_taken(loss, kind, output)
    except UsageError as exc:
        raise UsageError(f"reference {reference.name!r}: {exc}") from exc
    macs = macs_per_sample(network, example)
    if kind.target is not None:
        return None, macs
    if output.ndim != 2:
        raise UsageError(f"reference {reference.name!r} gives {described(output)}, expected logits of shape (B, C)")
    if classes not in (None, output.shape[1]):
        raise UsageError(
            f"reference {reference.name!r} gives {output.shape[1]:,} logits, and there are {classes:,} classes: it has "
            "to know these, one logit a class"
        )
    return output.shape[1], macs
