"""What open_clip's own training does with its data, in its order: for tests without the package."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rhostream.selection.contrastive import batch_loss_n

ARGUMENTS: dict[str, Any] = {
    "model": "ViT-B-32", "batch_size": 8, "accum_freq": 1, "epochs": 2, "seed": 0, "workers": 0, "siglip": False,
    "precision": "fp32", "train_data": None, "train_num_samples": None, "resume": None, "lr": 1e-2, "name": "tiny",
}  # fmt: skip


def arguments(**given: Any) -> Namespace:
    """open_clip's options, as far as they are read."""
    return Namespace(**{**ARGUMENTS, **given})


def made(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with open_clip's face, and its optimizer."""
    from tests.support.libraries import open_clip

    model = open_clip().create_model("ViT-B-32", pretrained=None, precision="fp32", pretrained_hf=False)
    return model, torch.optim.AdamW(model.parameters(), lr=ARGUMENTS["lr"])


def packed(model: Any, images: Tensor, texts: Tensor) -> Tensor:
    """(n, 2 D + 2), differentiable."""
    towers = [nn.functional.normalize(v, dim=1) for v in (model.encode_image(images), model.encode_text(texts))]
    scale = model.logit_scale.exp().expand(len(images), 1)
    return torch.cat([*towers, scale, torch.zeros_like(scale)], 1)


def train_one_epoch(
    model: Any, data: Any, epoch: int, optimizer: torch.optim.Optimizer, *, accum_freq: int = 1, scaler: Any = None,
    after: int | None = None,
) -> list[int]:  # fmt: skip
    """`open_clip_train.train.train_one_epoch` as far as data, model and optimizer go; pairs of each batch.

    `after` so many batches it is left, as by a crash.
    """
    model.train()
    data.set_epoch(epoch)
    loader, images_a, texts_a, sizes = data.dataloader, list[Tensor](), list[Tensor](), list[int]()
    assert loader.num_batches // accum_freq and math.log(loader.num_samples + 1, 10)
    for i, (images, texts) in enumerate(loader):
        sizes.append(len(images))
        optimizer.zero_grad()
        images_a.append(images)
        texts_a.append(texts)
        if (i + 1) % accum_freq:
            continue
        loss = batch_loss_n(packed(model, torch.cat(images_a), torch.cat(texts_a)), "clip").mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        images_a, texts_a = [], []
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if i + 1 == after:
            break
    return sizes


def save(path: Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A checkpoint as its main.py writes them."""
    state = {"epoch": epoch, "name": "tiny", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path)


def resumed(path: Path) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """Model and optimizer of a checkpoint, and the epoch to go on with."""
    model, optimizer = made()
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer, int(checkpoint["epoch"])
