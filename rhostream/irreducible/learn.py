"""Training one IL network on samples in memory; the checkpoint is the one with the lowest loss on samples of the same
kind that it doesn't learn from, never on test.

Not the one with the highest accuracy: the irreducible loss is used as a number of nats, so calibration counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhostream.compute.images import mirrored, shifted
from rhostream.compute.judge import judged
from rhostream.crashpoints import crash_point
from rhostream.errors import NonFiniteError
from rhostream.il_model.bounds import LOOKS_PER_EPOCH
from rhostream.irreducible import until_flat
from rhostream.irreducible.unfinished import Kept, Standing
from rhostream.progress import Progress
from rhostream.randomness import torch_seed
from rhostream.samples.fields import Fields, Input, Target, target_of
from rhostream.samples.kind import Kind
from rhostream.selection.gradient import finite_or_nan, gradients_of, step_if_finite
from rhostream.selection.losses import LossFunction, cross_entropy, per_sample
from rhostream.selection.outputs import called
from rhostream.selection.pairs import Contrastive
from rhostream.selection.tokens import SequenceMean, is_language
from rhostream.signals import stop_if_asked

NONFINITE_STEPS = 3  # in a row, none of which changes a weight
EVAL_CHUNK = 512
AUGMENT = ("none", "shift", "shift-flip")
BALANCE = ("none", "sample", "weight")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: AdamW as in the paper, batches of random samples. The rate falls linearly to 0 over the
    epochs; where the fit `stops` by itself it is constant, the weights are averaged, and there are so many at most.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: str
    seed: int
    balance: str = "none"  # sample: every class is drawn equally often; weight: its losses weigh as much together
    stops: bool = False  # when the loss on others no longer falls


@dataclass(frozen=True)
class Learned:
    """The best state of one network and how it came about."""

    state: dict[str, Tensor]
    val_loss: float
    val_accuracy: float | None
    best_epoch: float
    curve: list[dict[str, float | None]]
    steps: int
    samples: int  # through forward and backward
    checked: int  # through a forward alone, to look at the network
    seconds: float
    seconds_before: float = 0.0  # of `seconds`, those of earlier processes
    over: bool = False  # it stopped by itself


def augmented(image: Input, how: str, generator: torch.Generator) -> Input:
    """(B, C, H, W) float32 moved by up to a sixteenth of the side (edges repeated), and mirrored with `shift-flip`."""
    if how == "none" or not isinstance(image, Tensor):  # of several inputs none is asked for: `require_fitting`
        return image
    reach = max(1, image.shape[-1] // 16)
    image = shifted(image, reach, torch.randint(0, 2 * reach + 1, (2, len(image)), generator=generator))
    if how == "shift-flip":
        image = mirrored(image, torch.rand(len(image), generator=generator) < 0.5)
    return image


def drawn(train: Tensor, label: Tensor, balance: str, generator: torch.Generator) -> Tensor:
    """An epoch's rows in the order of their batches; balanced, each is of a class drawn evenly, with replacement."""
    if balance != "sample":
        return train[torch.randperm(len(train), generator=generator)]
    by_class = train[torch.sort(label[train], stable=True).indices]
    _, counts = torch.unique(label[train], return_counts=True)
    which = torch.randint(len(counts), (len(train),), generator=generator)
    place = (torch.rand(len(train), generator=generator, dtype=torch.float64) * counts[which]).long()
    return by_class[(counts.cumsum(0) - counts)[which] + place]


def class_weights(label: Tensor, classes: int) -> Tensor:
    """(classes,) float32: the mean weight of a sample is 1 and each class that occurs weighs as much; 0 for others."""
    counts = torch.bincount(label, minlength=classes).float()
    return torch.where(counts > 0, len(label) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


def learn(
    network: nn.Module,
    image: Fields,
    label: Tensor,
    train: Tensor,
    check: Tensor,
    *,
    check_image: Fields,
    check_label: Tensor,
    recipe: Recipe,
    kind: Kind,
    loss: LossFunction,
    device: torch.device,
    classes: int | None,
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train on rows `train` of image (N, ...); keep the state of lowest mean loss on rows `check` of `check_image` (of
    the mean over classes of their mean losses, where the fit is balanced).

    `kept`: where states after epochs are kept, and gone on from, with torch's generators as they then were. Raises
    NonFiniteError when no check had a finite loss, Interrupted.
    """
    started = time.monotonic()
    network.to(device)
    generator = torch.Generator().manual_seed(torch_seed("fit batches", recipe.seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    weight_C = None
    if recipe.balance == "weight" and classes is not None:
        weight_C = class_weights(label[train], classes).to(device)
    batches = -(-len(train) // recipe.batch_size)
    check_at = {-(-batches * i // LOOKS_PER_EPOCH) for i in range(1, LOOKS_PER_EPOCH + 1)}
    at = kept.restore(network, optimizer, generator) if kept else Standing()
    before = at.seconds
    if progress is not None:
        progress.resume(at.epochs * batches)
    at.average = {name: value.to(device) for name, value in at.average.items()}
    for epoch in () if at.over else range(at.epochs, recipe.epochs):
        order = drawn(train, label, recipe.balance, generator)
        running = torch.zeros((), device=device)
        for number, rows in enumerate(torch.split(order, recipe.batch_size), 1):
            says = kept.says if kept else ""
            stop_if_asked(says)
            # Batch norm can't learn from one sample.
            if len(rows) > 1 or batches == 1 or recipe.batch_size == 1:
                network.train()
                fields = image[rows].to(device)
                x = augmented(kind.inputs(fields), recipe.augment, generator)
                target = target_of(kind.target, fields, label[rows].to(device), x)
                mean = _mean_loss(network, called(network, x), target, loss, weight_C)
                if not recipe.stops:
                    for group in optimizer.param_groups:  # at a constant rate the last states differ by points
                        group["lr"] = recipe.lr * (1 - at.steps / (batches * recipe.epochs))
                optimizer.zero_grad(set_to_none=True)
                mean.backward()
                applied = finite_or_nan(gradients_of(network), mean.detach())
                step_if_finite(optimizer, applied)
                at.dead = 0 if bool(torch.isfinite(applied)) else at.dead + 1
                if at.dead >= NONFINITE_STEPS:
                    raise NonFiniteError(
                        f"the IL model's loss or its gradient is NaN or infinite in {at.dead} batches in "
                        f"a row (epoch {epoch + 1} of {recipe.epochs}); lower --lr"
                    )
                running += 0.0 if at.dead else mean.detach()
                at.steps, at.samples = at.steps + 1, at.samples + len(rows)
                if recipe.stops:
                    until_flat.averaged(at.average, network, at.steps)
                crash_point("fit-il: step taken")
            if progress is not None:  # the loss of a batch would have to be waited for
                others = at.curve[-1]["val_loss"] if at.curve else None
                progress.advance(epoch=epoch + 1, epochs=recipe.epochs, loss_on_others=others)
            if number in check_at:
                with until_flat.in_place(at.average, network):
                    checked = evaluate(network, check_image, check_label, check, kind, loss, device, says)
                    at.checked += len(check)
                    _check(at, checked, round(epoch + number / batches, 3), float(running) / number, recipe, network)
                if at.over:
                    break
        at.epochs, at.seconds = epoch + 1, before + time.monotonic() - started
        if kept:
            kept.save(at, network, optimizer, generator)
        if at.over:
            break
    if not at.state:
        raise NonFiniteError(f"the IL model's loss was never finite in {recipe.epochs} epochs; lower --lr")
    return Learned(
        at.state,
        at.best["val_loss"],
        at.best["val_accuracy"],
        at.best["epoch"],
        at.curve,
        at.steps,
        at.samples,
        at.checked,
        before + time.monotonic() - started,
        before,
        at.over,
    )


def _check(
    at: Standing, found: Checked, at_epoch: float, train_loss: float, recipe: Recipe, network: nn.Module
) -> None:
    """Enter a look at the network into its curve, keep its weights where they are the best so far, and say whether the
    fit is over."""
    point: dict[str, float | None] = {
        "epoch": at_epoch,
        "train_loss": train_loss,
        "val_loss": found.loss,
        "val_accuracy": found.accuracy,
    }
    point |= {} if recipe.balance == "none" else {"val_balanced_loss": found.balanced_loss}
    at.curve.append(point)
    name = "val_loss" if recipe.balance == "none" else "val_balanced_loss"
    choice = point[name]
    if choice < at.best["choice"]:
        at.best, at.state = {**point, "choice": choice}, _state(network)
    at.over = recipe.stops and until_flat.over([loss for look in at.curve if (loss := look[name]) is not None])


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


@dataclass(frozen=True)
class Checked:
    """Means over some samples."""

    loss: float  # nats
    accuracy: float | None  # None where the target is no class
    balanced_loss: float  # the mean over the classes that occur of their mean losses, nats
    loss_error: float = 0.0  # the standard error of the loss


def _mean_loss(
    network: nn.Module, output: Tensor, target: Target, loss: LossFunction, weight_C: Tensor | None
) -> Tensor:
    """Of what the network gives for a batch."""
    if is_language(network):
        return SequenceMean()(output, target).mean()
    if loss is cross_entropy:
        return F.cross_entropy(output, target, weight_C)
    loss_b = per_sample(loss, output, target)
    return loss_b.mean() if weight_C is None else (loss_b * weight_C[target]).sum() / weight_C[target].sum()


@torch.no_grad()  # not inference mode: what a forward keeps must serve the next step too
def evaluate(
    network: nn.Module,
    image: Fields,
    label: Tensor,
    rows: Tensor,
    kind: Kind,
    loss: LossFunction,
    device: torch.device,
    says: str = "",
) -> Checked:
    """Loss and accuracy on rows of image (N, ...), in eval mode; of language those of tokens. The balanced loss is the
    mean where there are no classes. `says`: what Interrupted says, where a signal asks to stop.
    """
    network.eval()
    correct, losses, labelled, together = 0.0, [], kind.target is None, isinstance(loss, Contrastive)
    for some in torch.split(rows, EVAL_CHUNK):
        stop_if_asked(says)
        fields = image[some].to(device)
        x = kind.inputs(fields)
        if together:
            losses.append(called(network, x).float())
            continue
        target = target_of(kind.target, fields, label[some].to(device), x)
        loss_b, right_b = judged(network, x, target, loss, classes=labelled)
        losses.append(loss_b.cpu().double())
        correct += 0.0 if right_b is None else float(right_b.sum())
    loss_N, label_N = torch.cat(losses), label[rows]
    if isinstance(loss, Contrastive):
        loss_N = loss.in_buffer(loss_N).cpu().double()
    mean, error = float(loss_N.mean()), float(loss_N.std(correction=0)) / len(loss_N) ** 0.5
    if not kind.needs_label:
        return Checked(mean, correct / len(rows) if labelled else None, mean, error)
    counts = torch.bincount(label_N)
    by_class = torch.bincount(label_N, weights=loss_N) / counts
    return Checked(mean, correct / len(rows), float(by_class[counts > 0].mean()), error)
