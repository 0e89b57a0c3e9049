"""Whether an il can be believed: what is said of a doubtful IL model, and of a table whose il leaks.

accuracy <= the share of the largest class            no better than guessing: a warning, or a refusal
accuracy < --min-accuracy                             a refusal
loss on what it learned from < half of that on others, and 0.05 nats below       memorised (not asked of a holdout's
                                                      model that an older version judged on D)
mean il of `in_holdout` rows < half of the others', and more than 4 standard errors below       they leak
no others at all                                                                they are all there is
mean il of the others < 0.7 of the loss that fit-il measured, and more than 4 standard errors below       they leak
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhostream import storage
from rhostream.errors import QualityError, TableError, UsageError
from rhostream.il_model.info import ModelInfo
from rhostream.storage import redact
from rhostream.tables import il
from rhostream.tables.classes import named

LOG = logging.getLogger("rhostream")
MEMORISED, MEMORISED_NATS = 0.5, 0.05
LEAK, SEEN, ERRORS = 0.5, 0.7, 4.0
PARTS = 64  # read for the check of a table
FEW = 30  # rows of a kind below which nothing is said


def require_share(min_accuracy: float | None) -> None:
    """Raise UsageError unless it is an accuracy."""
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise UsageError(f"--min-accuracy {min_accuracy}: expected a number between 0 and 1")


def doubts(info: ModelInfo) -> list[str]:
    """What makes an IL model's il doubtful, in sentences; none for a model that was made before this was measured."""
    quality, says = info.quality, []
    if not quality:
        return []
    if _guesses(info):
        largest = quality["largest_class"]
        says.append(
            f"the IL model's accuracy of {info.accuracy:.4f} is no better than always naming the largest class "
            f"({named(info.class_names, largest['class'])}, {largest['share']:.4f} of the samples): its il says next "
            "to nothing of a sample; train it longer, on more samples, or with another --model or --lr"
        )
    check, train = quality["loss"], quality["train_loss"]
    alike = info.rule.mode != "holdout" or bool(info.judged)  # a clean holdout and noisy D look memorised
    if alike and train < MEMORISED * check and check - train > MEMORISED_NATS:
        says.append(
            f"the IL model has memorised: its loss is {train:.4f} nats on what it learned from and {check:.4f} "
            "on other samples. The il of samples that it didn't see is too high where they are hard, and that "
            "of those it saw is worthless: keep these out of the candidates, and take fewer --epochs, more "
            "--fit-samples or a smaller --model"
        )
    return says


def _guesses(info: ModelInfo) -> bool:
    return bool(info.quality) and (info.accuracy or 0.0) <= info.quality["largest_class"]["share"]


def passed(info: ModelInfo, min_accuracy: float | None, folder: str) -> ModelInfo:
    """The same model; its doubts are said. Raises QualityError when it is worse than asked for, or than guessing."""
    for says in doubts(info):
        LOG.warning("%s", says)
    if info.rule.mode == "holdout" and not info.judged:
        LOG.warning(
            "%s: an older version chose this IL model's checkpoint by its loss on D and not on the holdout; "
            "where D is noisier, that is an under-trained state: fit it again with another --out",
            redact(folder),
        )
    if min_accuracy is None:
        return info
    if info.accuracy is None:
        raise UsageError(f"--min-accuracy {min_accuracy:g} is for classes, and the target of {redact(folder)} is none")
    where = f"{redact(folder)}: the IL model's accuracy on samples it didn't learn from is {info.accuracy:.4f}"
    if info.accuracy < min_accuracy:
        raise QualityError(f"{where}, at least {min_accuracy:g} was asked for (--min-accuracy)")
    if _guesses(info):
        raise QualityError(
            f"{where}, and always naming class {info.quality['largest_class']['class']} is right for "
            f"{info.quality['largest_class']['share']:.4f} (--min-accuracy was given)"
        )
    return info


@dataclass(frozen=True)
class Group:
    """The il of some rows, summed up."""

    n: int
    mean: float  # nats
    error: float  # of the mean

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Group:
        """Of (n,) il."""
        n = len(values)
        if not n:
            return cls(0, math.nan, math.nan)
        return cls(n, float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) / math.sqrt(n))


def leaks(holdout: Group, rest: Group, val_loss: float, mode: str, val_error: float = 0.0) -> list[str]:
    """What the il of a table gives away, in sentences: of rows that the model learned from, and of all others.

    `val_loss`: what fit-il measured on samples that the model didn't learn from, nats; `val_error`: its standard error.
    """
    if holdout.n >= FEW and not rest.n:
        return [
            f"the IL model learned from all of the {holdout.n:,} rows that were looked at (in_holdout): none is a "
            "candidate, and with --keep-holdout selection goes by what the model remembers and prefers wrong "
            "labels; give --holdout other shards, or none to cross-fit"
        ]
    says = []
    if min(holdout.n, rest.n) >= FEW:
        apart = math.hypot(holdout.error, rest.error)
        if holdout.mean < LEAK * rest.mean and rest.mean - holdout.mean > ERRORS * apart:
            cleaner = ", or their labels are much cleaner" if mode == "holdout" else ""
            says.append(
                f"the mean il of {holdout.n:,} rows that the IL model learned from (in_holdout) is "
                f"{holdout.mean:.4f} nats, of {rest.n:,} others {rest.mean:.4f}: it has memorised them{cleaner}"
                ". They are left out of the candidates; with --keep-holdout their low il would make them look "
                "worth learning again and again, so don't"
            )
    if (
        rest.n >= FEW
        and rest.mean < SEEN * val_loss
        and val_loss - rest.mean > ERRORS * math.hypot(rest.error, val_error)
    ):
        names = (
            "; a fold is a hash of the shard's name: were these shards named otherwise when it was fitted (--root)?"
            if mode == "folds"
            else ""
        )
        says.append(
            f"the mean il of {rest.n:,} rows that the IL model should not have learned from is {rest.mean:.4f} "
            f"nats, and fit-il measured {val_loss:.4f} on such samples: either these are much easier, or it "
            f"has seen them or their copies (--group-by keeps copies together){names}"
        )
    return says


def beyond_classes(quarantined: Mapping[str, int], classes: int | None, of: str = "the IL model") -> list[str]:
    """A sentence where rows of a table have labels that the classes `of` what made its il don't hold."""
    if not (n := quarantined.get("label:range", 0)) or classes is None:
        return []
    again = "fit it again with --classes and another --out" if of == "the IL model" else "take one that knows them"
    return [
        f"{n:,} samples have a label outside 0 to {classes - 1}: {of} knows {classes:,} classes. "
        f"They have no il (status label:range) and are never candidates; if these labels are right, {again}"
    ]


def examine(table: str, names: Sequence[str], quarantined: Mapping[str, int], info: ModelInfo) -> list[str]:
    """What is doubtful about a (resolved) table: labels that the model doesn't know, of `quarantined` (status -> rows),
    and `leaks` of up to `PARTS` parts, chosen by a hash of their names.

    Where the model has a holdout of shards, up to half of them are those of that holdout.
    """
    says = beyond_classes(quarantined, info.classes)
    order = sorted(names, key=lambda name: hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest())
    if info.rule.mode == "holdout":
        learned = set(info.learned_from)
        own = [name for name in order if name in learned][: PARTS // 2]
        order = own + [name for name in order if name not in learned][: PARTS - len(own)]
    held: list[npt.NDArray[np.float32]] = []
    rest: list[npt.NDArray[np.float32]] = []
    for name in order[:PARTS]:
        url = il.part_url(table, name)
        if not storage.exists(url):
            continue
        try:
            values, in_holdout = il.read_il(url)
        except TableError as exc:
            return [*says, f"the il could not be checked: {exc}"]
        finite = np.isfinite(values)
        held.append(values[finite & in_holdout])
        rest.append(values[finite & ~in_holdout])
    if not rest:
        return says
    measured = [(info.val_loss, info.quality.get("loss_error", 0.0))]
    if info.on_d.get("samples"):
        measured.append((info.on_d["loss"], info.on_d["loss_error"]))
    loss, error = max(measured, key=lambda pair: pair[0] - ERRORS * pair[1])
    return says + leaks(Group.of(np.concatenate(held)), Group.of(np.concatenate(rest)), loss, info.rule.mode, error)
