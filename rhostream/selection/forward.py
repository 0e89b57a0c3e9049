"""The scoring forward: a model's logits with its weights as they are, and the model left exactly as it was found.

No gradients, dropout off, modes and random state restored, running statistics of batch norm unchanged while the
statistics of the rows at hand are used (paper, App. B).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError
from rhostream.selection.ranks import in_lockstep, is_sharded

BATCH_NORMS = ("buffer", "eval")


@contextlib.contextmanager
def scoring(model: nn.Module, batch_norm: str = "buffer") -> Iterator[None]:
    """How a forward scores: inference mode, eval mode, batch norm by `buffer` or by running (`eval`) statistics.

    On exit modes, buffers and the random state are what they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [m for m, _ in modes if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    devices = []
    if torch.cuda.is_initialized():
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    for module, mode in modes:
        if mode:
            module.training = False
    if batch_norm == "buffer":
        for norm in norms:
            # In train mode without tracked statistics torch normalises by the batch and updates nothing.
            norm.training, norm.track_running_stats = True, False
    # The weights that FSDP gathers for this forward may be those of the next one, which is to be differentiated.
    without_gradients = torch.no_grad() if is_sharded(model) else torch.inference_mode()
    try:
        with without_gradients, torch.random.fork_rng(devices=devices):
            yield
    finally:
        # Inside a caller's own autocast the low-precision copies of the weights made here know no gradient; left in
        # its cache they would be what the training forward multiplies by.
        torch.clear_autocast_cache()
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


class Forward:
    """Logits of a model for scoring: (n, ...) inputs to (n, C) float32.

    `chunk` splits the inputs (memory); a model with batch norm is scored in one piece unless a chunk is given, since
    its statistics are those of one forward. When the device is out of memory the chunk is halved, with one warning.
    `autocast` is the dtype of the arithmetic, None for the weights' own. `compile`: through torch.compile.
    """

    def __init__(self, model: nn.Module, *, chunk: int | None = None, batch_norm: str = "buffer",
                 autocast: torch.dtype | None = None, compile: bool = False) -> None:
        if batch_norm not in BATCH_NORMS:
            raise UsageError(f"batch_norm {batch_norm!r}: expected 'buffer' or 'eval'")
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunk {chunk}: expected at least 1")
        self.model, self.chunk, self.batch_norm, self.autocast = model, chunk, batch_norm, autocast
        self._run: nn.Module = torch.compile(model) if compile else model  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """Score `x`; raises what the model raises."""
        while True:
            try:
                return self._logits(x)
            except torch.OutOfMemoryError:
                size = min(self.chunk or len(x), len(x))
                if size <= 1 or in_lockstep(self.model):  # other ranks would wait for the forwards that are fewer
                    raise
                self.chunk = size // 2
                warnings.warn(f"the device is out of memory for {size} samples at once: scoring {self.chunk} at a time "
                              f"from here on{self._what_changes()}", stacklevel=2)

    def _what_changes(self) -> str:
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        if self.batch_norm == "eval" or not norms:
            return ", which changes scores by rounding alone"
        return ("; this model has batch norm, which takes its statistics from each chunk now, so other samples may be "
                "kept than with the whole buffer at once (--batch-norm eval scores alike in any chunk)")

    def _logits(self, x: Tensor) -> Tensor:
        context = torch.autocast(x.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with scoring(self.model, self.batch_norm), context:
            if self.chunk is None or len(x) <= self.chunk:
                return self._run(x).float()  # type: ignore[no-any-return]
            return torch.cat([self._run(part).float() for part in x.split(self.chunk)])
