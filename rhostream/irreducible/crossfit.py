"""The networks of an IL model: one a fold trained, looked at on what they didn't learn from, and written.

    split (rows to learn from, rows to check on) > learn > records of model.json, once for each checkpoint
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from rhostream import cost, models, storage
from rhostream.crashpoints import crash_point
from rhostream.errors import UsageError
from rhostream.irreducible.folds import FoldRule
from rhostream.irreducible.learn import Learned, Recipe, learn
from rhostream.irreducible.pool import Pool
from rhostream.irreducible.quality import Logits, logits_of, measured
from rhostream.randomness import generator
from rhostream.selection.outputs import require_logits
from rhostream.selection.tokens import is_language
from rhostream.stream.inputs import AnyPreprocess

LOG = logging.getLogger("rhostream")
CHECK_SAMPLES = 10_000  # of D, for the choice of the checkpoint
FIRST = 5  # classes named of many


@dataclass(frozen=True)
class Fit:
    """What all folds share."""

    model: str
    classes: int
    preprocess: AnyPreprocess
    recipe: Recipe
    device: torch.device
    init: str | None = None  # weights to start from

    def network(self) -> nn.Module:
        """A fresh network of a fold, random by torch's generator."""
        return models.build(self.model, classes=self.classes, **self.preprocess.model_arguments())

    def learned(self, number: int, pool: Pool, train: Tensor, check: Pool, rows: Tensor) -> tuple[Learned, int]:
        """Train the network of one fold; its initial weights and dropout are functions of (seed, fold). Also the MACs
        of one forward.
        """
        with torch.random.fork_rng():
            torch.manual_seed(int(generator(self.recipe.seed, "fit", number).integers(2**62)))
            network = self.network()
            normalize = self.preprocess.normalize
            if not is_language(network):
                require_logits(self.model, network.eval(), normalize(pool.image[:1]), self.classes)
            macs = cost.macs_per_sample(network, normalize(pool.image[:1]))
            if self.init:
                models.load_initial(network, self.init)
            learned = learn(network, pool.image, pool.label, train, rows, check_image=check.image,
                            check_label=check.label, recipe=self.recipe, normalize=normalize, device=self.device,
                            classes=self.classes)
        return learned, macs


@dataclass(frozen=True)
class State:
    """Weights of one network and what they reached."""

    tensors: dict[str, Tensor]
    val_loss: float
    val_accuracy: float
    epoch: float
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fold:
    """One network after its training, and the rows that were its own."""

    number: int
    learned: Learned
    train: Tensor  # rows of the pool that it learned from
    check: Tensor  # rows of the check pool that chose its checkpoint
    macs: int


def fit_folds(fit: Fit, rule: FoldRule, pool: Pool, check: Pool) -> list[Fold]:
    """Train the network of every fold. Raises UsageError when one has nothing to learn from or to be checked on."""
    splits = [_split(rule, number, pool, check, fit) for number in range(rule.models)]
    found = []
    for number, (train, rows) in enumerate(splits):
        learned, macs = fit.learned(number, pool, train, check, rows)
        found.append(Fold(number, learned, train, rows, macs))
        LOG.info("fit-il: model %d of %d: loss %.4f, accuracy %.4f on D (epoch %.1f of %d)", number + 1, rule.models,
                 learned.val_loss, learned.val_accuracy, learned.best_epoch, fit.recipe.epochs)
    return found


def _split(rule: FoldRule, number: int, pool: Pool, check: Pool, fit: Fit) -> tuple[Tensor, Tensor]:
    if rule.mode == "folds":
        train, rows = (pool.mark != number).nonzero()[:, 0], (pool.mark == number).nonzero()[:, 0]
    else:
        train, rows = torch.arange(len(pool)), (check.label < fit.classes).nonzero()[:, 0]
    rows = _some(rows, fit.recipe.seed, number)
    if not len(train) or not len(rows):
        raise UsageError(f"fold {number} has {len(train):,} samples to learn from and {len(rows):,} to check on: "
                         "too few samples for this split")
    return train, rows


def _some(rows: Tensor, seed: int, number: int) -> Tensor:
    """At most `CHECK_SAMPLES` of the rows, the same ones for every network of that fold."""
    if len(rows) <= CHECK_SAMPLES:
        return rows
    chosen = generator(seed, "check", number).permutation(len(rows))[:CHECK_SAMPLES]
    return rows[torch.from_numpy(chosen).sort().values]


def empty_classes(rule: FoldRule, pool: Pool, check: Pool) -> list[str]:
    """The classes of D that a network would learn nothing of, in a sentence for each such network."""
    says = []
    for number in range(rule.models):
        learns = pool.label[pool.mark != number] if rule.mode == "folds" else pool.label
        seen, counts = torch.unique(check.label, return_counts=True)
        lacking = [(int(c), int(n)) for c, n in zip(seen, counts, strict=True) if not (learns == c).any()]
        if not lacking:
            continue
        what = f"what model {number} of the folds learns from" if rule.mode == "folds" else \
            "the holdout" if rule.mode == "holdout" else "the holdout fraction"
        named = ", ".join(f"class {c} ({n:,} of {len(check):,} samples of D)" for c, n in lacking[:FIRST])
        more = f" and {len(lacking) - FIRST:,} more" if len(lacking) > FIRST else ""
        says.append(f"{what} has no sample of {named}{more}: their il will be far too high, and rho will hardly ever "
                    "keep them; take a larger holdout (--holdout-fraction, --fit-samples) or another split")
    return says


def quality_of(fit: Fit, folds: Sequence[Fold], states: Sequence[State], pool: Pool, check: Pool) -> dict[str, Any]:
    """`measured` of some states of the networks."""
    on_check: list[Logits] = []
    on_train: list[Logits] = []
    for fold, state in zip(folds, states, strict=True):
        with torch.random.fork_rng():
            network = fit.network()
        network.load_state_dict(state.tensors)
        network.to(fit.device)
        for found, own, rows in ((on_check, check, fold.check),
                                 (on_train, pool, _some(fold.train, fit.recipe.seed, fold.number))):
            found.append(logits_of(network, own.image, own.label, rows, fit.preprocess.normalize, fit.device,
                                   fit.classes))
    return measured(on_check, on_train, fit.classes)


def write_weights(out: str, folds: Sequence[Fold], states: Sequence[State]) -> list[dict[str, Any]]:
    """Write a file for each network. Returns their records in model.json."""
    records = []
    for fold, state in zip(folds, states, strict=True):
        name = f"fold-{fold.number}.safetensors" if len(folds) > 1 else "weights.safetensors"
        weights = save_safetensors(state.tensors)
        # Weights without a model.json are the rest of a fit that was stopped: nothing can refer to them.
        storage.replace(storage.join(out, name), weights)
        crash_point("fit-il: weights written")
        records.append({
            "weights": name, "sha256": hashlib.sha256(weights).hexdigest(), "val_loss": state.val_loss,
            "val_accuracy": state.val_accuracy, "best_epoch": state.epoch, "curve": state.curve,
            "train_samples": len(fold.train), "val_samples": len(fold.check),
            "seconds": round(fold.learned.seconds, 3),
        })  # fmt: skip
    return records
