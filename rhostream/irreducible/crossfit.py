"""The networks of an IL model: one a fold trained, looked at on what they didn't learn from, and written.

split (rows to learn from, rows to check on) > learn > records of model.json
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rhostream import models
from rhostream.crashpoints import crash_point
from rhostream.errors import UsageError
from rhostream.il_model.bank import Bank, write_bank
from rhostream.il_model.bounds import MOST_CHECKED, most_checked
from rhostream.il_model.folds import FoldRule
from rhostream.il_model.networks import write_weights
from rhostream.irreducible.banks import bank_of
from rhostream.irreducible.learn import Checked, Learned, Recipe, evaluate, learn
from rhostream.irreducible.pool import Pool
from rhostream.irreducible.quality import Logits, logits_of, measured
from rhostream.irreducible.unfinished import KeptOf
from rhostream.progress import Progress
from rhostream.randomness import generator
from rhostream.runs.macs import macs_per_sample
from rhostream.samples.kind import Kind
from rhostream.selection.losses import LossFunction, find_loss
from rhostream.selection.outputs import require_logits
from rhostream.selection.pairs import Contrastive, in_batches
from rhostream.selection.ranks import Ranks
from rhostream.selection.tokens import is_language

LOG = logging.getLogger("rhostream")
CHECK_SAMPLES = MOST_CHECKED  # at most, for the choice of the checkpoint; as many of D are looked at
KEPT_BACK = 10  # one in so many samples of a holdout is not learned from
FIRST = 5  # classes named of many
JUDGES = {
    "folds": "the fold it doesn't learn from",
    "fraction": "samples of D outside the fraction",
    "holdout": "a slice of the holdout, kept back",
}  # what chooses a checkpoint, by the mode of the split


@dataclass(frozen=True)
class Fit:
    """What all folds share."""

    model: str
    classes: int | None  # None where the target is no class
    preprocess: Kind
    recipe: Recipe
    device: torch.device
    init: str | None = None  # weights to start from
    loss: str = "cross_entropy"
    kept: KeptOf | None = None  # where the states of an unfinished fit are

    @property
    def found_loss(self) -> LossFunction:
        """The loss that is learned by; of pairs that of batches as large as the recipe's."""
        loss = find_loss(self.loss)
        return in_batches(loss, Ranks(), self.recipe.batch_size, shortlist=False, live=False)

    def network(self) -> nn.Module:
        """A fresh network of a fold, random by torch's generator."""
        return models.build(self.model, classes=self.classes, **self.preprocess.model_arguments())

    def learned(
        self, number: int, pool: Pool, train: Tensor, check: Pool, rows: Tensor, progress: Progress | None = None
    ) -> tuple[Learned, int]:
        """Train the network of one fold; its initial weights and dropout are functions of (seed, fold). Also the MACs
        of one forward.
        """
        with torch.random.fork_rng():
            torch.manual_seed(int(generator(self.recipe.seed, "fit", number).integers(2**62)))
            network = self.network()
            prepare = self.preprocess.inputs
            if not is_language(network) and self.classes is not None:
                require_logits(self.model, network.eval(), prepare(pool.fields[:1]), self.classes)
            macs = macs_per_sample(network, prepare(pool.fields[:1]))
            if self.init:
                models.load_initial(network, self.init)
            learned = learn(
                network,
                pool.fields,
                pool.label,
                train,
                rows,
                check_image=check.fields,
                check_label=check.label,
                recipe=self.recipe,
                kind=self.preprocess,
                loss=self.found_loss,
                device=self.device,
                classes=self.classes,
                kept=self.kept and self.kept(number),
                progress=progress,
            )
        return learned, macs


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
    splits = [_split(rule, number, pool, check, fit.recipe) for number in range(rule.models)]
    found = []
    for number, (train, rows) in enumerate(splits):
        batches = -(-len(train) // fit.recipe.batch_size)
        title = f"fit-il: model {number + 1} of {rule.models}"
        with Progress(title, fit.recipe.epochs * batches, "step") as progress:
            learned, macs = fit.learned(number, pool, train, check, rows, progress)
        found.append(Fold(number, learned, train, rows, macs))
        LOG.info(
            "fit-il: model %d of %d: loss %.4f%s on %s (epoch %.1f of %s)",
            number + 1,
            rule.models,
            learned.val_loss,
            "" if learned.val_accuracy is None else f", accuracy {learned.val_accuracy:.4f}",
            JUDGES[rule.mode],
            learned.best_epoch,
            f"{learned.curve[-1]['epoch']:.1f}, where it no longer fell" if learned.over else fit.recipe.epochs,
        )
    return found


def kept_back(place: Tensor) -> Tensor:
    """Which of the samples of a holdout, by their places (N,) of `folds.Places`, aren't learned from: (N,) bool.

    A tenth, at most `CHECK_SAMPLES`, those with the lowest places; a group, which has one place, goes whole.
    """
    n = min(CHECK_SAMPLES, -(-len(place) // KEPT_BACK))
    return place <= place.kthvalue(n).values


def _learned(rule: FoldRule, number: int, pool: Pool) -> Tensor:
    """(N,) bool: what a network learns from. The rest of the pool judges it, if there is any."""
    if rule.mode == "fraction":
        return torch.ones(len(pool), dtype=torch.bool)
    return pool.mark != number if rule.mode == "folds" else ~kept_back(pool.mark)


def _split(rule: FoldRule, number: int, pool: Pool, check: Pool, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The rows of the pool that a network learns from, and those of the check pool that choose its checkpoint."""
    learned = _learned(rule, number, pool)
    train, rows = learned.nonzero()[:, 0], (~learned).nonzero()[:, 0]
    most = most_checked(len(train)) if recipe.stops else CHECK_SAMPLES
    rows = _some(torch.arange(len(check)) if rule.mode == "fraction" else rows, recipe.seed, number, most)
    if not len(train) or not len(rows):
        raise UsageError(
            f"fold {number} has {len(train):,} samples to learn from and {len(rows):,} to check on: "
            "too few samples for this split; take more (--fit-samples, more shards) or another one"
        )
    return train, rows


def _some(rows: Tensor, seed: int, number: int, most: int) -> Tensor:
    """At most so many of the rows, the same ones for every network of that fold."""
    if len(rows) <= most:
        return rows
    chosen = generator(seed, "check", number).permutation(len(rows))[:most]
    return rows[torch.from_numpy(chosen).sort().values]


def empty_classes(rule: FoldRule, pool: Pool, labels: Mapping[int, int]) -> list[str]:
    """The classes of D, by the number of its samples with each label, that a network would learn nothing of: a sentence
    for each such network.
    """
    says, total = [], sum(labels.values())
    for number in range(rule.models):
        learns = pool.label[_learned(rule, number, pool)]
        known = set(torch.unique(learns).tolist())
        lacking = [(c, n) for c, n in sorted(labels.items()) if c not in known]
        if not lacking:
            continue
        what = (
            f"what model {number} of the folds learns from"
            if rule.mode == "folds"
            else "the holdout"
            if rule.mode == "holdout"
            else "the holdout fraction"
        )
        named = ", ".join(f"class {c} ({n:,} of {total:,} samples of D)" for c, n in lacking[:FIRST])
        more = f" and {len(lacking) - FIRST:,} more" if len(lacking) > FIRST else ""
        says.append(
            f"{what} has no sample of {named}{more}: their il will be far too high, and rho will hardly ever "
            "keep them; take a larger holdout (--holdout-fraction, --fit-samples) or another split"
        )
    return says


def loaded(fit: Fit, learned: Learned) -> nn.Module:
    """The network in its best state."""
    with torch.random.fork_rng():
        network = fit.network()
    network.load_state_dict(learned.state)
    return network.to(fit.device)


def quality_of(fit: Fit, folds: Sequence[Fold], pool: Pool, check: Pool) -> tuple[dict[str, Any], int]:
    """`measured` of networks of classes, and how many samples that took through a forward."""
    assert fit.classes is not None
    on_check: list[Logits] = []
    on_train: list[Logits] = []
    for fold in folds:
        network = loaded(fit, fold.learned)
        most = len(fold.check) if fit.recipe.stops else CHECK_SAMPLES
        for found, own, rows in (
            (on_check, check, fold.check),
            (on_train, pool, _some(fold.train, fit.recipe.seed, fold.number, most)),
        ):
            found.append(
                logits_of(network, own.fields, own.label, rows, fit.preprocess.inputs, fit.device, fit.classes)
            )
    return measured(on_check, on_train, fit.classes), sum(len(one.label) for one in (*on_check, *on_train))


def on_d(fit: Fit, learned: Learned, pool: Pool) -> Checked:
    """Loss and accuracy of the network of a holdout on samples of D that are not the holdout's.

    It chooses nothing: where D is noisier than the holdout, the state of the lowest loss on D is an under-trained one.
    """
    return evaluate(
        loaded(fit, learned), pool.fields, pool.label, torch.arange(len(pool)), fit.preprocess, fit.found_loss,
        fit.device,
    )  # fmt: skip


def _bank(fit: Fit, fold: Fold, rule: FoldRule, pool: Pool, of_d: Pool | None) -> Bank:
    """Of samples of D, or else of a holdout, that the network didn't learn from."""
    drawn, rows = pool, (~_learned(rule, fold.number, pool)).nonzero()[:, 0]
    if of_d is not None and len(of_d) > len(rows):
        drawn, rows = of_d, torch.arange(len(of_d))
    title = f"fit-il: model {fold.number + 1} of {rule.models}"
    return bank_of(loaded(fit, fold.learned), drawn, rows, fit.preprocess, fit.device, title)


def write_folds(out: str, folds: Sequence[Fold], fit: Fit, rule: FoldRule, pools: tuple[Pool, Pool | None]
                ) -> list[dict[str, Any]]:  # fmt: skip
    """Write a file for each network, and of pairs one for its bank. Returns their records in model.json."""
    records = []
    for fold in folds:
        learned = fold.learned
        file = write_weights(out, fold.number, len(folds), learned.state)
        if isinstance(fit.found_loss, Contrastive):
            name = str(file["weights"]).replace(".safetensors", ".bank.safetensors").replace("weights.", "")
            file |= write_bank(out, name, _bank(fit, fold, rule, *pools))
        crash_point("fit-il: weights written")
        records.append({
            **file, "val_loss": learned.val_loss,
            "val_accuracy": learned.val_accuracy, "best_epoch": learned.best_epoch, "curve": learned.curve,
            "train_samples": len(fold.train), "val_samples": len(fold.check),
            "seconds": round(learned.seconds, 3),
        })  # fmt: skip
    return records
