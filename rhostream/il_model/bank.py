"""The bank of an IL model of pairs: vectors of thousands of pairs that it didn't learn from, which il is taken against.

The loss of a pair exists only given others. Those of an offline job would be whatever lay beside it in a chunk; a bank
is drawn once, by hash, and kept, so il is a function of the sample (`selection/contrastive.py` has the formulas).
A safetensors file a network, proved by its sha256: image (M, D), text (M, D), and which samples they are of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rhostream import storage
from rhostream.errors import TableError
from rhostream.selection.contrastive import Pairs

SIZE = 4096  # pairs, where there are as many


@dataclass(frozen=True, repr=False)
class Bank:
    """M pairs as one network sees them, and the (shard, ordinal) of each."""

    image_MD: Tensor  # float32 unit vectors
    text_MD: Tensor
    shard: tuple[str, ...]  # names, each once
    place: npt.NDArray[np.int64]  # (M, 2): index into `shard`, ordinal
    _of_shard: dict[str, dict[int, int]] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.image_MD)

    def __repr__(self) -> str:
        return f"<bank of {len(self):,} pairs, {self.image_MD.shape[1]} numbers each>"

    @classmethod
    def of(cls, output_MK: Tensor, shards: Sequence[str], ordinals: Sequence[int]) -> Bank:
        """Of a network's rows of pairs (M, 2 D + 2), and where each lies."""
        pairs, names = Pairs.of(output_MK.cpu()), sorted({*shards})
        number = {name: at for at, name in enumerate(names)}
        place = np.array([(number[name], ordinal) for name, ordinal in zip(shards, ordinals, strict=True)], np.int64)
        return cls(pairs.image_ND.contiguous(), pairs.text_ND.contiguous(), tuple(names), place.reshape(-1, 2))

    def pairs(self, device: torch.device) -> Pairs:
        """Its vectors on a device; scale and bias are those of who is looked at."""
        nothing = torch.zeros((), device=device)
        return Pairs(self.image_MD.to(device), self.text_MD.to(device), nothing, nothing)

    def places(self, shard: str, ordinal: npt.NDArray[Any]) -> Tensor:
        """(n,) int64: where samples of a shard stand in the bank, -1 for those that aren't in it."""
        if not self._of_shard:
            self._of_shard.update({name: {} for name in self.shard})
            for at, (number, own) in enumerate(self.place.tolist()):
                self._of_shard[self.shard[number]][own] = at
        there = self._of_shard.get(shard, {})
        return torch.tensor([there.get(int(one), -1) for one in ordinal], dtype=torch.int64)

    def encode(self) -> bytes:
        """The bytes of its file."""
        tensors = {"image": self.image_MD, "text": self.text_MD, "place": torch.from_numpy(self.place)}
        names = [name.encode("utf-8", "surrogateescape").hex() for name in self.shard]
        return save_safetensors(tensors, {"shards": json.dumps(names)})

    @classmethod
    def decode(cls, data: bytes, where: str) -> Bank:
        """The inverse of `encode`. Raises TableError for what is none."""
        try:
            tensors = load_safetensors(data)
            image, text, place = tensors["image"], tensors["text"], tensors["place"].numpy()
            names = [bytes.fromhex(name).decode("utf-8", "surrogateescape") for name in json.loads(_metadata(data))]
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as exc:
            raise TableError(f"{where} is no bank of pairs: {' '.join(str(exc).split())[:200]}") from exc
        fits = image.ndim == 2 and image.shape == text.shape and place.shape == (len(image), 2)
        if not fits or image.dtype != torch.float32 or (len(place) and place[:, 0].max() >= len(names)):
            raise TableError(f"{where} is no bank of pairs: image {tuple(image.shape)}, text {tuple(text.shape)}, "
                             f"places {place.shape}")  # fmt: skip
        return cls(image, text, tuple(names), place)


def _metadata(data: bytes) -> str:
    """What stands beside the tensors under `shards`."""
    length = int.from_bytes(data[:8], "little")
    return str(json.loads(data[8 : 8 + length])["__metadata__"]["shards"])


def write_bank(folder: str, name: str, bank: Bank) -> dict[str, Any]:
    """Write it as the file `name` of a (resolved) folder; returns what a record says of it."""
    data = bank.encode()
    storage.replace(storage.join(folder, name), data)
    return {"bank": name, "bank_sha256": hashlib.sha256(data).hexdigest(), "bank_samples": len(bank)}


def read_bank(folder: str, name: str, digest: str) -> Bank:
    """Read it. Raises TableError for another file than the record names."""
    url = storage.join(folder, name)
    data = storage.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != digest:
        raise TableError(f"{storage.redact(url)} isn't the bank that was recorded (sha256 differs)")
    return Bank.decode(data, storage.redact(url))
