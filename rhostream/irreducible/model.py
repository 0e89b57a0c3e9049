"""The IL model on disk: one safetensors file a fold, then `model.json`, whose presence means the model is complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from rhostream import foreign, models, storage
from rhostream.errors import TableError, UntrustedCodeError, UsageError
from rhostream.inert import one_line
from rhostream.irreducible.folds import FoldRule
from rhostream.models.temperature import Divided
from rhostream.stream.decode import DECODERS
from rhostream.stream.inputs import TEXT_DECODER, AnyPreprocess, preprocess_from_json
from rhostream.tables.classes import as_json

VERSION = 1


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelInfo:
    """model.json: what the model is, what it was made of, and how good it is on samples it didn't learn from."""

    architecture: str
    classes: int
    preprocess: dict[str, Any]
    decoder: str
    split: dict[str, Any]  # of FoldRule
    folds: list[dict[str, Any]]  # weights, sha256, val_loss, val_accuracy, best_epoch, curve, ... of each model
    accuracy: float  # means over the samples of `judged`, of all folds, labels as they are in the shards
    val_loss: float  # nats
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
    version: int = VERSION

    def __repr__(self) -> str:
        made = f"{one_line(self.architecture)}, {self.classes:,} classes, {len(self.folds)} folds"
        return f"<info of an IL model: {made}, accuracy {self.accuracy:.4f}, loss {self.val_loss:.4f} nats>"

    @property
    def rule(self) -> FoldRule:
        """How D was split."""
        return FoldRule(**self.split)

    def ingredients(self, il_dtype: str = "float32") -> dict[str, Any]:
        """What makes an il: the fingerprint of a table is taken of this. Options that are off leave no trace."""
        stored = il_dtype if il_dtype != "float32" else None
        options = {"il_dtype": stored, "temperature": self.temperature, "label": self.label}
        return {name: value for name, value in options.items() if value} | {
            "weights": [f["sha256"] for f in self.folds],
            "architecture": self.architecture,
            "preprocess": self.preprocess,
            "decoder": self.decoder,
            "classes": self.classes,
            "split": self.split,
            "loss": "next_token" if self.preprocess.get("task") == "language" else "cross_entropy",
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

    def encode(self) -> bytes:
        return json.dumps(as_json(asdict(self)), indent=1, sort_keys=True).encode()


@dataclass(frozen=True, repr=False)
class ILModel:
    """A loaded IL model: one network a fold, in eval mode; its logits are divided by the fold's temperature."""

    info: ModelInfo
    networks: list[nn.Module]

    def __repr__(self) -> str:
        return f"<IL model: {self.info!r}>"

    @property
    def preprocess(self) -> AnyPreprocess:
        return preprocess_from_json(self.info.preprocess)


def read_info(folder: str) -> ModelInfo | None:
    """model.json of a folder, None when there is none. Raises TableError when it can't be understood."""
    url = storage.join(folder, "model.json")
    if not storage.exists(url):
        return None
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


def _checked(info: ModelInfo) -> ModelInfo:
    """The record, names of classes by labels; nothing of it leads out of the folder or asks for more than there is."""
    if not isinstance(info.architecture, str) or not isinstance(info.folds, list) or not info.folds:
        raise ValueError("architecture is no name, or there is no fold")
    if info.decoder not in (known := (*DECODERS, TEXT_DECODER)):
        raise ValueError(f"decoder is {str(info.decoder)[:40]!r}, expected one of {', '.join(known)}")
    foreign.checked_classes(info.classes)
    names = foreign.checked_class_names(info.class_names)
    foreign.checked_preprocess(info.preprocess)
    for fold in info.folds:
        if "/" in foreign.checked_path(fold["weights"]) or not isinstance(fold["sha256"], str):
            raise ValueError(f"{fold['weights']!r} is no file of this folder")
    if info.rule.models != len(info.folds):
        raise ValueError(f"{len(info.folds)} folds are listed, the split has {info.rule.models}")
    foreign.checked_versions(info.shards)
    for name, kind in (("quality", dict), ("checkpoint", dict), ("checkpoints", list)):
        if not isinstance(getattr(info, name), kind):
            raise ValueError(f"{name} is a {type(getattr(info, name)).__name__}, expected {kind.__name__}")
    for listed in info.checkpoints:
        foreign.checked_path(listed["folder"])
    if info.quality:
        foreign.checked_quality(info.quality)
    foreign.checked_label(info.label)
    foreign.checked_judges(info.judged, info.on_d)
    foreign.checked_temperature(info.temperature, len(info.folds))
    info.figures(), info.ingredients()
    return replace(info, class_names=names)


def _require_trusted(architecture: str, named: str | None, folder: str) -> None:
    if named not in (None, architecture):
        raise UsageError(f"{storage.redact(folder)} was made with --model {architecture}, not {named}")
    UntrustedCodeError.unless_named(architecture, named, storage.redact(folder), "--model")


def load_il_model(folder: str, model: str | None = None) -> ILModel:
    """Load an IL model, each file proved by its sha256.

    One whose architecture is not built in is `package.module:function`, code that would be imported: it is loaded only
    when `model` is that same name. Raises UsageError when there is none or its code isn't named, TableError.
    """
    folder = storage.resolve(folder)
    info = read_info(folder)
    if info is None:
        raise UsageError(f"{storage.redact(folder)} is no IL model (no model.json); make one with `rhostream fit-il`")
    _require_trusted(info.architecture, model, folder)
    preprocess = preprocess_from_json(info.preprocess)
    networks: list[nn.Module] = []
    for fold in info.folds:
        url = storage.join(folder, fold["weights"])
        data = storage.read_bytes(url)
        if hashlib.sha256(data).hexdigest() != fold["sha256"]:
            raise TableError(
                f"{storage.redact(url)} isn't the file that model.json names (sha256 differs): it was "
                "damaged or replaced; run `rhostream fit-il` again in another folder"
            )
        network = models.build(info.architecture, classes=info.classes, initial=False, **preprocess.model_arguments())
        try:
            network.load_state_dict(load_safetensors(data))
        except SafetensorError as exc:
            raise TableError(f"{storage.redact(url)} is no safetensors file ({exc}); pickles are never loaded") from exc
        except RuntimeError as exc:
            raise TableError(
                f"{storage.redact(url)} doesn't fit {info.architecture}: {' '.join(str(exc).split())[:300]}"
            ) from exc
        if info.temperature:
            network.register_forward_hook(Divided(info.temperature[len(networks)]))
        networks.append(network.eval())
    return ILModel(info, networks)
