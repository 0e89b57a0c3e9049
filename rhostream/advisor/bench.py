"""Every part of a step timed inside one budget of seconds: what an estimate can't do without first, then the rest.

scores, training, decode, log > IL model and proxy > loader > bfloat16, chunks > views > training with one thread

What the seconds don't reach is named. Of it the IL model, the proxy and the loader are reckoned from what was
measured; ways to score that are choices (bfloat16, chunks, views) are left out of the answer.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from rhostream import models
from rhostream.advisor import measure
from rhostream.advisor.measure import FIRST, Budget
from rhostream.advisor.predict import Measured, Setting
from rhostream.advisor.samples import Samples, some
from rhostream.errors import UsageError, users_code
from rhostream.randomness import torch_seed
from rhostream.runs.macs import macs_per_sample
from rhostream.samples.kind import Kind
from rhostream.selection.hardware import bf16_supported, cores
from rhostream.selection.hardware import threads as in_threads
from rhostream.selection.selector import Selector
from rhostream.stream.dataset import PREFETCH
from rhostream.stream.open import open_stream
from rhostream.stream.uniform_choice import UniformChoice
from rhostream.tables import il as il_table

FIT_BATCH = 64  # fit-il's own default
ASSUMED_HAND_OVER = 0.05  # of the decode, where no table is given: slots that are reused cost 3 to 8 %


class Bench:
    """Everything that is timed for one estimate; `notes` collects what the reader must know of the figures."""

    def __init__(
        self,
        preprocess: Kind,
        classes: int,
        samples: Samples,
        decoder_name: str,
        device: torch.device,
        setting: Setting,
        budget: Budget,
    ) -> None:
        self.preprocess, self.classes, self.device, self.setting = preprocess, classes, device, setting
        self.decoder_name, self.budget, self.samples = decoder_name, budget, samples
        self.notes: list[str] = []
        fields, good = measure.decode_all(samples.image, preprocess, budget.share)
        if not good:
            raise UsageError(f"none of {len(samples.image)} samples could be decoded with {decoder_name}")
        label = [samples.label[row] % classes for row in good]
        self.images = [samples.image[row] for row in good]
        self.buffer = measure.candidates_of(fields, label, preprocess, setting.buffer_size)
        x = self.buffer.input
        if not isinstance(x, torch.Tensor):
            raise UsageError(f"estimate measures models of one input, and these samples are {preprocess.holds}")
        self.x, self.label = x.to(device), self.buffer.label.to(device)
        self.batch_norm = False
        self.reference: tuple[torch.nn.Module, torch.Tensor] | None = None  # and its inputs: the IL model isn't fitted
        self.il_size: int | None = None  # pixels that the IL model sees; None: as many as the model
        self.il_macs: int | None = None  # of an IL model that is there
        self._first_notes()

    def _first_notes(self) -> None:
        if self.samples.failed:
            name, why = next(iter(self.samples.failed.items()))
            self.notes.append(
                f"{len(self.samples.failed)} of the shards looked into can't be used, first {name}: {why}"
            )
        load = os.getloadavg()[0]
        if load > 0.5 * cores():
            self.notes.append(
                f"the machine is busy with other work (load {load:.1f} on {cores()} cores): these "
                "are the figures of a shared machine"
            )
        slots = max(self.setting.workers, 1) * (PREFETCH + 2) * self.buffer.fields.nbytes  # type: ignore[union-attr]
        if self.setting.workers and slots > 1 << 30:
            self.notes.append(
                f"the loader's slots take {slots / 2**30:.1f} GiB of shared memory with "
                f"{self.setting.workers} workers: see `rhostream doctor` for what /dev/shm has"
            )

    def measure(
        self, name: str, il_name: str, proxy_name: str, sizes: list[int], table: il_table.Table | None
    ) -> Measured:
        """Time every part with as many threads of torch as serve the model; the loader with a table only."""
        share, model = self.budget.share, self._build(name)
        self.batch_norm = measure.has_batch_norm(model)
        score, slow_score, threads = self._threads(model, share)
        with in_threads(threads):
            train = self._train(model, share)
            m = Measured(
                cores=cores(), on_cpu=self.device.type == "cpu", read=self.samples.read, walk=self.samples.walk,
                decode=measure.decode_seconds(self.images, self.preprocess, share),
                hand_over=0.0, join=0.0, log=measure.log_seconds(self.buffer, share), score=score, train=train,
                proxy=0.0, score_slowdown=slow_score, macs=self._macs(model, self.x),
                parameters=sum(p.numel() for p in model.parameters()),
                row_bytes=sum(spec.nbytes for spec in self.preprocess.fields().values()),
            )  # fmt: skip
            m = self._small_models(m, il_name, proxy_name, share)
            m = self._with_loader(m, table)
            m = replace(m, **self._variants(model, score, share), **self._views(model, name, sizes, score, share))
        if slow_score > 1:
            slow_train = slow_score
            if self.budget.reaches("training with one thread", FIRST * slow_score * train / self.setting.batch_size):
                with in_threads(1):
                    slow_train = self._train(model, share) / train
            m = replace(m, train_slowdown=slow_train)
        if self.budget.unmeasured:
            *others, last = self.budget.unmeasured
            listed = f"{', '.join(others)} and {last}" if others else last
            self.notes.append(f"the seconds were over before {listed}: not measured; give more with --seconds")
        return m

    def _threads(self, model: torch.nn.Module, share: float) -> tuple[float, float, int]:
        """Seconds a score, the slowdown of one thread, and the threads to time with.

        The slowdown is 1 where more threads don't help: a tiny model, or a machine busy otherwise.
        """
        threads = torch.get_num_threads()
        every = self._score(model, share)
        if self.device.type != "cpu":
            return every, 1.0, 1
        if threads == 1 or not self.budget.reaches("scoring with one thread", FIRST * every * threads):
            return every, 1.0, threads
        with in_threads(1):
            one = self._score(model, share)
        if one > 1.05 * every:
            return every, one / every, threads
        self.notes.append(
            f"one thread scores as fast as {threads} here: the model is small, or the "
            "cores are busy with other work; everything was timed with one"
        )
        return one, 1.0, 1

    def _small_models(self, m: Measured, il_name: str, proxy_name: str, share: float) -> Measured:
        """The IL model and the proxy; by their multiply-adds against the target's where the seconds are over."""
        (il_model, x), proxy = self.reference or self._il_model(il_name), self._build(proxy_name)
        il_macs, proxy_macs = self._macs(il_model, x), self._macs(proxy, self.x)
        il_forward, proxy_forward = (m.score * macs / m.macs for macs in (il_macs, proxy_macs))
        il_train = 3 * il_forward
        what = f"the {'reference' if self.reference else 'IL model'} {il_name}"
        if self.budget.reaches(what, FIRST * il_train):
            il_forward = measure.forward_seconds(il_model, x, share / 2)
            if not self.reference:
                il_train = measure.train_seconds(il_model, x[:FIT_BATCH], self.label[:FIT_BATCH], share / 2)[0]
        if self.budget.reaches(f"the proxy {proxy_name}", FIRST * proxy_forward):
            proxy_forward = measure.forward_seconds(proxy, self.x, share / 3)
        if self.il_macs:  # it saw other pixels than the model does
            there = self.il_macs / il_macs
            il_macs, il_forward, il_train = self.il_macs, il_forward * there, il_train * there
        return replace(
            m, proxy=proxy_forward, il_forward=il_forward, il_train=il_train, il_macs=il_macs, proxy_macs=proxy_macs
        )

    def _variants(self, model: torch.nn.Module, score: float, share: float) -> dict[str, Any]:
        """The same scores in bfloat16 and in two chunks (batch norm then sees half a buffer)."""
        chunk, chunked, bf16 = max(self.setting.batch_size, self.setting.buffer_size // 2), None, None
        if bf16_supported(self.device) and self.budget.reaches("bfloat16", FIRST * score):
            bf16 = self._score(model, share, autocast=torch.bfloat16)
        if chunk < self.setting.buffer_size and self.budget.reaches("two chunks", FIRST * score):
            chunked = self._score(model, share, chunk=chunk)
        return {"score_chunked": chunked, "score_bf16": bf16}

    def _views(self, model: torch.nn.Module, name: str, sizes: list[int], score: float, share: float) -> dict[str, Any]:
        """Decode and forward at cheap sizes; forwards only where the model takes them."""
        if not sizes:
            return {}
        if not self.budget.reaches("views", FIRST * score):
            return {}
        taken = [v for v in sizes if measure.takes(model, self.preprocess, v, self.device)]
        if len(taken) < len(sizes):
            left = " or ".join(str(v) for v in sizes if v not in taken)
            self.notes.append(f"{name} takes only {self.preprocess.side} pixels: no view of {left} px for it")
        decode = {v: measure.decode_seconds(self.images, self.preprocess, share / 2, v) for v in sizes}
        forward = measure.forward_seconds(model, self.x, share / 2) if taken else 0.0
        # Only the forward shrinks with the view; copy, normalisation and choice are charged as for the full size.
        rest, view_score, view_macs = max(score - forward, 0.0), dict[int, float](), dict[int, int]()
        for v in taken:
            if self.budget.reaches(f"a view of {v} px", FIRST * score):
                x = self._view(v)
                view_macs[v] = macs_per_sample(model, x[:1])
                view_score[v] = rest + measure.forward_seconds(model, x, share / 2)
        return {"view_decode": decode, "view_macs": view_macs, "view_score": view_score}

    def _train(self, model: torch.nn.Module, share: float) -> float:
        """Seconds of a whole step of n_b."""
        n_b = self.setting.batch_size
        took, n = measure.train_seconds(model, self.x[:n_b], self.label[:n_b], share)
        if n < n_b:
            self._slow(f"the training step was measured on {n} of {n_b} samples")
        return took * n_b

    def _with_loader(self, m: Measured, table: il_table.Table | None) -> Measured:
        """Its own share, from short streams without workers over a few shards of the table.

        One stream decodes whole buffers, the other a few samples of each: the difference is what a decoded sample
        costs, the rest what a planned one does. Without a table, or the seconds, a share of the decode is assumed.
        """
        assumed = replace(m, hand_over=ASSUMED_HAND_OVER * m.decode)
        taken = f"the loader's hand-over is taken as {ASSUMED_HAND_OVER:.0%} of the decode"
        if table is None:
            self.notes.append(f"{taken}; with --il it is measured")
            return assumed
        every = list(zip(table.shards, table.counts.tolist(), strict=True))
        # Of the shards that were walked, which a store has sent already.
        urls, counts = zip(*(some([s for s in every if s[0] in self.samples.urls], 8) or every[:1]), strict=True)
        room = int(self.budget.share / 4 / max(m.read + m.decode, 1e-9))
        n = min(self.setting.buffer_size, sum(counts), max(room, FIRST))
        few = max(1, min(self.setting.batch_size, n // 4))
        if n <= few or not self.budget.reaches("the loader", n * (m.read + m.decode)):
            self.notes.append(taken)
            return assumed
        whole, part = (
            self._stream_seconds(list(urls), table.url, n, choice) for choice in (None, UniformChoice(few, seed=0))
        )
        decoded = max(whole - part, 0.0) / (n - few)
        return replace(m, hand_over=max(decoded - m.read - m.decode, 0.0), join=max(whole / n - decoded, 0.0))

    def _stream_seconds(self, urls: list[str], table: str, n: int, choice: UniformChoice | None) -> float:
        """Of one buffer."""
        buffers = iter(
            open_stream(
                urls,
                table,
                buffer_size=n,
                passes=None,
                decoder=self.decoder_name,
                needs_il=False,
                keep_holdout=True,
                prefilter=choice,
                task=self.preprocess.task,
                **self.preprocess.asked(),
            )
        )
        return measure.seconds_of(lambda: next(buffers), self.budget.share / 2)

    def _il_model(self, name: str) -> tuple[torch.nn.Module, Any]:
        """The IL model, and what it is called with: the samples, or as many of the size that it sees."""
        if self.il_size is None:
            return self._build(name), self.x
        return self._build(name, image_size=self.il_size), self._view(self.il_size)

    def _build(self, name: str, **sized: Any) -> torch.nn.Module:
        torch.manual_seed(torch_seed("estimate"))
        return measure.on(
            self.device,
            models.build(
                name,
                classes=self.classes,
                initial=False,  # time needs no weights
                **{**self.preprocess.model_arguments(), **sized},
            ),
        )

    def _score(self, model: torch.nn.Module, share: float, **how: Any) -> float:
        selector = Selector(model, "rho", self.setting.batch_size, **how)
        took, n = measure.score_seconds(selector, self.buffer, self.device, share)
        if n < self.setting.buffer_size:
            self._slow(f"a scoring forward was measured on {n} of {self.setting.buffer_size} samples")
        return took

    def _slow(self, what: str) -> None:
        if not any(note.startswith(what[:20]) for note in self.notes):
            self.notes.append(f"{what}: a slow model, give --seconds for more")

    def _view(self, size: int) -> torch.Tensor:
        shape = (len(self.x), self.x.shape[1], size, size)
        return torch.rand(shape, device=self.device).contiguous(memory_format=torch.channels_last)

    def _macs(self, model: torch.nn.Module, x: torch.Tensor) -> int:
        with users_code(f"the forward of {type(model).__name__} on a batch of shape {tuple(x[:1].shape)}"):
            return max(1, macs_per_sample(model, x[:1]))
