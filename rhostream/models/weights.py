"""Weights from a file into a model: all of them, or as a start, when the last layer is made for other classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from rhostream import storage
from rhostream.errors import MismatchError, UsageError

LOG = logging.getLogger("rhostream")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only help to train them


def load_weights(model: nn.Module, url: str) -> None:
    """Load safetensors weights into the model, all names and shapes equal. Raises MismatchError, UsageError."""
    state = read_weights(url)
    try:
        model.load_state_dict(state)
    except RuntimeError as exc:
        raise MismatchError(f"{storage.redact(url)} doesn't fit the model: {' '.join(str(exc).split())}") from exc


def load_initial(model: nn.Module, url: str) -> None:
    """Load safetensors weights as a start; see `start_from` for what may differ. Raises MismatchError, UsageError."""
    start_from(model, read_weights(url), storage.redact(url))


def read_weights(url: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UsageError when it is none, StorageError."""
    try:
        return load_safetensors(storage.read_bytes(storage.resolve(url)))
    except SafetensorError as exc:
        raise UsageError(f"{storage.redact(url)} is no safetensors file ({exc}); pickles are never loaded") from exc


def start_from(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`, from `source`, into the model; every name and shape must be equal but for three differences.

    The last linear or convolutional layer (the classifier) may be absent, or made for another number of classes: then
    it stays as it was initialised, and a line of the log says so. A first convolution on 3 channels gives one on 1
    channel its sum over them, which is the same function of a grey picture. Auxiliary heads are left out.
    Raises MismatchError naming the tensors.
    """
    own = model.state_dict()
    given = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(AUXILIARY)}
    stem, head = _stem_and_head(model)
    if stem in given and own[stem].shape[1] == 1 and given[stem].dim() == 4 and given[stem].shape[1] == 3:
        given[stem] = given[stem].sum(1, keepdim=True)
    fresh = [name for name in head if name not in given or given[name].shape != own[name].shape]
    for name in head if fresh else ():
        other = given.pop(name, None)
        if other is not None and other.shape[1:] != own[name].shape[1:]:
            raise MismatchError(f"{source} doesn't fit the model: {_shapes(name, other, own[name])}")
        own.pop(name)
    if strange := sorted(given.keys() - own.keys()):
        raise MismatchError(f"{source} doesn't fit the model: it has {_some(strange)}, which the model lacks")
    # The counter of batches is missing in old files, and nothing depends on it.
    if missing := sorted(n for n in own.keys() - given.keys() if not n.endswith("num_batches_tracked")):
        raise MismatchError(f"{source} doesn't fit the model: it lacks {_some(missing)}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise MismatchError(f"{source} doesn't fit the model: {_shapes(name, tensor, own[name])}")
    model.load_state_dict(given, strict=False)
    if fresh:
        LOG.info("%s has no classifier that fits: %s starts at random", source, head[0].rpartition(".")[0])


def classes_in(state: Mapping[str, Tensor], model: nn.Module, source: str) -> int:
    """How many classes the classifier in `state` has, weights of such a model. Raises MismatchError where a tensor of
    it is missing, which would start at random."""
    head = _stem_and_head(model)[1]
    if lacking := [name for name in head if name not in state] or (["a classifier"] if not head else []):
        raise MismatchError(f"{source} doesn't fit the model: it lacks {_some(lacking)}, which would start at random")
    return len(state[head[0]])


def _stem_and_head(model: nn.Module) -> tuple[str, list[str]]:
    """The name of the first convolution's weight ("" without one), and those of the last layer's weight and bias."""
    layers = [(name + "." if name else "", m) for name, m in model.named_modules()
              if isinstance(m, nn.Linear | nn.Conv2d)]  # fmt: skip
    stem = next((f"{name}weight" for name, m in layers if isinstance(m, nn.Conv2d)), "")
    if not layers:
        return stem, []
    name, last = layers[-1]
    return stem, [name + part for part in ("weight", "bias") if getattr(last, part) is not None]


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} is {tuple(given.shape)}, expected {tuple(own.shape)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
