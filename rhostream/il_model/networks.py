"""The networks of an IL model: one safetensors file a fold, each proved by its sha256. Never a pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from rhostream import models, storage
from rhostream.errors import TableError, UntrustedCodeError, UsageError
from rhostream.il_model.bank import Bank, read_bank
from rhostream.il_model.info import ModelInfo, require_info
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.selection.outputs import logits_of_output


@dataclass(frozen=True, repr=False)
class ILModel:
    """A loaded IL model: one network a fold, in eval mode; its logits are divided by the fold's temperature."""

    info: ModelInfo
    networks: list[nn.Module]
    preprocess: Kind  # of the samples that it learned from
    banks: tuple[Bank, ...] = ()  # of pairs, one a network

    def __repr__(self) -> str:
        return f"<IL model: {self.info!r}>"


class Divided:
    """A forward hook that divides logits by a temperature; weights and their names stay as they are."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        return logits_of_output(output, len(inputs[0]), module) / self.temperature


def load_il_model(folder: str, model: str | None = None, kind: str | None = None) -> ILModel:
    """Load the IL model of a folder.

    One whose architecture is not built in is `package.module:function`, code that would be imported: it is loaded only
    when `model` is that same name; so is a kind of samples that is somebody's own, where `kind` names it. Raises
    UsageError when there is none or its code isn't named, TableError.
    """
    folder = storage.resolve(folder)
    info, shown = require_info(folder), storage.redact(folder)
    if model not in (None, info.architecture):
        raise UsageError(f"{shown} was made with --model {info.architecture}, not {model}")
    UntrustedCodeError.unless_named(info.architecture, model, shown, "--model")
    samples = registry.from_json(info.preprocess, kind, shown).with_decoder(info.decoder)
    networks = load_networks(folder, [name for name, _ in info.weights], info.ingredients(), samples)
    banks = tuple(read_bank(folder, fold["bank"], fold["bank_sha256"]) for fold in info.folds if "bank" in fold)
    if len(banks) not in (0, len(networks)):
        raise TableError(f"{shown} has {len(networks)} networks and banks for {len(banks)} of them")
    return ILModel(info, networks, samples, banks)


def load_networks(folder: str, names: Sequence[str], made: Mapping[str, Any], kind: Kind) -> list[nn.Module]:
    """The networks in the files `names` of a (resolved) folder, in eval mode, their logits divided by the temperature.

    `made` is what makes an il, of a model or of a table (`ModelInfo.ingredients`): the sha256 of each file, and what
    networks they are for; `kind`: of the samples. Raises TableError for a file that is another one, or doesn't fit.
    """
    temperatures = made.get("temperature") or [1.0] * len(names)
    networks: list[nn.Module] = []
    for name, digest, temperature in zip(names, made["weights"], temperatures, strict=True):
        url = storage.join(folder, name)
        data = storage.read_bytes(url)
        if hashlib.sha256(data).hexdigest() != digest:
            raise TableError(
                f"{storage.redact(url)} isn't the file that model.json names (sha256 differs): it was "
                "damaged or replaced; run `rhostream fit-il` again in another folder"
            )
        # Of a built-in network the form is enough: starting values would be drawn and then replaced.
        form_alone = made["architecture"] in models.NAMES
        with torch.device("meta") if form_alone else nullcontext():
            network = models.build(
                made["architecture"], classes=made["classes"], initial=False, **kind.model_arguments()
            )
        try:
            network.load_state_dict(load_safetensors(data), assign=form_alone)
        except SafetensorError as exc:
            raise TableError(f"{storage.redact(url)} is no safetensors file ({exc}); pickles are never loaded") from exc
        except RuntimeError as exc:
            raise TableError(
                f"{storage.redact(url)} doesn't fit {made['architecture']}: {' '.join(str(exc).split())[:300]}"
            ) from exc
        if made.get("temperature"):
            network.register_forward_hook(Divided(float(temperature)))
        networks.append(network.eval())
    return networks


def write_weights(folder: str, number: int, of: int, state: dict[str, Tensor]) -> dict[str, Any]:
    """Write the weights of network `number` (from 0) of `of`; returns what model.json is to say of the file.

    A file there is the rest of a fit that was stopped and is replaced: without a model.json nothing can refer to it.
    """
    name = f"fold-{number}.safetensors" if of > 1 else "weights.safetensors"
    data = save_safetensors(state)
    storage.replace(storage.join(folder, name), data)
    return {"weights": name, "sha256": hashlib.sha256(data).hexdigest()}
