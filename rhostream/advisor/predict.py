"""What a step costs and from what saving selection pays: pure functions of measured seconds, no clock and no file.

    Measured + Setting > StepCost (core seconds by phase) > wall (overlapped over workers and threads) > break-even

Nothing is learned or fitted but one thing: how a model on a CPU slows down when the loader's workers take cores from
it, by Amdahl's law through two measured points, one thread and all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

RUNS = (1, 3, 10)  # runs that share one IL table


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the user would run. `n_B` = buffer_size, `n_b` = batch_size, `samples` in all shards."""

    buffer_size: int
    batch_size: int
    samples: int
    workers: int = 0
    steps: int | None = None  # of the baseline run that the IL is charged to; None: one pass over everything
    band: tuple[float, float] = (0.2, 0.9)  # quantiles of il that are kept
    shortlist: int = 4  # r: a shortlist holds r x n_b

    @property
    def baseline_steps(self) -> int:
        """Steps of the run that selection is compared with."""
        return self.steps or max(1, self.samples // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds on this machine: of one core and one sample, unless said otherwise; the model's with all its threads."""

    cores: int
    on_cpu: bool  # the model runs on the cores that the loader wants too
    read: float  # the bytes of one image, by offset
    decode: float  # at full size
    hand_over: float  # of the loader beyond read and decode, a decoded sample
    join: float  # plan, join and message, a planned sample whether it is decoded or not
    log: float  # a row of the selection log, its share of the file included
    score: float  # a sample of a scoring forward of n_B, float32, choice included
    train: float  # a whole forward, backward and optimizer step of n_b
    proxy: float  # a sample of the proxy's forward
    score_bf16: float | None = None  # None: not supported here
    score_chunked: float | None = None
    view_decode: Mapping[int, float] = field(default_factory=dict)  # by pixels
    view_score: Mapping[int, float] = field(default_factory=dict)  # only of views that the model can take
    score_slowdown: float = 1.0  # of one thread against all
    train_slowdown: float = 1.0
    walk: float = 0.0  # a sample of the tar walk with labels, as `index` does it
    il_forward: float = 0.0
    il_train: float = 0.0  # a sample of the IL model's forward, backward and step
    macs: int = 1  # of one forward of one sample: target, proxy, IL model, and the target on views
    proxy_macs: int = 0
    il_macs: int = 0
    view_macs: Mapping[int, int] = field(default_factory=dict)
    parameters: int = 0  # of the target
    row_bytes: int = 0  # of one decoded sample


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One step of one way to choose. Seconds: `load` and `late` of one core, the others of the model's device."""

    name: str
    load: float  # before the forward: read, decode, hand over; goes to workers
    score: float
    train: float
    log: float
    late: float = 0.0  # read and decoded at full size after the score is known; not overlapped
    forwards: float = 0.0  # units: samples forwarded by the target; a backward counts two
    planned: int = 0  # samples the step uses up of a pass


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the cores are best divided, and what a step takes then, in wall seconds."""

    workers: int
    threads: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ILCost:
    """What an IL table costs, once: samples through the IL model."""

    trained: int  # forward and backward, over folds and epochs
    checked: int  # forward only, while fitting
    pooled: int  # read and decoded to learn from
    scored: int  # read, decoded and forwarded by compute-il

    def seconds(self, m: Measured, workers: int = 0) -> float:
        """Wall seconds of fit-il and compute-il with so many workers each."""
        load, hands = m.read + m.decode + m.walk, max(workers, 1)
        fit = self.pooled * load / hands + self.trained * m.il_train + self.checked * m.il_forward
        return fit + self.scored * (max(load / workers, m.il_forward) if workers else load + m.il_forward)

    def units(self, m: Measured) -> float:
        """In forwards of the target, by multiply-adds."""
        return (3 * self.trained + self.checked + self.scored) * m.il_macs / m.macs


# -- ways to choose --------------------------------------------------------------------------------------------------


def plain(
    m: Measured, s: Setting, name: str = "rho", buffer_size: int | None = None, score: float | None = None
) -> StepCost:
    """Selection without a lever: everything is decoded and scored."""
    n = buffer_size or s.buffer_size
    return StepCost(
        name=name,
        load=_load(m, n, n),
        score=n * (m.score if score is None else score),
        train=m.train,
        log=n * m.log,
        forwards=n + 3.0 * s.batch_size,
        planned=n,
    )


def unscored(m: Measured, s: Setting, name: str, planned: int) -> StepCost:
    """n_b of `planned` samples, chosen before a byte is read and without a forward: uniform, il alone, everything."""
    return StepCost(
        name=name,
        load=_load(m, s.batch_size, planned),
        score=0.0,
        train=m.train,
        log=planned * m.log,
        forwards=3.0 * s.batch_size,
        planned=planned,
    )


def band(m: Measured, s: Setting) -> StepCost:
    """Only samples whose il lies between two quantiles are read, decoded and scored."""
    low, high = s.band
    n = _in_band(s)
    return StepCost(
        name=f"band {low:.0%}:{high:.0%}",
        load=_load(m, n, s.buffer_size),
        score=n * m.score,
        train=m.train,
        log=s.buffer_size * m.log,
        forwards=n + 3.0 * s.batch_size,
        planned=s.buffer_size,
    )


def proxy_shortlist(m: Measured, s: Setting) -> StepCost:
    """A tiny model, trained on the same batches, names r x n_b; the target scores those."""
    return _by_proxy(m, s, f"shortlist proxy:{s.shortlist}", s.buffer_size, m.score)


def view(m: Measured, s: Setting, pixels: int) -> StepCost:
    """Score on images decoded at `pixels`; the kept are decoded once more, at full size."""
    return _by_view(m, s, pixels, f"view {pixels} px", 0)


def view_shortlist(m: Measured, s: Setting, pixels: int) -> StepCost:
    """The view names r x n_b; those are decoded at full size and scored again."""
    return _by_view(m, s, pixels, f"view {pixels} px, shortlist view:{s.shortlist}", _short(s))


def together(m: Measured, s: Setting) -> StepCost:
    """Band, proxy shortlist and, where it is faster, bfloat16 at once."""
    score = min(m.score, m.score if m.score_bf16 is None else m.score_bf16)
    low, high = s.band
    name = f"band {low:.0%}:{high:.0%} + proxy:{s.shortlist}" + (" + bfloat16" if score < m.score else "")
    return _by_proxy(m, s, name, _in_band(s), score)


def levers(m: Measured, s: Setting) -> list[StepCost]:
    """Every way to make a selection step cheaper that can be taken here, the plain one first."""
    half = max(s.batch_size, s.buffer_size // 2)
    found = [plain(m, s), band(m, s), proxy_shortlist(m, s)]
    found += [way(m, s, pixels) for pixels in sorted(m.view_score, reverse=True) for way in (view, view_shortlist)]
    if m.score_bf16 is not None:
        found.append(plain(m, s, "bfloat16 scores", score=m.score_bf16))
    if half < s.buffer_size:
        found.append(plain(m, s, f"ratio {s.batch_size} of {half}", buffer_size=half))
    il_alone = unscored(m, s, f"il alone (band 0%:{s.batch_size / s.buffer_size:.0%})", s.buffer_size)
    return [*found, il_alone, together(m, s)]


def uniform(m: Measured, s: Setting) -> StepCost:
    """The baseline of equal steps: a random n_b of each buffer."""
    return unscored(m, s, "uniform", s.buffer_size)


def everything(m: Measured, s: Setting) -> StepCost:
    """The baseline of equal data: every sample is trained on, n_b a step."""
    return unscored(m, s, "everything", s.batch_size)


def _load(m: Measured, decoded: int, planned: int, decode: float | None = None) -> float:
    """Core seconds of the loader for so many samples decoded of so many planned."""
    return decoded * (m.read + (m.decode if decode is None else decode) + m.hand_over) + planned * m.join


def _short(s: Setting) -> int:
    return min(s.shortlist * s.batch_size, s.buffer_size)


def _in_band(s: Setting) -> int:
    return max(s.batch_size, round(s.buffer_size * (s.band[1] - s.band[0])))


def _by_proxy(m: Measured, s: Setting, name: str, n: int, score: float) -> StepCost:
    short, share = min(_short(s), n), m.proxy_macs / m.macs
    return StepCost(
        name=name,
        load=_load(m, n, s.buffer_size),
        score=n * m.proxy + short * score,
        train=m.train + 3 * s.batch_size * m.proxy,
        log=s.buffer_size * m.log,
        planned=s.buffer_size,
        forwards=short + 3.0 * s.batch_size + (n + 3.0 * s.batch_size) * share,
    )


def _by_view(m: Measured, s: Setting, pixels: int, name: str, short: int) -> StepCost:
    n, again = s.buffer_size, short or s.batch_size
    return StepCost(
        name=name,
        load=_load(m, n, n, m.view_decode[pixels]),
        late=again * (m.read + m.decode),
        score=n * m.view_score[pixels] + short * m.score,
        train=m.train,
        log=n * m.log,
        planned=n,
        forwards=n * m.view_macs.get(pixels, 0) / m.macs + short + 3.0 * s.batch_size,
    )


# -- when it pays ----------------------------------------------------------------------------------------------------


def saving_needed(step: float, baseline: float, once: float = 0.0, runs: int = 1, steps: int = 1) -> float | None:
    """How many times fewer steps selection must need to be cheaper than a baseline of `steps` steps.

    `step` and `baseline` are costs of one step, `once` what is paid before `runs` runs, all in one unit (seconds or
    forwards): step x steps / x + once / runs = baseline x steps. None: what is paid once is more than the baseline's
    whole run.
    """
    room = baseline - once / (runs * steps)
    return step / room if room > 0 else None


def pass_seconds(cost: StepCost, s: Setting, step: float) -> float:
    """Wall seconds of one pass over all samples."""
    return math.floor(s.samples / cost.planned) * step
