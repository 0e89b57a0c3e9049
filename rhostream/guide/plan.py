"""From facts to settings, commands and estimates: pure but for two short measurements of the model to be trained.

A command is a verb, the fields of its config, and what it costs.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rhostream import storage
from rhostream.advisor.measure import REFUSALS
from rhostream.config.init import InitConfig
from rhostream.guide.facts import (
    CHECKPOINTS,
    EACH_MEMBER,
    MEMBERS,
    ROW_OF_LOG,
    ROW_OF_TABLE,
    STATE,
    Disk,
    Facts,
    existing,
)
from rhostream.guide.judge import speed_of
from rhostream.guide.look import Seen
from rhostream.guide.places import Place
from rhostream.making.sizes import Sizes, sizes_for
from rhostream.models import build
from rhostream.samples.kind import Kind
from rhostream.selection.hardware import cores

MOST_TESTED = 10_000  # samples of a test set are enough
LARGE_SIDE = 96  # from here on a network for large pictures
FIT_SAMPLES, FIT_STEPS, FIT_BATCH, FIT_EPOCHS = 100_000, 300, 64, (5, 10)
FORWARD = 1 / 3  # of a step of forward and backward
CHECKED = 1.2  # what a fit's looks at other samples add
LONG = 300  # seconds of all commands, above which a CPU is given smaller pictures
MEASURED = 0.3  # seconds a look at a model's speed


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: `typed` are options beside the config, as they are to be typed."""

    verb: str
    name: str  # of its config file, without ending
    config: Mapping[str, Any]
    why: str  # a sentence
    typed: tuple[str, ...] = ()
    seconds: float | None = None  # about; None: not estimated
    waits: bool = False  # for Ctrl-C: a script that runs to its end leaves it to its reader


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings, the commands in their order, and what they need."""

    sizes: Sizes
    train_samples: int
    test_samples: int
    model: str
    commands: list[Command]
    disk: Disk
    notes: list[str] = field(default_factory=list)


def plan(place: Place, seen: Seen, config: InitConfig) -> Plan:
    """What to run on it."""
    facts, fraction = seen.facts, _test_fraction(seen.facts)
    test = facts.test_samples if facts.test_samples is not None else round(fraction * facts.samples)
    if facts.shards:
        test = round(facts.samples * facts.test_shards / facts.shards)
    train = facts.samples if facts.shards or facts.test_samples is not None else facts.samples - test
    sizes, options = sizes_for(train), dict(seen.options)
    il_model = str(options.pop("model", None) or seen.kind.small_models[0])
    seconds, parameters = dict[str, float](), 0
    for kind in seen.sizes if config.seconds else seen.sizes[-1:]:
        model, notes = _model(seen.kind, kind)
        if config.seconds:
            seconds, parameters = _seconds(facts, kind, il_model, model, train, sizes)
        if sum(seconds.values()) <= LONG:
            break
    if kind.side != seen.kind.side:
        options["image_size"] = kind.side
    shards, held = _shard_names(place, test)
    workers = _workers()
    fit = {
        "shards": shards,
        "out": "il-model",
        "model": il_model,
        "epochs": _fit_epochs(train),
        **options,
        "workers": workers,
    }
    score = {"shards": shards, "il_model": "il-model", "out": "il", "workers": workers}
    if place.folder is not None:
        score["keep"] = "path:str"
    training = {
        "shards": shards, "il": "il", "model": model, "buffer_size": sizes.buffer_size, "batch_size": sizes.batch_size,
        "passes": sizes.passes, "workers": workers,
        **({"loss": options["loss"]} if "loss" in options else {}),
        **({"test_shards": held} if held else {}),
    }  # fmt: skip
    commands = [
        *_making(place, seen, fraction),
        Command(verb="fit-il", name="fit-il", config=fit, seconds=seconds.get("fit"),
                why="Two small networks, each on one half: what is left of their loss can't be learned."),
        Command(verb="compute-il", name="compute-il", config=score, seconds=seconds.get("score"),
                why="The irreducible loss (il) of every sample, by the network that didn't learn from it."),
        Command(verb="train", name="train", config=training, typed=("--run", "runs/rho", "--rule", "rho"),
                seconds=seconds.get("rho"),
                why=f"Train on the {sizes.batch_size} of every {sizes.buffer_size} samples with most left to learn."),
        Command(verb="train", name="train", config=training, typed=("--run", "runs/uniform", "--rule", "uniform"),
                seconds=seconds.get("uniform"), why="The same on as many samples drawn by chance, to compare with."),
        Command(verb="report", name="", config={}, why="Did it pay? One page.",
                typed=("runs/rho", "--against", "runs/uniform", "-o", "report.html")),
        Command(verb="view", name="", config={}, typed=("runs/rho",), waits=True,
                why="Look at what was kept and skipped, sample by sample; Ctrl-C ends it."),
    ]  # fmt: skip
    return Plan(
        sizes=sizes, train_samples=train, test_samples=test, model=model, commands=commands, notes=notes,
        disk=_disk(place, facts, config, sizes, train, parameters),
    )  # fmt: skip


def _test_fraction(facts: Facts) -> float:
    """Of images without a test set of their own: a tenth, more of few samples, and no more than are needed."""
    few = 0.2 if facts.samples < 2000 else 0.1
    return round(min(few, MOST_TESTED / max(facts.samples, 1)), 4)


def _model(there: Kind, kind: Kind) -> tuple[str, list[str]]:
    """The model to be trained, by what samples are and where it is trained; and what is to be known of that."""
    small = kind.small_models[0]
    if not kind.pictures:
        return {"text-bag": "text-cnn"}.get(small, small), []
    if not torch.cuda.is_available():
        smaller = (
            f"there is no GPU: images are made {kind.side} pixels wide instead of {there.side}, and the model is a "
            "small one; with a GPU take larger ones (--image-size of fit-il, --model of train)"
        )
        return small, [smaller] if kind.side != there.side else []
    if kind.side < LARGE_SIDE:
        return "resnet18-small", []
    if importlib.util.find_spec("torchvision") is not None:
        return "torchvision:resnet50", []
    return "resnet18-small", ["with torchvision installed, torchvision:resnet50 suits images of this size better"]


def _fit_epochs(samples: int) -> int:
    """Passes that give a network that learns from half of the samples enough steps."""
    return max(FIT_EPOCHS[0], min(FIT_EPOCHS[1], -(-FIT_STEPS * FIT_BATCH * 2 // max(samples, 1))))


def _workers() -> int:
    """Processes that decode: beside a GPU most cores, beside a model on the CPU few."""
    spare = cores() - 1
    return min(8, spare) if torch.cuda.is_available() else min(4, spare // 2)


def _shard_names(place: Place, test: int) -> tuple[list[str], list[str]]:
    if place.folder is not None:
        return ["data/train-*.tar"], ["data/test-*.tar"] if test else []
    return list(place.given), list(place.given_test)


def _making(place: Place, seen: Seen, fraction: float) -> list[Command]:
    """From images to shards."""
    if place.folder is None:
        return []
    root = str(place.folder.resolve())
    if seen.sets is None:
        config: dict[str, Any] = {"folder": root, "out": "data", "test_fraction": fraction}
        if place.labels is not None:
            config["labels"] = storage.resolve(place.labels)
        why = f"{100 * fraction:.3g} % of each class is put aside as a test set; copies of a file stay together."
        return [Command(verb="shards", name="shards", config=config, why="Tar files of the images. " + why)]
    train, test = seen.sets
    return [
        Command(verb="shards", name="shards", why="Tar files of the training images.",
                config={"folder": f"{root}/{train}", "out": "data", "test_fraction": 0.0}),
        Command(verb="shards", name="shards-test", why="And of the test images, their classes numbered alike.",
                config={"folder": f"{root}/{test}", "out": "data", "split": "test", "classes_from": "data"}),
    ]  # fmt: skip


def _seconds(
    facts: Facts, kind: Kind, il_model: str, model: str, train: int, sizes: Sizes
) -> tuple[dict[str, float], int]:
    """About how long each command takes, of measured steps and of the look's own reading; and the parameters."""
    classes = max(2, len(facts.classes))
    try:
        small = speed_of(kind, il_model, classes, MEASURED).each
        large = small if model == il_model else speed_of(kind, model, classes, MEASURED).each
        network = build(model, classes=classes, **kind.model_arguments())
    except REFUSALS:  # of a kind whose model isn't called with a label
        return {}, 0
    drawn, read = min(train, FIT_SAMPLES), facts.seconds_a_sample
    n_B, n_b = sizes.buffer_size, sizes.batch_size
    seconds = {
        "fit": train * read + drawn * _fit_epochs(train) * small * CHECKED,
        "score": train * (read + FORWARD * small),
        "rho": sizes.steps * (n_B * (read + FORWARD * large) + n_b * large),
        "uniform": sizes.steps * n_b * (read + large),
    }
    return seconds, sum(p.numel() for p in network.parameters())


def _disk(place: Place, facts: Facts, config: InitConfig, sizes: Sizes, train: int, parameters: int) -> Disk:
    """Bytes of shards, table and two runs, and what is free where they go."""
    where = existing(Path(storage.resolve(config.out)) if config.out else Path.cwd())
    samples = facts.samples + (facts.test_samples or 0)
    shards = facts.bytes + samples * MEMBERS * EACH_MEMBER if place.folder is not None else 0
    rows = sizes.steps * sizes.buffer_size
    return Disk(
        shards=shards,
        table=train * ROW_OF_TABLE,
        runs=2 * (rows * ROW_OF_LOG + CHECKPOINTS * STATE * parameters),
        free=shutil.disk_usage(where).free,
        where=str(where),
    )
