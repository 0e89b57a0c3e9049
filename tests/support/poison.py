"""Shards that end the process which reads them, as a decoder in C does at some bytes: a kind, a reference for it."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support.hostile_members import write_tar
from tests.support.own_kinds import Vectors, net

DEADLY = 666.0  # the gain of such a sample
ONCE = 333.0  # the gain of one that does so once; a file beside its shard, which its gain names, says that it did


class Deadly(Vectors):
    """As `Vectors`; some samples end their process."""

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        gain, _, mark = members["gain"].decode().partition(" ")
        if float(gain) == DEADLY or (float(gain) == ONCE and _first(mark)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode({**members, "gain": gain.encode()}, out, view, rng)


def _first(mark: str) -> bool:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def judge(*, size: int, classes: int) -> nn.Module:
    """The same network each time, for --reference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return net(size=size, classes=classes)


def shard(path: Path, samples: int, gain: float = 1.0) -> str:
    """A shard of `samples`; the one in the middle has that gain."""
    rng, members = np.random.default_rng(len(path.name) + samples), []
    for number in range(samples):
        vector = io.BytesIO()
        np.save(vector, rng.normal(size=8).astype(np.float32))
        loud = f"{gain} {path}.ended" if number == samples // 2 and gain == ONCE else str(gain)
        loud = loud if number == samples // 2 else "1.0"
        members += [(f"{number:04}.npy", vector.getvalue()), (f"{number:04}.gain", loud.encode()),
                    (f"{number:04}.cls", str(number % 3).encode())]  # fmt: skip
    return str(write_tar(path, members))


class Slow(nn.Module):
    """Takes its time over every chunk, so that something can happen meanwhile."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        logits: torch.Tensor = self.network(x)
        return logits


def slow_judge(*, size: int, classes: int) -> nn.Module:
    """As `judge`, for --reference."""
    return Slow(judge(size=size, classes=classes))
