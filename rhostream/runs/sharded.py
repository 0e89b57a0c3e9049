"""Sharded tensors into a commit and back, by torch.distributed.checkpoint: each rank writes and reads its own parts.

    save      plan (all ranks) > each rank's files, create-only > sharded.json by rank 0
    restore   sharded.json > plan > the parts that a rank needs, whoever wrote them > its own tensors

So any number of ranks goes on from any other, one process among them. No pickle is written or read; no rank ever holds
more than its share and one file. The format is `shards`'; imported when a state is sharded (a second).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.distributed.checkpoint import metadata as of_dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from rhostream import storage
from rhostream.errors import TableError
from rhostream.runs.chain import write_file
from rhostream.runs.shards import FILE, Part, Sharded, Way, write_index
from rhostream.selection.ranks import Ranks

PIECE = 64 << 20  # bytes of a file, but of a larger part
T = TypeVar("T")


def save(run: str, folder: str, tensors: Mapping[Way, Tensor], ranks: Ranks) -> dict[str, str]:
    """Write what each rank holds of the tensors below the commit's folder; path -> sha256 of all files, on rank 0.

    Collective. Raises StorageError and its kin on every rank, RankLostError.
    """
    writer = _Writer(run, folder, ranks.rank)
    _run(lambda: save_parts({_name(way): t for way, t in tensors.items()}, storage_writer=writer,
                          process_group=ranks.group, no_dist=ranks.alone), ranks)  # fmt: skip
    return writer.files


def restore(
    run: str, files: Mapping[str, str], index: Sequence[Sharded], into: Mapping[Way, Tensor], ranks: Ranks
) -> None:
    """Fill each tensor, sharded over these ranks or whole, from the parts that make it up. Collective.

    `files`: path -> sha256 of the commit's files. Raises TableError for a file that isn't the one that was committed,
    ValueError for another shape, RankLostError.
    """
    reader = _Reader(run, files, index)
    wanted = {_name(way): tensor for way, tensor in into.items()}
    _run(lambda: load_parts(wanted, storage_reader=reader, process_group=ranks.group, no_dist=ranks.alone), ranks)


def empty(sharded: Sharded) -> Tensor:
    """Room for the whole tensor, on the host."""
    return torch.empty(sharded.shape, dtype=getattr(torch, sharded.dtype))


def _name(way: Way) -> str:
    return json.dumps(way)


def _run(work: Any, ranks: Ranks) -> None:
    """What a rank's own step raised comes wrapped in what is no Exception, with those of the other ranks."""
    try:
        with warnings.catch_warnings(), ranks.waiting():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            work()
    except CheckpointException as exc:
        errors = {rank: failure[0] for rank, failure in exc.failures.items()}
        raise errors.get(ranks.rank) or next(iter(errors.values())) from None


class _Writer(StorageWriter):
    """Writes this rank's parts in files of about PIECE bytes, one in memory at a time."""

    def __init__(self, run: str, folder: str, rank: int) -> None:
        self._run, self._folder, self._rank = run, folder, rank
        self.files: dict[str, str] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        for number, items in enumerate(_pieces(plan.items)):
            file = f"shard-{self._rank:05d}-{number:05d}.safetensors"
            parts = {str(n): planner.resolve_data(item) for n, item in enumerate(items)}
            data = save_safetensors({name: t.detach().cpu().contiguous() for name, t in parts.items()})  # type: ignore[union-attr]
            digest = write_file(self._run, self._folder, file, data)
            results += [WriteResult(item.index, len(data), (item.tensor_data, file, str(n), digest))
                        for n, item in enumerate(items)]  # fmt: skip
        return _done(results)

    def finish(self, metadata: of_dcp.Metadata, results: list[list[WriteResult]]) -> None:
        """Of rank 0 alone: the index of what all wrote."""
        tensors: dict[str, tuple[Any, list[Part]]] = {}
        for one in (result for of_rank in results for result in of_rank):
            about, file, name, digest = one.storage_data
            self.files[f"{self._folder}/{file}"] = digest
            part = Part(tuple(about.chunk.offsets), tuple(about.chunk.sizes), file, name)
            tensors.setdefault(one.index.fqn, (about, []))[1].append(part)
        index = write_index(
            Sharded(tuple(json.loads(way)), tuple(about.size), _dtype(about.properties.dtype), tuple(parts))
            for way, (about, parts) in sorted(tensors.items())
        )
        storage.create(storage.join(self._run, self._folder, FILE), index)
        self.files[f"{self._folder}/{FILE}"] = hashlib.sha256(index).hexdigest()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Reader(StorageReader):
    """Reads the files that hold parts which this rank needs, each once and with its hash checked."""

    def __init__(self, run: str, files: Mapping[str, str], index: Sequence[Sharded]) -> None:
        self._run, self._index = run, index
        self._paths = {path.rsplit("/", 1)[1]: (path, digest) for path, digest in files.items()}
        self._parts = {(_name(one.way), part.offsets): part for one in index for part in one.parts}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *args: Any, **_: Any) -> of_dcp.Metadata:
        return of_dcp.Metadata({
            _name(one.way): of_dcp.TensorStorageMetadata(
                of_dcp.TensorProperties(getattr(torch, one.dtype)), torch.Size(one.shape),
                [of_dcp.ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in one.parts])
            for one in self._index})  # fmt: skip

    def set_up_storage_reader(self, metadata: of_dcp.Metadata, is_coordinator: bool, *args: Any, **_: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, list[tuple[Part, ReadItem]]] = {}
        for item in plan.items:
            part = self._parts[item.storage_index.fqn, tuple(item.storage_index.offset or ())]
            wanted.setdefault(part.file, []).append((part, item))
        for file, reads in wanted.items():
            held = self._read(file)
            for part, item in reads:
                box = [slice(at, at + n) for at, n in zip(item.storage_offsets, item.lengths, strict=True)]
                target = planner.resolve_tensor(item).detach()
                target.copy_(held[part.name][tuple(box)])
                planner.commit_tensor(item, target)
        return _done(None)

    def _read(self, file: str) -> dict[str, Tensor]:
        path, digest = self._paths[file]
        data = storage.read_bytes(storage.join(self._run, path))
        if hashlib.sha256(data).hexdigest() != digest:
            raise TableError(
                f"{storage.redact(storage.join(self._run, path))} isn't the file that was committed (sha256)"
            )
        return load_safetensors(data)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _pieces(items: Sequence[WriteItem]) -> Iterator[list[WriteItem]]:
    piece: list[WriteItem] = []
    size = 0
    for item in items:
        assert item.tensor_data is not None
        own = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if piece and size + own > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += own
    if piece:
        yield piece


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _done(value: T) -> Future[T]:
    done: Future[T] = Future()
    done.set_result(value)
    return done
