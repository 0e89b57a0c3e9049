"""The same buffers in every way to score them: full and cheap views, bfloat16, chunks, il alone, a proxy.

Streams of equal seed plan the same samples whatever their image size, so the views are the product's own reading and
decoding, not copies. The target's weights are never changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from rhostream import models, storage
from rhostream.advisor import agreement, measure
from rhostream.advisor.agreement import FACTORS, Agreement, Scores
from rhostream.advisor.question import Question
from rhostream.candidates import Candidates
from rhostream.errors import UsageError
from rhostream.randomness import torch_seed
from rhostream.selection.hardware import bf16_supported
from rhostream.selection.proxy import Proxy
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader
from rhostream.stream.open import open_stream
from rhostream.tables import il as il_table

PROBED = 20  # images whose stored size is looked at


@dataclass
class _Way:
    """A way to score and the seconds it took."""

    name: str
    size: int
    selector: Selector | None  # None: il alone
    seconds: float = 0.0

    def __call__(self, candidates: Candidates, device: torch.device) -> Scores:
        """(B,) scores, NaN for what isn't a candidate."""
        if self.selector is None:
            score = np.full(len(candidates), np.nan, np.float32)
            rows = candidates.candidate_rows
            score[rows] = -candidates.il.numpy()[rows]
            return score
        start = time.perf_counter()
        score = self.selector(candidates.to(device)).score  # on the host: the device is done
        self.seconds += time.perf_counter() - start
        return score


class Views:
    """The streams of one question and the models for them."""

    def __init__(self, question: Question, device: torch.device, seed: int, roots: Mapping[str, str] | None) -> None:
        self.q, self.device, self.seed, self.roots = question, device, seed, roots
        self.notes: list[str] = []
        full = self._open(question.image_size)
        self.full, self.preprocess, table = full, full.stream.preprocess, full.stream.table
        self.size = self.preprocess.side  # 0: there are no views
        classes = question.classes or table.info.classes
        if classes is None:
            raise UsageError(f"{storage.redact(table.url)} doesn't say how many classes there are")
        self.classes = classes

    def _open(self, size: int | None) -> Loader:
        q = self.q
        return open_stream(
            q.shards,
            q.il,
            buffer_size=q.buffer_size,
            seed=self.seed,
            passes=None,
            image_size=size or None,
            channels=q.channels,
            resize=q.resize,
            decoder=q.decoder,
            missing_il="skip",
            keep_holdout=q.keep_holdout,
            roots=self.roots,
            tokenizer=q.tokenizer,
            text_length=q.text_length,
        )

    def network(self, name: str) -> nn.Module:
        """The model of that name for the full view, the same one each time."""
        with torch.random.fork_rng():
            torch.manual_seed(torch_seed(self.seed, "views"))
            return measure.on(
                self.device, models.build(name, classes=self.classes, **self.preprocess.model_arguments())
            )

    def checked(self, network: nn.Module, asked: set[int]) -> list[int]:
        """The sizes to look at, largest first; half and a quarter unless asked for. Raises UsageError for one that
        can't be."""
        if not self.size:
            if asked:
                raise UsageError(
                    f"--view-size {min(asked)}: these samples are {self.preprocess.holds}, which has no smaller view"
                )
            return []
        refused = {
            size: why for size in asked or {self.size // 2, self.size // 4} if (why := self._refusal(network, size))
        }
        if asked and refused:
            raise UsageError("; ".join(f"--view-size {size}: {why}" for size, why in sorted(refused.items())))
        self.notes += [f"no view of {size} px: {why}" for size, why in sorted(refused.items())]
        return sorted((asked or {self.size // 2, self.size // 4}) - set(refused), reverse=True)

    def _refusal(self, network: nn.Module, size: int) -> str:
        if size < 1:
            return "expected 1 pixel or more"
        if size >= self.size:
            return f"not smaller than the model's {self.size} pixels"
        stored = self._stored_side()
        if stored and size > stored:
            return f"larger than the images as stored ({stored} pixels)"
        if not measure.takes(network, self.preprocess, size, self.device):
            return f"{self.q.model} takes only {self.size} pixels"
        return ""

    def _stored_side(self) -> int:
        """The largest side that a view can be made of, of a few images of the first shard; 0 when none can be read."""
        table = self.full.stream.table
        part = il_table.read_part(il_table.part_url(table.url, table.names[0]), members=table.info.members)
        with storage.open_reader(table.shards[0]) as reader:
            offset, length = part.offset[0].tolist(), part.size[0].tolist()
            sizes = [
                self.preprocess.probe(partial(reader.pread, offset=offset[row]), length[row])[1]
                for row in np.flatnonzero(part.usable)[:PROBED].tolist()
            ]
        return self.preprocess.source_side([seen for seen in sizes if seen])

    def taught(self, proxy: nn.Module, network: nn.Module, batches: int) -> nn.Module:
        """The proxy, having learned from what the target keeps of the next buffers, as in a run."""
        small, selector = Proxy(proxy), self._selector(network)
        learned = 0
        for buffer in islice(self.full, batches):
            kept = selector(buffer.to(self.device))
            if kept.input is None or len(kept) < 2:
                continue
            small.learn(kept.input, kept.label)
            learned += 1
        self.full.consumed()
        self.notes.append(f"the proxy has learned from {learned} batches here; in a run it learns from the first on")
        return proxy

    def compare(
        self, network: nn.Module, sizes: list[int], proxy: tuple[str, nn.Module], buffers: int
    ) -> tuple[Agreement, ...]:
        """Score the next buffers in every way and hold each against the full view."""
        ways = self._ways(network, sizes, proxy)
        streams = {size: _Timed(self.full if size == self.size else self._behind(size)) for size in (self.size, *sizes)}
        pairs: dict[str, list[tuple[Scores, Scores]]] = {way.name: [] for way in ways}
        for number in range(buffers + 1):
            at_hand = {size: next(stream) for size, stream in streams.items()}
            scores = [way(at_hand[way.size], self.device) for way in ways]
            if number:
                for way, score in zip(ways, scores, strict=True):
                    pairs[way.name].append((scores[0], score))
                continue
            clocks: list[_Timed | _Way] = [*streams.values(), *ways]
            for clock in clocks:  # the first buffer opened shards and woke threads
                clock.seconds = 0.0
        return tuple(self._agreement(way, pairs[way.name], ways[0], streams) for way in ways[1:])

    def _ways(self, network: nn.Module, sizes: list[int], proxy: tuple[str, nn.Module]) -> list[_Way]:
        half = self.q.buffer_size // 2
        ways = [_Way("full view, float32", self.size, self._selector(network))]
        ways += [_Way(f"view {size} px", size, self._selector(network)) for size in sizes]
        if bf16_supported(self.device):
            ways.append(_Way("bfloat16", self.size, self._selector(network, autocast=torch.bfloat16)))
        else:
            self.notes.append(f"{self.device} doesn't compute in bfloat16")
        if half >= self.q.batch_size:
            ways.append(_Way(f"chunks of {half}", self.size, self._selector(network, chunk=half)))
        return [
            *ways,
            _Way("il alone", self.size, None),
            _Way(f"proxy {proxy[0]}", self.size, self._selector(proxy[1])),
        ]

    def _behind(self, size: int) -> Loader:
        """The stream of a view, where the full one stands."""
        loader = self._open(size)
        loader.load_state_dict(self.full.state_dict())
        return loader

    def _selector(self, network: nn.Module, **how: Any) -> Selector:
        return Selector(
            network, self.q.rule, self.q.batch_size, loss_cap=self.q.loss_cap, batch_norm=self.q.batch_norm, **how
        )

    def _agreement(
        self, way: _Way, pairs: list[tuple[Scores, Scores]], full: _Way, streams: Mapping[int, _Timed]
    ) -> Agreement:
        kept, whole = self.q.batch_size, streams[full.size].seconds
        decode = streams[way.size].seconds if way.selector else 0.0  # il alone chooses before anything is read
        factor = agreement.shortlist_factor(pairs, kept)
        # What is on the list is forwarded once more, and read once more where it wasn't decoded in full.
        again = full.seconds + (0.0 if way.selector and way.size == full.size else whole)
        rhos = [r for one, other in pairs if not math.isnan(r := agreement.spearman(one, other))]
        return Agreement(
            way=way.name, spearman=float(np.mean(rhos)) if rhos else None,
            found={k: _or_none(agreement.mean_share(pairs, kept, k)) for k in FACTORS},
            shortlist=factor, decode_ratio=decode / whole, forward_ratio=way.seconds / full.seconds,
            cost_ratio=(decode + way.seconds) / (whole + full.seconds),
            cascade_ratio=None if factor is None else (
                decode + way.seconds + factor * kept / self.q.buffer_size * again) / (whole + full.seconds),
        )  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


class _Timed(Iterator[Candidates]):
    """The buffers of a stream, and the seconds that reading and decoding them took."""

    def __init__(self, loader: Loader) -> None:
        self._buffers, self.seconds = iter(loader), 0.0

    def __next__(self) -> Candidates:
        start = time.perf_counter()
        buffer = next(self._buffers)
        self.seconds += time.perf_counter() - start
        return buffer
