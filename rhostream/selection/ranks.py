"""Processes that select and train together: the few things they tell each other, and nothing where there is one.

Numbers of the host (scores, counts) are gathered, so that every rank makes the same decision by itself; gradients are
summed in flat buckets. Where another rank is gone or stuck, what was waited for becomes one RankLostError.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rhostream.errors import RankLostError, UsageError

Column = npt.NDArray[Any]  # of the host
BUCKET = 16 << 20  # elements of a gradient bucket: 64 MiB of float32
# What gloo and the launcher's store say, as plain RuntimeErrors, of somebody who is gone or doesn't answer.
_GONE = re.compile(r"gloo|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE)


class Ranks:
    """The ranks of a process group, seen from one of them; `Ranks()` is a process alone, and tells nobody anything.

    Every method that isn't a property is collective: all ranks call it, in the same order. `explain` says what became
    of a lost rank, where somebody knows. Raises RankLostError wherever one is lost.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, explain: Callable[[], str] | None = None) -> None:
        self.group, self._explain = group, explain
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        # A group of NCCL alone carries nothing that lies in the host's memory.
        on_host = group is None or "cpu:" in str(dist.get_backend_config(group))
        self._device = torch.device("cpu") if on_host else torch.device("cuda", torch.cuda.current_device())

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes for all."""
        return self.rank == 0

    # What the host knows.

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped host tensors of all ranks, stacked in the order of the ranks: (ranks, *shape)."""
        if self.alone:
            return values[None]
        own = values.to(self._device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with self.waiting():
            dist.all_gather(gathered, own, self.group)
        return torch.stack(gathered).cpu()

    def concat(self, rows: Tensor, capacity: int) -> tuple[Tensor, int]:
        """Rows (m, k) of all ranks in their order, m <= `capacity` as each has them: (all, k), and where ours begin."""
        if self.alone:
            return rows, 0
        padded = rows.new_zeros(capacity + 1, rows.shape[1])
        padded[0, 0], padded[1 : len(rows) + 1] = len(rows), rows
        gathered = self.gather(padded)
        lengths = [int(n) for n in gathered[:, 0, 0].tolist()]
        parts = [part[1 : n + 1] for part, n in zip(gathered, lengths, strict=True)]
        return torch.cat(parts), sum(lengths[: self.rank])

    def concat_columns(self, columns: Mapping[str, Column], capacity: int) -> dict[str, Column]:
        """Columns (m, ...) of all ranks, below each other in their order, each of its own type; m <= `capacity`.

        Rows travel as records of whole 8 bytes.
        """
        if self.alone:
            return dict(columns)
        fields = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
        packed = np.dtype(fields)
        record = np.dtype([*fields, ("filler", np.uint8, (-packed.itemsize % 8,))])
        own = np.zeros(len(next(iter(columns.values()))), record)
        for name, column in columns.items():
            own[name] = column
        rows = self.concat(torch.from_numpy(own.view(np.int64).reshape(len(own), record.itemsize // 8)), capacity)[0]
        records = rows.contiguous().numpy().view(record)[:, 0]
        return {name: np.ascontiguousarray(records[name]) for name in columns}

    def sum(self, values: Sequence[float]) -> list[float]:
        """The numbers of all ranks, added up in float64: the same on every rank."""
        if self.alone:
            return list(values)
        return self.gather(torch.tensor(values, dtype=torch.float64)).sum(0).tolist()

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in their order, on every rank."""
        if self.alone:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(data)]))[:, 0].tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        gathered = self.gather(padded)
        return [json.loads(row[:n].numpy().tobytes()) for row, n in zip(gathered, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """The JSON value that rank 0 gave; what the others give is ignored."""
        return self.gather_json(value if self.first else None)[0]

    def wait(self) -> None:
        """Until every rank has come here."""
        self.gather(torch.zeros(1))

    def absent(self, call: str, seconds: float) -> list[int]:
        """The ranks that don't make the same `call` within `seconds`; [] where all come. A name is asked once."""
        if self.alone:
            return []
        store = dist.distributed_c10d._get_default_store()
        keys = [f"rhostream/{call}/{rank}" for rank in range(self.size)]
        with self.waiting():
            store.set(keys[self.rank], "1")
        try:
            store.wait(keys, timedelta(seconds=seconds))
        except RuntimeError:  # of a store: nobody set the key in time, or the store itself is gone
            with self.waiting():
                return [rank for rank, key in enumerate(keys) if not store.check([key])]
        return []

    def part(self, ranks: Sequence[int]) -> Ranks | None:
        """Some of the ranks, seen from this one; None where it isn't among them."""
        group = dist.new_group([*ranks] if self.group is None else [dist.get_global_rank(self.group, r) for r in ranks])
        return Ranks(group, self._explain) if self.rank in ranks else None

    # What the device holds.

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows (m, k) uint8 in the order of the ranks that they go to, `sent` to each; (sum(received), k) come back."""
        if self.alone:
            return rows
        # A group of NCCL and gloo carries what lies on the device; one of gloo alone, what lies in the host's memory.
        there = rows.device if "cuda:nccl" in str(dist.get_backend_config(self.group)) else self._device
        arrived = torch.empty(sum(received), rows.shape[1], dtype=torch.uint8, device=there)
        with self.waiting():
            dist.all_to_all_single(arrived, rows.contiguous().to(there), list(received), list(sent), self.group)
        return arrived.to(rows.device)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in flat buckets of one type; all ranks hold the same bits."""
        if self.alone:
            return
        flying = []
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with self.waiting():
                flying.append((dist.all_reduce(flat, group=self.group, async_op=True), flat, bucket))
        for work, flat, bucket in flying:
            with self.waiting():
                work.wait()
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients over the ranks, in place, and return the sum of the scalar `loss`.

        A rank that kept nothing has no gradients and takes part with zeros; a parameter that no rank used has none
        afterwards either, as with one rank.
        """
        trained = [p for p in parameters if p.requires_grad]
        unused = [at for at, p in enumerate(trained) if p.grad is None]
        used_and_loss = torch.ones(len(trained) + 1, device=loss.device)
        used_and_loss[-1] = loss
        for at in unused:
            used_and_loss[at] = 0.0
            trained[at].grad = torch.zeros_like(trained[at])
        with torch.no_grad():
            self.add_up([*(p.grad for p in trained if p.grad is not None), used_and_loss])
        # Only a rank that lacks gradients has to ask the device whether others have them.
        for at, used in zip(unused, used_and_loss[unused].tolist() if unused else [], strict=True):
            if not used:
                trained[at].grad = None
        return used_and_loss[-1]

    def average_norms(self, model: nn.Module) -> None:
        """Give every rank the mean of the running statistics of batch norm: then all models are the same."""
        if self.alone:
            return
        statistics = [t for m in own_norms(model) for t in (m.running_mean, m.running_var) if t is not None]
        if statistics:
            with torch.no_grad():
                self.add_up(statistics)
                for tensor in statistics:
                    tensor.div_(self.size)

    def copy_from_first(self, model: nn.Module) -> None:
        """Every rank begins with rank 0's weights and buffers."""
        if not self.alone:
            with torch.no_grad():
                self.send_from_first(list(model.state_dict().values()))()

    def send_from_first(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Rank 0's tensors are on their way to the others while all do something else; what is returned waits for
        them, and the others' tensors then hold them."""
        flying = []
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
            with self.waiting():
                flying.append((dist.broadcast(flat, first, self.group, async_op=True), flat, bucket))

        def finish() -> None:
            for work, flat, bucket in flying:
                with self.waiting():
                    work.wait()
                if not self.first:
                    for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                        tensor.copy_(part.view(tensor.shape))

        return finish

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What torch says of a lost rank becomes RankLostError; a mistake of our own passes as what it is."""
        try:
            yield
        except RuntimeError as exc:
            if not is_of_lost_rank(exc):
                raise
            why = self._explain() if self._explain else ""
            raise RankLostError(
                f"rank {self.rank} of {self.size} waited for a rank that is gone or stuck"
                f"{why} [torch: {str(exc).splitlines()[0][:200]}]"
            ) from exc


def is_of_lost_rank(error: BaseException) -> bool:
    """Whether torch raised this because another rank is gone or stuck, and not for what it was asked to do."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(_GONE.search(str(error))))


def default_ranks(group: dist.ProcessGroup | Ranks | str | None = "default") -> Ranks:
    """The ranks of a group; "default": torch.distributed's default group where it is initialised, else one alone."""
    if isinstance(group, Ranks):
        return group
    if group == "default":
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    elif isinstance(group, str):
        raise UsageError(f'group {group!r}: expected a process group, None, or "default"')
    return Ranks(group)


def own_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of batch norm whose statistics are those of this process's rows."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            and not isinstance(m, nn.SyncBatchNorm)]  # fmt: skip


def in_lockstep(model: nn.Module) -> bool:
    """Whether forwards of the model wait for those of other ranks, so that all must make the same number of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    return is_sharded(model) or any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of the weights lie on other ranks (FSDP)."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported by whoever uses it
    return is_flat(model) or (fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in model.modules()))


def is_flat(model: nn.Module) -> bool:
    """Whether its weights lie in flat parameters (FSDP1, `FullyShardedDataParallel`)."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules())


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that is spread over the ranks; another tensor is itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device together, up to the size of a bucket, in an order that all ranks share."""
    open_: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= BUCKET:
            yield open_.pop((tensor.dtype, tensor.device))
    yield from open_.values()
