"""A reference: a model that exists, or a function of losses, that gives il without a fit; and what proves which it is.

    name or object > called once with the keywords it takes > a network, or (fields, target) -> one loss a sample

What it learned from is unknown: whether its il leak can't be checked. Its identity is what it says itself, or a digest
of its weights; of a function that says nothing it is what the user says, and stays unproved.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError, users_code
from rhostream.models import of_task
from rhostream.own_code import accepted, own_function
from rhostream.samples.fields import Fields, Target
from rhostream.samples.kind import Kind
from rhostream.selection.losses import tensor_in_words
from rhostream.selection.outputs import described

MAX_IDENTITY = 400  # characters


@dataclass(frozen=True)
class SampleLoss:
    """A reference that gives losses itself, checked: (fields, target (n, ...)) -> (n,) float32, on their device."""

    name: str
    function: Callable[[Fields, Any], Tensor]

    def __call__(self, fields: Fields, target: Target) -> Tensor:
        """One loss a sample. Raises UsageError naming the function."""
        n, device = len(fields), fields.device
        with users_code(f"reference {self.name!r}, of {n} samples,"):
            loss_n = self.function(fields, target)
        if not isinstance(loss_n, Tensor) or loss_n.shape != (n,) or loss_n.dtype != torch.float32:
            came = tensor_in_words(loss_n) if isinstance(loss_n, Tensor) else described(loss_n)
            raise UsageError(
                f"reference {self.name!r} returned {came}, expected one loss for each sample, a tensor of shape "
                f"({n},) of float32"
            )
        if loss_n.device != device:
            raise UsageError(f"reference {self.name!r} returned losses on {loss_n.device}, the samples are on {device}")
        return loss_n


@dataclass(frozen=True, repr=False)
class Reference:
    """A reference by name, ready to score: a network in eval mode, or what gives losses itself."""

    name: str
    scores: nn.Module | SampleLoss
    identity: str
    proved: bool  # False: the identity is what the user said
    prompts: tuple[str, ...] = ()  # of one that compares pictures with names: what the names stand in

    def __repr__(self) -> str:
        return f"<reference {self.name}, {'identity' if self.proved else 'unproved identity'} {self.identity[:16]}>"

    def to_json(self) -> dict[str, Any]:
        """What a table's fingerprint is taken of."""
        record = {"name": self.name, "identity": self.identity, "proved": self.proved}
        return record | ({"prompts": list(self.prompts)} if self.prompts else {})


def name_of_reference(reference: str | Callable[..., Any]) -> str:
    """`package.module:name`, as it was given or as the object says of itself."""
    if isinstance(reference, str):
        return reference
    named = reference if hasattr(reference, "__qualname__") else type(reference)
    return f"{named.__module__}:{named.__qualname__}"


def load_reference(
    reference: str | Callable[..., Any],
    kind: Kind,
    classes: int | None,
    device: torch.device,
    identity: str | None = None,
) -> Reference:
    """The reference of a name, of the function of that name, or of a network that is there already.

    The function is called with those of `classes`, `device` and `kind.model_arguments()` that it takes. `identity`: of
    one that can't prove its own. Raises UsageError for code that isn't there or fails, for what is no reference, and
    for an identity that is missing or one too many.
    """
    name, made = name_of_reference(reference), made_by(reference, kind, classes, device)
    proof = _identity_of(made, name, kind)
    if proof is None and identity is None:
        raise UsageError(
            f"reference {name!r} has no identity(), a text that changes when its weights or its preprocessing do: "
            "give it one, or say which reference it is with --reference-id TEXT, which nothing proves"
        )
    if proof is not None and identity is not None:
        raise UsageError(f"--reference-id {identity!r}: reference {name!r} proves its own identity; leave it out")
    scores: nn.Module | SampleLoss = SampleLoss(name, made)
    if isinstance(made, nn.Module):
        scores = of_task(made, kind.model_arguments()).to(device).eval()
    return Reference(name, scores, _checked(proof or identity, name), proof is not None)


def made_by(
    reference: str | Callable[..., Any], kind: Kind, classes: int | None, device: torch.device
) -> Callable[..., Any]:
    """The network, or the function of losses, that a reference's code gives; raises as `load_reference`."""
    name, made = name_of_reference(reference), reference
    if not isinstance(reference, nn.Module):
        maker = own_function("reference", name) if isinstance(reference, str) else reference
        offered = {"device": device, **kind.model_arguments()} | ({} if classes is None else {"classes": classes})
        if classes is None and kind.target is None and _asks_for_classes(maker):
            raise UsageError(f"reference {name!r} takes the number of classes: give it with --classes N")
        with users_code(f"reference {name!r}"):
            made = maker(**accepted(maker, offered))
    if not callable(made):
        raise UsageError(
            f"reference {name!r} gave a {type(made).__name__}, expected a torch.nn.Module that gives logits, or a "
            "function (fields, target) -> one loss a sample"
        )
    return made


def _asks_for_classes(maker: Callable[..., Any]) -> bool:
    try:
        asked = inspect.signature(maker).parameters.get("classes")
    except (TypeError, ValueError):
        return False
    return asked is not None and asked.default is asked.empty


def _identity_of(made: Any, name: str, kind: Kind) -> str | None:
    """What the reference says of itself, else a digest of its weights and of what it sees; None of one without."""
    # Of a network the class is asked: a layer of it may be called `identity`.
    said = getattr(type(made) if isinstance(made, nn.Module) else made, "identity", None)
    if callable(said):
        with users_code(f"the identity of reference {name!r}"):
            identity = made.identity()
        if not isinstance(identity, str) or not identity:
            raise UsageError(f"the identity of reference {name!r} is {identity!r:.80}, expected a text")
        return identity
    if not isinstance(made, nn.Module):
        return None
    state = made.state_dict()
    return digest_of(made, kind) if state and all(isinstance(value, Tensor) for value in state.values()) else None


def digest_of(network: nn.Module, kind: Kind, beside: Mapping[str, Any] | None = None) -> str:
    """sha256 of a network's state by name, of the kind, and of plain values beside them, where there are any.

    Every value of the state is a tensor, on the CPU or not.
    """
    record = kind.to_json() | ({"beside": dict(beside)} if beside else {})
    state, digest = network.state_dict(), hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tensor_in_words(value)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checked(identity: str | None, name: str) -> str:
    if not identity or len(identity) > MAX_IDENTITY:
        raise UsageError(
            f"the identity of reference {name!r} has {len(identity or ''):,} characters, expected 1 to {MAX_IDENTITY}"
        )
    return identity
