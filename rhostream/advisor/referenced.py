"""The reference that an estimate is asked about: nothing is fitted, and its forward alone is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rhostream.candidates import Candidates
from rhostream.errors import UsageError
from rhostream.il_model.named import is_of_library
from rhostream.il_model.reference import SampleLoss, made_by
from rhostream.models.by_name import find_stored, for_text
from rhostream.models.stored import Stored
from rhostream.models.towers import Towers
from rhostream.samples.kind import Kind
from rhostream.samples.text import LENGTH
from rhostream.selection.outputs import called


class _Called(nn.Module):
    """A function as a network."""

    def __init__(self, function: Any, model: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.model = function, model  # which moves its weights

    def forward(self, x: Any) -> Any:
        """(n, ...) to what the function gives."""
        return self.function(x)


def reference_of(
    name: str, kind: Kind, classes: int, buffer: Candidates, x: Tensor, device: torch.device, *, known: bool = False
) -> tuple[nn.Module, Tensor]:
    """The reference of that name on the device, and as many inputs as `x` (n, ...) holds: x itself, or of a library's
    model random ones of its own size. `buffer`: the samples that x is made of. `known`: so many classes there are, and
    a network that gives another number of logits is refused. Raises UsageError and its kin."""
    if is_of_library(name):
        model, n = find_stored(name), len(x)
        if known and isinstance(model, Stored) and model.gives == "classes":
            _require_classes(name, model.classes, classes)
        if not model.pictures:
            return _of_text(model, n, device)
        side = (model.image_size if isinstance(model, Towers) else model.seen.image_size) or kind.side
        network = _Called(model.model.encode_image, model.model) if isinstance(model, Towers) else model.model
        return network.to(device).eval(), torch.rand((n, model.channels, side, side), device=device)
    made = made_by(name, kind, classes, device)
    if isinstance(made, nn.Module):
        made = made.to(device).eval()
        if known and kind.target is None and kind.task != "language":
            with torch.no_grad():
                _require_classes(name, called(made, x[:1]).shape[-1], classes)
        return made, x
    losses, fields, label = SampleLoss(name, made), buffer.fields, buffer.label
    assert fields is not None
    there = fields.to(device)
    return _Called(lambda some: losses(there[: len(some)], label[: len(some)].to(device))), x


def _require_classes(name: str, logits: int | None, classes: int) -> None:
    if logits not in (None, classes):
        raise UsageError(
            f"reference {name!r} gives {logits:,} logits, and there are {classes:,} classes: it has to know these, one "
            "logit a class (--classes says how many there are)"
        )


def _of_text(model: Stored | Towers, n: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    assert isinstance(model, Stored)
    length = min(LENGTH, model.text_length or LENGTH)
    network = for_text(model, vocabulary=model.vocabulary, length=length, padding=0)
    return network.to(device).eval(), torch.ones((n, length), dtype=torch.int64, device=device)
