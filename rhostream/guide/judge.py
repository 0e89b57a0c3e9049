"""Would irreducible losses separate anything here? A small cross-fit on some samples, each judged by a network that
didn't learn from it.

    fields and labels > three folds, copies in one > one small network a fold > log-probabilities > figures
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.advisor.measure import seconds_of
from rhostream.guide.figures import Figures, figures
from rhostream.irreducible.crossfit import Fit, loaded
from rhostream.irreducible.learn import Recipe
from rhostream.irreducible.pool import Places, Pool
from rhostream.irreducible.quality import logits_of
from rhostream.models import build
from rhostream.progress import Progress
from rhostream.randomness import generator
from rhostream.samples.fields import Fields
from rhostream.samples.kind import Kind
from rhostream.selection.gradient import take_step
from rhostream.selection.hardware import device_of
from rhostream.selection.hardware import threads as in_threads
from rhostream.selection.tokens import loss_of

FOLDS, BATCH, RATE = 3, 64, 1e-3
KEPT_BACK = 10  # one in so many samples that a network may learn from chooses its checkpoint instead
LEAST_EPOCHS, MOST_EPOCHS = 4, 30
WANTED_EPOCHS = 8  # else fewer samples are judged, or of fewer pixels
JUDGED = 2000  # so many samples are judged if only the seconds are short
LEAST, LEAST_EACH = 200, 10  # samples, and of a class on the average, below which nothing is asked
SHOWN = 5  # labels that look wrong


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A sample whose label a network that didn't learn from it finds unlikely."""

    shard: str
    key: str
    label: str
    looks_like: str
    probability: float  # of what it looks like


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the cross-fit gave."""

    model: str
    seen_as: str  # a decoded sample in words
    folds: int
    epochs: int
    seconds: float
    figures: Figures
    suspects: list[Suspect]
    copies: int  # samples that are decoded to the same values as another


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a model learns here: seconds a sample of a gradient step, with that many threads of torch."""

    each: float
    threads: int


def speed_of(kind: Kind, model: str, classes: int, share: float) -> Speed:
    """Of the model on such samples, with all threads or with one, whichever is faster: beside other work it is one."""
    every = Speed(each=_step_seconds(kind, model, classes, share), threads=torch.get_num_threads())
    if every.threads == 1 or device_of("auto").type != "cpu":
        return every
    with in_threads(1):
        one = Speed(each=_step_seconds(kind, model, classes, share), threads=1)
    return min(every, one, key=lambda speed: speed.each)


def _step_seconds(kind: Kind, model: str, classes: int, share: float) -> float:
    device = device_of("auto")
    network = build(model, classes=classes, **kind.model_arguments()).to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    x, label = kind.example(BATCH).to(device), torch.arange(BATCH, device=device) % classes

    def work() -> None:
        take_step(network, optimizer, x, label, loss_of(network))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds_of(work, share) / BATCH


def epochs_in(seconds: float, samples: int, each: float) -> int:
    """How many epochs of all folds fit, a sample's step taking `each` seconds."""
    return int(min(MOST_EPOCHS, seconds / max(epoch_seconds(samples, each), 1e-9)))


def epoch_seconds(samples: int, each: float) -> float:
    """Seconds of an epoch of all folds."""
    return (FOLDS - 1) * samples * each * 1.2


def samples_in(seconds: float, samples: int, each: float) -> int:
    """How many of the samples are judged: all that can be gone through often enough, if not too few."""
    fitting = int(seconds / max(epoch_seconds(1, each) * WANTED_EPOCHS, 1e-9))
    return min(samples, max(JUDGED, fitting))


def too_few(label: Tensor) -> str:
    """Why nothing is asked of so few samples; "" where there are enough."""
    classes = int(torch.unique(label).numel())
    if classes < 2:
        return f"there {'is one class' if classes else 'are no labels'}, and nothing to tell apart"
    if len(label) < max(LEAST, LEAST_EACH * classes):
        return (
            f"{len(label):,} samples of {classes:,} classes are too few to say: {LEAST} and {LEAST_EACH} a class are "
            "the least, 2,000 are good"
        )
    return ""


def judge(
    fields: Fields, label: Tensor, keys: list[tuple[str, str]], names: dict[int, str], kind: Kind, *,
    model: str, speed: Speed, seconds: float, seed: int,
) -> Judged:  # fmt: skip
    """Cross-fit the model on samples (n, ...) with labels (n,), in about `seconds` at that speed.

    Labels are numbered anew among those that occur. Deterministic by `seed` on a
    CPU, but for the number of epochs, which is what the seconds allow.
    """
    started, each = time.monotonic(), speed.each
    if len(label) > (n := samples_in(seconds, len(label), each)):
        rows = torch.from_numpy(np.sort(generator("init judged", seed).permutation(len(label))[:n]))
        fields, label, keys = fields[rows], label[rows], [keys[row] for row in rows.tolist()]
    values, label = torch.unique(label, return_inverse=True)
    classes, n = len(values), len(label)
    fold, copies = _folds(fields, n, seed)
    epochs = max(LEAST_EPOCHS, epochs_in(seconds, n, each))
    recipe = Recipe(epochs=epochs, batch_size=BATCH, lr=RATE, weight_decay=0.01, augment="none", seed=seed)
    fit, pool = Fit(model, classes, kind, recipe, device_of("auto")), _pool(fields, label)
    log_p = np.zeros((n, classes))
    for number in range(FOLDS):
        rows = torch.from_numpy(np.flatnonzero(fold == number))
        others = np.flatnonzero(fold != number)
        back = np.zeros(len(others), bool)
        back[generator("init kept back", seed, number).permutation(len(others))[: -(-len(others) // KEPT_BACK)]] = True
        train, check = torch.from_numpy(others[~back]), torch.from_numpy(others[back])
        batches = -(-len(train) // BATCH)
        title = f"init: network {number + 1} of {FOLDS}"
        with in_threads(speed.threads), Progress(title, epochs * batches, "step") as progress:
            learned, _ = fit.learned(number, pool, train, pool, check, progress)
        logits = logits_of(loaded(fit, learned), fields, label, rows, kind.inputs, fit.device, classes)
        log_p[rows.numpy()] = logits.log_probability()
    label_N = label.numpy()
    return Judged(
        model=model,
        seen_as=kind.in_words(),
        folds=FOLDS,
        epochs=epochs,
        seconds=time.monotonic() - started,
        figures=figures(log_p, label_N, seed),
        suspects=_suspects(log_p, label_N, keys, [names.get(value, str(value)) for value in values.tolist()]),
        copies=copies,
    )


def _folds(fields: Fields, n: int, seed: int) -> tuple[npt.NDArray[np.int64], int]:
    """(n,) the fold of each sample, those of equal values in one; and how many samples are a copy of another."""
    whole = [fields[name].reshape(n, -1).numpy() for name in fields.names]
    first: dict[bytes, int] = {}
    group = np.array([first.setdefault(b"".join(array[row].tobytes() for array in whole), row) for row in range(n)])
    order = generator("init folds", seed).permutation(n)
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) % FOLDS
    return fold[group], n - len(first)


def _pool(fields: Fields, label: Tensor) -> Pool:
    """The samples as a fit takes them; where they lie, and which were bad, is known elsewhere."""
    return Pool(fields, label, torch.zeros_like(label), (), {}, {}, 0, {}, {}, {}, {},
                Places((), np.empty((0, 2), np.int64)))  # fmt: skip


def _suspects(
    log_p: npt.NDArray[np.float64], label: npt.NDArray[np.int64], keys: list[tuple[str, str]], names: list[str]
) -> list[Suspect]:
    """The samples whose label is the least likely beside what a network is sure of."""
    named = log_p.argmax(1)
    gap = log_p.max(1) - log_p[np.arange(len(label)), label]
    rows = [row for row in np.argsort(-gap, kind="stable").tolist() if named[row] != label[row]][:SHOWN]
    return [
        Suspect(
            shard=keys[row][0], key=keys[row][1], label=names[label[row]], looks_like=names[named[row]],
            probability=round(float(np.exp(log_p[row].max())), 3),
        )
        for row in rows
    ]  # fmt: skip
