"""What a fit keeps of its networks while it isn't finished, so that the same command goes on where it was stopped.

    OUT/unfinished-IDENTITY-model-1-of-2-epoch-00003-of-00010.pt        of each network the highest epoch counts

A file is made whole and once; the one before it goes when the next is there, and all go when model.json is there.
IDENTITY is a digest of the settings and of every sample that was drawn: a fit of other settings, or of shards that
changed, never meets these files. After the same epochs a network is the same bit for bit, stopped or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, NotFoundError
from rhostream.irreducible.pool import Pool
from rhostream.runs.tensors import save_plain
from rhostream.tables.unfinished import Unfinished, unfinished_in

SHARE = 20  # of the time, one part at most goes into keeping states: of a large network not every epoch is kept
_DIGEST = 64  # letters of the sha256 that a file begins with


def identity_of(settings: Mapping[str, Any], pools: list[Pool]) -> str:
    """Twelve letters that stand for what a fit is made of: its settings, and each sample's pixels, label and fold."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for pool in pools:
        for tensor in (*(array for _, array in pool.fields.items()), pool.label, pool.mark):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


@dataclass
class Standing:
    """How far the training of one network is: all that its further course depends on, beside what it is made of."""

    epochs: int = 0  # that are over
    steps: int = 0
    samples: int = 0  # through forward and backward
    checked: int = 0  # through a forward alone
    dead: int = 0  # steps in a row that changed no weight
    seconds: float = 0.0  # of the processes before this one
    curve: list[dict[str, float | None]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {"val_loss": float("inf"), "choice": float("inf")})
    state: dict[str, Tensor] = field(default_factory=dict)  # the weights of `best`
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, where it stops by itself
    over: bool = False  # it stopped by itself


class Kept:
    """The files of one network of a fit."""

    def __init__(self, out: str, identity: str, number: int, models: int, epochs: int) -> None:
        self._out, self._identity, self._epochs = out, identity, epochs
        self.model, self.models = number + 1, models
        self._saved = 0  # the epochs of the newest file
        self._cost, self._at = 0.0, time.monotonic()  # of the newest file, and when it was made

    @property
    def says(self) -> str:
        """What a stopped fit tells of this network."""
        kept = f"{self._saved:,} of {self._epochs:,} epochs are kept" if self._saved else "no epoch is kept yet"
        return f"model {self.model} of {self.models}, {kept}"

    def _url(self, epochs: int) -> str:
        own = Unfinished(identity=self._identity, model=self.model, models=self.models, epochs=epochs, of=self._epochs)
        return storage.join(self._out, own.name)

    def _there(self) -> list[int]:
        """The epochs that there are files of."""
        return sorted(
            one.epochs
            for one in unfinished_in(self._out).values()
            if (one.identity, one.model, one.models, one.of) == (self._identity, self.model, self.models, self._epochs)
        )

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> Standing:
        """Set everything to the newest state there is; a damaged one is passed over."""
        device = next(network.parameters()).device
        for epochs in reversed(self._there()):
            found = _read(self._url(epochs))
            if found is None:
                continue
            network.load_state_dict(found["network"])
            optimizer.load_state_dict(found["optimizer"])
            generator.set_state(found["generator"])
            torch.set_rng_state(found["chance"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(found["chance_cuda"], device)
            self._saved = epochs
            return Standing(**found["standing"])
        return Standing()

    def save(
        self,
        standing: Standing,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        """Keep the state after an epoch: the first, the last, and of those between as many as cost little time."""
        begun, device = time.monotonic(), next(network.parameters()).device
        between = standing.epochs < self._epochs and self._saved and not standing.over
        if between and begun - self._at < SHARE * self._cost:
            return
        body = save_plain({
            "network": network.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
            "chance": torch.get_rng_state(), "standing": vars(standing),
            "chance_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        })  # fmt: skip
        with contextlib.suppress(AlreadyExistsError):  # the same command runs twice: its state is this one
            storage.create(self._url(standing.epochs), hashlib.sha256(body).hexdigest().encode() + body)
        crash_point("fit-il: state kept")
        for epochs in self._there():
            if epochs < standing.epochs:
                storage.delete(self._url(epochs))
        self._saved = standing.epochs
        self._at = time.monotonic()
        self._cost = self._at - begun


def _read(url: str) -> dict[str, Any] | None:
    """None for a file that is gone or isn't what was written."""
    try:
        data = storage.read_bytes(url)
    except NotFoundError:
        return None
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    return found


def clear(out: str) -> None:
    """Remove what unfinished fits left in a folder whose model is complete."""
    for url in unfinished_in(out):
        storage.delete(url)


KeptOf = Callable[[int], Kept]  # of a network, by its number from 0
