"""Classes as texts: the templates that their names stand in, the vectors that a text tower gives for them, and the
classifier that these make of a model of image and text."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.inert import escape
from rhostream.storage import redact

PROMPTS = ("a photo of a {}.",)
PLACE = "{}"  # of the name, in a template
MAX_PROMPTS, MAX_PROMPT = 1024, 1024  # templates, and characters of one
AT_ONCE = 256  # texts


def read_prompts(place: str | os.PathLike[str]) -> tuple[str, ...]:
    """The templates in a file, one a line, each with {} where the name stands; empty lines are left out.

    Raises UsageError naming the line of one that can't be, StorageError.
    """
    where, templates = redact(os.fspath(place)), list[str]()
    try:
        lines = storage.read_bytes(storage.resolve(place)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise UsageError(f"--prompts {where} isn't UTF-8 ({exc})") from exc
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        if PLACE not in text or len(text) > MAX_PROMPT:
            raise UsageError(
                f"--prompts {where}, line {number}: '{escape(text[:60])}' has no {PLACE}, where the name of a class "
                f"stands, or more than {MAX_PROMPT:,} characters"
            )
        if text in templates:
            raise UsageError(f"--prompts {where}, line {number}: '{escape(text[:60])}' stands there twice")
        templates.append(text)
    if not 0 < len(templates) <= MAX_PROMPTS:
        raise UsageError(f"--prompts {where} has {len(templates):,} templates, expected 1 to {MAX_PROMPTS:,}")
    return tuple(templates)


@torch.no_grad()
def mean_vectors(model: nn.Module, tokens: Tensor, classes: int) -> Tensor:
    """(C, D) of unit length: of each class the mean of the unit vectors of its texts, of which `tokens` (C x k, L) on
    the model's device holds k a class, one class after another."""
    vectors = torch.cat(
        [functional.normalize(model.encode_text(some).float(), dim=1) for some in tokens.split(AT_ONCE)]  # type: ignore[operator]
    )
    return functional.normalize(vectors.view(classes, -1, vectors.shape[1]).mean(1), dim=1)


class ZeroShot(nn.Module):
    """Pictures to logits of classes that are texts."""

    text_CD: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, text_CD: Tensor) -> None:
        """`text_CD`: a vector of unit length for each class."""
        super().__init__()
        self.model = model
        self.register_buffer("text_CD", text_CD, persistent=False)
        self.register_buffer("scale", model.logit_scale.detach().float().exp(), persistent=False)  # type: ignore[operator]

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, H, W) float32 to (n, C) float32."""
        image = functional.normalize(self.model.encode_image(pixels).float(), dim=1)  # type: ignore[operator]
        return self.scale * image @ self.text_CD.T
