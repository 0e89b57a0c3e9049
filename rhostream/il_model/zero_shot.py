"""A classifier made of a model of image and text: the classes are texts, and the nearest one is the class.

    names x templates > unit vectors of the text tower > their mean a class, of unit length > a * cosine: logits

The text vectors are made once. il is the cross-entropy of the softmax over the classes, for SigLIP's models too: each
picture has exactly one class, the loss of what is trained is the softmax's, and il is taken from that. SigLIP's bias is
the same for every class, so that it falls out of the softmax. `a` is the model's own, and nothing is fitted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rhostream.compute.zero_shot import PLACE, ZeroShot, mean_vectors
from rhostream.errors import UsageError
from rhostream.inert import escape
from rhostream.models.towers import Towers
from rhostream.samples.tokenizers import find_tokenizer

LOG = logging.getLogger("rhostream")


def names_in_order(names: Mapping[int, str], classes: int | None, reference: str) -> list[str]:
    """The names of the classes 0 to C - 1. Raises UsageError where one is missing or there are other than `classes`."""
    if not names:
        raise UsageError(
            f"reference {reference!r} compares pictures with the names of classes: give these with --class-names FILE "
            "(a name a line from label 0 on, a classes.json or a folder that holds it), or with commas between them"
        )
    count = max(names) + 1
    if classes not in (None, count):
        raise UsageError(f"--class-names names {count:,} classes, and there are {classes:,}: name each of them")
    if unnamed := [label for label in range(count) if not names.get(label, "").strip()]:
        raise UsageError(
            f"--class-names gives label {unnamed[0]} no name ({len(unnamed):,} of {count:,} have none): reference "
            f"{reference!r} has nothing to compare its pictures with"
        )
    return [names[label].strip() for label in range(count)]


@torch.no_grad()
def zero_shot(towers: Towers, names: Sequence[str], templates: Sequence[str], device: torch.device) -> ZeroShot:
    """The classifier of these names, on the device. Raises UsageError for a tokenizer that isn't the towers'."""
    model = towers.model.to(device).eval()
    tokens = _tokens(towers, [template.replace(PLACE, name) for name in names for template in templates])
    return ZeroShot(model, mean_vectors(model, tokens.to(device), len(names))).eval()


def _tokens(towers: Towers, texts: Sequence[str]) -> Tensor:
    """(texts, L) int64; what is longer than the towers read is cut as their tokenizer cuts it, and told once."""
    tokenizer, length = find_tokenizer(towers.tokenizer, fetch=True), towers.text_length
    towers.require_fitting(
        image_size=towers.image_size, channels=towers.channels, vocabulary=tokenizer.vocabulary, length=length
    )
    assert tokenizer.encode is not None
    rows, long = torch.full((len(texts), length), tokenizer.padding), list[str]()
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text, length)
        if not ids:
            raise UsageError(f"tokenizer {towers.tokenizer} makes no token of '{escape(text[:60])}'")
        if len(tokenizer.encode(text, length + 1)) > length:
            long.append(text)
        row[: len(ids)] = torch.tensor(ids)
    if long:
        LOG.warning(
            "%d of %d texts of --prompts and --class-names are longer than the %d tokens that %s reads, and are cut as "
            "its tokenizer cuts them, first '%s'",
            len(long), len(texts), length, towers.name, escape(long[0][:60]),
        )  # fmt: skip
    return rows
