"""What is timed: a step over its two bare passes, copies beside computation, and how long the device is idle."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rhostream
from benchmarks import data
from benchmarks.gpu.budget import Clock
from benchmarks.measure import interleave
from benchmarks.step import BATCH, BUFFER, CLASSES, Case, Step, buffer
from rhostream.candidates import Candidates
from rhostream.models import build
from rhostream.selection.forward import scoring
from rhostream.selection.hardware import bf16_supported
from rhostream.stream.copying import GPUCopier

Found = tuple[str, str, dict[str, Any]]  # state, a sentence, figures
PAIRS = 7


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def large(toy: bool) -> tuple[str, int]:
    """The model that is timed, and the size of its pictures: ResNet-50 at 224, as torchvision has it."""
    if toy:
        return "mlp-64", 16
    return ("torchvision:resnet50" if importlib.util.find_spec("torchvision") else "resnet18-small", 224)


def step(clock: Clock, toy: bool) -> Found:
    """A selection step (320 scored, 32 learned from) over a bare forward of 320 and forward-backward of 32."""
    name, size = large(toy)
    timed = Step(Case(name, size, 1, None), device())
    score, learn = timed.search()
    sides: list[Callable[[], float]] = [lambda: timed.selected(score, learn), lambda: timed.floor(score, learn)]
    for side in sides:
        side()
    ours: list[float] = []
    floor: list[float] = []
    while len(ours) < PAIRS and (len(ours) < 3 or clock.left > 0):
        (a,), (b,) = interleave(sides, 1)
        ours.append(a)
        floor.append(b)
    over = [a / b for a, b in zip(ours, floor, strict=True)]
    figures = {
        "model": f"{name} at {size} pixels, {BATCH} of {BUFFER}",
        "scored": str(score),
        "learned from": str(learn),
        "step, ms": 1000 * statistics.median(ours),
        "floor, ms": 1000 * statistics.median(floor),
        "step over floor": statistics.median(over),
        "smallest and largest": f"{min(over):.3f} to {max(over):.3f} over {len(over)} pairs",
    }
    return "done", f"a step takes {statistics.median(over):.3f} times its two bare passes", figures


class PlainCopier:
    """Where there is no GPU: the copy is one in memory, at once."""

    def start(self, candidates: Candidates) -> Candidates:
        assert candidates.fields is not None
        return replace(candidates, fields=candidates.fields.to(torch.device("cpu")))

    def finish(self, candidates: Candidates) -> Candidates:
        return candidates


def copies(clock: Clock, toy: bool) -> Found:
    """A buffer's copy from pinned and from pageable memory, alone and beside a scoring forward of the one before."""
    on, (name, size) = device(), large(toy)
    model = _model(name, size, on)
    here, unpinned = buffer(size), buffer(size)  # the copier pins what it is made for
    assert here.fields is not None
    there = here.to(on)
    copier: Any = GPUCopier(on, dict(here.fields.items())) if on.type == "cuda" else PlainCopier()
    precision = torch.bfloat16 if bf16_supported(on) else None

    def forward() -> None:
        with scoring(model), torch.autocast(on.type, precision, enabled=precision is not None):
            model(there.input)

    def both() -> None:
        moving = copier.start(here)
        forward()
        copier.finish(moving)

    sides = [lambda: _timed(on, lambda: copier.finish(copier.start(here))), lambda: _timed(on, lambda: unpinned.to(on)),
             lambda: _timed(on, forward), lambda: _timed(on, both)]  # fmt: skip
    for side in sides:
        side()
    pinned, pageable, alone, together = (statistics.median(each) for each in interleave(sides, 9))
    hidden = (pinned + alone - together) / max(min(pinned, alone), 1e-9)
    size_mb = here.fields[next(iter(here.fields.names))].nbytes / 1e6
    figures = {
        "a buffer, MB": size_mb,
        "copy from pinned memory, ms": 1000 * pinned,
        "copy from pageable memory, ms": 1000 * pageable,
        "pinned, GB/s": size_mb / 1000 / max(pinned, 1e-9),
        "scoring forward alone, ms": 1000 * alone,
        "copy beside the forward, ms": 1000 * together,
        "share of the copy that is hidden": hidden,
    }
    if on.type != "cuda":
        return "done", "no GPU: this was a copy in memory, nothing is pinned or hidden", figures
    return "done", f"{100 * hidden:.0f} % of a copy is hidden behind the forward", figures


def idle(clock: Clock, toy: bool, work: Path, workers: int) -> Found:
    """A loop over shards of JPEGs: the share of the time that the host waits for data, and that no kernel runs."""
    on, (name, size) = device(), large(toy)
    shards = data.photos(2 if toy else 24, BUFFER if toy else 500, size)
    rhostream.index(shards, str(work / f"index-{size}"))
    made_in = clock.spent
    stream = rhostream.open_stream(
        shards, str(work / f"index-{size}"), buffer_size=BUFFER, needs_il=False, passes=1000, workers=workers,
        device=str(on), image_size=size,
    )  # fmt: skip
    model = _model(name, size, on)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    precision = torch.bfloat16 if bf16_supported(on) else None
    selector = rhostream.Selector(model, "loss", BATCH, autocast=precision)
    steps = _Steps(iter(stream), model, optimizer, selector, on, precision)
    steps.take(2)
    waits, seconds = steps.take(3 if toy else 40, clock)
    figures: dict[str, Any] = {
        "model": f"{name} at {size} pixels, {BATCH} of {BUFFER}",
        "workers": workers,
        "shards made in, s": made_in,
        "steps": len(seconds),
        "a step, ms": 1000 * statistics.median(seconds),
        "samples looked at a second": BUFFER / statistics.median(seconds),
        "share of the time that is waited for data": sum(waits) / sum(seconds),
    }
    if on.type != "cuda":
        return "done", "no GPU: only what is waited for data was seen", figures
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        steps.take(8)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    spans = [(e.time_range.start, e.time_range.end) for e in profile.events() or ()
             if e.device_type == torch.autograd.DeviceType.CUDA]  # fmt: skip
    share = 1 - busy(spans) / 1e6 / wall
    figures["share of the time that no kernel runs"] = share
    return "done", f"the GPU is idle {100 * share:.0f} % of the time of 8 steps under the profiler", figures


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, until = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


class _Steps:
    """Steps of a loop of one's own, each timed with the device's work in it."""

    def __init__(
        self, buffers: Any, model: nn.Module, optimizer: Any, selector: rhostream.Selector, on: torch.device,
        precision: torch.dtype | None,
    ) -> None:  # fmt: skip
        self._buffers, self._model, self._optimizer, self._selector = buffers, model, optimizer, selector
        self._on, self._precision = on, precision

    def take(self, number: int, clock: Clock | None = None) -> tuple[list[float], list[float]]:
        """Seconds of waiting for data and of the whole, a step each; fewer where the time is over, but three."""
        waits: list[float] = []
        seconds: list[float] = []
        mark = time.perf_counter()
        while len(seconds) < number and (clock is None or len(seconds) < 3 or clock.left > 0):
            candidates = next(self._buffers)
            waits.append(time.perf_counter() - mark)
            kept = self._selector(candidates.to(self._on))
            with torch.autocast(self._on.type, self._precision, enabled=self._precision is not None):
                logits = self._model(kept.input)
            self._optimizer.zero_grad(set_to_none=True)
            kept.mean(cross_entropy(logits.float(), kept.label, reduction="none")).backward()
            self._optimizer.step()
            seconds.append(time.perf_counter() - mark)
            mark += seconds[-1]
        return waits, seconds


def _model(name: str, size: int, on: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, image_size=size, channels=3, classes=CLASSES).to(on).train()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _timed(on: torch.device, work: Callable[[], Any]) -> float:
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    start = time.perf_counter()
    work()
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter() - start
