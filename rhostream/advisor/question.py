"""What `doctor --scoring` is asked: shards, table, model and settings, as given or as a run has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rhostream import storage
from rhostream.errors import MismatchError, TableError, UntrustedCodeError, UsageError
from rhostream.runs import checkpoint
from rhostream.runs.record import FILE, recorded
from rhostream.runs.tensors import load_tensors


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be compared: of a run, or as given."""

    shards: list[str]
    il: str
    model: str
    rule: str = "rho"
    buffer_size: int = 320
    batch_size: int = 32
    image_size: int | None = None
    channels: int | None = None
    resize: str | None = None
    classes: int | None = None
    loss_cap: bool = False
    batch_norm: str = "buffer"
    keep_holdout: bool = False
    decoder: str = "auto"
    tokenizer: str | None = None
    text_length: int | None = None


def of_run(run: str, **given: Any) -> tuple[Question, dict[str, torch.Tensor], str]:
    """The question that a run's own settings ask, what is given put above them; its newest weights; their place.

    Raises UsageError when there is no such run or it has no checkpoint yet.
    """
    run = storage.resolve(run)
    record = recorded(run)
    found = checkpoint.head(run) if record else None
    if found is None:
        raise UsageError(f"{storage.redact(run)} is no run with a checkpoint; give --weights, or the folder of a run")
    try:
        s = record["settings"]
        asked: dict[str, Any] = {
            "shards": record["shard_urls"], "il": record["il"], "image_size": s.get("preprocess_image_size"),
            "channels": s.get("preprocess_channels"), "tokenizer": s.get("preprocess_tokenizer"),
            "resize": s.get("preprocess_resize") or ("crop" if "preprocess_image_size" in s else None),
            "text_length": s.get("preprocess_length"),
            **{name: s[name] for name in ("model", "rule", "buffer_size", "batch_size", "classes", "loss_cap",
                                          "batch_norm", "keep_holdout", "decoder") if name in s},
        }  # fmt: skip
    except (KeyError, TypeError) as exc:
        raise TableError(f"{storage.redact(storage.join(run, FILE))} can't be understood: {exc}") from exc
    for name in ("model", "rule"):
        UntrustedCodeError.unless_named(str(asked.get(name, "")), given.get(name), storage.redact(run), f"--{name}")
    asked |= {name: value for name, value in given.items() if value}
    weights, _ = load_tensors(run, found)
    return Question(**asked), weights, f"{storage.redact(run)}, step {found.step}"


def load_state(network: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        raise MismatchError(f"the weights of {source} don't fit the model: {' '.join(str(exc).split())}") from exc
