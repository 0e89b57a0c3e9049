"""Copying buffers to a GPU while the buffer before them is worked on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rhostream.candidates import Candidates

LOG = logging.getLogger("rhostream")


def ahead(buffers: Iterator[Candidates], copier: Copier) -> Iterator[Candidates]:
    """The same buffers on the device, each copied while the one before it is worked on."""
    moving = None
    for candidates in buffers:
        start = copier.start(candidates)
        if moving is not None:
            yield copier.finish(moving)
        moving = start
    if moving is not None:
        yield copier.finish(moving)


class Copier(Protocol):
    """Copies a buffer in two halves: `start` returns at once, `finish` makes sure that later work sees the copy."""

    def start(self, candidates: Candidates) -> Candidates: ...

    def finish(self, candidates: Candidates) -> Candidates: ...


class GPUCopier:
    """Copies to a GPU, on a CUDA stream of its own."""

    def __init__(self, device: torch.device, slots: Mapping[str, Tensor]) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        # Shared memory can't be asked for pinned; it is pinned where it lies, or copies would wait.
        pinned = [torch.cuda.cudart().cudaHostRegister(a.data_ptr(), a.nbytes, 0) for a in slots.values()]
        if any(map(int, pinned)):
            LOG.warning("the loader's slots can't be pinned: copies to %s are slower", device)

    def start(self, candidates: Candidates) -> Candidates:
        with torch.cuda.stream(self._stream):
            return replace(candidates, label=candidates.label.pin_memory(), il=candidates.il.pin_memory(),
                           on_host=candidates).to(self._device)  # fmt: skip

    def finish(self, candidates: Candidates) -> Candidates:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        several = [fields for fields in (candidates.fields, candidates.columns) if fields is not None]
        arrays = [array for fields in several for _, array in fields.items()]
        reference = [] if candidates.reference is None else [candidates.reference]
        for tensor in (*arrays, *reference, candidates.label, candidates.il):
            tensor.record_stream(current)
        return candidates
