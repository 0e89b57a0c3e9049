"""`rhostream estimate`: measure the parts of a step on this machine, then say what a run will cost.

shards > samples > measured seconds > advice (pure) > text
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rhostream import models, storage
from rhostream.advisor.advice import Advice, advise
from rhostream.advisor.bench import Bench
from rhostream.advisor.il_share import ILShare, il_share
from rhostream.advisor.measure import Budget
from rhostream.advisor.parallel import Parallel, parallel
from rhostream.advisor.predict import ILCost, Measured, Setting
from rhostream.advisor.referenced import reference_of
from rhostream.advisor.samples import draw, preprocess_for, require_built_in
from rhostream.doctor import cpu_name
from rhostream.errors import UntrustedCodeError, UsageError
from rhostream.il_model.bounds import at_most
from rhostream.inert import one_line
from rhostream.runs.doubts import Plan
from rhostream.samples.registry import asked
from rhostream.samples.wanted import Wanted
from rhostream.selection.hardware import device_of
from rhostream.stream.plan import buffers_in, choose_lanes
from rhostream.tables import il as il_table
from rhostream.tables.names import checked_roots

HELD = 512  # samples at most that are kept in memory as bytes
FIT_SAMPLES, FIT_FOLDS = 100_000, 2  # fit-il's own defaults


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
    il_share: ILShare  # of one run of rho
    advice: Advice
    notes: tuple[str, ...]
    parallel: Parallel | None  # over several ranks
    unmeasured: tuple[str, ...]  # what the seconds granted didn't reach
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
    il_size: int | None = None,
    reference: str | None = None,
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
    ranks: int = 1,
    bandwidth: float = 1.25,
) -> Estimate:
    """Measure for about `seconds` and predict what selection will cost with this model on these shards.

    Scores, a training step and the decode are always measured, if by one call on two samples; what the seconds don't
    reach after that is named in `unmeasured`. A call that has begun, and the fetch of a first shard, are not cut off.

    `il`: a table of compute-il or index; with it samples are counted and the loader itself is measured. `reference`:
    instead of an IL model a model that exists, as of `compute_il`: no fit is charged, and its own forward is measured.
    `il_size`: the pixels that the IL model sees, where they are other than the model's.
    `steps`: of the baseline run that the IL is charged to (default: one pass over everything). `band` are quantiles of
    il.
    `ranks`: devices like this one, `bandwidth` GB/s between them: what a step takes where all score and train, and
    where some score while the others train.
    Nothing is written but a log of a few thousand rows in a temporary folder. Raises UsageError and its kin.
    """
    started = time.perf_counter()
    budget = Budget(seconds, started)
    _check(buffer_size, batch_size, workers, seconds, steps, band, shortlist)
    if ranks < 1 or not bandwidth > 0:
        raise UsageError(f"--ranks {ranks} --bandwidth {bandwidth:g}: expected at least 1, and more than 0 GB/s")
    place = device_of(device)
    shards, roots = storage.listed(shards), checked_roots(roots)
    table = None
    if il is not None:
        table = il_table.open_table(il, storage.expand(shards), roots, allow_missing=True)
        if not table.names:
            raise UsageError(f"{storage.redact(il)} has no part for any of these shards; leave --il out")
        require_built_in(table)
    given = asked(Wanted(tokenizer=tokenizer))
    task = task or models.task_of(model)
    samples = draw(shards, min(buffer_size, HELD), table, 0.1 * seconds, given, task == "language")
    preprocess = preprocess_for(samples, table, image_size, tokenizer, text_length, task, channels, resize)
    preprocess, view_sizes = preprocess.with_decoder(decoder_name), list(view_sizes)
    if view_sizes and not preprocess.side:
        raise UsageError(f"--view-size {view_sizes[0]} is for images, and these samples are {preprocess.holds}")
    sizes = _views(view_sizes, preprocess.side) if preprocess.side else []
    known_classes = classes or (table.info.classes if table else None)
    classes = known_classes or max(samples.label) + 1
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
    there = table is not None and table.info.kind == "il"
    if reference is not None:
        if il_model is not None:
            raise UsageError("give --il-model or --reference, not both: a table has one source of il")
        there = there and table is not None and table.info.reference.get("name") == reference
        known = {"reference": {"name": reference}, "fit_samples": 0, "checked_samples": 0}
    if il_size is not None and (reference is not None or not preprocess.side or il_size < 1):
        raise UsageError(f"--il-size {il_size}: expected 1 or more, of an IL model that sees images")
    small, proxy = preprocess.small_models
    il_name = reference or il_model or known.get("architecture") or small
    UntrustedCodeError.unless_named(str(il_name), reference or il_model, storage.redact(il or ""), "--il-model")
    bench = Bench(preprocess, classes, samples, preprocess.decoder, place, setting, budget)
    if reference is not None:
        bench.reference = reference_of(
            reference, preprocess, classes, bench.buffer, bench.x, place, known=known_classes is not None
        )
    of_the_table = il_size is None and ("reference" in known or il_model in (None, known.get("architecture")))
    bench.il_size, bench.il_macs = il_size, known.get("macs") if of_the_table and reference is None else None
    measured = bench.measure(model, il_name, proxy, sizes, table)
    cost = _il_cost(samples.total, known if of_the_table else {}, table)
    return Estimate(
        model=model, il_model=il_name, proxy=proxy, device=str(place), decoder=preprocess.decoder,
        machine=torch.cuda.get_device_name(place) if place.type == "cuda" else cpu_name(),
        image_size=preprocess.side, channels=preprocess.model_arguments().get("channels", 0),
        input=preprocess.in_words(),
        classes=classes, batch_norm=bench.batch_norm,
        il_there=there, counted=samples.counted, setting=setting,
        measured=measured, il=cost, il_share=il_share(measured, setting, cost), advice=advise(measured, setting, cost),
        notes=(
            *bench.notes,
            *_of_a_reference(known, il_name, bench.reference is not None),
            *(setting_doubts(setting) if samples.counted else ()),
        ),
        parallel=parallel(measured, setting, ranks, bandwidth * 1e9),
        unmeasured=tuple(budget.unmeasured), seconds=time.perf_counter() - started,
    )  # fmt: skip


def _of_a_reference(known: Mapping[str, Any], measured: str, timed: bool) -> list[str]:
    """What is to be known of the cost of a table that a reference makes: nothing is fitted. `timed`: itself, not
    `measured` in its place."""
    if not isinstance(reference := known.get("reference"), Mapping):
        return []
    name = one_line(str(reference.get("name")), 120)
    priced = (
        "its own forward was timed" if timed else f"scoring is priced as if it were {measured}; --reference times it"
    )
    return [f"the il are of the reference {name}: none was fitted, and {priced}"]


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
    """As the table's model says of itself, else the most that fit-il's defaults would cost of so many samples."""
    scored = table.il_rows if table else 0
    pooled = 0 if "reference" in known else min(samples, FIT_SAMPLES)
    folds = int(known.get("folds", FIT_FOLDS))
    trained, looks = at_most(pooled, folds)
    trained = int(known.get("fit_samples", trained))
    return ILCost(
        trained=trained, checked=int(known.get("checked_samples", looks)), pooled=pooled, scored=scored or samples
    )
