"""One selection step against its floor: a forward of 320 and a forward-backward of 32, on tensors that are ready.

The floor is the fastest that a search finds over memory layouts, precisions and chunks, for each of the two passes; our
side scores and learns with what the search found. It starts from the uint8 buffer that the stream hands over and
includes the normalisation, the losses, the rule, the arrays for the log and the gather of the kept rows. The
optimizer's step is in neither side. "Careless" is our side with float32 in one piece, as the paper's code has it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Figure, interleave, ratios
from rhostream.candidates import CANDIDATE, Candidates
from rhostream.models import build
from rhostream.samples.fields import Fields
from rhostream.selection.forward import scoring
from rhostream.selection.hardware import bf16_supported
from rhostream.selection.selector import Selector

BUFFER, BATCH, CLASSES = 320, 32, 10
CHUNKS = (BUFFER, 160, 80, 40)


@dataclass(frozen=True)
class Case:
    """A model, the size of its images, how many steps a side of a pair has, and the bound."""

    model: str
    size: int
    steps: int
    target: float | None


CASES = (Case("mlp", 32, 40, None), Case("small-cnn", 32, 8, 1.05), Case("resnet18-small", 32, 1, 1.05))


@dataclass(frozen=True)
class Way:
    """How a pass is computed."""

    layout: torch.memory_format
    precision: torch.dtype | None
    chunk: int = BUFFER

    def __str__(self) -> str:
        layout = "channels-last" if self.layout is torch.channels_last else "contiguous"
        return f"{layout}, {'bfloat16' if self.precision else 'float32'}, {self.chunk} at a time"

    def context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device.type, self.precision) if self.precision else contextlib.nullcontext()


def run(pairs: int) -> list[Figure]:
    """Time of a selection step over its floor, model by model; on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: list[Figure] = []
    for case in CASES:
        figures += _figures(case, device, pairs)
    return figures


def _figures(case: Case, device: torch.device, pairs: int) -> list[Figure]:
    torch.manual_seed(0)
    step = Step(case, device)
    score, learn = step.search()
    sides: list[Callable[[], float]] = [
        lambda: step.selected(score, learn), lambda: step.floor(score, learn),
        lambda: step.selected(Way(torch.channels_last, None), Way(torch.channels_last, None)),
    ]  # fmt: skip
    for side in sides:
        side()
    seconds = [interleave(sides, case.steps) for _ in range(pairs)]
    ours, floor, careless = ([statistics.median(side) for side in each] for each in zip(*seconds, strict=True))
    return [
        Figure("step", case.model, "time over floor", ratios(ours, floor), case.target, at_least=False),
        Figure("step", case.model, "careless over floor", ratios(careless, floor)),
        Figure("step", case.model, f"selection step ({score}; learns in {learn})",
               tuple(1000 * s for s in ours), unit="ms"),
        Figure("step", case.model, "floor", tuple(1000 * s for s in floor), unit="ms"),
    ]  # fmt: skip


def buffer(size: int = 32) -> Candidates:
    """320 candidates of noise with labels and irreducible losses, in memory."""
    rng = np.random.default_rng(0)
    return Candidates(
        pass_index=0, index=0, shard=np.zeros(BUFFER, np.int32), ordinal=np.arange(BUFFER, dtype=np.int32),
        key=pa.array([f"{row:06d}" for row in range(BUFFER)]),
        label=torch.from_numpy(rng.integers(0, CLASSES, BUFFER)),
        il=torch.from_numpy(rng.exponential(1, BUFFER).astype(np.float32)),
        reason=np.full(BUFFER, CANDIDATE, np.uint8),
        fields=Fields({"pixels": torch.from_numpy(rng.integers(0, 256, (BUFFER, size, size, 3), dtype=np.uint8))}),
    )  # fmt: skip


class Step:
    """Both sides for one model."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._device = device
        self._model = build(case.model, image_size=case.size, channels=3, classes=CLASSES).to(device).train()
        self._candidates = buffer(case.size).to(device)
        self._input = {way: self._candidates.input.contiguous(memory_format=way)
                       for way in (torch.contiguous_format, torch.channels_last)}  # fmt: skip

    def search(self) -> tuple[Way, Way]:
        """The fastest way to score, and the fastest to learn: medians of three after one that isn't counted."""
        precisions = [None, *([torch.bfloat16] if bf16_supported(self._device) else [])]
        layouts = (torch.contiguous_format, torch.channels_last)
        best = [(float("inf"), Way(layouts[0], None))] * 2
        for layout, precision, chunk in product(layouts, precisions, CHUNKS):
            way = Way(layout, precision, chunk)
            best[0] = min(best[0], (_median(lambda way=way: self._score(way)), way), key=lambda pair: pair[0])
            if chunk == BUFFER:
                best[1] = min(best[1], (_median(lambda way=way: self._learn_floor(way)), way), key=lambda p: p[0])
        return best[0][1], best[1][1]

    def selected(self, score: Way, learn: Way) -> float:
        """Seconds of one selection and the forward-backward of what it kept, as the trainer does them."""
        model = self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.zero_grad(set_to_none=True)
        selector = Selector(model, "rho", BATCH, chunk=None if score.chunk == BUFFER else score.chunk,
                            autocast=score.precision)  # fmt: skip
        with _timed(self._device) as seconds:
            selection = selector(self._candidates)
            assert selection.input is not None
            self._learn(model, selection.input, selection.label, learn)
        return seconds[0]

    def floor(self, score: Way, learn: Way) -> float:
        """Seconds of the two passes alone; changing the state of batch norm is not counted."""
        return self._score(score) + self._learn_floor(learn)

    def _score(self, way: Way) -> float:
        self._model.to(memory_format=way.layout)  # type: ignore[call-overload]
        x = self._input[way.layout]
        with scoring(self._model), way.context(self._device), _timed(self._device) as seconds:
            for part in x.split(way.chunk):
                self._model(part)
        return seconds[0]

    def _learn_floor(self, way: Way) -> float:
        self._model.to(memory_format=way.layout)  # type: ignore[call-overload]
        self._model.zero_grad(set_to_none=True)
        x = self._input[way.layout][:BATCH]
        with _timed(self._device) as seconds:
            self._learn(self._model, x, self._candidates.label[:BATCH], way)
        return seconds[0]

    def _learn(self, model: nn.Module, x: Tensor, label: Tensor, way: Way) -> None:
        with way.context(self._device):
            logits = model(x)
        F.cross_entropy(logits.float(), label).backward()


@contextlib.contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """A list that holds the seconds of the block afterwards, the device's work included."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - start)


def _median(side: Callable[[], float], repeats: int = 3) -> float:
    side()
    return statistics.median(side() for _ in range(repeats))
