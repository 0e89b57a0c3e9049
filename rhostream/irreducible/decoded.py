"""What a fit decodes its samples to, and whether the model and its loss can take that, before a shard is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rhostream import models
from rhostream.config.offline import ComputeILConfig, FitILConfig, IndexConfig
from rhostream.errors import UsageError
from rhostream.samples import registry
from rhostream.samples.flat import are_flat
from rhostream.samples.kind import Kind
from rhostream.samples.wanted import Wanted
from rhostream.selection.losses import loss_name, require_loss_of_samples, require_taken
from rhostream.selection.outputs import called, require_more_than_one, require_width
from rhostream.selection.tokens import is_language
from rhostream.storage import redact
from rhostream.stream.label_from import LabelFrom, label_from
from rhostream.stream.look import Look, look
from rhostream.tables.il import TableInfo


def wanted_of(config: FitILConfig | ComputeILConfig) -> Wanted:
    """What the options ask of samples."""
    wanted = Wanted(
        content=config.content,
        caption=config.caption,
        image_size=config.image_size,
        channels=config.channels,
        resize=config.resize,
        member=registry.checked_member(config.image_member),
        mean=tuple(config.mean),
        std=tuple(config.std),
        tokenizer=config.tokenizer,
        text_length=config.text_length,
        end_of_text=config.end_of_text,
    )
    if isinstance(config, ComputeILConfig):
        return replace(wanted, task=config.task)
    of_model = config.model if config.model.startswith("hf:") else None
    task = config.task or models.task_of(config.model)
    return replace(wanted, tokenizer=wanted.tokenizer or of_model, task=task)


def kind_of(config: FitILConfig | ComputeILConfig, shards: list[tuple[str, str]]) -> Kind:
    """What samples of D are decoded to: the kind that is named or that options are of, else what most of those looked
    at are."""
    where = redact(shards[0][0])
    wanted = replace(wanted_of(config), flat=are_flat([url for url, _ in shards]))
    if config.kind is not None:
        require_one_kind(config)
        return registry.made(config.kind, wanted, None, tuple, where)
    asked = registry.asked(wanted)
    if asked is not None and asked == wanted.content:
        kind = registry.undecided(asked, wanted)
        (seen := look(shards, kind=kind, **config.lenient)).require_of(kind)
        return _made(asked, wanted, seen, where)
    if wanted.tokenizer is not None and asked is not None:
        kind = registry.made(asked, wanted, None, tuple, where)
        if kind.flat is None and not look(shards, kind=registry.undecided(asked), **config.lenient).kinds:
            raise UsageError(
                f"--tokenizer {wanted.tokenizer} reads .{kind.main[0]} members, and the "
                f"first samples of {where}, ... hold none that can be used"
            )
        return kind
    seen = look(shards, **config.lenient)
    given = config.image_size and config.channels
    content = seen.content or registry.IMAGES.name if given else seen.require_usable()
    if asked is not None:
        if content != asked and not seen.kinds[asked]:
            raise UsageError(
                f"--image-size, --channels, --resize and --image-member are for images, and {where}, ... hold {content}"
            )
        content = asked
    return _made(content, wanted, seen, where)


def require_one_kind(config: FitILConfig | ComputeILConfig | IndexConfig) -> None:
    """Raise UsageError for a kind of one's own and a built-in one."""
    if config.kind is not None and config.content is not None:
        raise UsageError(f"--content {config.content} is for built-in kinds: give it or --kind {config.kind}")


def _made(content: str, wanted: Wanted, seen: Look, where: str) -> Kind:
    """The kind of that name, as wanted and as samples were seen to be."""
    seen.say_mixed(content, wanted.member)
    if registry.takes(content, "member"):
        wanted = replace(wanted, member=wanted.member or seen.member or None)
    return registry.made(content, wanted, None, lambda: seen.sizes, where)


def label_of(
    config: IndexConfig | ComputeILConfig, there: TableInfo | None, shards: Callable[[], list[tuple[str, str]]]
) -> LabelFrom:
    """Where labels stand: as asked, else as the table that is there says. `shards` gives (URL, name) of each."""
    if there is not None and config.label is None and config.class_names is None:
        return LabelFrom.from_json(there.label)
    return label_from(config.label, config.class_names, shards(), **config.lenient)


def require_fitting(preprocess: Kind, config: FitILConfig) -> str:
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
    require_loss_of_samples(config.loss)
    return config.loss


def require_model(model: str, preprocess: Kind, classes: int | None, config: FitILConfig, loss: str) -> None:
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


def count_classes(label: Tensor) -> int:
    """Largest label + 1. Raises UsageError when so few of those classes occur that a wrong label is likelier."""
    classes, distinct = int(label.max()) + 1, int(torch.unique(label).numel())
    if classes > 4 * distinct + 16:
        raise UsageError(
            f"the largest label is {classes - 1:,}, but only {distinct:,} labels occur: give the number "
            "of classes with --classes (labels beyond it are quarantined)"
        )
    return classes
