"""The scoring forward as the forward of the gradient, where it would be the same: the time that it saves.

    today   no_grad forward of n_B > choice > forward and backward of n_b
    whole   forward of n_B with its graph > choice > backward from the kept losses, through all n_B rows
    cut     forward of n_B that keeps what the backward needs > choice > the kept rows of that > backward of n_b

Exact without batch norm, dropout and augmentation alone. The cut goes by the two graphs that AOTAutograd makes of a
model with a symbolic batch: between them what was saved is cut to the kept rows. Nothing of the library does this
(docs/decisions/082). Times are CPU seconds of one thread, in turns.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from functorch.compile import aot_function, default_partition
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Figure, interleave, ratios
from rhostream.models import build
from rhostream.selection.hardware import threads

SHARES = (0.10, 0.33, 0.50, 0.67)
BUFFER, CLASSES = 320, 10


class Block(nn.Module):
    """A pre-norm transformer block without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.before(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Two blocks of 64 over 16 tokens, and the mean of them."""

    def __init__(self, ids: int = 2000, width: int = 64, tokens: int = 16) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(ids, width), nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks, self.head = nn.Sequential(Block(width, 4), Block(width, 4)), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) ids to (B, classes)."""
        return self.head(self.blocks(self.embedding(x) + self.place).mean(1))  # type: ignore[no-any-return]


def world(name: str, rows: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, inputs and labels of so many rows."""
    torch.manual_seed(0)
    label = torch.randint(0, CLASSES, (rows,))
    if name == "transformer":
        return Transformer(), torch.randint(0, 2000, (rows, 16)), label
    side, channels = (28, 1) if name == "mlp-512" else (32, 3)
    model = build(name, image_size=side, channels=channels, classes=CLASSES)
    return model, torch.randn(rows, channels, side, side), label


class Cut:
    """A model's forward and backward as two graphs, whose saved tensors can be cut to some of the rows."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, names = model, [name for name, _ in model.named_parameters()]
        self.parameters, self._graphs = list(model.parameters()), {}
        self._weights = {p.data_ptr() for p in self.parameters}

        def call(*given: Tensor) -> Any:
            return torch.func.functional_call(model, dict(zip(names, given[:-1], strict=True)), (given[-1],))

        def keep(which: str) -> Callable[[Any, Any], Any]:
            return lambda graph, _: self._graphs.setdefault(which, graph)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = aot_function(call, keep("forward"), keep("backward"), partition_fn=default_partition, dynamic=True)
            traced(*self.parameters, x).sum().backward()
        model.zero_grad(set_to_none=True)

    def step(self, x: Tensor, label: Tensor, kept: Tensor) -> None:
        """Score all of x, and leave the gradient of the kept rows' mean loss in the parameters."""
        with torch.no_grad():
            logits, *saved = self._graphs["forward"](*self.parameters, x)
        F.cross_entropy(logits, label, reduction="none")
        chosen = logits[kept].requires_grad_()
        (tangent,) = torch.autograd.grad(F.cross_entropy(chosen, label[kept]), chosen)
        cut = [self._cut(one, kept, len(x)) for one in saved]
        cut.sort(key=lambda one: isinstance(one, Tensor))  # sizes come first, as the backward takes them
        with torch.no_grad():
            gradients = self._graphs["backward"](*cut, tangent)
        for parameter, gradient in zip(self.parameters, gradients, strict=False):
            parameter.grad = gradient

    def _cut(self, saved: Any, kept: Tensor, rows: int) -> Any:
        """The kept rows of what was saved, as far as its sizes say which they are: a guess that the test holds."""
        if isinstance(saved, int):
            return saved // rows * len(kept) if saved % rows == 0 else saved
        if saved.data_ptr() in self._weights or not saved.ndim:
            return saved
        if saved.shape[0] % rows == 0:
            return saved.reshape(rows, -1, *saved.shape[1:]).index_select(0, kept).flatten(0, 1)
        if saved.ndim > 1 and saved.shape[1] % rows == 0:
            return self._cut(saved.t(), kept, rows).t()
        return saved


def today(model: nn.Module, x: Tensor, label: Tensor, kept: Tensor) -> None:
    """Score all without a graph; a second forward of the kept rows, and their backward."""
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        F.cross_entropy(model(x), label, reduction="none")
    F.cross_entropy(model(x[kept]), label[kept]).backward()


def whole(model: nn.Module, x: Tensor, label: Tensor, kept: Tensor) -> None:
    """Score all with a graph, and go back through all of it from the kept losses."""
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), label, reduction="none")[kept].mean().backward()


def run(pairs: int) -> list[Figure]:
    """CPU seconds over today's, by model and share kept."""
    figures: list[Figure] = []
    with threads(1):
        for name, rows in (("mlp-512", BUFFER), ("transformer", BUFFER), ("small-cnn-lenet", BUFFER // 4)):
            model, x, label = world(name, rows)
            cut = Cut(model, x)
            for share in SHARES:
                figures += _figures(f"{name}, {100 * share:g} % kept", cut, x, label, share, pairs)
    return figures


def _figures(case: str, cut: Cut, x: Tensor, label: Tensor, share: float, pairs: int) -> list[Figure]:
    model, n = cut.model, round(share * len(x))
    kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:n].sort().values
    sides: list[Callable[[], None]] = [
        lambda: today(model, x, label, kept),
        lambda: whole(model, x, label, kept),
        lambda: cut.step(x, label, kept),
    ]
    for side in sides:
        side()
    two, through, short = interleave([partial(_timed, side) for side in sides], pairs)
    return [
        Figure("reuse", case, "backward through the whole buffer, over today", ratios(through, two)),
        Figure("reuse", case, "cut to the kept rows, over today", ratios(short, two)),
        Figure("reuse", case, "the least that it could be, by arithmetic", (1 - n / (len(x) + 3 * n),)),
    ]


def _timed(side: Callable[[], None]) -> float:
    start = time.thread_time()
    side()
    return time.thread_time() - start
