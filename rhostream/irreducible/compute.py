"""Score every shard once: model > table > missing shards > scan > forward by fold > one part a shard.

The same command again computes only what is missing. A part depends on its shard and the model alone: chunks are cut
by ordinal, never by workers or by what else is in the list, so parts are byte-equal however often a job was killed.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhostream import storage
from rhostream.errors import MismatchError, NotFoundError, RhostreamError, StorageError, UsageError
from rhostream.irreducible.fit import named
from rhostream.irreducible.model import ILModel, load_il_model
from rhostream.irreducible.parts import Commits, PartBuilder, Scored, Summary, check_budget
from rhostream.selection.hardware import spare_cores, threads
from rhostream.storage import redact
from rhostream.stream.progress import Progress
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.tables import il
from rhostream.tables.il import PartFacts, TableInfo

LOG = logging.getLogger("rhostream")
Score = Callable[[Chunk, str], Scored]


def compute_il(shards: Iterable[str], il_model: str, out: str, *, workers: int = 0,
               keep: Mapping[str, str] | None = None, roots: Mapping[str, str] | None = None,
               max_bad_fraction: float = 0.01, fail_fast: bool = False, device: str | None = None) -> Summary:
    """Write the irreducible loss of every sample of `shards` into the table `out`, one part a shard.

    `keep`: {field of the json: bool | int | float | str} columns to keep. A bad sample is a row with a status, a bad
    shard is named in `Summary.bad_shards` and the others go on, unless `fail_fast`. Raises UsageError (settings,
    unwritable place), MismatchError (a table of another model), BudgetError (too many bad samples in a shard).
    """
    model = load_il_model(il_model)
    info = model.info
    table_info = TableInfo(kind="il", ingredients=info.ingredients(), classes=info.classes,
                           preprocess=info.preprocess, keep=dict(keep or {}), roots=dict(roots or {}),
                           model=info.figures(), places=il.places_of(shards, il_model))
    rule = info.rule
    settings = ScanSettings(preprocess=model.preprocess, decoder_name=info.decoder, classes=info.classes,
                            keep=table_info.keep, group_by=rule.group_by,
                            mark=None if rule.mode == "holdout" else rule)  # its mark is 0 for all
    scorer = Scorer(model, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    job = _Job(shards, out, table_info, settings, max_bad_fraction, fail_fast)
    if rule.mode == "folds" and not rule.group_by and not scorer.knows(name for _, name in job.shards):
        warnings.warn("none of these shards was seen by fit-il, whose folds depend on the shards' names; if they are "
                      "the same data in another place, name it with --root as it was then", stacklevel=2)
    return job.run(workers, scorer)


def index(shards: Iterable[str], out: str, *, workers: int = 0, keep: Mapping[str, str] | None = None,
          roots: Mapping[str, str] | None = None, max_bad_fraction: float = 0.01,
          fail_fast: bool = False) -> Summary:
    """The same table without il, predicted and fold, and without decoding an image; for runs that need no il.

    A damaged image is found by the trainer only. Raises as `compute_il`.
    """
    info = TableInfo(kind="index", keep=dict(keep or {}), roots=dict(roots or {}), places=il.places_of(shards))
    return _Job(shards, out, info, ScanSettings(keep=info.keep), max_bad_fraction, fail_fast).run(workers, None)


class Scorer:
    """The IL networks on a device: each scores the rows of its fold."""

    def __init__(self, model: ILModel, device: torch.device) -> None:
        self._info, self._device = model.info, device
        self._rule = model.info.rule
        self._normalize = model.preprocess.normalize
        self._networks = [_prepared(n, device) for n in model.networks]
        self._learned_from = frozenset(model.info.learned_from)
        self._halved = False

    def knows(self, names: Iterable[str]) -> bool:
        """Whether any of the shards was learned from."""
        return any(name in self._learned_from for name in names)

    def __call__(self, chunk: Chunk, name: str) -> Scored:
        """Loss (float32, nats) and predicted class of the usable rows of a chunk."""
        n = len(chunk)
        by_fold = self._rule.mode == "folds"
        scored = Scored(np.full(n, np.nan, np.float32), np.full(n, -1, np.int64),
                        chunk.mark if by_fold else np.zeros(n, np.int64), self._holdout(chunk, name))
        assert chunk.image is not None
        for number, network in enumerate(self._networks):
            rows = np.flatnonzero(chunk.ok & (scored.fold == number))
            if not len(rows):
                continue
            image = chunk.image if len(rows) == n else chunk.image[torch.from_numpy(rows)]
            loss, predicted = self._forward(network, image, torch.from_numpy(chunk.label[rows]))
            scored.il[rows], scored.predicted[rows] = loss.cpu().numpy(), predicted.cpu().numpy()
        return scored

    def _holdout(self, chunk: Chunk, name: str) -> npt.NDArray[np.bool_]:
        if self._rule.mode == "fraction":
            return np.equal(chunk.mark, 1)
        return np.full(len(chunk), self._rule.mode == "holdout" and name in self._learned_from)

    @torch.inference_mode()
    def _forward(self, network: nn.Module, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        try:
            logits = network(self._normalize(image.to(self._device))).float()
            return F.cross_entropy(logits, label.to(self._device), reduction="none"), logits.argmax(1)
        except torch.OutOfMemoryError:
            if len(image) == 1:
                raise
            if not self._halved:
                LOG.warning("the device is out of memory for %d images: scoring in halves", len(image))
                self._halved = True
        half = len(image) // 2
        parts = [self._forward(network, image[s], label[s]) for s in (slice(half), slice(half, None))]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _prepared(network: nn.Module, device: torch.device) -> nn.Module:
    # Pixels come as NHWC: channels-last needs no transpose and is the faster layout for convolutions.
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _ahead(messages: Iterator[Chunk | End]) -> Generator[Chunk | End]:
    """The same messages, the next one read and decoded in a thread while the caller scores this one."""
    with ThreadPoolExecutor(1, "rhostream-read") as pool:
        coming = pool.submit(next, messages, None)
        while (message := coming.result()) is not None:
            coming = pool.submit(next, messages, None)
            yield message


class _Job:
    """One run over a list of shards, for both kinds of table."""

    def __init__(self, shards: Iterable[str], out: str, info: TableInfo, settings: ScanSettings, max_bad: float,
                 fail_fast: bool) -> None:
        if not 0 <= max_bad <= 1:
            raise UsageError(f"--max-bad-fraction {max_bad}: expected a fraction between 0 and 1")
        self._out, self._settings, self._max_bad, self._fail_fast = storage.resolve(out), settings, max_bad, fail_fast
        self._started = time.monotonic()
        there = il.open_info(self._out) if storage.exists(storage.join(self._out, "_table.json")) else None
        if there is not None and set(info.roots) <= set(there.roots):
            # The table keeps the roots it was made with; data that moved is still the same shards.
            todays, info = {**there.roots, **info.roots}, replace(info, roots=there.roots)
        else:
            todays = info.roots
        self.shards = named(shards, todays)
        storage.probe_writable(self._out)
        self._info = il.make_or_match(self._out, info)

    def run(self, workers: int, score: Score | None) -> Summary:
        """Make the missing parts, with the cores that the workers leave for the model."""
        with threads(spare_cores(workers)):
            return self._run(workers, score)

    def _run(self, workers: int, score: Score | None) -> Summary:
        summary = Summary(shards=len(self.shards))
        missing = self._missing(summary)
        builders: dict[int, PartBuilder] = {}
        messages = scan(missing, self._settings, workers=workers)
        source = _ahead(messages) if score and not workers else messages
        title = "compute-il" if score else "index"
        with Progress(title, len(missing)) as progress, Commits() as commits, contextlib.closing(source):
            for message in source:
                url, name = missing[message.shard]
                builder = builders.setdefault(message.shard, PartBuilder(self._info, self._out, name, url))
                if isinstance(message, Chunk):
                    bad = builder.add(message, score(message, name) if score else None)
                    summary.scored += int(message.ok.sum()) if score else 0
                    progress.rows(len(message), bad)
                    continue
                del builders[message.shard]
                progress.shard()
                if message.error is not None:
                    self._bad_shard(summary, name, message.error)
                    continue
                check_budget(builder, name, message.samples_seen, summary, self._max_bad)
                if not message.samples_seen:
                    warnings.warn(f"shard {redact(name)} holds no sample; its part has no row", stacklevel=3)
                facts = builder.facts(message)
                commits.begin(builder, facts)
                summary.add(facts)
                summary.made += 1
        summary.seconds = time.monotonic() - self._started
        for name, why in summary.bad_shards.items():
            LOG.error("no part for %s: %s", redact(name), why)
        return summary

    def _missing(self, summary: Summary) -> list[tuple[str, str]]:
        """The shards without a part; parts that are there are checked against the table and their shard."""
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(self._present, self.shards))
        missing = []
        for shard, facts in zip(self.shards, found, strict=True):
            if facts is None:
                missing.append(shard)
            elif isinstance(facts, StorageError):
                self._bad_shard(summary, shard[1], facts)
            else:
                summary.add(facts)
                summary.present += 1
        if summary.present:
            LOG.info("%d of %d parts are there already", summary.present, summary.shards)
        return missing

    def _present(self, shard: tuple[str, str]) -> PartFacts | StorageError | None:
        url, name = shard
        part = il.part_url(self._out, name)
        try:
            facts = il.read_part_facts(part)
        except NotFoundError:
            return None
        if facts.fingerprint != self._info.fingerprint:
            raise MismatchError(f"{redact(part)} has fingerprint {facts.fingerprint}, its table has "
                                f"{self._info.fingerprint}: `rhostream verify --repair` makes it again")
        try:
            il.require_unchanged(url, name, facts)
        except StorageError as exc:
            return exc
        return facts

    def _bad_shard(self, summary: Summary, name: str, error: RhostreamError) -> None:
        if self._fail_fast:
            raise error
        LOG.warning("%s", error)
        summary.bad_shards[name] = str(error)
