"""The Ray engine: actors of a cluster, each with one shard in hand, each committing the parts that it makes.

    connected > actors: versions compared, work opened > a shard at a time > its outcome, or one death more of it

Nothing here repairs anything: parts are create-only, so an actor, a node or this driver may die at any moment, and the
same command makes what is missing. Ray restarts nothing and tries nothing again by itself (`docs/decisions/061`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import rhostream
from rhostream import storage
from rhostream.errors import MissingExtraError, RhostreamError, ShardError, UsageError, WorkerError
from rhostream.irreducible.engines import local
from rhostream.irreducible.sampled import Drawn, drawer
from rhostream.irreducible.work import BAD, MADE, Outcome, Shard, ShardWork, Watch
from rhostream.selection.hardware import device_of
from rhostream.signals import while_waiting
from rhostream.stream.scan import TRIES, ScanSettings, ended_workers

try:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
except ImportError as exc:
    raise MissingExtraError.of("ray", "ray") from exc

LOG = logging.getLogger("rhostream")
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 1.0  # a signal is answered so soon, whatever the cluster does
Opened = Callable[[Shard], Any]
Waiting = Callable[[Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def connected(address: str | None, actors: int | None, cpus: float, gpus: float) -> Iterator[Ray]:
    """An engine of at most so many actors (None: as many as fit the cluster now), of so many cores and GPUs each.

    A cluster that this process is connected to already is used, and stays. Raises UsageError.
    """
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _require_answer(address or os.environ.get("RAY_ADDRESS", ""))
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            ray.init(address=address, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as exc:  # also another version of Ray or Python
            raise UsageError(f"--ray-address {address or 'auto'}: {' '.join(str(exc).split())[:400]}") from exc
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)  # Ray's own leaves without a word
    try:
        yield Ray(_fitting(actors, cpus, gpus), cpus, gpus)
    finally:
        if own:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise UsageError where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as exc:
        raise UsageError(f"--ray-address {address}: no cluster answers there ({exc})") from exc


def _fitting(actors: int | None, cpus: float, gpus: float) -> int:
    """How many actors are asked for. Raises UsageError where no node of the cluster could hold one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = [
        int(min(node.get("CPU", 0.0) // cpus, node.get("GPU", 0.0) // gpus if gpus else float("inf"))) for node in nodes
    ]
    if not any(fit):
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
        raise UsageError(
            f"no node of the cluster can hold an actor of {cpus:g} cores and {gpus:g} GPUs: the largest of its "
            f"{len(nodes):,} have {most['CPU']:g} cores and {most['GPU']:g} GPUs (--cpus-per-actor, --gpus-per-actor)"
        )
    return actors or sum(fit)


class Ray:
    """A cluster: so many actors at most. Those that find no room wait for it, which makes an autoscaler add nodes."""

    threads = 1  # of an actor's model, unless it is told otherwise

    def __init__(self, actors: int, cpus: float, gpus: float) -> None:
        self._actors, self._cpus, self._gpus = actors, cpus, gpus

    def outcomes(self, work: ShardWork, shards: Sequence[Shard], watch: Watch) -> Generator[Outcome]:
        """What becomes of each shard. A part that `Watch.admit` refuses is there already: the job stops behind it."""
        device = "cuda" if self._gpus else "cpu"
        if self._gpus and work.scorer is not None:
            work.scorer.require_movable()
        for (url, name), result in self._each(partial(_scoring, work, device), shards, watch.stop.while_waiting):
            if isinstance(result, ShardError):
                yield Outcome(url=url, name=name, verdict=BAD, error=result)
                continue
            outcome: Outcome = result
            storage.add_retried(outcome.retried)
            if outcome.verdict == MADE and (facts := outcome.facts) is not None:
                watch.rows(facts.samples, facts.samples - facts.statuses.get("ok", 0))
                watch.admit(outcome)
            yield outcome

    def drawn(
        self, shards: Sequence[Shard], settings: ScanSettings, rows: Callable[[int, int], None]
    ) -> Generator[Drawn]:
        """What each shard gives to a uniform sample."""
        numbers = {shard: number for number, shard in enumerate(shards)}
        for shard, result in self._each(partial(drawer, settings), shards, while_waiting):
            if isinstance(result, ShardError):
                yield Drawn.broken(numbers[shard], result)
                continue
            drawn: Drawn = result
            storage.add_retried(drawn.end.retried)
            rows(drawn.ok + len(drawn.bad), len(drawn.bad))
            yield replace(drawn, end=replace(drawn.end, shard=numbers[shard]))

    def _each(self, task: Any, shards: Sequence[Shard], waiting: Waiting) -> Generator[tuple[Shard, Any]]:
        """(shard, what the opened task gave for it), in any order; a ShardError for one that ended its worker 3 times.

        Ends early when it is asked to stop. Raises the errors of ours that stop a job, UsageError for workers that
        have other packages, WorkerError where actors die before they are given a shard.
        """
        begun, work_s, most = time.monotonic(), 0.0, 0
        pool = _Pool(task, deque(shards), min(self._actors, len(shards)), self._cpus, self._gpus)
        try:
            for shard, result, seconds in waiting(pool.results()):
                work_s, most = work_s + seconds, max(most, pool.working)
                yield shard, result
        finally:
            pool.close()
        LOG.info("%d actors worked at a time, %.1f s in %.1f s", most, work_s, time.monotonic() - begun)


class _Pool:
    """Actors and what each is at."""

    def __init__(self, task: Any, left: deque[Shard], actors: int, cpus: float, gpus: float) -> None:
        self._left, self._task = left, ray.put(task)
        # A worker that imports no torch yet has nothing to say of CUDA: the actor's own process looks for itself.
        made = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self._make, self._wanted = made.remote, actors
        self._calls: dict[Any, tuple[Any, Shard | str, float]] = {}  # a promise: whose, of which shard or step, since
        self._deaths, self._stillborn = Counter[Shard](), 0

    @property
    def working(self) -> int:
        """Actors that have a shard in hand."""
        return sum(isinstance(at, tuple) for _, at, _ in self._calls.values())

    def results(self) -> Generator[tuple[Shard, Any, float]]:
        """(shard, what came of it, seconds) until every shard has come to its end."""
        while self._left or self.working:
            for _ in range(min(self._wanted, len(self._left) + self.working) - len(self._calls)):
                actor = self._make()
                self._call(actor, actor.versions.remote(), "versions")
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=LOOK_SECONDS)
            for promise in ready:
                actor, at, since = self._calls.pop(promise)
                try:
                    result = ray.get(promise)
                except RayActorError as exc:
                    ray.kill(actor)
                    if (error := self._died(at, exc)) is not None:
                        yield at, error, time.monotonic() - since  # type: ignore[misc]
                    continue
                except RayTaskError as exc:
                    if isinstance(at, str):
                        raise _unfit(exc) from exc
                    raise exc.as_instanceof_cause() from exc
                except RayError as exc:
                    raise WorkerError(f"Ray: {_first_line(exc)}; the same command resumes") from exc
                if isinstance(result, RhostreamError):
                    raise result
                self._go_on(actor, at, result)
                if isinstance(at, tuple):
                    yield at, result, time.monotonic() - since

    def _go_on(self, actor: Any, at: Shard | str, result: Any) -> None:
        """The next thing for an actor to do; without one it gives its place back."""
        if at == "versions":
            _require_same(result)
            self._call(actor, actor.open.remote(self._task), "open")
            return
        self._stillborn = 0
        if self._left:
            shard = self._left.popleft()
            self._call(actor, actor.take.remote(shard), shard)
        else:
            ray.kill(actor)

    def _call(self, actor: Any, promise: Any, at: Shard | str) -> None:
        self._calls[promise] = actor, at, time.monotonic()

    def _died(self, at: Shard | str, exc: RayActorError) -> ShardError | None:
        """An actor is gone: its shard is read again by another, at the end, unless it has ended several."""
        if isinstance(at, str):
            if exc.actor_init_failed:
                raise _unfit(exc) from exc
            self._stillborn += 1
            if self._stillborn >= TRIES:
                raise WorkerError(
                    f"{TRIES} actors died before they had a shard ({_first_line(exc)}); the same command resumes"
                ) from exc
            return None
        if not exc.preempted:
            self._deaths[at] += 1
            if error := ended_workers(at[1], self._deaths[at]):
                return error
        self._left.append(at)
        return None

    def close(self) -> None:
        """End all actors, whatever they are at: each part is whole or isn't there."""
        for actor, _, _ in self._calls.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)
        self._calls.clear()


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(exc).__name__


def _unfit(exc: BaseException) -> UsageError:
    return UsageError(
        f"an actor can't begin ({_first_line(exc)}): every node needs rhostream {rhostream.__version__} and the code "
        "that is named by package.module:name"
    )


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), "rhostream": rhostream.__version__, "torch": torch.__version__}


def _require_same(theirs: dict[str, str]) -> None:
    """Raise UsageError for a node whose packages are others: its il would be other ones, or none."""
    for name, version in _versions().items():
        if theirs[name] != version:
            raise UsageError(
                f"node {theirs['node']} of the cluster has {name} {theirs[name]}, and here is {version}: install the "
                "same on every node"
            )


class _Actor:
    """In a process of the cluster."""

    def versions(self) -> dict[str, str]:
        """What is installed there; before anything of the work is read, which another version may not be able to."""
        return _versions() | {"node": platform.node()}

    def open(self, task: Any) -> RhostreamError | None:
        """Make ready. Errors of ours are values: Ray would wrap them."""
        self._opened: Opened | None = None
        try:
            self._opened = task()
        except RhostreamError as exc:
            return exc
        return None

    def take(self, shard: Shard) -> Any:
        """What comes of a shard, or what stops the job."""
        assert self._opened is not None
        try:
            return self._opened(shard)
        except RhostreamError as exc:
            return exc


def _scoring(work: ShardWork, device: str) -> Opened:
    """What makes the part of one shard after the other."""
    torch.set_num_threads(work.threads)
    if work.scorer is not None:
        work.scorer.to(device_of(device))
    return partial(local.one, work.open())
