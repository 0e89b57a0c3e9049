"""The libraries that models have their names from: which of them are there, and what each would need."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

# What is imported, the distribution that brings it, what it can't do without, and how it is had.
LIBRARIES = {
    "torchvision:NAME": ("torchvision", "torchvision", (), "the torchvision that fits torch"),
    "timm:NAME": ("timm", "timm", ("torchvision",), "timm, beside the torchvision that fits torch"),
    "hf:NAME": ("transformers", "transformers", (), "'rhostream[hf]'"),
    "open_clip:NAME": (
        "open_clip", "open_clip_torch", ("torchvision", "timm"),
        "open_clip_torch, beside the torchvision that fits torch",
    ),
}  # fmt: skip


def needs(module: str, package: str, needed: tuple[str, ...], how: str) -> str:
    """The version of a library, or the pip line that brings it; it isn't imported, which would take seconds."""
    fitting = how.replace("fits torch", f"fits torch {torch.__version__.partition('+')[0]}")
    if not importlib.util.find_spec(module):
        return f"pip install {fitting}"
    lacking = [other for other in needed if not importlib.util.find_spec(other)]
    without = f", which doesn't load without {' and '.join(lacking)}: pip install {fitting}" if lacking else ""
    try:
        return f"{package} {importlib.metadata.version(package)}{without}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}{without}"
