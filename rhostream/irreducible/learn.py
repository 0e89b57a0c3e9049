"""Training one IL network on samples in memory; the checkpoint is the one with the lowest loss on D, never on test.

Not the one with the highest accuracy: the irreducible loss is used as a number of nats, so calibration counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhostream.candidates import Prepare
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.selection.tokens import LanguageLoss, SequenceMean
from rhostream.signals import stop_if_asked

CHECKS_PER_EPOCH = 2
EVAL_CHUNK = 512
AUGMENT = ("none", "shift", "shift-flip")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: AdamW as in the paper, no schedule, batches of random samples."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: str
    seed: int


@dataclass(frozen=True)
class Learned:
    """The best state of one network and how it came about."""

    state: dict[str, Tensor]
    val_loss: float
    val_accuracy: float
    best_epoch: float
    curve: list[dict[str, float]]
    steps: int
    samples: int  # through forward and backward
    seconds: float


def augmented(image: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) float32 moved by up to a sixteenth of the side (edges repeated), and mirrored with `shift-flip`."""
    if how == "none":
        return image
    reach = max(1, image.shape[-1] // 16)
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    batch, _, height, width = image.shape
    top, left = torch.randint(0, 2 * reach + 1, (2, batch, 1, 1), generator=generator)
    rows = (top + torch.arange(height).view(1, height, 1)).to(image.device)
    columns = (left + torch.arange(width).view(1, 1, width)).to(image.device)
    sample = torch.arange(batch, device=image.device).view(batch, 1, 1)
    moved = padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)
    if how == "shift-flip":
        flip = (torch.rand(batch, generator=generator) < 0.5).to(image.device).view(batch, 1, 1, 1)
        moved = torch.where(flip, moved.flip(-1), moved)
    return moved


def learn(network: nn.Module, image: Tensor, label: Tensor, train: Tensor, check: Tensor, *, check_image: Tensor,
          check_label: Tensor, recipe: Recipe, normalize: Prepare, device: torch.device) -> Learned:
    """Train on rows `train` of image (N, H, W, C) uint8 (or (N, T) ids); keep the state of lowest mean loss on rows
    `check` of `check_image`.

    Raises NonFiniteError when no check had a finite loss.
    """
    started = time.monotonic()
    network.to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batches = -(-len(train) // recipe.batch_size)
    check_at = {-(-batches * i // CHECKS_PER_EPOCH) for i in range(1, CHECKS_PER_EPOCH + 1)}
    curve: list[dict[str, float]] = []
    best: dict[str, Any] = {"val_loss": float("inf")}
    state: dict[str, Tensor] = {}
    steps = samples = 0
    for epoch in range(recipe.epochs):
        order = train[torch.randperm(len(train), generator=generator)]
        running = torch.zeros((), device=device)
        for number, rows in enumerate(torch.split(order, recipe.batch_size), 1):
            stop_if_asked()
            if len(rows) > 1 or batches == 1:  # batch norm can't learn from one sample
                network.train()
                x = augmented(normalize(image[rows].to(device)), recipe.augment, generator)
                loss = _mean_loss(network, network(x), label[rows].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                running += loss.detach()
                steps, samples = steps + 1, samples + len(rows)
                crash_point("fit-il: step taken")
            if number in check_at:
                val_loss, accuracy = evaluate(network, check_image, check_label, check, normalize, device)
                at = {"epoch": round(epoch + number / batches, 3), "train_loss": float(running) / number,
                      "val_loss": val_loss, "val_accuracy": accuracy}
                curve.append(at)
                if val_loss < best["val_loss"]:
                    best, state = at, {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
    if not state:
        raise NonFiniteError(f"the IL model's loss was never finite in {recipe.epochs} epochs; lower --lr")
    return Learned(state, best["val_loss"], best["val_accuracy"], best["epoch"], curve, steps, samples,
                   time.monotonic() - started)


def _mean_loss(network: nn.Module, output: Tensor, label: Tensor) -> Tensor:
    """Of what the network gives for a batch."""
    return SequenceMean()(output, label).mean() if isinstance(network, LanguageLoss) else F.cross_entropy(output, label)


@torch.inference_mode()
def evaluate(network: nn.Module, image: Tensor, label: Tensor, rows: Tensor, normalize: Prepare,
             device: torch.device) -> tuple[float, float]:
    """(mean loss in nats, accuracy) on rows of image (N, H, W, C) uint8, in eval mode; of language that of tokens."""
    network.eval()
    loss = correct = 0.0
    for some in torch.split(rows, EVAL_CHUNK):
        stop_if_asked()
        x, target = normalize(image[some].to(device)), label[some].to(device)
        if isinstance(network, LanguageLoss):
            of_tokens, right = network.judge(x)
            loss += float(SequenceMean()(of_tokens, target).sum())
            correct += float((right.sum(1) / (x != network.padding).sum(1)).sum())
            continue
        logits = network(x).float()
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        correct += float((logits.argmax(1) == target).sum())
    return loss / len(rows), correct / len(rows)
