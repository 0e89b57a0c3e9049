"""The ranks of a run as a launcher (torchrun) started them: joined at the start, and never left waiting for long.

What the host says goes over gloo, gradients over NCCL on GPUs. A rank that stops with an error writes down why before
it leaves, so that the others, whose next collective fails, can say what happened instead of what torch noticed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rhostream.errors import RankLostError, UsageError
from rhostream.selection.ranks import Ranks

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TIMEOUT_SECONDS = 600.0  # how long a rank waits for the others
_REASON = "stopped"
_ASKING_SECONDS = 5.0
_meetings: list[Store] = []  # the launcher's store, then one of each run's group


def world_size() -> int:
    """How many ranks train: the process group's, or the launcher's. Raises UsageError for half an environment."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    said = os.environ.get("WORLD_SIZE") or "1"
    if not said.isdigit() or said == "0":
        raise UsageError(f"WORLD_SIZE is {said!r}: expected the number of ranks, as torchrun sets it")
    if int(said) > 1:
        lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if lacking:
            raise UsageError(
                f"WORLD_SIZE is {said}, but {', '.join(lacking)} isn't set: start the ranks with torchrun "
                "(docs/distributed.md), or unset WORLD_SIZE to train on one"
            )
    return int(said)


def local_device(name: str) -> str:
    """Each rank of a machine takes the GPU of its LOCAL_RANK where `name` is "auto" or "cuda"."""
    local = os.environ.get("LOCAL_RANK")
    if ":" in name and ranks_here() > 1:
        raise UsageError(
            f"--device {name} would be that of {ranks_here()} ranks of this machine: say cuda, and each "
            "takes the GPU of its LOCAL_RANK (CUDA_VISIBLE_DEVICES chooses among them)"
        )
    if world_size() == 1 or local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{local}"


def ranks_here() -> int:
    """Ranks that share this machine's cores."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(said) if world_size() > 1 and said.isdigit() and said != "0" else 1


@contextlib.contextmanager
def joined(device: torch.device, timeout: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """The ranks of this run; a process group is made, and left again, unless the caller has one already.

    An error inside is told to the others. Raises UsageError, RankLostError when the others don't come in `timeout` s.
    """
    if timeout <= 0:
        raise UsageError(f"--rank-timeout {timeout:g}: expected more than 0 seconds")
    if world_size() == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, ours = None, not dist.is_initialized()
    if ours:
        store = _start(device, timeout)
    told = _Reason(store, timeout)
    try:
        ranks = Ranks(dist.group.WORLD, told.explain)
        try:
            with ranks.waiting():  # in a forward or a backward of sharded weights, whose waiting is torch's own
                yield ranks
        except BaseException as exc:
            told.write(ranks.rank, exc)
            raise
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def _start(device: torch.device, timeout: float) -> Store:
    wait = timedelta(seconds=timeout)
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # A script may train several runs: one store a process, and keys of its own for every run's group.
        if not _meetings:
            _meetings.append(next(rendezvous("env://", timeout=wait))[0])
        store = PrefixStore(f"rhostream/{len(_meetings)}", _meetings[0])
        _meetings.append(store)
        store.set_timeout(wait)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=wait,
        )
    except (RuntimeError, ValueError) as exc:
        raise RankLostError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {timeout:g} s; start all "
            f"ranks again [torch: {str(exc).splitlines()[0][:200]}]"
        ) from exc
    return store


class _Reason:
    """Why the first rank stopped, on the launcher's store."""

    def __init__(self, store: Store | None, timeout: float) -> None:
        self._store, self._timeout = store, timeout

    def write(self, rank: int, error: BaseException) -> None:
        """Tell the others; the first one counts, and whoever only lost another rank has nothing to say."""
        if self._store is not None and not isinstance(error, RankLostError):
            text = f"rank {rank} stopped with {type(error).__name__}: {error}"
            self._in_time(lambda: self._store and self._store.compare_set(_REASON, "", text))

    def explain(self) -> str:
        """What became of the lost rank, and what to do, for an error's message."""
        found: list[str] = []

        def ask() -> None:
            if self._store is not None and self._store.check([_REASON]):
                found.append(self._store.get(_REASON).decode(errors="replace"))

        self._in_time(ask)
        why = (
            found[0]
            if found
            else (f"it was killed, its machine is gone, or it did nothing for {self._timeout:g} s (--rank-timeout)")
        )
        return f": {why}; nothing before the newest checkpoint is lost: the same command on all ranks resumes"

    @staticmethod
    def _in_time(ask: Any) -> None:
        """The store may live in the very rank that is stuck, so nobody waits for its answer for long."""

        def quietly() -> None:
            with contextlib.suppress(RuntimeError):
                ask()

        thread = threading.Thread(target=quietly, name="rhostream-ranks", daemon=True)
        thread.start()
        thread.join(_ASKING_SECONDS)


def require_alike(ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """Raise UsageError, on every rank, when one was started with other settings than rank 0, naming the first."""
    told = ranks.gather_json({**settings, "host": platform.node()})
    for number, other in enumerate(told):
        differ = [k for k in sorted(settings) if other.get(k) != told[0].get(k)]
        if differ:
            detail = "; ".join(f"{k}: {told[0].get(k)!r} on rank 0, {other.get(k)!r} here" for k in differ)
            raise UsageError(
                f"rank {number} (on {other['host']}) was started with other settings than rank 0: {detail}"
            )


def with_synchronized_norms(
    model: nn.Module, device: torch.device, together: bool = True
) -> tuple[nn.Module, str | None]:
    """On GPUs batch norm takes its statistics over all ranks; elsewhere torch has no such thing: (model, warning).

    `together`: whether all ranks make the same forwards; where some score while others train, they don't.
    """
    if not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, nn.SyncBatchNorm) for m in model.modules()
    ):
        return model, None
    if device.type == "cuda" and together:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model), None
    return model, (
        "this model has batch norm, whose statistics are those of each rank's share of a buffer on the "
        f"{device.type}: scores, and so the kept keys, depend on the number of ranks (docs/distributed.md)"
    )
