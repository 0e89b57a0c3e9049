"""What `compute-il --reference` scores with, and the table that it makes: nothing was fitted, so nothing says what the
samples are. They are what the options say, else what the table that is there says, else what a look at a few says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from rhostream import storage
from rhostream.compute.zero_shot import PROMPTS, read_prompts
from rhostream.config.offline import ComputeILConfig
from rhostream.errors import StorageError, UntrustedCodeError, UsageError
from rhostream.il_model.named import is_of_library, load_named, options_for, require_kind, say_differences
from rhostream.il_model.reference import Reference, load_reference, name_of_reference
from rhostream.irreducible.asked import named
from rhostream.irreducible.banks import banks_of, require_vectors_fit
from rhostream.irreducible.decoded import kind_of, label_of, require_one_kind, wanted_of
from rhostream.irreducible.engines.chosen import device_here
from rhostream.irreducible.gate import beyond_classes
from rhostream.irreducible.score import Scorer
from rhostream.models.by_name import find_stored
from rhostream.models.stored import Stored
from rhostream.models.towers import Towers
from rhostream.runs.macs import macs_per_sample
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.selection.losses import loss_name, require_loss_of_samples, require_taken
from rhostream.selection.outputs import called, described
from rhostream.setting import defaults_of, option_name, settings_of
from rhostream.storage import redact
from rhostream.stream.look import look
from rhostream.stream.scan import ScanSettings
from rhostream.tables import il
from rhostream.tables.class_lists import LIST, read_class_list
from rhostream.tables.classes import require_same_classes
from rhostream.tables.il import TableInfo, reference_doubts

OF_A_REFERENCE = (
    "reference_id", "classes", "content", "caption", "image_size", "channels", "resize", "image_member", "mean", "std",
    "label", "class_names", "tokenizer", "text_length", "end_of_text", "task", "prompts", "batch_size",
)  # fmt: skip
_OF_SAMPLES = (
    "kind", "content", "caption", "image_size", "channels", "resize", "image_member", "mean", "std", "tokenizer",
    "text_length", "end_of_text", "task",
)  # fmt: skip
_OF_AN_IL_MODEL = ("il_model", "model", "min_accuracy")


def require_one_source(config: ComputeILConfig) -> None:
    """Raise UsageError unless there is either an IL model or a reference, with the options of that one alone."""
    if config.reference is None and not config.il_model:
        raise UsageError(
            "an IL model or a reference is needed: the folder that fit-il wrote (--il-model), or a model that exists "
            "(--reference NAME)"
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
    model = find_stored(name) if is_of_library(config.reference) else None
    kind, label = _kind(config, there, shards, model), label_of(config, there, shards)
    label.require_beside(kind)
    beside = {} if kind.target is not None else _beside(model, label.classes, shards)
    labels = dict(model.labels) if isinstance(model, Stored) else {}
    require_same_classes(label.class_names, labels, "--class-names", f"reference {name}")
    classes = config.classes or label.classes or (there.classes if there else None)
    classes = classes or (max(beside) + 1 if beside else None)
    if kind.target is not None and config.classes is not None:
        raise UsageError(f"--classes {config.classes} is for classes, and {kind.target_in_words}")
    if config.task not in (None, kind.task):
        raise UsageError(f"--task {config.task} is for text, and these samples are {kind.holds}")
    loss = _loss(config, kind, there, model.loss if isinstance(model, Towers) and kind.task == "pairs" else None)
    device = device_here(config)
    if model is None:
        _refuse_prompts(config, name)
        reference = load_reference(config.reference, kind, classes, device, config.reference_id)
    else:
        reference = _of_library(config, model, kind, label.class_names, classes, there, device)
    macs = None
    if isinstance(reference.scores, nn.Module):
        classes, macs = _tried(reference, reference.scores, kind, classes, loss, device)
    settings = ScanSettings(kind=kind, classes=classes, label=label, keep=keep, **config.lenient)
    banks, n = banks_of(config, there, reference, loss, shards, settings, device)
    require_vectors_fit(config, [*banks.values()])
    stored = il_dtype or (there.il_dtype if there else "float32")
    record = kind.record()
    options = {
        "il_dtype": stored if stored != "float32" else None, "label": label.to_json(),
        "bank": {"sha256": list(banks), "batch_size": n} if banks else None, "vectors": config.vectors,
    }  # fmt: skip
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
        class_names={**labels, **label.class_names},
    )  # fmt: skip
    kind.log(f"for the reference {name}")
    own = "cross_entropy" if kind.task == "language" else loss
    return (
        table,
        settings,
        Scorer(
            [reference.scores],
            kind,
            own,
            device,
            banks=[*banks.values()],
            batch_size=n,
            vectors=config.vectors is not None,
        ),
    )


def examine(
    table: str, names: Sequence[str], quarantined: Mapping[str, int], info: TableInfo, labels: Mapping[int, int]
) -> list[str]:
    """What is doubtful about the il of a reference: labels beyond its classes, classes that no sample has a label of
    (`labels`: samples that were read, by label), and all that isn't known of it."""
    says = beyond_classes(quarantined, info.classes, "the reference") + reference_doubts(info.reference)
    if labels and info.classes and is_of_library(info.reference["name"]) and (last := max(labels)) < info.classes - 1:
        says.append(
            f"labels go up to {last:,}, and the reference knows {info.classes:,} classes: where yours aren't numbered "
            "as its own are, from 0 on, these il mean nothing; --class-names says what yours are called"
        )
    return says


def _of_library(
    config: ComputeILConfig,
    model: Stored | Towers,
    kind: Kind,
    names: Mapping[int, str],
    classes: int | None,
    there: TableInfo | None,
    device: torch.device,
) -> Reference:
    """The reference that a library's model is to these samples; in what it differs from them is said."""
    if config.reference_id is not None:
        raise UsageError(
            f"--reference-id {config.reference_id!r}: {model.name!r} is proved by its weights; leave it out"
        )
    require_kind(model, kind)
    prompts = tuple((there.reference if there else {}).get("prompts") or PROMPTS)
    if isinstance(model, Stored):
        _refuse_prompts(config, model.name)
    elif config.prompts is not None:
        prompts = read_prompts(config.prompts)
    say_differences(model, kind)
    return load_named(model, kind, names, classes, prompts, device)


def _refuse_prompts(config: ComputeILConfig, name: str) -> None:
    if config.prompts is not None:
        raise UsageError(
            f"--prompts {redact(config.prompts)} is for a model of image and text (hf: or open_clip:), which "
            f"reference {name!r} is not"
        )


def _beside(
    model: Stored | Towers | None, named_classes: int | None, shards: Callable[[], list[tuple[str, str]]]
) -> dict[int, str]:
    """The classes of the list that lies beside the shards, {} without one. Raises MismatchError for other names than
    the library's model has, UsageError for another number than --class-names names."""
    url = storage.join((shards() or [("", "")])[0][0].rpartition("/")[0], LIST)
    try:
        names = read_class_list(url) if storage.exists(url) else {}
    except (StorageError, UsageError):  # whatever it is: the samples say their names themselves
        return {}
    if isinstance(model, Stored):
        require_same_classes(model.labels, names, f"reference {model.name}", redact(url))
    if names and named_classes not in (None, count := max(names) + 1):
        raise UsageError(f"--class-names names {named_classes:,} classes, and {redact(url)} {count:,}")
    return names


def _kind(
    config: ComputeILConfig,
    there: TableInfo | None,
    shards: Callable[[], list[tuple[str, str]]],
    model: Stored | Towers | None,
) -> Kind:
    require_one_kind(config)
    if there is not None and not [name for name in _given(config, _OF_SAMPLES) if name != "kind"]:
        known = there.kind_of_samples(config.kind, redact(config.out))
        return known.with_decoder(str(there.ingredients.get("decoder")))
    if config.kind is not None:
        return registry.made(config.kind, wanted_of(config), None, tuple, redact(config.out)).with_decoder("auto")
    if model is None:
        return kind_of(config, shards()).with_decoder("auto")
    try:
        return kind_of(_as_made_for(config, model, shards), shards()).with_decoder("auto")
    except UsageError as exc:
        exc.args = (f"reference {model.name!r} says what its samples have to be: {exc}",)
        raise


def _as_made_for(
    config: ComputeILConfig, model: Stored | Towers, shards: Callable[[], list[tuple[str, str]]]
) -> ComputeILConfig:
    """The options, those that nobody gave as the model was made for them."""
    pairs = config.content is not None and registry.undecided(config.content).task == "pairs"
    options = options_for(model, pairs)
    if "tokenizer" in options and config.tokenizer is None:
        content = config.content or look(shards(), **config.lenient).content or ""
        if not registry.reads_text(content):  # who made arrays of ids says how many there are
            own = ("text_length", "task") if registry.takes(content, "tokenizer") else ()
            options = {name: options[name] for name in own}
    return replace(config, **{name: value for name, value in options.items() if not _given(config, [name])})


def _loss(config: ComputeILConfig, kind: Kind, there: TableInfo | None, trained_by: str | None) -> str:
    """The loss that il is of, by name: as asked, as of the table that is there, as the reference was `trained_by`."""
    if kind.task == "language":
        return loss_name(kind, config.loss or "cross_entropy")
    asked = config.loss
    if asked is None and there is not None:
        asked = str(there.ingredients.get("loss"))
        UntrustedCodeError.unless_named(asked, None, redact(config.out), "--loss")
    asked = loss_name(kind, asked or trained_by or "cross_entropy")
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
    if kind.task == "language":
        return 1, macs  # as of a language model that was fitted
    if output.ndim != 2:
        raise UsageError(f"reference {reference.name!r} gives {described(output)}, expected logits of shape (B, C)")
    if classes not in (None, output.shape[1]):
        raise UsageError(
            f"reference {reference.name!r} gives {output.shape[1]:,} logits, and there are {classes:,} classes: it has "
            "to know these, one logit a class (--classes says how many there are)"
        )
    return output.shape[1], macs
