"""On a GPU: the same decisions, one wait a step, and the next buffer copied while the current one is worked on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.proxy import Proxy
from rhostream.selection.selector import Selector
from rhostream.tables import selections
from tests.support.scoring import buffer
from tests.support.streams import content, open_world

pytestmark = pytest.mark.gpu


def test_buffers_copied_ahead_are_the_buffers(world: Path) -> None:
    expected = [content(c) for c in open_world(world)]
    for workers in (0, 2):
        found = []
        for candidates in open_world(world, workers=workers, device="cuda"):
            assert candidates.image.is_cuda and candidates.label.is_cuda
            torch.testing.assert_close(candidates.label.cpu(), candidates.host.label)
            at = torch.from_numpy(candidates.candidate_rows)
            assert torch.equal(candidates.image.cpu()[at], candidates.host.image[at])
            found.append(content(candidates.host))
        assert found == expected


def test_a_step_waits_for_the_device_once() -> None:
    target, small = (build(n, image_size=16, channels=1, classes=4).cuda() for n in ("small-cnn", "mlp-64"))
    for selector in (
        Selector(target, "rho", 8),
        Selector(target, "rho", 4, shortlist=3, proxy=Proxy(small)),
        Selector(target, "grad_norm_is", 8, shadow="loss,rho"),
        Selector(target, "rho", 8, gumbel=0.5, class_quota=0.5, deduplicate=0.9),
    ):
        for number in range(3):
            candidates = buffer(seed=number).to("cuda")
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as waits:
                    warnings.simplefilter("always")
                    selector(candidates)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if number:  # the first call makes constants
                assert len([w for w in waits if "synchroniz" in str(w.message)]) <= 1


def test_a_gpu_keeps_nearly_what_a_cpu_keeps(trained: Callable[..., Path]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        run = trained(device, model="small-cnn", device=device, steps=1)
        rows = selections.read(str(run), checkpoint.latest(str(run)).log).to_pylist()
        found.append([r for r in rows if r["step"] == 0])
    np.testing.assert_allclose([r["loss"] for r in found[0]], [r["loss"] for r in found[1]], rtol=1e-2, atol=1e-2)
    assert sum(a["kept"] and b["kept"] for a, b in zip(*found, strict=True)) >= 7
