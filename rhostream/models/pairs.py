"""Models of pairs of image and caption: two towers, whose vectors are alike where the two belong together.

A model has `encode_image` (n, C, H, W) and `encode_text` (n, L), each to (n, D), and `logit_scale` and perhaps
`logit_bias`, as open_clip's have. `TwoTowers` around it gives what the rest works with, one row a pair:

    image vector (D) | text vector (D) | a = exp(logit_scale) | b        unit vectors, float32; a and b in every row

so chunks, ranks and precisions treat it as any output. The losses of it are in `selection/contrastive.py`.

pair-small   four convolutions beside two over tokens, vectors of 64: for two cores
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream.errors import UsageError
from rhostream.samples.fields import Fields

WANTED = ("encode_image", "encode_text", "logit_scale")


class TwoTowers(nn.Module):
    """A model of pairs as a function from both inputs to rows of vectors. Raises UsageError for what is none.

    `dtype`: what its images have to be, where that isn't float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._dtype = dtype
        if lacking := [name for name in WANTED if not hasattr(model, name)]:
            raise UsageError(
                f"the model {type(model).__name__} has no {lacking[0]}: a model of pairs has encode_image(pixels) and "
                "encode_text(tokens), (n, D) each, and logit_scale, as open_clip's have"
            )
        self.model = model

    def forward(self, x: Fields) -> Tensor:
        """`pixels` (n, C, H, W) float32 and `tokens` (n, L) int64 to (n, 2 D + 2) float32.

        Raises UsageError for towers whose vectors differ in size.
        """
        pixels = x["pixels"].to(dtype=self._dtype)
        image, text = self.model.encode_image(pixels), self.model.encode_text(x["tokens"])  # type: ignore[operator]
        if image.ndim != 2 or image.shape != text.shape:
            raise UsageError(
                f"the towers of {type(self.model).__name__} give images {tuple(image.shape)} and texts "
                f"{tuple(text.shape)}, expected (n, D) of one D"
            )
        image, text = (functional.normalize(vectors.float(), dim=1) for vectors in (image, text))
        a: Any = self.model.logit_scale.float().exp()  # type: ignore[operator]
        b: Any = getattr(self.model, "logit_bias", None)
        b = torch.zeros_like(a) if b is None else b.float()
        return torch.cat([image, text, a.reshape(1, 1).expand(len(x), 1), b.reshape(1, 1).expand(len(x), 1)], 1)


class PairSmall(nn.Module):
    """Two small towers: four convolutions over the picture, two over the tokens of which the mean counts.

    logit_scale and logit_bias begin as SigLIP's (10 and -10): a score is then mostly the own pair's.
    """

    def __init__(
        self, *, image_size: int, channels: int, vocabulary: int, length: int, padding: int, width: int = 64
    ) -> None:
        super().__init__()
        layers, found = list[nn.Module](), channels
        for filters in (32, 64, 96, 128):
            layers += [nn.Conv2d(found, filters, 3, 2, 1, bias=False), nn.GroupNorm(8, filters), nn.Tanh()]
            found = filters
        side = -(-image_size // 16)
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * side * side, width))
        self.padding = padding
        self.embedding = nn.Embedding(vocabulary, 96, padding_idx=padding)
        self.near = nn.ModuleList([nn.Conv1d(96, 96, 5, padding=2), nn.Conv1d(96, 96, 5, padding=2)])
        self.text = nn.Linear(96, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) to (n, D)."""
        return self.image(pixels)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 to (n, D); positions of padding count for nothing."""
        there = (tokens != self.padding).unsqueeze(1).float()
        x = self.embedding(tokens).transpose(1, 2)
        for layer in self.near:
            x = (x + functional.tanh(layer(x))) * there
        return self.text(x.sum(2) / there.sum(2).clamp(min=1))  # type: ignore[no-any-return]


PAIR_MODELS = {"pair-small": PairSmall}


def is_pairs(model: nn.Module) -> bool:
    """Whether the model gives vectors of pairs; looks through wrappers that keep it as `module`."""
    return isinstance(getattr(model, "module", model), TwoTowers)
