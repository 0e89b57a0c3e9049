"""Where a model computes: the device of a name, its bfloat16, and the threads that others leave to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from rhostream.errors import UsageError


def device_of(name: str) -> torch.device:
    """The device of that name, `auto` for a GPU where there is one. Raises UsageError when it can't be used here."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.zeros(1, device=chosen).device
    except (RuntimeError, AssertionError) as exc:
        raise UsageError(f"--device {chosen!r} can't be used here: {str(exc).splitlines()[0]}") from exc


def bf16_supported(device: torch.device) -> bool:
    """Whether bfloat16 is arithmetic of the device itself and not an emulation that is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_cores(workers: int) -> int:
    """The cores of this process that its workers leave to the model, at least one."""
    return max(1, cores() - workers)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """That many threads for torch's arithmetic, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
