"""From a place to what is known of it: lists, counts, a sample of bounded size, and a cross-fit of that.

Of a folder of images a sample becomes shards in a temporary folder, so that what is said of it is what the commands
will say of all of it.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rhostream import storage
from rhostream.config import FitILConfig, ShardsConfig
from rhostream.config.init import InitConfig
from rhostream.errors import UsageError
from rhostream.guide.facts import Bad, Facts, Spread
from rhostream.guide.ids import ids_in
from rhostream.guide.judge import JUDGED, WANTED_EPOCHS, Speed, epochs_in, judge, speed_of, too_few
from rhostream.guide.places import Place
from rhostream.guide.sample import Sampled, sample
from rhostream.inert import one_line
from rhostream.irreducible.asked import named
from rhostream.irreducible.decoded import kind_of
from rhostream.making.folder import class_folders, of_files
from rhostream.making.job import images_of, of_copies, sets_of, size_of
from rhostream.making.sample import Ints
from rhostream.making.split import copies
from rhostream.making.write import write
from rhostream.randomness import generator
from rhostream.samples import registry
from rhostream.samples.kind import OK, Kind
from rhostream.stream.label_from import LabelFrom, label_from
from rhostream.stream.look import Look, look

SIDES = (64, 32, 16)  # pixels at which images are judged
SMALL_SIDES = (64, 48, 32)  # pixels that a CPU can train on in reasonable time
SAMPLE_BYTES = 512 << 20  # of images that are copied for a look
FILES = 50_000  # of which copies are looked for
LOOKED_AT, LOOK_SECONDS = 200, 5.0  # samples and seconds that tell whether there are labels
_OFFSET = re.compile(r" at offset [0-9,]+")  # of a shard that is gone after the look
SHARE = 0.01  # of the seconds that each look at a model's speed takes
SIZED = 64  # shards whose bytes are asked for


@dataclass(frozen=True, kw_only=True)
class Images:
    """A set of image files of one class each."""

    root: Path
    files: Sequence[Path]
    classes: Ints
    names: tuple[str, ...]
    sizes: list[int]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Facts, and what a plan needs beside them."""

    facts: Facts
    kind: Kind  # as fit-il would decode samples
    sizes: list[Kind]  # as they may be trained on: without a GPU pictures no larger than a CPU can, the largest first
    options: dict[str, object]  # of fit-il, that say what samples are
    sets: tuple[str, str] | None = None  # subfolders of a folder of images that are its training and test set


def look_at(place: Place, config: InitConfig) -> Seen:
    """What lies there. Raises UsageError and its kin where nothing can be begun with it."""
    return _images(place, config) if place.folder is not None else _shards(place, config)


def _images(place: Place, config: InitConfig) -> Seen:
    root = place.folder
    assert root is not None
    sets = None if place.labels else sets_of(class_folders(root))
    train = _listed(root / sets[0] if sets else root, place.labels)
    test = _listed(root / sets[1], None, str(root / sets[0])) if sets else None
    facts = Facts(
        words=place.words,
        where=place.where,
        content=registry.IMAGES.name,
        samples=len(train.files),
        test_samples=len(test.files) if test else None,
        bytes=sum(train.sizes) + (sum(test.sizes) if test else 0),
        notes=train.notes,
    )
    counts = Counter(train.classes.tolist())
    facts.classes = {train.names[label] or str(label): count for label, count in sorted(counts.items())}
    if sets and test:
        facts.notes += [f"{sets[1]}: {note}" for note in test.notes]
        facts.notes.append(f"{sets[0]} and {sets[1]} are sets and no classes: each becomes shards of its own")
    if place.labels:
        facts.notes.append(f"labels are those of {place.labels}")
    if len(train.files) <= FILES:
        facts.notes += of_copies(train.root, train.files, train.classes, copies(train.files, train.sizes))
    rows = _drawn(train, config)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rhostream-init-"))
        part = of_files(train.root, train.files, train.classes, rows, name="sample", split="train",
                        class_names=train.names, sizes=train.sizes)  # fmt: skip
        write(part, folder, samples_per_shard=1000)
        shards, options = (folder,), dict[str, object]()
        paths = {f"sample-train-{row:07d}": str(train.files[row].relative_to(train.root)) for row in rows.tolist()}
        kind, sizes_of = _sampled(facts, shards, options, config, LabelFrom(), paths)
    return Seen(facts=facts, kind=kind, sizes=sizes_of, options=options, sets=sets)


def _listed(root: Path, labels: str | None, classes_from: str | None = None) -> Images:
    files, classes, names, notes = images_of(
        root, ShardsConfig(folder=str(root), out="data", labels=labels, classes_from=classes_from)
    )
    sizes = [size_of(file) for file in files]
    return Images(root=root, files=files, classes=classes, names=names, sizes=sizes, notes=notes)


def _drawn(images: Images, config: InitConfig) -> Ints:
    """The rows that are looked at: evenly drawn, as many as were asked for and as fit."""
    order = generator("init images", config.seed).permutation(len(images.files))[: config.samples]
    fits = np.cumsum(np.array(images.sizes)[order]) <= SAMPLE_BYTES
    return order[fits] if fits.any() else order[:1]


def _shards(place: Place, config: InitConfig) -> Seen:
    shards = place.shards
    label = label_from(config.label, None, named(shards, None))
    flat = ids_in(shards) if place.words.startswith("flat") else None
    options: dict[str, object] = dict(flat or {})
    if config.label is not None:
        options["label"] = config.label
    facts = Facts(words=place.words, where=place.where, content="", shards=len(shards), test_shards=len(place.test))
    asked = np.unique(np.linspace(0, len(shards) - 1, SIZED).astype(int)).tolist()
    sizes = [storage.identity(shards[number]).size for number in asked]
    facts.bytes = round(sum(sizes) / len(sizes) * len(shards))
    if len(asked) < len(shards):
        facts.notes.append(f"bytes are a guess from those of {len(asked)} shards")
    kind, sizes_of = _sampled(facts, shards, options, config, label, {})
    if facts.bytes == 0 or facts.samples == 0:
        raise UsageError(f"{place.where} holds no sample")
    return Seen(facts=facts, kind=kind, sizes=sizes_of, options=options)


def _sampled(
    facts: Facts, shards: Sequence[str], options: dict[str, object], config: InitConfig, label: LabelFrom,
    paths: dict[str, str],
) -> tuple[Kind, list[Kind]]:  # fmt: skip
    """Fill in what a sample of the shards says; `options` gains what fit-il has to be told. Returns the kind, and the
    kinds that it may be trained on as."""
    # What is looked at is drawn by the names of shards: of a sample's these are the same each time.
    data, started = named(shards, {"sample": shards[0]} if paths else None), time.monotonic()
    seconds = max(5.0, config.seconds / 3)
    first_look = Look() if "tokenizer" in options else look(data)
    if first_look.content is not None and not paths:
        options |= _unlabelled(first_look.content, data, label, config)
    fit = FitILConfig(shards=shards, out="il-model", **options)  # type: ignore[arg-type]
    kind = kind_of(fit, data)
    facts.content, facts.seen_as = kind.name, kind.in_words()
    facts.sizes, facts.channels = _sides(first_look, kind)
    judging = _judged_as(kind, fit, data, config.seconds) if config.seconds and kind.needs_label else None
    seen = sample(data, judging.kind if judging else kind, label, config.samples, seconds, config.seed)
    if not seen.statuses[OK] and not seen.looked and seen.failed:
        raise UsageError(f"no shard of {facts.where} can be read, first {next(iter(seen.failed.items()))[1]}")
    _counted(facts, seen, kind, paths)
    if not seen.statuses[OK] and seen.looked:
        facts.not_judged = "no sample can be used"
    elif judging is None:
        facts.not_judged = (
            f"only samples with a class are judged, and these are {kind.holds} without one"
            if config.seconds
            else "--seconds 0 leaves it out"
        )
    elif not (why := too_few(seen.label)):
        left = max(config.seconds - (time.monotonic() - started), config.seconds / 3)
        keys = [(shard, paths.get(key, key)) for shard, key in seen.key]
        facts.judged = judge(seen.fields, seen.label, keys, _names(seen), judging.kind, model=judging.model,
                             speed=judging.speed, seconds=left, seed=config.seed)  # fmt: skip
    else:
        facts.not_judged = why
    if kind.side <= SMALL_SIDES[-1] or torch.cuda.is_available():
        return kind, [kind]
    sides = sorted({min(side, kind.side) for side in SMALL_SIDES}, reverse=True)
    return kind, [kind_of(dataclasses.replace(fit, image_size=side), data) for side in sides]


def _names(seen: Sampled) -> dict[int, str]:
    """{label: name} of the shards that were looked into."""
    return {label: one_line(name) for label, name in seen.names.items()}


def _unlabelled(content: str, data: list[tuple[str, str]], label: LabelFrom, config: InitConfig) -> dict[str, object]:
    """What fit-il is told of samples without labels: images with captions are pairs, texts are language."""
    seen = sample(data, registry.undecided(content), label, LOOKED_AT, LOOK_SECONDS, config.seed, decodes=False)
    if seen.statuses["label:missing"] <= 0.9 * seen.looked:
        return {}
    if registry.reads_text(content):
        return {"model": "text-lm", "task": "language"}
    return {"content": "pair", "loss": "siglip"} if seen.extensions["txt"] > seen.looked / 2 else {}


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How samples are judged: as what, by which model, how fast."""

    kind: Kind
    model: str
    speed: Speed


def _judged_as(kind: Kind, fit: FitILConfig, data: list[tuple[str, str]], seconds: float) -> Judging:
    """The best way that the seconds have room for: by the kind's small model, pictures at fewer pixels than they have;
    else by its proxy."""
    sides = sorted({min(side, kind.side) for side in SIDES}, reverse=True) if kind.side else [0]
    model, proxy = kind.small_models
    for side in sides:
        as_kind = kind_of(dataclasses.replace(fit, image_size=side), data) if side and side != kind.side else kind
        way = Judging(kind=as_kind, model=model, speed=speed_of(as_kind, model, 10, SHARE * seconds))
        if epochs_in(2 * seconds / 3, JUDGED, way.speed.each) >= WANTED_EPOCHS:
            return way
    if proxy == model:
        return way
    return Judging(kind=as_kind, model=proxy, speed=speed_of(as_kind, proxy, 10, SHARE * seconds))


def _sides(seen: Look, kind: Kind) -> tuple[list[Spread], int | None]:
    if not seen.sizes or not kind.side:
        return [], None
    spreads = [
        _spread(f"pixels of the {name} side", [getattr(sides, name) for sides in seen.sizes])
        for name in ("shorter", "longer")
    ]
    return spreads, kind.model_arguments().get("channels")


def _spread(what: str, values: Sequence[int]) -> Spread:
    ordered = sorted(values)
    return Spread(what=what, least=ordered[0], median=ordered[len(ordered) // 2], most=ordered[-1], of=len(ordered))


def _counted(facts: Facts, seen: Sampled, kind: Kind, paths: dict[str, str]) -> None:
    """Enter counts, classes and bad samples."""
    facts.looked, facts.looked_in = seen.looked, seen.shards
    facts.unreadable = dict(seen.failed)
    facts.seconds_a_sample = seen.seconds / max(seen.looked, 1)
    facts.bad = [
        Bad(status=status, samples=count, first=[_path(text, paths) for text in seen.first.get(status, [])])
        for status, count in seen.statuses.most_common()
        if status != OK
    ]
    if facts.shards:
        facts.counted = seen.whole
        facts.samples = seen.looked if seen.whole else round(facts.bytes * seen.looked / max(seen.bytes, 1))
        names = _names(seen)
        facts.classes = {names.get(label, str(label)): count for label, count in sorted(seen.labels.items())}
    padding = kind.model_arguments().get("padding")
    tokens = [array for _, array in seen.fields.items() if array.dim() == 2 and not kind.side]
    if padding is not None and tokens and len(tokens[0]):
        facts.sizes.append(_spread(f"tokens ({kind.in_words()})", (tokens[0] != padding).sum(1).tolist()))


def _path(text: str, paths: dict[str, str]) -> str:
    """An example, by its file where it is one of a folder."""
    key, _, rest = text.partition(" ")
    return f"{paths[key]} {_OFFSET.sub('', rest)}" if key in paths else text
