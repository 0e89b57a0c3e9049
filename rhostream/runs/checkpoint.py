"""The checkpoint is the commit: a run is what its newest checkpoint says, and nothing else.

    <run>/run.json                                        resolved settings, made once
    <run>/attempts/K.json                                 create-only: who claimed the run
    <run>/checkpoints/step=S/attempt=K/model.safetensors  + optimizer.pt (read with weights_only)
                                       proxy.safetensors  + proxy-optimizer.pt, where a proxy makes the shortlist
                                       live-0.safetensors + live-0-optimizer.pt of an IL model that learns along
    <run>/checkpoints/step=S/attempt=K/checkpoint.json    written last: its existence is the commit

checkpoint.json lists every valid segment of the log, of the steps and of the shadow log, so after any crash the ledger
holds exactly the steps that the weights saw.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, MismatchError, NotFoundError, SupersededError, TableError
from rhostream.foreign import checked_checkpoint

VERSION = 1
_FOLDER = re.compile(r"checkpoints/step=(\d+)/attempt=(\d+)/")
_COMMIT = re.compile(_FOLDER.pattern + r"checkpoint\.json\Z")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What checkpoint.json holds: position, listed segments, cost so far, and the hashes of the tensors' files."""

    step: int
    pass_index: int
    buffer: int  # buffers of this pass that were consumed
    attempt: int
    complete: bool
    fingerprints: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    shadow: list[dict[str, Any]] = field(default_factory=list)
    selector: dict[str, Any] = field(default_factory=dict)  # what choices hang on beside the weights
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256
    changes: list[dict[str, Any]] = field(default_factory=list)  # on purpose: field, old, new, step, attempt
    version: int = VERSION


def claim_attempt(run: str, note: Mapping[str, Any]) -> int:
    """Take the next attempt number by a create-only file; a trainer of a lower number must stop."""
    attempt = newest_attempt(run) + 1
    while True:
        try:
            storage.create(storage.join(run, "attempts", f"{attempt}.json"), json.dumps(dict(note)).encode())
            crash_point("checkpoint: attempt claimed")
            return attempt
        except AlreadyExistsError:
            attempt += 1


def newest_attempt(run: str) -> int:
    """The highest attempt number claimed, -1 when there is none."""
    names = [os.path.basename(f)[:-5] for f in storage.list_files(storage.join(run, "attempts"), ".json")]
    return max((int(n) for n in names if n.isdigit()), default=-1)


def require_newest(run: str, attempt: int) -> None:
    """Raise SupersededError when someone else has started this run again."""
    newest = newest_attempt(run)
    if newest > attempt:
        raise SupersededError(f"attempt {newest} has taken over {storage.redact(run)}; this is attempt {attempt}: "
                              "stopping without a commit")


def save_tensors(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors; tensors that share memory are stored each for itself."""
    return save_safetensors({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def save(run: str, checkpoint: Checkpoint, model: Mapping[str, Tensor], optimizer: Mapping[str, Any],
         others: Mapping[str, Mapping[str, Any]] | None = None) -> Checkpoint:
    """`save_files` of a model's and an optimizer's state, and of further models: name -> {"model", "optimizer"}."""
    payload = {"model.safetensors": save_tensors(model), "optimizer.pt": _torch_bytes(optimizer)}
    for name, state in (others or {}).items():
        payload |= {f"{name}.safetensors": save_tensors(state["model"]),
                    f"{name}-optimizer.pt": _torch_bytes(state["optimizer"])}
    return save_files(run, checkpoint, payload)


def save_files(run: str, checkpoint: Checkpoint, payload: Mapping[str, bytes]) -> Checkpoint:
    """Write the files, then checkpoint.json. Segments must be on disk before. Returns it with hashes filled in."""
    folder = f"checkpoints/step={checkpoint.step:010d}/attempt={checkpoint.attempt}"
    files = {f"{folder}/{name}": data for name, data in payload.items()}
    require_newest(run, checkpoint.attempt)
    for path, data in files.items():
        storage.create(storage.join(run, path), data)
        crash_point("checkpoint: one of its files written")
    crash_point("checkpoint: tensors written")
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    done = Checkpoint(**{**asdict(checkpoint), "files": hashes})
    storage.create(storage.join(run, folder, "checkpoint.json"), json.dumps(asdict(done), sort_keys=True).encode())
    crash_point("checkpoint: committed")
    return done


def read_files(run: str, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of a commit's files by their names, hashes checked. Raises TableError."""
    files = {}
    for path, digest in checkpoint.files.items():
        data = storage.read_bytes(storage.join(run, path))
        if hashlib.sha256(data).hexdigest() != digest:
            raise TableError(f"{storage.redact(storage.join(run, path))} isn't the file that was committed (sha256)")
        files[path.rsplit("/", 1)[1]] = data
    return files


def _torch_bytes(state: Mapping[str, Any]) -> bytes:
    """Tensors and plain values, as `torch.load(weights_only=True)` takes them."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def committed(run: str) -> list[str]:
    """URLs of every checkpoint.json, oldest first."""
    found = []
    for url in storage.list_files(storage.join(run, "checkpoints"), "checkpoint.json"):
        if match := _COMMIT.search(url.replace(os.sep, "/")):
            found.append((int(match[2]), int(match[1]), url))
    # A later attempt continues from what it found, so (attempt, step) is the order in which commits were made.
    return [url for _, _, url in sorted(found)]


def latest(run: str) -> Checkpoint | None:
    """The newest checkpoint, None before the first. Raises TableError when it can't be understood."""
    while urls := committed(run):
        try:
            return read(urls[-1])
        except NotFoundError:
            if urls == committed(run):  # else a trainer that runs on made newer ones and removed this one meanwhile
                raise
    return None


def read(url: str) -> Checkpoint:
    """One of `committed`. Raises NotFoundError, TableError when it can't be understood."""
    try:
        record = json.loads(storage.read_bytes(url))
        if int(record["version"]) > VERSION:
            raise TableError(f"{storage.redact(url)} was written by a newer rhostream; upgrade rhostream")
        return checked_checkpoint(Checkpoint(**record))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def load_tensors(run: str, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's and the optimizer's state, hashes checked. Raises TableError."""
    return _load(run, checkpoint, "")


def load_other(run: str, checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The state of a further model, hashes checked, as `save` took it. Raises TableError."""
    model, optimizer = _load(run, checkpoint, name)
    return {"model": model, "optimizer": optimizer}


def others_of(checkpoint: Checkpoint) -> list[str]:
    """The names of the further models that a checkpoint holds."""
    names = {path.rsplit("/", 1)[1] for path in checkpoint.files}
    return sorted(name.removesuffix("-optimizer.pt") for name in names if name.endswith("-optimizer.pt"))


def _load(run: str, checkpoint: Checkpoint, whose: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = (f"{whose or 'model'}.safetensors", f"{whose}-optimizer.pt".removeprefix("-"))
    states = {}
    for path, digest in checkpoint.files.items():
        if path.rsplit("/", 1)[1] not in names:
            continue
        data = storage.read_bytes(storage.join(run, path))
        if hashlib.sha256(data).hexdigest() != digest:
            raise TableError(f"{storage.redact(storage.join(run, path))} isn't the file that was committed (sha256)")
        states[path.rsplit("/", 1)[1]] = data
    if missing := set(names) - set(states):
        raise TableError(f"the checkpoint of step {checkpoint.step} in {storage.redact(run)} lists no "
                         f"{' and no '.join(sorted(missing))}")
    try:
        optimizer = torch.load(io.BytesIO(states[names[1]]), weights_only=True, map_location="cpu")
        return load_safetensors(states[names[0]]), optimizer
    except Exception as exc:  # whatever a file that somebody forged makes the two readers raise
        # Not the reader's own text: it advises how to run what a pickle holds.
        raise TableError(f"the checkpoint of step {checkpoint.step} in {storage.redact(run)} holds what is no tensor "
                         f"or can't be read ({type(exc).__name__}): it is refused, and nothing in it was run") from exc


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> None:
    """Raise MismatchError naming the first fields that differ, with both values."""
    differ = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if differ:
        detail = "; ".join(f"{k}: was {old.get(k)!r}, now {new.get(k)!r}" for k in differ)
        raise MismatchError(f"{what} was started with other settings ({detail}); use the old ones to resume it, or "
                            "another --run")


def retain(run: str, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what killed attempts left of theirs.

    Commits go first, so a crash leaves no half checkpoint valid; what it leaves otherwise goes the next time.
    """
    kept = {url.rsplit("/", 1)[0] for url in committed(run)[-max(keep, 1) :]}
    newest = max((_place(folder + "/") for folder in kept), default=(-1, -1))
    files = storage.list_files(storage.join(run, "checkpoints"), "")
    stale = [url for url in files if url.rsplit("/", 1)[0] not in kept and _place(url) < newest]
    for url in sorted(stale, key=lambda url: not url.endswith("/checkpoint.json")):
        storage.delete(url)
        crash_point("checkpoint: one file of an old one removed")


def _place(url: str) -> tuple[int, int]:
    """(attempt, step) of a checkpoint's file: the order in which commits are made."""
    match = _FOLDER.search(url.replace(os.sep, "/"))
    return (int(match[2]), int(match[1])) if match else (1 << 62, 0)
