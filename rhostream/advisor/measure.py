"""The stop-watch of the advisor: parts of a step, timed on this machine with the product's own functions.

Each measurement has a share of the seconds that the user grants. A part too slow for its share is measured on fewer
samples, down to two, and by a single call where that alone takes the share; medians are reported, because a busy
machine has long tails and no short ones.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rhostream.candidates import CANDIDATE, Candidates
from rhostream.randomness import generator
from rhostream.samples.fields import Fields
from rhostream.samples.kind import OK, Kind, View
from rhostream.selection.gradient import take_step
from rhostream.selection.selector import Selector, scoring
from rhostream.selection.tokens import loss_of
from rhostream.tables.selections import LogWriter

FIRST, SECOND = 2, 8  # samples of the trials that decide how many a measurement takes; batch norm needs two
REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)  # how networks refuse a size
LOG_BUFFERS = 30
SHARES = 18  # of the seconds granted: one a measurement, and what trials and building take


class Budget:
    """The seconds that the user grants to all measurements together; a call that has begun is never cut off."""

    def __init__(self, seconds: float, started: float) -> None:
        """`started`: by time.perf_counter()."""
        self.share = seconds / SHARES
        self.end = started + seconds
        self.unmeasured: list[str] = []  # what the seconds didn't reach

    def reaches(self, what: str, least: float = 0.0) -> bool:
        """Whether there is time for a measurement whose shortest call takes `least` seconds; notes it if not."""
        there = time.perf_counter() + max(self.share, least) < self.end
        if not there:
            self.unmeasured.append(what)
        return there


def seconds_of(work: Callable[[], Any], share: float, least: int = 3) -> float:
    """Median wall seconds of a call, after one that warms up; at least `least` calls unless one takes the share."""
    first = _once(work)
    if first > share:
        return first
    took, end = [_once(work)], time.perf_counter() + share - 2 * first
    while len(took) < least or time.perf_counter() < end:
        if time.perf_counter() > end + share:  # slower than its first call promised
            break
        took.append(_once(work))
        if len(took) >= 1000:
            break
    return statistics.median(took)


def _once(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fitting(n: int, work: Callable[[int], Any], share: float, least: int = FIRST) -> int:
    """How many of n samples a measurement can take so that a few calls stay inside the share.

    Grows by four from a few samples: a call's fixed cost, or one bad moment of a busy machine, must not make a fast
    model look slow.
    """
    return _fitted(n, work, share, least)[0]


def seconds_each(n: int, work: Callable[[int], Any], share: float, least: int = FIRST) -> tuple[float, int]:
    """Seconds a sample of `work(k)` for the largest k <= n that a few calls in the share can take, and that k.

    The first trial is the measurement where it took the whole share: work that slow isn't called twice.
    """
    size, took = _fitted(n, work, share, least)
    return (took if took > share else seconds_of(lambda: work(size), share)) / size, size


def _fitted(n: int, work: Callable[[int], Any], share: float, least: int) -> tuple[int, float]:
    """The number of samples, and the seconds of its last trial; 0 where that number was not tried."""
    size = min(n, least)
    while size < n:
        took = _once(lambda: work(size))  # noqa: B023
        if size < SECOND and took * SECOND / size < share:  # so few are nearly all fixed cost
            size = min(n, SECOND)
            continue
        if took < share / 4:
            took = min(took, *(_once(lambda: work(size)) for _ in range(2)))  # noqa: B023
        room = int(size * share / 4 / max(took, 1e-9))
        if room < 2 * size:
            return size, took
        size = min(n, 4 * size, room)
    return size, 0.0


# -- data ------------------------------------------------------------------------------------------------------------


def decode_all(images: list[bytes], kind: Kind, share: float) -> tuple[Fields, list[int]]:
    """The fields (n, ...) of what can be decoded in the share, and which ones those were.

    At least one, if any can be read.
    """
    good, end, member = list[int](), time.perf_counter() + share, next(iter(kind.members))
    out = {name: np.zeros((len(images), *spec.shape), spec.dtype) for name, spec in kind.fields().items()}
    for row, data in enumerate(images):
        if kind.decode({member: data}, {name: array[len(good), ...] for name, array in out.items()}) == OK:
            good.append(row)
            if time.perf_counter() > end:
                break
    return Fields({name: torch.from_numpy(array[: len(good)]) for name, array in out.items()}), good


def decode_seconds(images: list[bytes], kind: Kind, share: float, view: View = None) -> float:
    """Seconds a sample and core, into a reused buffer."""
    member, out = next(iter(kind.members)), {n: np.zeros(s.shape, s.dtype) for n, s in kind.fields(view).items()}
    return seconds_each(len(images), lambda k: [kind.decode({member: data}, out) for data in images[:k]], share,
                        least=1)[0]  # fmt: skip


def candidates_of(fields: Fields, label: list[int], kind: Kind, n: int) -> Candidates:
    """A buffer of n candidates with an il; the samples come again when there are fewer."""
    rows = np.resize(np.arange(len(fields)), n)
    rng = generator("measured candidates")
    return Candidates(
        pass_index=0, index=0, shard=np.zeros(n, np.int32), ordinal=np.arange(n, dtype=np.int32),
        key=pa.array([f"{row:09d}" for row in rng.integers(0, 10**9, n)]),
        label=torch.from_numpy(np.asarray(label, np.int64)[rows]),
        il=torch.from_numpy(rng.exponential(1, n).astype(np.float32)), reason=np.full(n, CANDIDATE, np.uint8),
        fields=fields[torch.from_numpy(rows)], prepare=kind.inputs,
        shard_names=pa.array(["shard"]),
    )  # fmt: skip


# -- the model -------------------------------------------------------------------------------------------------------


def on(device: torch.device, model: nn.Module) -> nn.Module:
    """The model there, its weights channels-last, as the pixels are."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether scores depend on what else is in the forward."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def takes(model: nn.Module, kind: Kind, view: View, device: torch.device) -> bool:
    """Whether the model can forward such a view of the samples."""
    try:
        with scoring(model):
            model(kind.example(2, view).to(device))
    except REFUSALS:
        return False
    return True


def score_seconds(selector: Selector, buffer: Candidates, device: torch.device, share: float) -> tuple[float, int]:
    """Seconds a sample of copy, normalisation, forward and choice; and of how many samples it was measured."""
    parts = {len(buffer): buffer}  # a smaller one is copied once, not in every call that is timed

    def work(n: int) -> None:
        if n not in parts:
            parts[n] = buffer.take(np.arange(n))
        selector(parts[n].to(device))
        _wait(device)

    return seconds_each(len(buffer), work, share)


def forward_seconds(model: nn.Module, x: torch.Tensor, share: float) -> float:
    """Seconds a sample of a bare scoring forward."""

    def work(n: int) -> None:
        with scoring(model):
            model(x[:n])
        _wait(x.device)

    return seconds_each(len(x), work, share)[0]


def train_seconds(model: nn.Module, x: torch.Tensor, label: torch.Tensor, share: float) -> tuple[float, int]:
    """Seconds a sample of forward, backward and AdamW step; and of how many samples a step it was measured."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # as `train` has it

    def work(n: int) -> None:
        take_step(model, optimizer, x[:n], label[:n], loss_of(model))
        _wait(x.device)

    return seconds_each(len(x), work, share)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- the log ---------------------------------------------------------------------------------------------------------


def log_seconds(buffer: Candidates, share: float) -> float:
    """Seconds a row of the selection log: columns, encoding, and the commit on the disk for temporary files."""
    n = len(buffer)
    columns = {
        "loss": buffer.il.numpy(),
        "score": buffer.il.numpy(),
        "correct": np.zeros(n, bool),
        "kept": np.zeros(n, bool),
        "reason": np.ones(n, np.uint8),
        "weight": np.ones(n, np.float32),
    }
    with tempfile.TemporaryDirectory(prefix="rhostream-estimate-") as folder:
        log = LogWriter(folder, 0)
        start = time.perf_counter()
        for step in range(LOG_BUFFERS):
            log.take(buffer, step, columns, step)
            if time.perf_counter() > start + share:
                break
        log.flush()
        return (time.perf_counter() - start) / ((step + 1) * n)
