"""`rhostream estimate`: measure the parts of a step on this machine, then say what a run will cost.

shards > samples > measured seconds > advice (pure) > text
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rhostream import models, storage
from rhostream.advisor import measure
from rhostream.advisor.advice import Advice, advise
from rhostream.advisor.environment import cpu_name
from rhostream.advisor.predict import ILCost, Measured, Setting
from rhostream.advisor.samples import Samples, draw, preprocess_for, some
from rhostream.errors import UntrustedCodeError, UsageError, users_code
from rhostream.randomness import torch_seed
from rhostream.runs.doubts import Plan
from rhostream.runs.macs import macs_per_sample
from rhostream.selection.hardware import bf16_supported, cores, device_of
from rhostream.selection.hardware import threads as in_threads
from rhostream.selection.selector import Selector
from rhostream.stream.dataset import PREFETCH
from rhostream.stream.decode import Preprocess
from rhostream.stream.inputs import AnyPreprocess, decoder_for
from rhostream.stream.join import UniformChoice
from rhostream.stream.open import open_stream
from rhostream.stream.plan import buffers_in, choose_lanes
from rhostream.tables import il as il_table

PROXY = {"image": "mlp-64", "label": "text-bag", "language": "text-lm"}  # by what is learned of an image or a text
SMALL = {**PROXY, "image": "small-cnn"}
SHARES = 18  # of the seconds granted: one a measurement, and what trials and building take
HELD = 512  # samples at most that are kept in memory as bytes
ASSUMED_HAND_OVER = 0.05  # of the decode, where no table is given: slots that are reused cost 3 to 8 %
FIT_BATCH, FIT_SAMPLES, FIT_EPOCHS, FIT_CHECK, FIT_FOLDS = 64, 100_000, 5, 10_000, 2  # fit-il's own defaults


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was measured and what follows; `as_json` holds all of it."""

    model: str
    il_model: str
    proxy: str
    device: str
    machine: str  # the processor's or the GPU's name
    decoder: str
    image_size: int  # 0 of text
    channels: int
    input: str  # a sample in words
    classes: int
    batch_norm: bool  # scores depend on what else is in the forward
    il_there: bool  # the table that was given holds an il: that cost is paid
    counted: bool  # samples are a table's count, not a guess from sizes
    setting: Setting
    measured: Measured
    il: ILCost
    advice: Advice
    notes: tuple[str, ...]
    seconds: float  # that the measuring took

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def estimate(
    shards: str | Iterable[str],
    *,
    model: str = "mlp",
    il: str | None = None,
    buffer_size: int = 320,
    batch_size: int = 32,
    workers: int = 0,
    image_size: int | None = None,
    classes: int | None = None,
    device: str = "auto",
    il_model: str | None = None,
    steps: int | None = None,
    view_sizes: Iterable[int] = (),
    band: tuple[float, float] = (0.2, 0.9),
    shortlist: int = 4,
    decoder_name: str = "auto",
    seconds: float = 45.0,
    roots: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    text_length: int | None = None,
    task: str | None = None,
    channels: int | None = None,
    resize: str | None = None,
) -> Estimate:
    """Measure for about `seconds` and predict what selection will cost with this model on these shards.

    `il`: a table of compute-il or index; with it samples are counted and the loader itself is measured. `steps`: of
    the baseline run that the IL is charged to (default: one pass over everything). `band` are quantiles of il.
    Nothing is written but a log of a few thousand rows in a temporary folder. Raises UsageError and its kin.
    """
    started = time.perf_counter()
    _check(buffer_size, batch_size, workers, seconds, steps, band, shortlist)
    place = device_of(device)
    shards, roots = storage.listed(shards), il_table.checked_roots(roots)
    table = None
    if il is not None:
        table = il_table.open_table(il, storage.expand(shards), roots, allow_missing=True)
        if not table.names:
            raise UsageError(f"{storage.redact(il)} has no part for any of these shards; leave --il out")
    given = None if tokenizer is None else "tokens" if tokenizer.startswith("ids:") else "text"
    task = task or models.task_of(model)
    samples = draw(shards, min(buffer_size, HELD), table, 0.1 * seconds, given, task == "language")
    preprocess = preprocess_for(samples, table, image_size, tokenizer, text_length, task, channels, resize)
    decoder_name = decoder_for(preprocess, decoder_name)[0]
    image = preprocess if isinstance(preprocess, Preprocess) else None
    if image is None and (image_size or channels or resize or (view_sizes := list(view_sizes))):
        raise UsageError("--image-size, --resize and --view-size are for images, and these samples are text")
    sizes = _views(view_sizes, image.image_size) if image else []
    classes = classes or (table.info.classes if table else None) or max(samples.label) + 1
    setting = Setting(
        buffer_size=buffer_size,
        batch_size=batch_size,
        samples=samples.total,
        workers=workers,
        steps=steps,
        band=band,
        shortlist=shortlist,
    )
    known = table.info.model if table else {}
    il_name = il_model or known.get("architecture") or SMALL[preprocess.task]
    UntrustedCodeError.unless_named(str(il_name), il_model, storage.redact(il or ""), "--il-model")
    bench = _Bench(preprocess, classes, samples, decoder_name, place, setting, seconds)
    measured = bench.measure(model, il_name, sizes)
    if table is not None:
        measured = bench.with_loader(measured, table)
    cost = _il_cost(samples.total, known if il_model in (None, known.get("architecture")) else {}, table)
    return Estimate(
        model=model, il_model=il_name, proxy=PROXY[preprocess.task], device=str(place), decoder=decoder_name,
        machine=torch.cuda.get_device_name(place) if place.type == "cuda" else cpu_name(),
        image_size=image.image_size if image else 0, channels=image.channels if image else 0, input=preprocess.says,
        classes=classes, batch_norm=bench.batch_norm,
        il_there=table is not None and table.info.kind == "il", counted=samples.counted, setting=setting,
        measured=measured, il=cost, advice=advise(measured, setting, cost),
        notes=(*bench.notes, *(setting_doubts(setting) if samples.counted else ())),
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def setting_doubts(setting: Setting) -> list[str]:
    """What makes it doubtful that selection pays with buffers of this size, whatever a step costs."""
    n_B, lanes = setting.buffer_size, choose_lanes(setting.buffer_size)
    return Plan(
        samples=setting.samples,
        buffer_size=n_B,
        batch_size=setting.batch_size,
        lanes=lanes,
        buffers=buffers_in(setting.samples, n_B, lanes),
        last_step=None,
        scores=True,
    ).doubts()


def parse_band(text: str) -> tuple[float, float]:
    """`20%:90%` as (0.2, 0.9). Raises UsageError; nats can't be priced without knowing how il is spread."""
    match = re.fullmatch(r"([\d.]+)%:([\d.]+)%", text.strip())
    try:
        assert match is not None
        return float(match[1]) / 100, float(match[2]) / 100
    except (AssertionError, ValueError) as exc:
        raise UsageError(f"--band {text!r}: expected quantiles LO%:HI%, as 20%:90%") from exc


def _check(
    buffer_size: int,
    batch_size: int,
    workers: int,
    seconds: float,
    steps: int | None,
    band: tuple[float, float],
    shortlist: int,
) -> None:
    if not 1 <= batch_size <= buffer_size:
        raise UsageError(f"--batch-size {batch_size} of --buffer-size {buffer_size}: expected 1 <= n_b <= n_B")
    if workers < 0 or seconds <= 0 or (steps is not None and steps < 1) or shortlist < 2:
        raise UsageError("--workers must be 0 or more, --seconds above 0, --steps at least 1, --shortlist 2 or more")
    if not 0 <= band[0] < band[1] <= 1:
        raise UsageError(f"--band {band[0]:.0%}:{band[1]:.0%}: expected LO:HI with 0% <= LO < HI <= 100%")


def _views(asked: Iterable[int], full: int) -> list[int]:
    """Sizes of cheap views, largest first; half and a quarter of the full size unless asked for."""
    asked = set(asked)
    sizes = sorted(asked or {full // 2, full // 4}, reverse=True)
    for size in sizes:
        if asked and not 1 <= size < full:
            raise UsageError(f"--view-size {size}: expected 1 or more and less than the full {full} pixels")
    return [size for size in sizes if asked or 8 <= size < full]


def _il_cost(samples: int, known: Mapping[str, Any], table: il_table.Table | None) -> ILCost:
    """As the table's model says of itself, else as fit-il's defaults would have it on so many samples."""
    scored = table.il_rows if table else 0
    pooled = min(samples, FIT_SAMPLES)
    folds = int(known.get("folds", FIT_FOLDS))
    trained = int(known["fit_samples"]) if "fit_samples" in known else pooled * FIT_EPOCHS
    looks = (2 * FIT_EPOCHS + 2) * min(folds * FIT_CHECK, pooled)  # twice an epoch, then at what is measured
    return ILCost(
        trained=trained, checked=int(known.get("checked_samples", looks)), pooled=pooled, scored=scored or samples
    )


class _Bench:
    """Everything that is timed for one estimate; `notes` collects what the reader must know of the figures."""

    def __init__(
        self,
        preprocess: AnyPreprocess,
        classes: int,
        samples: Samples,
        decoder_name: str,
        device: torch.device,
        setting: Setting,
        seconds: float,
    ) -> None:
        self.preprocess, self.classes, self.device, self.setting = preprocess, classes, device, setting
        self.decoder_name, self.seconds, self.samples = decoder_name, seconds, samples
        self.notes: list[str] = []
        pixels, good = measure.decode_all(samples.image, preprocess, decoder_name)
        if not good:
            raise UsageError(f"none of {len(samples.image)} samples could be decoded with {decoder_name}")
        label = [samples.label[row] % classes for row in good]
        self.images = [samples.image[row] for row in good]
        self.buffer = measure.candidates_of(pixels, label, preprocess, setting.buffer_size)
        self.x, self.label = self.buffer.input.to(device), self.buffer.label.to(device)
        self.batch_norm = False
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
        slots = max(self.setting.workers, 1) * (PREFETCH + 2) * self.buffer.image.nbytes  # type: ignore[union-attr]
        if self.setting.workers and slots > 1 << 30:
            self.notes.append(
                f"the loader's slots take {slots / 2**30:.1f} GiB of shared memory with "
                f"{self.setting.workers} workers: see `rhostream doctor` for what /dev/shm has"
            )

    def measure(self, name: str, il_name: str, sizes: list[int]) -> Measured:
        """Time every part but the loader, with as many threads of torch as serve the model."""
        share, threads = self.seconds / SHARES, torch.get_num_threads()
        model, proxy, il_model = (self._build(one) for one in (name, PROXY[self.preprocess.task], il_name))
        self.batch_norm = measure.has_batch_norm(model)
        slow_score = self._slowdown(model, share) if self.device.type == "cpu" and threads > 1 else 1.0
        with in_threads(threads if slow_score > 1 else 1):
            score, train = self._score(model, share), self._train(model, share)
            found = {
                "score": score,
                "train": train,
                "proxy": measure.forward_seconds(proxy, self.x, share / 3),
                **self._variants(model, share),
                **self._views(model, name, sizes, score, share),
                "il_forward": measure.forward_seconds(il_model, self.x, share / 2),
                "il_train": measure.train_seconds(il_model, self.x[:FIT_BATCH], self.label[:FIT_BATCH], share / 2)[0],
            }
        slow_train = 1.0
        if slow_score > 1:
            with in_threads(1):
                slow_train = self._train(model, share) / train
        decode = measure.decode_seconds(self.images, self.preprocess, self.decoder_name, share)
        return Measured(
            cores=cores(), on_cpu=self.device.type == "cpu", read=self.samples.read, walk=self.samples.walk,
            decode=decode, hand_over=self._assumed(decode), join=0.0, log=measure.log_seconds(self.buffer),
            score_slowdown=slow_score, train_slowdown=slow_train, macs=self._macs(model),
            proxy_macs=self._macs(proxy), il_macs=self._macs(il_model), **found,
        )  # fmt: skip

    def _slowdown(self, model: torch.nn.Module, share: float) -> float:
        """Of scoring with one thread; 1 where more threads don't help: a tiny model, or a machine busy otherwise."""
        every = self._score(model, share)
        with in_threads(1):
            one = self._score(model, share)
        if one > 1.05 * every:
            return one / every
        self.notes.append(
            f"one thread scores as fast as {torch.get_num_threads()} here: the model is small, or the "
            "cores are busy with other work; everything was timed with one"
        )
        return 1.0

    def _variants(self, model: torch.nn.Module, share: float) -> dict[str, Any]:
        """The same scores in two chunks (batch norm then sees half a buffer) and in bfloat16."""
        chunk = max(self.setting.batch_size, self.setting.buffer_size // 2)
        chunked = self._score(model, share, chunk=chunk) if chunk < self.setting.buffer_size else None
        bf16 = self._score(model, share, autocast=torch.bfloat16) if bf16_supported(self.device) else None
        return {"score_chunked": chunked, "score_bf16": bf16}

    def _views(self, model: torch.nn.Module, name: str, sizes: list[int], score: float, share: float) -> dict[str, Any]:
        """Decode and forward at cheap sizes; forwards only where the model takes them."""
        if not isinstance(self.preprocess, Preprocess):
            return {}
        full, channels = self.preprocess.image_size, self.preprocess.channels
        taken = [v for v in sizes if measure.takes(model, v, channels, self.device)]
        if len(taken) < len(sizes):
            left = " or ".join(str(v) for v in sizes if v not in taken)
            self.notes.append(f"{name} takes only {full} pixels: no view of {left} px for it")
        decode = {
            v: measure.decode_seconds(self.images, replace(self.preprocess, image_size=v), self.decoder_name, share / 2)
            for v in sizes
        }
        inputs = {v: self._view(v) for v in taken}
        forward = measure.forward_seconds(model, self.x, share / 2) if taken else 0.0
        # Only the forward shrinks with the view; copy, normalisation and choice are charged as for the full size.
        rest = max(score - forward, 0.0)
        return {
            "view_decode": decode, "view_macs": {v: macs_per_sample(model, x[:1]) for v, x in inputs.items()},
            "view_score": {v: rest + measure.forward_seconds(model, x, share / 2) for v, x in inputs.items()},
        }  # fmt: skip

    def _train(self, model: torch.nn.Module, share: float) -> float:
        """Seconds of a whole step of n_b."""
        n_b = self.setting.batch_size
        took, n = measure.train_seconds(model, self.x[:n_b], self.label[:n_b], share)
        if n < n_b:
            self._slow(f"the training step was measured on {n} of {n_b} samples")
        return took * n_b

    def with_loader(self, m: Measured, table: il_table.Table) -> Measured:
        """Its own share, from short streams without workers over a few shards of the table.

        One stream decodes whole buffers, the other a few samples of each: the difference is what a decoded sample
        costs, the rest what a planned one does.
        """
        urls, counts = zip(*some(list(zip(table.shards, table.counts.tolist(), strict=True)), 8), strict=True)
        n = min(self.setting.buffer_size, sum(counts))
        few = max(1, min(self.setting.batch_size, n // 4))
        if n <= few:
            return m
        whole, part = (
            self._stream_seconds(list(urls), table.url, n, choice) for choice in (None, UniformChoice(few, seed=0))
        )
        decoded = max(whole - part, 0.0) / (n - few)
        self.notes = [note for note in self.notes if not note.startswith("the loader's hand-over")]
        return replace(m, hand_over=max(decoded - m.read - m.decode, 0.0), join=max(whole / n - decoded, 0.0))

    def _stream_seconds(self, urls: list[str], table: str, n: int, choice: UniformChoice | None) -> float:
        """Of one buffer."""
        p = self.preprocess
        size: dict[str, Any] = (
            {"image_size": p.image_size, "resize": p.resize}
            if isinstance(p, Preprocess)
            else {"tokenizer": p.tokenizer, "text_length": p.length, "task": p.task}
        )
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
                **size,
            )
        )
        return measure.seconds_of(lambda: next(buffers), self.seconds / SHARES / 2)

    def _assumed(self, decode: float) -> float:
        self.notes.append(
            f"the loader's hand-over is taken as {ASSUMED_HAND_OVER:.0%} of the decode; with --il it is measured"
        )
        return ASSUMED_HAND_OVER * decode

    def _build(self, name: str) -> torch.nn.Module:
        torch.manual_seed(torch_seed("estimate"))
        return measure.on(
            self.device,
            models.build(
                name,
                classes=self.classes,
                initial=False,  # time needs no weights
                **self.preprocess.model_arguments(),
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

    def _macs(self, model: torch.nn.Module) -> int:
        with users_code(f"the forward of {type(model).__name__} on a batch of shape {tuple(self.x[:1].shape)}"):
            return max(1, macs_per_sample(model, self.x[:1]))
