"""model.json of an IL model: what it is and was made of. Its presence means that the folder is complete.

Beside it stands one safetensors file a fold, which `networks` reads and writes. Nothing here needs torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rhostream import foreign, storage
from rhostream.errors import TableError, UsageError
from rhostream.il_model.folds import MODES, FoldRule
from rhostream.inert import one_line
from rhostream.samples import registry
from rhostream.tables.classes import as_json

VERSION = 1
FILE = "model.json"


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelInfo:
    """model.json: what the model is, what it was made of, and how good it is on samples it didn't learn from."""

    architecture: str
    classes: int | None  # None where the target is no class
    preprocess: dict[str, Any]
    decoder: str
    split: dict[str, Any]  # of FoldRule
    folds: list[dict[str, Any]]  # weights, sha256, val_loss, val_accuracy, best_epoch, curve, ... of each model
    # means over the samples of `judged`, of all folds, labels as they are in the shards; None without classes
    accuracy: float | None
    val_loss: float  # nats, or what `loss` is measured in
    # fit_samples (forward and backward, all folds and epochs), checked_samples (forward alone, to choose checkpoints
    # and to measure), macs of one forward, seconds
    cost: dict[str, Any]
    asked: dict[str, Any]  # the settings of the command
    learned_from: list[str]  # names of the shards that training samples came from
    versions: dict[str, str] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)  # samples looked at by status, shards that could not be read
    quality: dict[str, Any] = field(default_factory=dict)  # of `quality.measured`, and what is doubtful
    temperature: list[float] = field(default_factory=list)  # logits are divided by it, one for each fold; []: by 1
    checkpoint: dict[str, Any] = field(default_factory=dict)  # of a fit's earlier state: its number, its target loss
    checkpoints: list[dict[str, Any]] = field(default_factory=list)  # the earlier states beside it: folder, loss, ...
    # {"on", "samples"}: what chose the checkpoint and gave accuracy, val_loss, quality and temperature; {} of a model
    # of before this was told: a cross-fit was judged by its other fold, others by samples of D
    judged: dict[str, Any] = field(default_factory=dict)
    # beside a holdout {"samples", "loss", "loss_error", "accuracy"} on D, and "left_out": its samples that are in D
    on_d: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)  # {"taken", "seen"}: samples drawn, of all that were there
    # name of each shard that was read -> [bytes, ETag or mtime, sha256 or ""]; {} of a model of before this was told
    shards: dict[str, list[Any]] = field(default_factory=dict)
    class_names: dict[int, str] = field(default_factory=dict)  # label -> name, as the shards said it; no ingredient
    label: dict[str, Any] = field(default_factory=dict)  # where labels stand, of `LabelFrom`; {} for the default
    loss: str = "cross_entropy"  # as asked for: a built-in one's name, or package.module:function
    version: int = VERSION

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f"{self.classes:,} classes, "
        made = f"{one_line(self.architecture)}, {classes}{len(self.folds)} folds"
        return f"<info of an IL model: {made}, {self.in_words()}>"

    def in_words(self) -> str:
        """Accuracy and loss: `accuracy 0.8312, loss 0.5210 nats`."""
        if self.accuracy is None:
            return f"{one_line(self.loss)} {self.val_loss:.4f}"
        unit = " nats" if self.loss == "cross_entropy" else f" ({one_line(self.loss)})"
        return f"accuracy {self.accuracy:.4f}, loss {self.val_loss:.4f}{unit}"

    @property
    def rule(self) -> FoldRule:
        """How D was split."""
        return FoldRule(**self.split)

    def ingredients(self, il_dtype: str = "float32") -> dict[str, Any]:
        """What makes an il: the fingerprint of a table is taken of this. Options that are off leave no trace."""
        stored = il_dtype if il_dtype != "float32" else None
        banks = {
            "sha256": [fold["bank_sha256"] for fold in self.folds if "bank" in fold],
            "batch_size": self.asked.get("batch_size"),  # n of the il that is stored
        }
        options = {
            "il_dtype": stored, "temperature": self.temperature, "label": self.label,
            "bank": banks if banks["sha256"] else None,
        }  # fmt: skip
        return {name: value for name, value in options.items() if value} | {
            "weights": [f["sha256"] for f in self.folds],
            "architecture": self.architecture,
            "preprocess": self.preprocess,
            "decoder": self.decoder,
            "classes": self.classes,
            "split": self.split,
            "loss": "next_token" if self.preprocess.get("task") == "language" else self.loss,
        }

    def figures(self) -> dict[str, Any]:
        """What reports say of the model."""
        known = {
            "checked_samples": self.cost.get("checked_samples"), "judged": self.judged, "on_d": self.on_d,
            "quality": {k: v for k, v in self.quality.items() if k != "classes"},
        }  # fmt: skip
        return {
            "architecture": self.architecture,
            "accuracy": self.accuracy,
            "val_loss": self.val_loss,
            "fit_samples": self.cost["fit_samples"],
            "macs": self.cost["macs"],
            "folds": len(self.folds),
            "mode": self.split["mode"],
        } | {name: value for name, value in known.items() if value}

    @property
    def files(self) -> list[tuple[str, str]]:
        """(file name, sha256) of all that the model is made of: weights, and of pairs the banks."""
        return self.weights + [(fold["bank"], fold["bank_sha256"]) for fold in self.folds if "bank" in fold]

    @property
    def weights(self) -> list[tuple[str, str]]:
        """(file name, sha256) of each fold's weights."""
        return [(fold["weights"], fold["sha256"]) for fold in self.folds]

    def encode(self) -> bytes:
        """The bytes of model.json."""
        record = asdict(self)
        if self.loss == "cross_entropy":  # as before there were others
            del record["loss"]
        return json.dumps(as_json(record), indent=1, sort_keys=True).encode()


def write_info(folder: str, info: ModelInfo) -> None:
    """Make the model complete: its weights are there. Raises AlreadyExistsError, StorageError."""
    storage.create(storage.join(folder, FILE), info.encode())


def is_il_model(folder: str) -> bool:
    """Whether what fit-il writes stands in a (resolved) folder."""
    return storage.exists(storage.join(folder, FILE))


def read_info(folder: str) -> ModelInfo | None:
    """model.json of a (resolved) folder, None when there is none. Raises TableError when it can't be understood."""
    if not is_il_model(folder):
        return None
    url = storage.join(folder, FILE)
    try:
        record = json.loads(storage.read_bytes(url))
        if int(record["version"]) > VERSION:
            raise TableError(
                f"{storage.redact(url)} was written by a newer rhostream (version {record['version']}); "
                "upgrade rhostream"
            )
        return _checked(ModelInfo(**record))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def require_info(folder: str) -> ModelInfo:
    """model.json of a (resolved) folder. Raises UsageError when there is none, TableError."""
    info = read_info(folder)
    if info is None:
        raise UsageError(f"{storage.redact(folder)} is no IL model (no {FILE}); make one with `rhostream fit-il`")
    return info


def _checked(info: ModelInfo) -> ModelInfo:
    """The record, names of classes by labels; nothing of it leads out of the folder or asks for more than there is."""
    if not isinstance(info.architecture, str) or not isinstance(info.folds, list) or not info.folds:
        raise ValueError("architecture is no name, or there is no fold")
    foreign.checked_decoder(info.decoder)
    if info.classes is not None or info.preprocess.get("target") is None:
        foreign.checked_classes(info.classes)
    foreign.checked_text(info.loss, "loss")
    names = foreign.checked_class_names(info.class_names)
    registry.check_record(info.preprocess)
    for fold in info.folds:
        if "/" in foreign.checked_path(fold["weights"]) or not isinstance(fold["sha256"], str):
            raise ValueError(f"{fold['weights']!r} is no file of this folder")
        if "bank" in fold and ("/" in foreign.checked_path(fold["bank"]) or not isinstance(fold["bank_sha256"], str)):
            raise ValueError(f"{fold['bank']!r} is no file of this folder")
    if info.rule.mode not in MODES:
        raise ValueError(f"mode of the split is {str(info.rule.mode)[:40]!r}, expected one of {', '.join(MODES)}")
    if info.rule.models != len(info.folds):
        raise ValueError(f"{len(info.folds)} folds are listed, the split has {info.rule.models}")
    foreign.checked_versions(info.shards)
    for name, kind in (("quality", dict), ("checkpoint", dict), ("checkpoints", list)):
        if not isinstance(getattr(info, name), kind):
            raise ValueError(f"{name} is a {type(getattr(info, name)).__name__}, expected {kind.__name__}")
    for listed in info.checkpoints:
        if "/" in foreign.checked_path(listed["folder"]):
            raise ValueError(f"checkpoint {listed['folder']!r} is no folder of this one")
    if info.quality:
        foreign.checked_quality(info.quality)
    foreign.checked_label(info.label)
    foreign.checked_judges(info.judged, info.on_d)
    foreign.checked_temperature(info.temperature, len(info.folds))
    info.figures(), info.ingredients()
    return replace(info, class_names=names)
