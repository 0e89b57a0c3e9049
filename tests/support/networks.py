"""What any network by name must do, and its counts, on the meta device: without memory or weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rhostream.models import build, load_weights
from rhostream.runs.macs import macs_per_sample

# (side, channels) of images that any network takes: those of every test run, and more
SHAPES = ((28, 1), (32, 3))
MORE_SHAPES = ((28, 3), (32, 1), (18, 3), (45, 3), (64, 1))


def on_paper(name: str, image_size: int = 32, channels: int = 3, classes: int = 10) -> nn.Module:
    """The model without memory or weights: shapes and counts alone."""
    with torch.device("meta"):
        return build(name, image_size=image_size, channels=channels, classes=classes)


def check_logits(name: str, shapes: Iterable[tuple[int, int]]) -> None:
    """The logits of 3 images of each (side, channels) have one column a class."""
    for size, channels in shapes:
        model = on_paper(name, size, channels, 7)
        assert model(torch.empty(3, channels, size, size, device="meta")).shape == (3, 7)


@cache
def parameters(name: str) -> int:
    return sum(p.numel() for p in on_paper(name).parameters())


@cache
def macs(name: str) -> int:
    return macs_per_sample(on_paper(name), torch.empty(1, 3, 32, 32, device="meta"))


def pictures(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def counted_by_layers(name: str) -> int:
    """Multiply-adds of a forward at 3x32x32, counted from the convolutions' and linear layers' shapes."""
    counted, model = 0, on_paper(name)

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            counted += weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    return counted


def check_target(name: str, folder: Path, *, drops: bool) -> None:
    """Every parameter of the network learns; in eval mode it is a function of each sample alone, whatever the layout.

    `drops`: whether two forwards in training mode differ.
    """
    torch.manual_seed(0)
    model = build(name, image_size=18, channels=3, classes=5)
    torch.manual_seed(0)
    other = build(name, image_size=18, channels=3, classes=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    x = pictures(4, 18)

    model.train()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
              or not p.grad.any()]  # fmt: skip
    assert silent == []
    with torch.no_grad():
        assert torch.equal(model(x), model(x)) is not drops

        model.eval()
        logits = model(x)
        assert torch.equal(logits, model(x))
        assert torch.allclose(logits[2:3], model(x[2:3]), rtol=1e-3, atol=1e-4)
        assert logits.std(0).max() > 0

        save_file(model.state_dict(), folder / "weights.safetensors")
        load_weights(other, str(folder / "weights.safetensors"))
        assert torch.equal(other.eval()(x), logits)

        last = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert torch.allclose(last(x.to(memory_format=torch.channels_last)), logits, rtol=1e-3, atol=1e-4)
