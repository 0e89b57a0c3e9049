"""The scoring forward: a model's logits with its weights as they are, and the model left exactly as it was found.

No gradients, dropout off, modes and random state restored, running statistics of batch norm unchanged while the
statistics of the rows at hand are used (paper, App. B).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError
from rhostream.samples.fields import Input
from rhostream.selection.outputs import called
from rhostream.selection.ranks import in_lockstep

T = TypeVar("T")
BATCH_NORMS = ("buffer", "eval")
# What draws in train mode, beside layers of nn.Dropout's kind; of others' own layers torch knows nothing.
_DROPPING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase)


@contextlib.contextmanager
def scoring(model: nn.Module, batch_norm: str = "buffer", dropout: bool = False) -> Iterator[None]:
    """How a forward scores: no gradients, eval mode, batch norm by `buffer` or by running (`eval`) statistics.

    `dropout`: that one stays on. On exit modes, buffers and the random state are what they were.
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
    if dropout:
        for module in droppings(model):
            module.training = True
    try:
        # Not inference mode: what a forward makes and keeps (rotary tables, masks, the weights that FSDP gathers) would
        # be inference tensors, which the next forward can't be differentiated through.
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
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


def droppings(model: nn.Module) -> list[nn.Module]:
    """The layers of the model that drop units in train mode."""
    return [m for m in model.modules() if (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0)
            or (isinstance(m, _DROPPING) and _rate(m) > 0)]  # fmt: skip


def _rate(module: nn.Module) -> float:
    dropout = getattr(module, "dropout", 0.0)
    return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)


def require_dropout(model: nn.Module, rule: str) -> None:
    """Raise UsageError for a model of which every MC-dropout draw would be the same."""
    if not droppings(model):
        raise UsageError(
            f"the rule {rule} compares forwards with dropout on, and {type(model).__name__} has no "
            "dropout (nn.Dropout with p > 0): give the model some, or take another rule"
        )


class Room:
    """How many samples a device has memory for at once: None for all, and half as many each time that it has not."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, n: int, work: Callable[[], T], tell: Callable[[int, int], None]) -> T:
        """`work` on n samples, which it splits by `size`; again with half of it where the device is out of memory.

        `tell` is called with the number that was too many and the next. Raises OutOfMemoryError where one is too many.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                too_many = min(self.size or n, n)
                if too_many <= 1:
                    raise
                self.size = too_many // 2
                tell(too_many, self.size)


class Forward:
    """Logits of a model for scoring: (n, ...) inputs to (n, C) float32.

    `chunk` splits the inputs (memory); a model with batch norm is scored in one piece unless a chunk is given, since
    its statistics are those of one forward. When the device is out of memory the chunk is halved, with one warning.
    `autocast` is the dtype of the arithmetic, None for the weights' own. `compile`: through torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        chunk: int | None = None,
        batch_norm: str = "buffer",
        autocast: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        if batch_norm not in BATCH_NORMS:
            raise UsageError(f"batch_norm {batch_norm!r}: expected 'buffer' or 'eval'")
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunk {chunk}: expected at least 1")
        self.model, self.batch_norm, self.autocast = model, batch_norm, autocast
        self._room = Room(chunk)
        self._run: nn.Module = torch.compile(model) if compile else model  # type: ignore[assignment]

    @property
    def chunk(self) -> int | None:
        """Samples in a forward; None for all at once."""
        return self._room.size

    def __call__(self, x: Input) -> Tensor:
        """Score `x`. Raises UsageError for an output that holds no logits, and what the model raises."""
        return self._in_memory(x, lambda: self._logits(x))

    def draws(self, x: Input, count: int, seed: int) -> Tensor:
        """Logits of `count` forwards with dropout on, a function of the seed: (count, n, C) float32."""
        return self._in_memory(x, lambda: self._drawn(x, count, seed))

    def _in_memory(self, x: Input, make: Callable[[], Tensor]) -> Tensor:
        if in_lockstep(self.model):  # other ranks would wait for the forwards that are fewer
            return make()
        return self._room.run(len(x), make, self._tell)

    def _tell(self, too_many: int, size: int) -> None:
        warnings.warn(
            f"the device is out of memory for {too_many} samples at once: scoring {size} at a time "
            f"from here on{self._what_changes()}",
            stacklevel=4,
        )

    def _what_changes(self) -> str:
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        if self.batch_norm == "eval" or not norms:
            return ", which changes scores by rounding alone"
        return (
            "; this model has batch norm, which takes its statistics from each chunk now, so other samples may be "
            "kept than with the whole buffer at once (--batch-norm eval scores alike in any chunk)"
        )

    def _logits(self, x: Input) -> Tensor:
        with scoring(self.model, self.batch_norm), self._precision(x):
            return self._run_in_chunks(x)

    def _drawn(self, x: Input, count: int, seed: int) -> Tensor:
        with scoring(self.model, self.batch_norm, dropout=True), self._precision(x):
            torch.default_generator.manual_seed(seed)
            if x.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            return torch.stack([self._run_in_chunks(x) for _ in range(count)])

    def _precision(self, x: Input) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(x.device.type, self.autocast) if self.autocast else contextlib.nullcontext()

    def _run_in_chunks(self, x: Input) -> Tensor:
        if self.chunk is None or len(x) <= self.chunk:
            return called(self.model, x, self._run).float()
        return torch.cat([called(self.model, part, self._run).float() for part in x.split(self.chunk)])
