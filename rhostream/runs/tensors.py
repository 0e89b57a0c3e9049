"""The tensors of a checkpoint: a state as bytes of files, and back, with every hash checked.

<run>/checkpoints/step=S/attempt=K/model.safetensors  + optimizer.pt (read with weights_only)
                                   proxy.safetensors  + proxy-optimizer.pt, where a proxy makes the shortlist
                                   live-0.safetensors + live-0-optimizer.pt of an IL model that learns along
                                   sharded.json + shard-*.safetensors of a model that was sharded (see `shards`)
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rhostream import storage
from rhostream.errors import TableError
from rhostream.runs.link import Link
from rhostream.runs.shards import FILE, Sharded, is_shard, put, read_index
from rhostream.selection.ranks import Ranks


def payload(
    model: Mapping[str, Tensor], optimizer: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, bytes]:
    """The files of a state, name -> bytes, for a commit.

    `others`: name of a further model ("proxy", "live-0") -> {"model": its state, "optimizer": its optimizer's}.
    """
    files = {"model.safetensors": save_tensors(model), "optimizer.pt": save_plain(optimizer)}
    for name, state in (others or {}).items():
        files |= {
            f"{name}.safetensors": save_tensors(state["model"]),
            f"{name}-optimizer.pt": save_plain(state["optimizer"]),
        }
    return files


def save_tensors(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors; tensors that share memory are stored each for itself."""
    return save_safetensors({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def save_plain(state: Mapping[str, Any]) -> bytes:
    """Tensors and plain values, as `torch.load(weights_only=True)` takes them."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def load(name: str, data: bytes) -> dict[str, Any]:
    """The state in the bytes of `NAME.safetensors` or `NAME.pt`; no code is run.

    Raises whatever the two readers raise for a file that somebody forged.
    """
    if name.endswith(".safetensors"):
        return load_safetensors(data)
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state


def load_tensors(run: str, link: Link) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's and the optimizer's state, hashes checked. Raises TableError."""
    return _load(run, link, "")


def load_other(run: str, link: Link, name: str) -> dict[str, Any]:
    """The state of a further model, hashes checked, as `save` took it. Raises TableError."""
    model, optimizer = _load(run, link, name)
    return {"model": model, "optimizer": optimizer}


def others_of(link: Link) -> list[str]:
    """The names of the further models that a checkpoint holds."""
    names = {path.rsplit("/", 1)[1] for path in link.files}
    return sorted(name.removesuffix("-optimizer.pt") for name in names if name.endswith("-optimizer.pt"))


def read_files(run: str, link: Link) -> dict[str, bytes]:
    """The bytes of a commit's files by their names, but for its shards; hashes checked. Raises TableError."""
    named = {path.rsplit("/", 1)[1]: path for path in link.files}
    return {name: _read(run, path, link) for name, path in named.items() if not is_shard(name)}


def read_sharded(run: str, link: Link) -> list[Sharded]:
    """The tensors that a commit has in parts, [] where all are whole. Raises TableError, ValueError."""
    named = {path.rsplit("/", 1)[1]: path for path in link.files}
    return read_index(_read(run, named[FILE], link), named) if FILE in named else []


def _read(run: str, path: str, link: Link) -> bytes:
    data = storage.read_bytes(storage.join(run, path))
    if hashlib.sha256(data).hexdigest() != link.files[path]:
        raise TableError(f"{storage.redact(storage.join(run, path))} isn't the file that was committed (sha256)")
    return data


def _load(run: str, link: Link, whose: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = (f"{whose or 'model'}.safetensors", f"{whose}-optimizer.pt".removeprefix("-"))
    paths = {path.rsplit("/", 1)[1]: path for path in link.files}
    if missing := set(names) - set(paths):
        raise TableError(
            f"the checkpoint of step {link.step} in {storage.redact(run)} lists no {' and no '.join(sorted(missing))}"
        )
    data = [_read(run, paths[name], link) for name in names]
    try:
        model, optimizer = (load(name, one) for name, one in zip(names, data, strict=True))
        index = [] if whose else read_sharded(run, link)
    except Exception as exc:  # whatever a file that somebody forged makes the two readers raise
        # Not the reader's own text: it advises how to run what a pickle holds.
        raise TableError(
            f"the checkpoint of step {link.step} in {storage.redact(run)} holds what is no tensor "
            f"or can't be read ({type(exc).__name__}): it is refused, and nothing in it was run"
        ) from exc
    if index:
        from rhostream.runs.sharded import empty, restore  # takes a second

        into = {sharded.way: empty(sharded) for sharded in index}
        restore(run, link.files, index, into, Ranks())
        for way, tensor in into.items():
            put({"model": model, "optimizer": optimizer}, way, tensor)
    return model, optimizer
