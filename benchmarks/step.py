"""One selection step against its floor: a forward of 320 and a forward-backward of 32, on tensors that are ready.

Our side starts from the uint8 buffer that the stream hands over and includes the normalisation, the losses, the rule,
the arrays for the log and the gather of the kept rows. The optimizer's step is in neither side.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Figure, interleave, ratios
from rhostream.candidates import CANDIDATE, Candidates
from rhostream.models import build
from rhostream.selection.selector import Selector, scoring

BUFFER, BATCH, SIZE, CLASSES, TARGET = 320, 32, 32, 10, 1.10
STEPS = {"mlp": 40, "small-cnn": 12, "resnet18-small": 1}  # on each side of a pair


def run(pairs: int) -> list[Figure]:
    """Time of a selection step over its floor, model by model."""
    torch.manual_seed(0)
    candidates, figures = buffer(), list[Figure]()
    for name, steps in STEPS.items():
        model = build(name, image_size=SIZE, channels=3, classes=CLASSES)
        step = Step(model, candidates)
        step.selected(), step.floor()
        sides = [step.selected, step.floor]
        seconds = [interleave(sides, steps) for _ in range(min(pairs, 3) if steps == 1 else pairs)]
        ours, floor = ([statistics.median(side) for side in sides] for sides in zip(*seconds, strict=True))
        figures += [
            Figure("step", name, "time over floor", ratios(ours, floor), TARGET, at_least=False),
            Figure("step", name, "selection step", tuple(1000 * s for s in ours), unit="ms"),
            Figure("step", name, "floor", tuple(1000 * s for s in floor), unit="ms"),
        ]
    return figures


def buffer() -> Candidates:
    """320 candidates of noise with labels and irreducible losses, in memory."""
    rng = np.random.default_rng(0)
    return Candidates(
        pass_index=0, index=0, shard=np.zeros(BUFFER, np.int32), ordinal=np.arange(BUFFER, dtype=np.int32),
        key=pa.array([f"{row:06d}" for row in range(BUFFER)]),
        label=torch.from_numpy(rng.integers(0, CLASSES, BUFFER)),
        il=torch.from_numpy(rng.exponential(1, BUFFER).astype(np.float32)),
        reason=np.full(BUFFER, CANDIDATE, np.uint8),
        image=torch.from_numpy(rng.integers(0, 256, (BUFFER, SIZE, SIZE, 3), dtype=np.uint8)),
    )  # fmt: skip


class Step:
    """Both sides for one model."""

    def __init__(self, model: nn.Module, candidates: Candidates) -> None:
        self._model, self._candidates = model.train(), candidates
        self._selector = Selector(model, "rho", BATCH)
        self._input = candidates.input
        chosen = self._selector(candidates)
        assert chosen.input is not None
        self._batch, self._label = chosen.input, chosen.label

    def selected(self) -> float:
        """Seconds of one selection and the forward-backward of what it kept."""
        self._model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        selection = self._selector(self._candidates)
        assert selection.input is not None
        self._learn(selection.input, selection.label)
        return time.perf_counter() - start

    def floor(self) -> float:
        """Seconds of the two passes alone; changing the state of batch norm is not counted."""
        self._model.zero_grad(set_to_none=True)
        with scoring(self._model):
            start = time.perf_counter()
            self._model(self._input)
            seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._learn(self._batch, self._label)
        return seconds + time.perf_counter() - start

    def _learn(self, x: Tensor, label: Tensor) -> None:
        F.cross_entropy(self._model(x), label).backward()
